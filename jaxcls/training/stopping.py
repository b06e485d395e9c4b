"""SIGTERM and Ctrl-C -> a run that saves what it has and leaves with status 75."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from jaxcls.errors import INTERRUPTED, STOPPED

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether a run was asked to stop; by itself it never is.

    Until `poll` was called the run has nothing to save and may be in a compilation that
    takes minutes, so the first signal ends the process at once, with 75. From then on
    the first one asks, and the run looks at `requested`. A second one leaves with 130.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._polls = False
        self._runs: list[Callable[[], None]] = []

    @property
    def requested(self) -> bool:
        """Whether to save and leave, as soon as that is possible."""
        return self._asked.is_set()

    def poll(self) -> None:
        """From now on the run looks at `requested` often enough."""
        self._polls = True

    @contextlib.contextmanager
    def during(self, before_leaving: Callable[[], None]) -> Iterator[None]:
        """While a run lasts: what is called if the process has to leave at once.

        When no run is under way any more it is as before `poll`: another may begin.
        """
        self._runs.append(before_leaving)
        try:
            yield
        finally:
            self._runs.remove(before_leaving)
            self._polls = self._polls and bool(self._runs)

    def ask(self) -> None:
        """What one signal does."""
        if self._asked.is_set():
            _leave("interrupted at once", INTERRUPTED)
        self._asked.set()
        if not self._polls:
            for before_leaving in list(self._runs):
                before_leaving()
            _leave("stopped before the first step; the same command starts", STOPPED)


@contextlib.contextmanager
def on_signals() -> Iterator[Stop]:
    """A `Stop` that SIGTERM and Ctrl-C ask, in the main thread of a command.

    A thread reads them from a pipe that the interpreter's own C code writes: a handler in
    Python would wait for XLA to return from a compilation.
    """
    stop = Stop()
    out, into = os.pipe()
    os.set_blocking(into, False)

    def watch() -> None:
        while number := os.read(out, 1):
            if number[0] in SIGNALS:
                stop.ask()

    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    previous = signal.set_wakeup_fd(into, warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(previous)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(into)
        watcher.join()
        os.close(out)


def _leave(text: str, status: int) -> None:
    """End the process from any thread, whatever the others do."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(status)
