"""What does the steps of a run: its own program, or (`together`) a row of one of several.

A run is a generator, so that several may be under way at once, in one thread.
"""

import collections
import functools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import jax
import numpy as np

from jaxcls import hosts, mesh
from jaxcls.errors import InputError
from jaxcls.experiment import Experiment
from jaxcls.looping import MOST
from jaxcls.step import State

T = TypeVar("T")
# A run under way: between one `next` and another it does a step.
Running = Generator[None, None, T]
# A batch as `Steps` gives and takes it, and what gives the metrics of a step done.
Batch = dict[str, Any]
Scores = Callable[[], Mapping[str, Any]]
# What `Looped` begins at once takes about so many seconds: two of these are under way
# when a run is asked to stop: it answers within a second where a step is as short.
_SECONDS = 0.25
NOT_RESIDENT = (
    "the images of data.train are not kept on the device (data.resident); take"
    " fewer or smaller ones without random host ops"
)


class Steps(Protocol):
    """What holds the state of a run and advances it, step by step."""

    # What manifest.json says of it besides the devices.
    topology: dict[str, int]
    # How many of the steps begun last need not be waited for yet: so many keep the device
    # busy, and more would only pile up batches in its memory.
    ahead: int

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

    def begin(self, batch: Batch, more: bool = False) -> None:
        """Begin a step, which is under way after the next `yield` of the run.

        more: it may wait for the next one, until something is asked of it.
        """
        ...

    def scores(self) -> Scores:
        """What gives the metrics of the step begun last, and waits for it."""
        ...

    def program(self, shape: tuple[int, ...]) -> str:
        """The text of the program that does a step of images [B, H, W, C]."""
        ...


def own(exp: Experiment) -> Steps:
    """`Steps` of one run by its own program; raises `InputError` for a loop that cannot be.

    Whether that is a loop follows from config, data and devices alone.
    """
    asked = exp.config.compile.loop
    if asked == "off" or (asked == "auto" and not mesh.is_accelerator(exp.mesh)):
        return Alone(exp)
    reason = no_loop(exp)
    if reason and asked == "on":
        raise InputError(f"compile.loop=on: {reason}, or leave compile.loop at 'auto'")
    return Alone(exp) if reason else Looped(exp)


def no_loop(exp: Experiment) -> str:
    """Why a recipe's steps cannot be a loop, and what helps; "" where they can."""
    if hosts.count() > 1:
        return "the steps of several processes begin one by one; start one process"
    return "" if exp.data.is_train_resident else NOT_RESIDENT


class Alone:
    """`Steps` of one run by its experiment's own program, one a dispatch."""

    ahead = 1

    def __init__(self, exp: Experiment) -> None:
        self.topology = _topology(exp)
        self._exp = exp
        self._state: State | None = None
        self._scores: Mapping[str, jax.Array] = {}

    def compile(self) -> None:
        """Make the program; raises `InputError` where it cannot fit."""
        _ = self._exp.programs.train_step

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

    def begin(self, batch: Batch, more: bool = False) -> None:
        """Begin a step."""
        self._state, self._scores = self._exp.programs.train_step(self.take(), batch)

    def scores(self) -> Scores:
        """What gives the metrics of the step begun last."""
        found = self._scores
        return lambda: found

    def program(self, shape: tuple[int, ...]) -> str:
        """The text of the program for images [B, H, W, C]."""
        return self._exp.programs.train_program(shape[1:]).as_text() or ""


class Looped:
    """`Steps` of one run by its experiment's loop over resident images, several a dispatch.

    How many go at once changes no bits: `size` at most, or 0: what takes `_SECONDS`.
    """

    def __init__(self, exp: Experiment, size: int = 0) -> None:
        self.topology = _topology(exp) | {"loop": 1}
        self.ahead = 0
        self._exp = exp
        self._size, self._is_timed = size or 1, not size
        self._now: State
        self._open = _Group()
        self._begun = self._open, 0
        self._ended = 0.0

    def compile(self) -> None:
        """Make the program; raises `InputError` where it cannot fit."""
        _ = self._exp.programs.train_loop

    def put(self, state: State) -> None:
        """The next step starts from `state`."""
        self._now = state

    def take(self) -> State:
        """The state after all steps begun."""
        self._dispatch()
        return self._now

    def batches(self, start: int) -> Iterator[Batch]:
        """Which examples the steps from `start` on are of; no images."""
        return self._exp.data.train_columns(start, self._exp.plan.steps)

    def begin(self, batch: Batch, more: bool = False) -> None:
        """Begin a step, with those that wait, or have it wait for more."""
        self._begun = self._open, len(self._open.batches)
        self._open.batches.append(batch)
        self.ahead += 1
        if not more or len(self._open.batches) >= self._size:
            self._dispatch()

    def scores(self) -> Scores:
        """What gives the metrics of the step begun last, and waits for it."""
        group, place = self._begun

        def found() -> Mapping[str, np.ndarray]:
            if group is self._open:
                self._dispatch()
            return {name: values[place] for name, values in group.scores().items()}

        return found

    def program(self, shape: tuple[int, ...]) -> str:
        """The text of the program."""
        return self._exp.programs.train_loop_program.as_text() or ""

    def _dispatch(self) -> None:
        """Do the steps that wait for it."""
        if not self._open.batches:
            return
        group, self._open = self._open, _Group()
        count = self.ahead = len(group.batches)
        columns = {
            name: np.zeros((MOST, *column.shape), column.dtype)
            for name, column in group.batches[0].items()
        }
        for place, batch in enumerate(group.batches):
            for name, column in batch.items():
                columns[name][place] = column
        began = time.perf_counter()
        self._now, scores = self._exp.programs.train_loop(self._now, columns, count)
        wait = functools.partial(self._wait, scores, count, began)
        group.scores = functools.cache(wait)

    def _wait(
        self, scores: Mapping[str, jax.Array], count: int, began: float
    ) -> Mapping[str, np.ndarray]:
        """The metrics [MOST] of `count` steps at once, which decide how many are next."""
        found = jax.device_get(scores)
        now = time.perf_counter()
        pace = (now - max(began, self._ended)) / count
        self._ended = now
        if self._is_timed:
            self._size = max(1, min(2 * self._size, MOST, int(_SECONDS / pace)))
        return found


class _Group:
    """Steps that go at once; `scores` gives their metrics [MOST] once they have begun."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.scores: Callable[[], Mapping[str, np.ndarray]] = dict


def _topology(exp: Experiment) -> dict[str, int]:
    fsdp = exp.config.mesh.fsdp
    return {"fsdp": fsdp} if fsdp > 1 else {}


def advance(steps: Steps, batches: Iterable[Batch]) -> Mapping[str, Any]:
    """Do the steps of all batches and wait for them; the metrics of the last."""
    behind: collections.deque[Scores] = collections.deque()
    for batch in batches:
        steps.begin(batch, more=True)
        behind.append(steps.scores())
        while len(behind) > steps.ahead:
            jax.block_until_ready(behind.popleft()())
    found: Mapping[str, Any] = jax.block_until_ready(behind[-1]())
    return found


def finish(running: Running[T]) -> T:
    """Do all the steps of a run that is alone; what came of it."""
    while True:
        try:
            next(running)
        except StopIteration as ended:
            return ended.value
