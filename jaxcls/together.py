"""Several seeds of one recipe in one compiled program.

A program of N rows advances N states, stacked along a leading axis, by one step each. Its
rows do not know one another: what comes of one is a function of it, of N and of its place,
so a run that ended leaves its row idle and changes no other's bits, and a run goes on, or
is made again, whichever seeds the other rows hold by then.
"""

import contextlib
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls import hosts, memory, mesh
from jaxcls.errors import InputError, StoppedError
from jaxcls.experiment import Experiment
from jaxcls.step import State
from jaxcls.stepping import NOT_RESIDENT, Batch, Running, Scores, advance, own

T = TypeVar("T")
# A gain of less than this is not worth a topology of its own.
_WORTH = 1.1
# Seeds that are tried at once at most; beyond some tens nothing is gained.
_MOST = 32
# How a choice is measured: so many steps, so often, of each in turn.
_STEPS, _SEGMENTS = 20, 3


class Group:
    """The states of the runs of one recipe, and the program that advances all of them.

    exp: of any of the seeds. size: how many rows there are; those of no run are idle.
    """

    def __init__(self, exp: Experiment, size: int) -> None:
        self.exp, self.size = exp, size
        self._stack: State | None = None
        self._begun: dict[int, Batch] = {}
        self.scores: Callable[[], Mapping[str, np.ndarray]] = dict
        everywhere = mesh.replicated(exp.mesh)
        self._get = jax.jit(_row_of, out_shardings=everywhere)
        self._set = jax.jit(_with_row, donate_argnums=0, out_shardings=everywhere)
        self._spread = jax.jit(
            functools.partial(_spread, size=size), out_shardings=everywhere
        )

    @functools.cached_property
    def program(self) -> Any:
        """The compiled (stack, columns [N, B], data, teacher) -> (stack, metrics [N])."""
        exp = self.exp
        raw = exp.recipe.train_step()

        def step(
            states: State, columns: Batch, data: Batch, teacher: Any
        ) -> tuple[State, Any]:
            def one(state: State, columns: Batch) -> tuple[State, Any]:
                taken = {name: array[columns["index"]] for name, array in data.items()}
                return raw(state, {**taken, **columns}, teacher)

            return jax.vmap(one)(states, columns)

        everywhere = mesh.replicated(exp.mesh)
        column = jax.ShapeDtypeStruct((self.size, exp.config.batch_size), jnp.int32)
        return (
            jax.jit(step, donate_argnums=0, out_shardings=everywhere)
            .lower(
                jax.eval_shape(self._spread, exp.programs.state_like),
                {name: column for name in ("index", "epoch")},
                exp.data.train_resident(),
                exp.programs.teacher_variables,
            )
            .compile()
        )

    @property
    def lacks(self) -> int:
        """Bytes that the device has too few for the program; 0 where it fits."""
        limit = mesh.memory_limit(self.exp.mesh)
        needed = memory.step_bytes(self.program.memory_analysis())
        return max(0, needed - limit) if limit is not None else 0

    def put(self, row: int, state: State) -> None:
        """The next step of `row` starts from `state`."""
        if self._stack is None:  # The idle rows hold something too.
            self._stack = self._spread(state)
        self._stack = self._set(self._stack, state, row)

    def take(self, row: int) -> State:
        """A copy of the state of `row`."""
        return self._get(self._stack, row)

    def begin(self, row: int, columns: Batch) -> None:
        """`row` takes part in the next step, with these examples."""
        self._begun[row] = columns

    def step(self) -> None:
        """One step of every row that began one; the others are idle, and theirs is lost."""
        if not self._begun:
            return
        begun, self._begun = self._begun, {}
        some = next(iter(begun.values()))
        rows = [begun.get(row, some) for row in range(self.size)]
        columns = {name: np.stack([row[name] for row in rows]) for name in some}
        with memory.explained("--together", self.size):
            self._stack, scores = self.program(
                self._stack,
                mesh.put_everywhere(self.exp.mesh, columns),
                self.exp.data.train_resident(),
                self.exp.programs.teacher_variables,
            )
        self.scores = functools.cache(functools.partial(jax.device_get, scores))


class Row:
    """`Steps` of one run by row `number` of a group."""

    def __init__(self, group: Group, number: int, exp: Experiment) -> None:
        self.topology = {"together": group.size, "row": number}
        self.ahead = 1
        self._group, self._number, self._exp = group, number, exp

    def compile(self) -> None:
        """Make the program of all rows; raises `InputError` where it cannot fit."""
        if lacks := self._group.lacks:
            size = self._group.size
            raise InputError(
                f"--together={size}: the device has {lacks / 2**30:.2f} GiB too few; try"
                f" --together={size // 2}"
            )

    def put(self, state: State) -> None:
        """The next step starts from `state`."""
        self._group.put(self._number, state)

    def take(self) -> State:
        """A copy of the state after all steps begun."""
        return self._group.take(self._number)

    def batches(self, start: int) -> Iterator[Batch]:
        """Which examples the steps from `start` on are of; no images."""
        return self._exp.data.train_columns(start, self._exp.plan.steps)

    def begin(self, batch: Batch, more: bool = False) -> None:
        """Take part in the group's next step."""
        self._group.begin(self._number, batch)

    def program(self, shape: tuple[int, ...]) -> str:
        """The text of the program of all rows."""
        return self._group.program.as_text() or ""

    def scores(self) -> Scores:
        """What gives the metrics of the step begun last, and waits for it."""
        all_rows, row = self._group.scores, self._number
        return lambda: {name: values[row] for name, values in all_rows().items()}


