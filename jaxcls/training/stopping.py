"""SIGTERM, SIGHUP and Ctrl-C -> a run that saves its state and exits with status 75."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from jaxcls.errors import INTERRUPTED, STOPPED

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stop:
    """A request to stop a run; `ask` makes it.

    requested: Whether to save and exit as soon as possible.

    Before `poll` the run has nothing to save and may compile for minutes. So the first
    signal ends the process at once, with status 75. After `poll` the first signal sets
    `requested`, which the run checks. A second signal ends the process at once, with status
    130.
    """

    def __init__(self) -> None:
        self.requested = False
        self._polls = False
        self._before_leaving: Callable[[], None] = lambda: None

    def poll(self) -> None:
        """Declares that the run checks `requested` often from now on."""
        self._polls = True

    @contextlib.contextmanager
    def during(self, before_leaving: Callable[[], None]) -> Iterator[None]:
        """Registers the run of the block; after it another may begin, before its `poll`.

        before_leaving: Called if the process has to exit at once.
        """
        self._before_leaving = before_leaving
        try:
            yield
        finally:
            self._before_leaving, self._polls = lambda: None, False

    def ask(self) -> None:
        """Handles one signal."""
        if self.requested:
            _leave("interrupted at once", INTERRUPTED)
        self.requested = True
        if not self._polls:
            self._before_leaving()
            _leave("stopped before the first step; the same command starts", STOPPED)
        _say("stopping: the state is saved first; a second signal ends at once")


@contextlib.contextmanager
def on_signals() -> Iterator[Stop]:
    """Yields a `Stop` that `SIGNALS` ask; for the main thread of a command.

    SIGHUP, of a terminal that is closed, is left alone where it is ignored, as by nohup. A
    second SIGHUP asks nothing more.

    The interpreter's C code writes signals to a pipe, and a thread reads them. A Python
    handler would wait until XLA returns from a compilation.
    """
    stop = Stop()
    out, into = os.pipe()
    os.set_blocking(into, False)

    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    heard = [each for each in SIGNALS if each != signal.SIGHUP or not is_ignored]

    def watch() -> None:
        while number := os.read(out, 1):
            # A terminal that closes sends SIGHUP twice: its shell does, and the kernel.
            is_again = number[0] == signal.SIGHUP and stop.requested
            if number[0] in heard and not is_again:
                stop.ask()

    before = {number: signal.signal(number, lambda *_: None) for number in heard}
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
    """Ends the process from any thread, whatever the other threads do."""
    _say(text)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(status)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
