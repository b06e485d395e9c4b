"""One pass from a state to the last step: next batch, step, log, evaluate, save.

At a step with several duties the order is: evaluate, write the records, sync them to
disk, save. A resume from checkpoint N drops the records after N, so a killed run ends
with the very files of one that was not. A rewind is such a resume without a death.
"""

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NoReturn

import jax
import numpy as np

from jaxcls import (
    checkpoint,
    digesting,
    durations,
    evaluate,
    hosts,
    logs,
    mesh,
    profiling,
    saving,
)
from jaxcls.errors import DivergedError, StoppedError
from jaxcls.experiment import Experiment
from jaxcls.step import State
from jaxcls.stepping import Batch, Running, Scores, Steps
from jaxcls.stopping import Stop
from jaxcls.watchdog import Watchdog
from jaxcls.workdir import Workdir

# Called with the digests of the state at a scheduled save.
OnDigest = Callable[[int, dict[str, str]], None]
# Steps that may be under way: each with what gives its metrics, and its wait for data.
Behind = collections.deque[tuple[int, Scores, float]]


class _NotFinite(Exception):
    """An update was not finite; `state` is as it was before."""

    def __init__(self, state: State) -> None:
        self.state = state


@dataclasses.dataclass
class Loop:
    """One pass from a state to the last step.

    until: a step to save and stop at, as if asked to; 0: none. on_digest: called with the
    digests of the state at every save of the schedule.
    """

    exp: Experiment
    steps: Steps
    folder: Workdir
    stop: Stop
    log: logs.RunLog
    saves: saving.Checkpoints
    dog: Watchdog
    until: int = 0
    on_digest: OnDigest = lambda step, digests: None
    # Whether a process asked to stop, as the last settled step said.
    asked: bool = False
    is_compiled: bool = False
    tracer: profiling.Tracer = dataclasses.field(init=False)
    # When the step before was done, or what was done between it and the next.
    _since: float = 0.0

    def __post_init__(self) -> None:
        count = self.exp.config.log.profile if hosts.is_first() else 0
        self.tracer = profiling.Tracer(self.folder.profile, count, self.log.line)

    @property
    def _rewinds(self) -> bool:
        return self.exp.config.nonfinite.policy == "rewind"

    def run(self, state: State, is_pending: bool) -> Running[State]:
        """`state` advanced to the last step, or to where early stopping halts it.

        is_pending: what is due at the step of `state` is not done yet.
        Raises `DivergedError` and `StoppedError`, with the state saved.
        """
        with self.tracer:
            while True:
                try:
                    return (yield from self._advance(state, is_pending))
                except _NotFinite as found:
                    state, is_pending = self._rewind(found.state)

    def _advance(self, state: State, is_pending: bool) -> Running[State]:
        """`run`, to the first update that is not finite and may not be skipped."""
        if int(state.bad_step) >= 0:
            raise _NotFinite(state)
        step = int(state.step)
        if is_pending:
            self.stop.poll()
            state = self._duties(state, step)
        if step == self.exp.steps or bool(state.halted):
            return state
        self.compile()
        self.stop.poll()
        hosts.agree({"the next step": step, "the last step": self.exp.steps})
        self.steps.put(state)
        return (yield from self._train(step))

    def _train(self, step: int) -> Running[State]:
        """The state at the last step, or where early stopping halts, from `step` on."""
        behind: Behind = collections.deque()
        known: tuple[int, ...] = (0,)
        self._since = time.perf_counter()
        for batch, waited in _timed(self.steps.batches(step)):
            shape = batch["image"].shape if "image" in batch else ()
            if shape != known:  # Where sizes grow, it compiles again.
                known = shape
                self.dog.beat(f"step {step + 1}, the first of its size", compiles=True)
            batch = mesh.with_flag(self.exp.mesh, batch, self.stop.requested)
            self.tracer.before(self._wait)
            has_duties = self._has_duties(step + 1)
            # A record says how fast it went, so a step that has one ends what goes at once.
            self.steps.begin(batch, more=not has_duties and not self._has_record(step + 1))
            yield
            step += 1
            behind.append((step, self.steps.scores(), waited))
            self._settle(behind, but=0 if has_duties else self.steps.ahead)
            self.log.step(step)
            if has_duties:
                state = self._duties(self.steps.take(), step)
                self.steps.put(state)
                self._since = time.perf_counter()
                if bool(state.halted):
                    self.log.line(
                        f"early stopping at step {step}: best at {state.best.step}"
                    )
                    break
            if self._is_asked(step) and step < self.exp.steps:
                self._settle(behind)
                self._leave(self.steps.take(), pending=False)
        return self.steps.take()

    def compile(self) -> None:
        """Compile the step, unless that is done; raises `InputError` if it cannot fit."""
        if self.is_compiled:
            return
        began = time.perf_counter()
        self.dog.beat("compiling the train step", compiles=True)
        self.steps.compile()
        seconds = time.perf_counter() - began
        self.log.meter.apart("compile", seconds)
        self.log.line(f"compiled in {seconds:.1f} s")
        self.is_compiled = True

    def _wait(self) -> None:
        """Wait for all steps begun."""
        jax.block_until_ready(self.steps.scores()())

    def asks(self, phase: str) -> Callable[[], bool]:
        """What an evaluation asks at each batch: whether to abandon it."""
        calls = itertools.count()

        def ask() -> bool:
            self.dog.beat(phase, compiles=next(calls) < 2)
            return self.stop.requested

        return ask

    def _is_asked(self, step: int) -> bool:
        """Whether to stop at `step`: the same on all processes."""
        asked = self.stop.requested if hosts.count() == 1 else self.asked
        return asked or step == self.until

    def _is_saved(self, step: int) -> bool:
        folder = self.folder.checkpoints
        return hosts.on_first(lambda: step in checkpoint.steps(folder))

    def _leave(self, state: State, *, pending: bool) -> None:
        """Save `state`, unless that was done, and raise `StoppedError`."""
        step = int(state.step)
        self.saves.wait()
        if not self._is_saved(step):
            self.log.sync()
            self.saves.save_now(state, checkpoint.digests(state), pending=pending)
        raise StoppedError(
            f"asked to; the state after step {step} is saved, and the same command goes on"
        )

    def _settle(self, behind: Behind, but: int = 0) -> None:
        """Wait for the steps that are behind, `but` for the last so many."""
        while len(behind) > but:
            self._settle_one(*behind.popleft())

    def _settle_one(self, step: int, scores: Scores, waited: float) -> None:
        """Wait for a step, which waited so many seconds for data; write a due record."""
        values = dict(scores())
        now = time.perf_counter()
        self.log.meter.stepped(now - self._since, waited)
        self._since = now
        self.asked |= bool(values.pop("asked", False))
        self.dog.beat(f"training, after step {step} of {self.exp.steps}")
        if not bool(values.pop("finite")):
            state = self.steps.take()
            if 0 <= int(state.bad_step) < step:  # Later: this one was skipped.
                raise _NotFinite(state)
            self._note_nonfinite(step, "skip")
            self.log.line(f"step {step}: the update was not finite, and is left out")
        if self._has_record(step):
            numbers = {name: float(value) for name, value in values.items()}
            self.log.train(step, {"loss": numbers.pop("loss"), **numbers})

    def _has_record(self, step: int) -> bool:
        return durations.is_due(step, self.exp.every["log"]) or step == self.exp.steps

    def _has_duties(self, step: int) -> bool:
        every, last = self.exp.every, step == self.exp.steps
        evaluates = self.exp.config.data.eval and durations.is_due(step, every["eval"])
        return bool(last or evaluates or durations.is_due(step, every["checkpoint"]))

    def _duties(self, state: State, step: int) -> State:
        """Evaluate, record, sync, save: what is due at `step`, in this order."""
        config, last = self.exp.config, step == self.exp.steps
        is_eval = durations.is_due(step, self.exp.every["eval"]) or last
        if config.data.eval and is_eval:
            began = time.perf_counter()
            try:
                state = self._evaluate(state, step)
            except evaluate.Abandoned:
                self._leave(state, pending=True)
            self.log.meter.apart("eval", time.perf_counter() - began)
        improved = int(state.best.step) == step
        is_save = durations.is_due(step, self.exp.every["checkpoint"])
        if is_save or improved or last or bool(state.halted):
            began = time.perf_counter()
            digests = checkpoint.digests(state)
            self.on_digest(step, digests)
            self.log.digest(step, digesting.combine(digests), digests)
            self.log.sync()
            # The best and the last cannot be made again by a later save.
            is_kept = improved or last or bool(state.halted)
            save = self.saves.save_now if is_kept else self.saves.save
            save(state, digests, anchor=is_save and self._rewinds)
            self.log.meter.apart("save", time.perf_counter() - began)
        return state

    def _evaluate(self, state: State, step: int) -> State:
        """The state that knows of the evaluation at `step`."""
        config = self.exp.config
        columns = evaluate.score_each(
            self.exp,
            state._asdict(),
            config.data.eval,
            "data.eval",
            abandon=self.asks(f"evaluating data.eval at step {step}"),
        )
        n, values = evaluate.means(columns)
        self.log.evaluation(step, "eval", config.data.eval, n, values)
        self.log.classes(step, "eval", columns, self.exp.data.class_names)
        return self.exp.record_evaluation(state, values[config.best.metric])

    def _note_nonfinite(self, step: int, kind: str, **more: int) -> None:
        """A record of the update that was to give `step`, and of its examples."""
        examples = self.exp.data.train_examples(step - 1).tolist()
        self.log.event(step, kind, **more, split=self.exp.config.data.train, index=examples)

    def _rewind(self, bad: State) -> tuple[State, bool]:
        """(state to go on from, whether what is due at its step is not done yet).

        The last scheduled checkpoint, with the batches since consumed without an update.
        Raises `DivergedError`, with `bad` saved, where the config does not allow it.
        """
        step = int(bad.bad_step)
        rewound = int((bad.rewound[:, 0] >= 0).sum())
        policy = self.exp.config.nonfinite
        if not self._rewinds or rewound >= policy.rewinds:
            self._diverge(bad)
        earliest = durations.step_of(1, self.exp.every["checkpoint"])
        found = self.saves.rewind(self.exp.state_like, to_start=earliest > step)
        if found is None and self.exp.initial:
            self.folder.check_same({"weights": self.exp.initial.fingerprint})
        start = self.exp.init() if found is None else found
        first = int(start.step)
        self.log.rewind(first)
        state = start._replace(
            step=start.step + (step + 1 - first),
            rewound=bad.rewound.at[rewound].set(np.array([first, step])),
        )
        self._note_nonfinite(step + 1, "rewind", to=first)
        self.log.line(
            f"step {step + 1}: the update was not finite; back to step {first}, and on"
            f" without the batches since ({rewound + 1} of {policy.rewinds} rewinds)"
        )
        self.log.sync()
        pending = self._has_duties(step + 1)
        digests = checkpoint.digests(state)
        self.saves.save_now(state, digests, pending=pending, anchor=not pending)
        if pending:
            self.saves.take_pending(step + 1)
        return state, pending

    def _diverge(self, state: State) -> NoReturn:
        """Save the last finite state, if that is not done, and raise `DivergedError`."""
        step = int(state.bad_step)
        self.saves.wait()  # One under way may be of this very step.
        if not self._is_saved(step):
            self.log.sync()
            self.saves.save_now(state, checkpoint.digests(state))
        self._note_nonfinite(step + 1, "diverged")
        raise DivergedError(
            f"the loss or a gradient was not finite in the update after step {step}"
            f" (lr peak {self.exp.lr:g}); the state before it is"
            f" {self.folder.given}/checkpoints/{step}, and metrics.jsonl lists the batch;"
            " in a new --workdir try a lower --config.optim.lr, --config.optim.clip_norm=1"
            " or another --config.nonfinite.policy (stop, skip, rewind)"
        )


def duties_left(exp: Experiment, step: int) -> dict[str, int]:
    """How many evaluations ("eval") and scheduled saves ("save") come after `step`."""
    last = exp.steps

    def left(every: Fraction) -> int:
        scheduled = durations.periods(last, every) - durations.periods(step, every)
        return scheduled + (step < last and not durations.is_due(last, every))

    evaluations = left(exp.every["eval"]) if exp.config.data.eval else 0
    return {"eval": evaluations, "save": left(exp.every["checkpoint"])}


def _timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """(batch, seconds waited for it)."""
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - began
