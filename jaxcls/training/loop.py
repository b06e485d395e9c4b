"""One pass from a state to the last step: next batch, step, log, evaluate, save.

The duties of a step run in this order: evaluate, write the records, sync them to disk,
save. A resume from checkpoint N drops the records after N. So the files of a killed run
equal those of an uninterrupted run. A rewind is such a resume within one process.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

import jax
import numpy as np

from jaxcls.config import durations
from jaxcls.data.batch import Batch
from jaxcls.devices import hosts, mesh
from jaxcls.errors import DivergedError, StoppedError
from jaxcls.evaluation import passes, scoring
from jaxcls.experiment import Experiment
from jaxcls.experiment.plan import Plan
from jaxcls.learning.step import State
from jaxcls.runs import checkpoint, saving
from jaxcls.runs import digests as state_digests
from jaxcls.runs.workdir import Workdir
from jaxcls.training import stepping
from jaxcls.training.log import RunLog
from jaxcls.training.stepping import Scores, Stepper
from jaxcls.training.stopping import Stop
from jaxcls.training.watchdog import Watchdog

# (step, digests of the state) at a save.
OnDigest = Callable[[int, dict[str, str]], None]


class Begun(NamedTuple):
    """A block of `steps` steps up to step `last`, which may be under way.

    waited: The seconds that the loop waited for its batches.
    """

    last: int
    steps: int
    scores: Scores
    waited: float


@dataclasses.dataclass
class Loop:
    """The objects of a pass from a state to the last step, besides the state.

    until: A step to save and stop at, as if asked to; 0 is none.
    on_digest: Called with the digests of the state at each save that writes a digest.
    """

    exp: Experiment
    stepper: Stepper
    folder: Workdir
    stop: Stop
    dog: Watchdog
    log: RunLog
    saves: saving.Checkpoints
    until: int = 0
    on_digest: OnDigest = lambda step, digests: None
    plan: Plan = dataclasses.field(init=False)
    is_alone: bool = dataclasses.field(init=False)
    # Whether a process asked to stop, from the metrics of the last settled step.
    asked: bool = dataclasses.field(default=False, init=False)
    is_compiled: bool = dataclasses.field(default=False, init=False)
    # The most batches of the next block.
    size: int = dataclasses.field(default=1, init=False)
    # The time at which the last block or duty ended.
    _since: float = dataclasses.field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.plan, self.is_alone = self.exp.plan, hosts.count() == 1

    @property
    def _rewinds(self) -> bool:
        return self.exp.config.nonfinite.policy == "rewind"

    def run(self, state: State, is_pending: bool) -> State:
        """Returns `state` advanced to the last step, or until early stopping halts it.

        is_pending: True if the duties at the step of `state` are still due.

        Raises `DivergedError` and `StoppedError`, with the state saved.
        """
        while True:
            if int(state.bad_step) >= 0:
                state, is_pending = self._rewind(state)
            if is_pending:
                self.stop.poll()
                state = self._duties(state, int(state.step))
            if int(state.step) == self.plan.steps or bool(state.halted):
                return state
            state, is_pending = self._train(state), False

    def compile(self) -> None:
        """Compiles the step once; raises `InputError` if it does not fit in memory."""
        if self.is_compiled:
            return
        began = time.perf_counter()
        self.dog.beat("compiling the train step", compiles=True)
        self.stepper.compile()
        seconds = time.perf_counter() - began
        self.log.meter.apart("compile", seconds)
        self.log.line(f"compiled in {seconds:.1f} s")
        self.is_compiled = True

    def _train(self, state: State) -> State:
        """Advances `state` until the run ends or a non-finite update freezes it."""
        self.compile()
        self.stop.poll()
        step, known = int(state.step), None
        hosts.agree({"the next step": step, "the last step": self.plan.steps})
        behind: list[Begun] = []
        self._since = time.perf_counter()
        for block, waited in self._blocks(step):
            shape = np.shape(block[0].image)
            if shape != known:  # A new image size compiles again.
                known = shape
                self.dog.beat(f"step {step + 1}, the first of its size", compiles=True)
            state, scores = self.stepper.advance(state, block)
            step += len(block)
            behind.append(Begun(step, len(block), scores, waited))
            due = self.plan.due(step)
            has_duties = due.evaluation or due.save
            # One block stays under way to keep the device busy. With more blocks, their
            # batches would fill its memory.
            if not self._settle(behind, state, but=0 if has_duties else 1):
                return state
            self.log.step(step)
            if has_duties:
                state = self._duties(state, step)
                self._since = time.perf_counter()
                if bool(state.halted):
                    best = int(state.best.step)
                    self.log.line(f"early stopping at step {step}: best at {best}")
                    return state
            if self._is_asked(step):
                if not self._settle(behind, state):
                    return state
                self._leave(state, pending=False)
        return state

    def _blocks(self, step: int) -> Iterator[tuple[list[Batch], float]]:
        """Yields (batches that begin at once, seconds waited) for the steps after `step`.

        A block ends at a step with a record of its speed, and at a step with duties.
        """
        block: list[Batch] = []
        devices, began = self.exp.mesh, time.perf_counter()
        for batch in self.stepper.batches(step):
            asked = mesh.flags(devices, self.stop.requested)
            block.append(batch._replace(asked=asked))
            step += 1
            most = min(self.size, self.stepper.most)
            ends = any(self.plan.due(step)) or step == self.until or self.stop.requested
            if len(block) >= most or ends:
                yield block, time.perf_counter() - began
                block, began = [], time.perf_counter()

    def _settle(self, behind: list[Begun], state: State, but: int = 0) -> bool:
        """Waits for the blocks under way, except for the last `but`.

        state: The state after all of them.

        Returns False if an update in them has frozen the state.
        """
        while len(behind) > but:
            last, count, scores, waited = behind.pop(0)
            found = {name: np.atleast_1d(x) for name, x in jax.device_get(scores).items()}
            now = time.perf_counter()
            seconds, self._since = now - self._since, now
            self.size = stepping.next_size(self.size, count, seconds)
            for i in range(count):
                self.log.meter.stepped(seconds / count, waited / count)
                values = {name: float(each[i]) for name, each in found.items()}
                if not self._note(last - count + 1 + i, values, state):
                    return False
        return True

    def _note(self, step: int, values: dict[str, float], state: State) -> bool:
        """Writes the record of a finished step, if one is due.

        state: The state after all steps begun so far.

        Returns False if the update was not finite and the config does not skip it.
        """
        self.asked |= bool(values.pop("asked", False))
        self.dog.beat(f"training, after step {step} of {self.plan.steps}")
        if not values.pop("finite"):
            if 0 <= int(state.bad_step) < step:  # A later bad_step means a skip here.
                return False
            self._note_nonfinite(step, "skip")
            self.log.line(f"step {step}: the update was not finite, and is left out")
        if self.plan.due(step).record:
            self.log.train(step, {"loss": values.pop("loss"), **values})
        return True

    def _duties(self, state: State, step: int) -> State:
        """Runs the duties at `step` in this order: evaluate, record, sync, save."""
        due, last = self.plan.due(step), step == self.plan.steps
        if due.evaluation:
            began = time.perf_counter()
            try:
                state = self._evaluate(state, step)
            except passes.Abandoned:
                self._leave(state, pending=True)
            self.log.meter.apart("eval", time.perf_counter() - began)
        improved = int(state.best.step) == step
        if due.save or improved or bool(state.halted):
            began = time.perf_counter()
            digests = checkpoint.digests(state)
            self.on_digest(step, digests)
            self.log.digest(step, state_digests.combine(digests), digests)
            self.log.sync()
            # No later save can replace the best or the last one.
            is_kept = improved or last or bool(state.halted)
            save = self.saves.save_now if is_kept else self.saves.save
            save(state, digests, anchor=due.save and self._rewinds)
            self.log.meter.apart("save", time.perf_counter() - began)
        return state

    def _evaluate(self, state: State, step: int) -> State:
        """Evaluates data.eval at `step` and returns the state with the result."""
        config = self.exp.config
        columns = scoring.score_each(
            self.exp,
            state._asdict(),
            config.data.eval,
            "data.eval",
            abandon=self.asks(f"evaluating data.eval at step {step}"),
        )
        n, values = scoring.means(columns)
        self.log.evaluation(step, "eval", config.data.eval, n, values)
        self.log.classes(step, "eval", columns, self.exp.selection.class_names)
        return self.exp.programs.record_evaluation(state, values[config.best.metric])

    def asks(self, phase: str) -> Callable[[], bool]:
        """Returns a function that tells an evaluation, at each batch, whether to stop."""
        calls = itertools.count()

        def ask() -> bool:
            self.dog.beat(phase, compiles=next(calls) < 2)
            return self.stop.requested

        return ask

    def _leave(self, state: State, *, pending: bool) -> NoReturn:
        """Saves `state`, unless it is saved, and raises `StoppedError`."""
        self._save_once(state, pending=pending)
        raise StoppedError(
            f"asked to; the state after step {int(state.step)} is saved, and the same"
            " command goes on"
        )

    def _rewind(self, bad: State) -> tuple[State, bool]:
        """Returns (state to go on from, whether the duties at its step are still due).

        The state is the last scheduled checkpoint. It counts the batches since then as
        consumed, without an update. Raises `DivergedError`, with `bad` saved, if the config
        allows no further rewind.
        """
        step = int(bad.bad_step)
        rewound = int((bad.rewound[:, 0] >= 0).sum())
        policy = self.exp.config.nonfinite
        if not self._rewinds or rewound >= policy.rewinds:
            self._diverge(bad)
        earliest = max(1, durations.step_of(1, self.plan.every["checkpoint"]))
        found = self.saves.rewind(self.exp.programs.state_like, to_start=earliest > step)
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
        due = self.plan.due(step + 1)
        pending = due.evaluation or due.save
        digests = checkpoint.digests(state)
        self.saves.save_now(state, digests, pending=pending, anchor=not pending)
        if pending:
            self.saves.take_pending(step + 1)
        return state, pending

    def _diverge(self, state: State) -> NoReturn:
        """Saves the last finite state, unless it is saved, and raises `DivergedError`."""
        step = int(state.bad_step)
        self._save_once(state)
        self._note_nonfinite(step + 1, "diverged")
        raise DivergedError(
            f"the loss or a gradient was not finite in the update after step {step}"
            f" (lr peak {self.plan.lr:g}); the state before it is"
            f" {self.folder.given}/checkpoints/{step}, and metrics.jsonl lists the batch;"
            " in a new --workdir try a lower --config.optim.lr, --config.optim.clip_norm=1"
            " or another --config.nonfinite.policy (stop, skip, rewind)"
        )

    def _save_once(self, state: State, *, pending: bool = False) -> None:
        """Saves `state`, unless its step has a checkpoint."""
        self.saves.wait()  # A save under way may be of this step.
        step, folder = int(state.step), self.folder.checkpoints
        if not hosts.on_first(lambda: step in checkpoint.steps(folder)):
            self.log.sync()
            self.saves.save_now(state, checkpoint.digests(state), pending=pending)

    def _note_nonfinite(self, step: int, kind: str, **more: int) -> None:
        """Writes a record of the non-finite update before `step`, with its examples."""
        examples = self.exp.data.train_examples(step - 1).tolist()
        self.log.event(step, kind, **more, split=self.exp.config.data.train, index=examples)

    def _is_asked(self, step: int) -> bool:
        """Returns whether to stop at `step`, before the last; the same on all processes."""
        asked = self.stop.requested if self.is_alone else self.asked
        return step < self.plan.steps and (asked or step == self.until)
