"""Traces of some steps of a run, by JAX's profiler."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax

from jaxcls.data.batch import Batch
from jaxcls.learning.step import State
from jaxcls.training.stepping import Scores, Stepper

# The number of steps before the trace: the first steps are not typical.
FIRST = 3


@contextlib.contextmanager
def trace(folder: pathlib.Path) -> Iterator[None]:
    """Writes a trace of the block into `folder`, without Python calls."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(str(folder), profiler_options=options):
        yield


@contextlib.contextmanager
def traced(
    stepper: Stepper, count: int, folder: pathlib.Path, say: Callable[[str], None]
) -> Iterator[Stepper]:
    """Yields a stepper that traces `count` steps, after the FIRST, into `folder`.

    The trace begins and ends between blocks, so with blocks of many steps it is longer. A
    count of 0 traces nothing.

    say: Receives one line that names the folder of the trace.
    """
    if not count:
        yield stepper
        return
    begun = first = 0
    tracing = contextlib.ExitStack()
    # The steps begun at which the trace begins and ends.
    marks = [FIRST, FIRST + count]

    def tell() -> None:
        say(
            f"profile: a trace of {begun - first} steps is in {folder}; xprof, TensorBoard"
            " and Perfetto show it"
        )

    def advance(state: State, block: Sequence[Batch]) -> tuple[State, Scores]:
        nonlocal begun, first
        if marks and begun >= marks[0]:
            jax.block_until_ready(state)
            marks.pop(0)
            if marks:
                first = begun
                tracing.callback(tell)  # It runs once the trace is written.
                tracing.enter_context(trace(folder))
            else:
                tracing.close()
        begun += len(block)
        return stepper.advance(state, block)

    with tracing:
        yield stepper._replace(advance=advance)
