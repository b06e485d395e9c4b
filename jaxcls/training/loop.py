"""One pass from a state to the last step: next batch, step, log, evaluate, save.

The duties of a step run in this order: evaluate, write the records, sync them to disk,
save. A resume from checkpoint N drops the records after N. So the files of a killed run
equal those of an uninterrupted run. A rewind is such a resume within one process.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from jaxcls.config import durations
from jaxcls.data.batch import Batch
from jaxcls.devices import hosts, mesh
from jaxcls.errors import DivergedError, StoppedError
from jaxcls.evaluation import passes, scoring
from jaxcls.experiment import Experiment
from jaxcls.experiment.plan import Due
from jaxcls.learning.step import State
from jaxcls.runs import checkpoint, saving
from jaxcls.runs import digests as state_digests
from jaxcls.runs.records import Record
from jaxcls.runs.workdir import Workdir
from jaxcls.training import stepping
from jaxcls.training.log import RunLog
from jaxcls.training.means import Means
from jaxcls.training.stepping import Scores, Stepper
from jaxcls.training.stopping import Stop
from jaxcls.training.watchdog import Watchdog

# (step, digests of the state) at a save.
OnDigest = Callable[[int, state_digests.Digests], None]


class Block(NamedTuple):
    """`size` steps up to step `last` that begin at once.

    due: The duties after the last step; the others have none.
    waited: The seconds that the loop waited for the batches.
    """

    last: int
    size: int
    due: Due
    waited: float


@dataclasses.dataclass
class Loop:
    """The objects of a pass from a state to the last step, besides the state.

    means: Of the training values since the last record, at the state's step.
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
    means: Means
    until: int = 0
    on_digest: OnDigest = lambda step, digests: None
    # The most batches of the next block.
    size: int = dataclasses.field(default=1, init=False)

    def __post_init__(self) -> None:
        self.plan, self.is_compiled = self.exp.plan, False
        self._is_alone = hosts.count() == 1
        self._rewinds = self.exp.config.nonfinite.policy == "rewind"
        # Whether a process asked to stop, from the metrics of the last settled step.
        self._asked = False
        # The time at which the last block or duty ended.
        self._since = 0.0

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
                state = self._duties(state, self.plan.due(int(state.step)))
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
        step, shape = int(state.step), None
        behind: list[tuple[Block, Scores]] = []
        self._since = time.perf_counter()
        for block, batches in self._blocks(step):
            if shape != np.shape(batches[0].image):  # A new image size compiles again.
                shape = np.shape(batches[0].image)
                self.dog.beat(f"step {step + 1}, the first of its size", compiles=True)
            state, scores = self.stepper.advance(state, batches)
            step, due = block.last, block.due
            behind.append((block, scores))
            has_duties = due.evaluation or due.save
            # One block stays under way to keep the device busy. With more blocks, their
            # batches would fill its memory.
            if not self._settle(behind, state, but=0 if has_duties else 1):
                return state
            self.log.step(step)
            if has_duties:
                state = self._duties(state, due)
                self._since = time.perf_counter()
                if bool(state.halted):
                    best = int(state.best.step)
                    self.log.line(f"early stopping at step {step}: best at {best}")
                    return state
            # The same on all processes.
            asked = self.stop.requested if self._is_alone else self._asked
            if step < self.plan.steps and (asked or step == self.until):
                if not self._settle(behind, state):
                    return state
                self._leave(state, pending=False)
        return state

    def _blocks(self, start: int) -> Iterator[tuple[Block, list[Batch]]]:
        """Yields (block, its batches) for the steps after `start`.

        A block ends at a step with a record of its speed, and at a step with duties.
        """
        batches: list[Batch] = []
        devices, began = self.exp.mesh, time.perf_counter()
        for step, batch in enumerate(self.stepper.batches(start), start + 1):
            asked = mesh.flags(devices, self.stop.requested)
            batches.append(batch._replace(asked=asked))
            due, count = self.plan.due(step), len(batches)
            is_full = count >= min(self.size, self.stepper.most)
            if is_full or any(due) or step == self.until or self.stop.requested:
                yield Block(step, count, due, time.perf_counter() - began), batches
                batches, began = [], time.perf_counter()

    def _settle(
        self, behind: list[tuple[Block, Scores]], state: State, but: int = 0
    ) -> bool:
        """Waits for the blocks under way, except for the last `but`, and writes records.

        state: The state after all of them.

        Returns False if an update was not finite and has frozen the state.
        """
        while len(behind) > but:
            (last, size, due, waited), scores = behind.pop(0)
            found = {name: np.atleast_1d(x) for name, x in jax.device_get(scores).items()}
            now = time.perf_counter()
            seconds, self._since = now - self._since, now
            self.size = stepping.next_size(self.size, size, seconds)
            for i, step in enumerate(range(last - size + 1, last + 1)):
                self.log.meter.stepped(seconds / size, waited / size)
                self.dog.beat(f"training, after step {step} of {self.plan.steps}")
                values = {name: float(each[i]) for name, each in found.items()}
                self._asked |= bool(values.pop("asked", False))
                if values.pop("finite"):
                    self.means.add(values)
                else:
                    if 0 <= int(state.bad_step) < step:  # A later one means a skip here.
                        return False
                    self._note_nonfinite(step, "skip")
                    self.log.line(
                        f"step {step}: the update was not finite, and is left out"
                    )
                if due.record and step == last:
                    values = {**self.means.take(), "loss": values.pop("loss"), **values}
                    self.log.train(step, values)
        return True

    def _duties(self, state: State, due: Due) -> State:
        """Runs the duties that are due in this order: evaluate, record, sync, save."""
        step, metric = int(state.step), self.exp.config.best.metric
        if due.evaluation:
            try:
                _, values = self.score(state._asdict(), step, "eval", "eval")
            except passes.Abandoned:
                self._leave(state, pending=True)
            state = self.exp.programs.record_evaluation(state, values[metric])
        # No later save can replace the best or the last one.
        improved, halted = int(state.best.step) == step, bool(state.halted)
        is_kept = improved or halted or step == self.plan.steps
        if due.save or is_kept:
            began = time.perf_counter()
            digests = checkpoint.digests(state)
            self.on_digest(step, digests)
            self.log.digest(step, state_digests.combine(digests), digests)
            self.log.sync()
            save = self.saves.save_now if is_kept else self.saves.save
            anchor = due.save and self._rewinds
            save(state, digests, anchor=anchor, **self._beside())
            self.log.meter.apart("save", time.perf_counter() - began)
        return state

    def score(
        self, weights: dict[str, Any], step: int, kind: str, role: str, **facts: Any
    ) -> tuple[Record, dict[str, float]]:
        """Scores the split of a role, "eval" or "test", and writes the record of `kind`.

        Returns (record, means). Raises `passes.Abandoned` on a request to stop.
        """
        began, batches = time.perf_counter(), itertools.count()
        split, key = self.exp.config.data[role], f"data.{role}"

        def is_asked() -> bool:
            phase = f"scoring {key} at step {step}"
            self.dog.beat(phase, compiles=next(batches) < 2)
            return self.stop.requested

        columns = scoring.score_each(self.exp, weights, split, key, abandon=is_asked)
        n, values = scoring.means(columns, self.exp.recipe.split_metrics)
        record = self.log.evaluation(step, kind, values, **facts, split=split, n=n)
        if self.log.tensorboard:
            names = self.exp.selection.class_names
            self.log.tensorboard.classes(kind, step, columns, names)
        self.log.meter.apart("eval", time.perf_counter() - began)
        return record, values

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
        self.means.restore(hosts.on_first(lambda: self.saves.means(first)))
        state = start._replace(
            step=start.step + (step + 1 - first),
            rewound=bad.rewound.at[rewound].set(np.array([first, step])),
        )
        self._note_nonfinite(step + 1, "rewind", to=first)
        self.log.line(
            f"step {step + 1}: the update was not finite; back to step {first}, and on"
            f" without the batches since ({rewound + 1} of {policy.rewinds} rewinds)"
        )
        due = self.plan.due(step + 1)
        pending = due.evaluation or due.save
        self._save_now(state, pending=pending, anchor=not pending)
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
            self._save_now(state, pending=pending)

    def _save_now(self, state: State, **what: bool) -> None:
        self.log.sync()
        digests = checkpoint.digests(state)
        self.saves.save_now(state, digests, **what, **self._beside())

    def _beside(self) -> dict[str, Any]:
        """Returns what a checkpoint holds beside the state, as arguments of a save."""
        return {"records": self.log.seals(), "means": self.means.saved()}

    def _note_nonfinite(self, step: int, kind: str, **more: int) -> None:
        """Writes a record of the non-finite update before `step`, with its examples."""
        examples = self.exp.data.train_examples(step - 1).tolist()
        split = self.exp.data.selection.pooled(self.exp.config.data.train, "data.train")
        self.log.event(step, kind, **more, split=split, index=examples)
