"""A watchdog ends a run without progress, and reports its last phase."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from jaxcls.errors import LOST

# The most seconds of what is done before the process ends.
_LAST = 10.0


class Watchdog:
    """Ends the process, with status 70, if no `beat` comes in time. A context manager.

    first: The most seconds from a beat that compiles to the next; 0 is no limit.
    later: The most seconds from any other beat to the next; 0 is no limit.
    save: The most seconds of a `saving`; 0 is no limit.
    who: The process in messages, such as "process 1 of 4", or "the run".
    before: Called before the process ends.
    """

    def __init__(
        self,
        first: float,
        later: float,
        save: float,
        who: str,
        before: Callable[[], None],
    ) -> None:
        self._first, self._later, self._save = first, later, save
        self._who, self._before = who, before
        self._ended = threading.Event()
        self._last = time.monotonic(), "starting", first
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._first or self._later or self._save:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def beat(self, phase: str, *, compiles: bool = False) -> None:
        """Reports that the run has reached `phase`.

        compiles: Whether a compilation may come before the next beat.
        """
        self._last = time.monotonic(), phase, self._first if compiles else self._later

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Ends the process if the block, a part of a save, takes too long."""
        _, phase, limit = self._last
        self._last = time.monotonic(), "saving a checkpoint", self._save
        try:
            yield
        finally:
            self._last = time.monotonic(), phase, limit

    def _watch(self) -> None:
        limits = self._first, self._later, self._save
        shortest = min(limit for limit in limits if limit)
        while not self._ended.wait(min(1.0, shortest / 4)):
            since, phase, limit = self._last
            if limit and time.monotonic() - since > limit:
                self._end(phase, limit)

    def _end(self, phase: str, limit: float) -> None:
        said = (
            f"watchdog: {self._who} has got nowhere for {limit:g} s: {phase}. A disk or"
            " another process may be stuck or gone. What each thread was doing follows;"
            " start the run again, and it goes on from its last checkpoint (a slow disk"
            " needs a larger --config.watchdog.later; 0 is no limit)"
        )
        try:
            with contextlib.suppress(OSError, ValueError):  # The terminal may be gone.
                print(said, file=sys.stderr, flush=True)
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
            # It may write to the very disk that is stuck.
            last = threading.Thread(target=self._before, daemon=True)
            last.start()
            last.join(_LAST)
        finally:
            os._exit(LOST)
