"""What does the steps of a run: its own program, or (`together`) a row of one of several.

A run is a generator, so that several may be under way at once, in one thread.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import jax

from jaxcls.experiment import Experiment
from jaxcls.step import State

T = TypeVar("T")
# A run under way: between one `next` and another it does a step.
Running = Generator[None, None, T]
# A batch as `Steps` gives and takes it, and what gives the metrics of a step done.
Batch = dict[str, Any]
Scores = Callable[[], Mapping[str, Any]]


class Steps(Protocol):
    """What holds the state of a run and advances it, step by step."""

    # What manifest.json says of it besides the devices.
    topology: dict[str, int]

    def compile(self) -> None:
        """Make the program, unless it is there; raises `InputError` if it cannot fit."""
        ...

    def put(self, state: State) -> None:
        """The next step starts from `state`."""
        ...

    def take(self) -> State:
        """The state after all steps begun; donated by the next."""
        ...

    def batches(self, start: int) -> Iterator[Batch]:
        """The batches of steps from `start` on."""
        ...

    def begin(self, batch: Batch) -> None:
        """Begin a step, which is under way after the next `yield` of the run."""
        ...

    def scores(self) -> Scores:
        """What gives the metrics of the step begun last, and waits for it."""
        ...


class Alone:
    """`Steps` of one run by its experiment's own program."""

    def __init__(self, exp: Experiment) -> None:
        fsdp = exp.config.mesh.fsdp
        self.topology: dict[str, int] = {"fsdp": fsdp} if fsdp > 1 else {}
        self._exp = exp
        self._state: State | None = None
        self._scores: Mapping[str, jax.Array] = {}

    def compile(self) -> None:
        """Make the program; raises `InputError` where it cannot fit."""
        _ = self._exp.compiled_train_step

    def put(self, state: State) -> None:
        """The next step starts from `state`."""
        self._state = state

    def take(self) -> State:
        """The state after all steps begun."""
        assert self._state is not None
        return self._state

    def batches(self, start: int) -> Iterator[Batch]:
        """The batches of steps from `start` on, on the mesh."""
        return self._exp.train_batches(start)

    def begin(self, batch: Batch) -> None:
        """Begin a step."""
        self._state, self._scores = self._exp.compiled_train_step(self.take(), batch)

    def scores(self) -> Scores:
        """What gives the metrics of the step begun last."""
        found = self._scores
        return lambda: found


def finish(running: Running[T]) -> T:
    """Do all the steps of a run that is alone; what came of it."""
    while True:
        try:
            next(running)
        except StopIteration as ended:
            return ended.value
