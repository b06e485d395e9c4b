"""Traces of compiled programs, by jax.profiler."""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax

# The number of steps before the trace: the first steps are not typical.
FIRST = 3


@contextlib.contextmanager
def trace(folder: pathlib.Path) -> Iterator[None]:
    """Writes a trace of the block into `folder`, without Python calls."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(str(folder), profiler_options=options):
        yield


class Tracer:
    """Traces `count` steps of a start, after the FIRST, into `folder`. A context manager.

    A count of 0 traces nothing.

    say: Receives one line that names the folder of the trace.
    """

    def __init__(
        self, folder: pathlib.Path, count: int, say: Callable[[str], None]
    ) -> None:
        self._folder, self._count, self._say = folder, count, say
        self._steps = 0
        self._tracing = contextlib.ExitStack()

    def __enter__(self) -> "Tracer":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._tracing.close()

    @property
    def room(self) -> int:
        """The most steps that may begin at once before the next call of `before`."""
        marks = (FIRST, FIRST + self._count) if self._count else ()
        return next((m - self._steps for m in marks if m > self._steps), sys.maxsize)

    def before(self, steps: int, settle: Callable[[], Any]) -> None:
        """Announces that `steps` steps, `room` at most, begin at once.

        settle: Waits for all earlier steps.
        """
        if not self._count or self._steps > FIRST + self._count:
            return
        if self._steps in (FIRST, FIRST + self._count):
            settle()
        if self._steps == FIRST:
            self._tracing.callback(self._tell)  # It runs once the trace is written.
            self._tracing.enter_context(trace(self._folder))
        if self._steps == FIRST + self._count:
            self._tracing.close()
        self._steps += steps

    def _tell(self) -> None:
        self._say(
            f"profile: a trace of {self._steps - FIRST} steps is in {self._folder}; xprof,"
            " TensorBoard and Perfetto show it"
        )