def finish(group: Group, runs: Mapping[int, Running[T]]) -> Iterator[tuple[int, T]]:
    """Do the steps of all runs to their ends; (number, what came of it) as each ends.

    Where they are asked to stop, each saves its state first: then raises `StoppedError`.
    Any other error of one ends all of them.
    """
    left = dict(runs)
    stopped: StoppedError | None = None
    try:
        while left:
            for number, run in [*left.items()]:
                try:
                    next(run)
                    continue
                except StoppedError as asked:
                    stopped, ended = asked, None
                except StopIteration as end:
                    ended = end
                del left[number]
                if ended:
                    yield number, ended.value
            group.step()
    except BaseException as error:
        for run in left.values():  # How each start ended is said in its folder.
            with contextlib.suppress(BaseException):
                run.throw(error)
        raise
    if stopped:
        raise stopped


class Plan(NamedTuple):
    """Seeds that train at once, by row, in a program of `size` rows."""

    size: int
    seeds: dict[int, int]


def plans(
    seeds: Sequence[int], begun: Mapping[int, tuple[int, int]], size: int
) -> list[Plan]:
    """Which of the seeds train at once: `size` of those that are new, in their order.

    begun: {seed: (size, row)} of those that go on as they began.
    """
    found: list[Plan] = []
    for seed, (of, row) in begun.items():
        free = (plan for plan in found if plan.size == of and row not in plan.seeds)
        plan = next(free, None) if of > 1 else None
        if plan is None:
            found.append(plan := Plan(of, {}))
        plan.seeds[row] = seed
    new = [seed for seed in seeds if seed not in begun]
    for first in range(0, len(new), size):
        part = new[first : first + size]
        found.append(Plan(len(part), dict(enumerate(part))))
    return found


def check(exp: Experiment, size: int) -> None:
    """Raise `InputError`, saying why, where seeds of this recipe cannot train at once."""
    if reason := obstacle(exp):
        raise InputError(f"--together={size}: {reason}, or leave --together out")


def obstacle(exp: Experiment) -> str:
    """Why seeds of a recipe cannot train at once, and what helps; "" where they can."""
    if hosts.count() > 1:
        return "several processes train one run after the other; start one process"
    if exp.mesh.size > 1:
        return (
            f"{exp.mesh.size} devices train one run after the other; give"
            " --config.mesh.devices=1"
        )
    if exp.config.log.profile:
        return "log.profile traces the steps of one run; give --config.log.profile=0"
    return "" if exp.data.is_train_resident else NOT_RESIDENT


def choose(exps: Sequence[Experiment], group_of: Callable[[int], Group]) -> tuple[int, str]:
    """(how many seeds of a recipe to train at once, in words why), by measuring.

    exps: the recipe under each of the seeds. group_of: size -> the group. 1 where it
    cannot be, and on CPU, where convolutions of several seeds at once were always slower.
    """
    if len(exps) < 2 or not mesh.is_accelerator(exps[0].mesh) or obstacle(exps[0]):
        return 1, ""
    size = min(len(exps), _MOST)
    while size > 1 and group_of(size).lacks:
        size //= 2
    if size < 2:
        return 1, "one seed after the other: two at once do not fit the device's memory"
    timed = segments(group_of(size), exps[:size], _STEPS, _SEGMENTS)
    ratio = statistics.median(size * alone / together for alone, together in timed)
    said = f"{size} seeds at once are {ratio:.2f} times as fast as one after the other"
    return (size, said) if ratio >= _WORTH else (1, f"one seed after the other: {said}")


def segments(
    group: Group, exps: Sequence[Experiment], steps: int, count: int
) -> list[tuple[float, float]]:
    """(seconds a step of one seed, of all of them at once), timed in turn `count` times.

    Batches are made and moved as in a run; nothing is recorded, scored or saved.
    """
    timers = _alone(exps[0], steps), _at_once(group, exps, steps)
    for timer in timers:  # What compiles, and the first batches.
        next(timer)
    return [(next(timers[0]), next(timers[1])) for _ in range(count)]


def _alone(exp: Experiment, steps: int) -> Iterator[float]:
    """Seconds a step of one run, again and again."""
    alone = own(exp)
    alone.put(exp.init())
    batches = _endless(functools.partial(alone.batches, 0))
    while True:
        began = time.perf_counter()
        advance(alone, itertools.islice(batches, steps))
        yield (time.perf_counter() - began) / steps


def _at_once(group: Group, exps: Sequence[Experiment], steps: int) -> Iterator[float]:
    """Seconds a step of all runs in one program, again and again."""
    rows = [Row(group, number, exp) for number, exp in enumerate(exps)]
    for row, exp in zip(rows, exps, strict=True):
        row.put(exp.init())
    batches = [_endless(functools.partial(row.batches, 0)) for row in rows]
    while True:
        began = time.perf_counter()
        for _ in range(steps):
            for row, each in zip(rows, batches, strict=True):
                row.begin(next(each))
            group.step()
        group.scores()
        yield (time.perf_counter() - began) / steps


def _endless(batches: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
    return itertools.chain.from_iterable(batches() for _ in itertools.count())


def _spread(state: State, size: int) -> State:
    """A stack of `size` rows that are all `state`."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *x.shape)), state)


def _row_of(stack: State, row: int) -> State:
    return jax.tree.map(lambda x: x[row], stack)


def _with_row(stack: State, state: State, row: int) -> State:
    return jax.tree.map(lambda x, one: x.at[row].set(one), stack, state)
