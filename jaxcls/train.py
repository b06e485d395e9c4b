"""The loop: next batch, step, log, evaluate, save.

At a step with several duties the order is: evaluate, write the records, sync them to
disk, save. A resume from checkpoint N drops the records after N, so a killed run ends
with the very files of one that was not.
"""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from jaxcls import checkpoint, digesting, durations, evaluate, logs, memory
from jaxcls.data import DeviceBatch
from jaxcls.errors import DivergedError, InputError, StoppedError
from jaxcls.experiment import Experiment
from jaxcls.step import State
from jaxcls.stopping import Stop
from jaxcls.workdir import Workdir


class Result(NamedTuple):
    """How a run ended: its final record, and whether it had already ended before."""

    record: dict[str, Any]
    workdir: str
    already: bool

    @property
    def line(self) -> str:
        """The closing line: ``step=... at=best split=test n=... workdir=...``."""
        return logs.summary(self.record, self.workdir)


def run(exp: Experiment, workdir: str, stop: Stop | None = None) -> Result:
    """Train `exp` in `workdir` to its end, from wherever the folder has got to.

    Raises `InputError` for a folder that is not this run's or is in use,
    `DivergedError` where a loss or gradient was not finite, and `StoppedError` when the
    state is saved after `stop` was asked for.
    """
    stop = stop or Stop()
    folder = Workdir(workdir)
    folder.check_identity(exp.config)
    if final := finished(folder):
        return Result(final, folder.given, already=True)
    implied = exp.implied()
    _ = exp.lowered_train_step  # Whatever is wrong is said before a file is written.
    with folder.lock():
        folder.check_identity(exp.config)
        if final := finished(folder):  # By the process that held the lock till now.
            return Result(final, folder.given, already=True)
        folder.adopt(exp.config, implied)
        folder.begin(
            [device.device_kind for device in exp.mesh.devices.flat],
            hosts=jax.process_count(),
            data=exp.data.facts.fingerprint,
        )
        reason = "failed"
        stop.before_leaving = lambda: folder.end("stopped")
        try:
            size, also = exp.config.batch_size, ", or data.resident=off"
            with memory.explained("batch_size", size, also):
                record = _run_locked(exp, folder, stop)
            reason = "done"
        except DivergedError:
            reason = "diverged"
            raise
        except StoppedError:
            reason = "stopped"
            raise
        except KeyboardInterrupt:
            reason = "interrupted"
            raise
        finally:
            folder.end(reason)
    return Result(record, folder.given, already=False)


def finished(folder: Workdir) -> dict[str, Any] | None:
    """The final record of a run that has ended, or None; changes nothing."""
    records = logs.read(folder.metrics)
    if records and records[-1]["kind"] == "final":
        return {k: v for k, v in records[-1].items() if k != "kind"}
    return None


def _run_locked(exp: Experiment, folder: Workdir, stop: Stop) -> dict[str, Any]:
    """From the newest checkpoint (or step 0) to the final record."""
    checkpoint.bring_back(folder.checkpoints)
    restored = checkpoint.restore_newest(folder.checkpoints, exp.state_like)
    state = exp.init() if restored is None else restored
    start = int(state.step)
    is_pending = bool(restored) and checkpoint.take_pending(folder.checkpoints, start)
    folder.note(resumed_from=start if restored else None)
    log = logs.RunLog(
        metrics=folder.metrics,
        timing=folder.timing,
        digests=folder.digests,
        tensorboard=folder.tensorboard if exp.config.log.tensorboard else None,
        start=start,
        steps=exp.steps,
        batch_size=exp.config.batch_size,
    )
    saves = checkpoint.Checkpoints(folder.checkpoints, exp.config.checkpoint.keep)
    with log, saves:
        log.line(f"resuming from step {start}" if restored else "starting from step 0")
        loop = _Loop(exp, folder, log, saves, stop)
        state = loop.run(state, is_pending)
        saves.wait()
        checkpoint.bring_back(folder.checkpoints)
        return _finish(exp, folder, log, state, stop)


class _Loop:
    """One pass from a state to the last step."""

    def __init__(
        self,
        exp: Experiment,
        folder: Workdir,
        log: logs.RunLog,
        saves: checkpoint.Checkpoints,
        stop: Stop,
    ) -> None:
        self.exp, self.folder, self.log, self.saves = exp, folder, log, saves
        self.stop = stop

    def run(self, state: State, is_pending: bool) -> State:
        """`state` advanced to the last step, or to where early stopping halts it.

        is_pending: what is due at the step of `state` is not done yet.
        """
        self._check_finite(state, int(state.bad_step))
        step = int(state.step)
        if is_pending:
            self.stop.poll()
            state = self._duties(state, step)
        if step == self.exp.steps or bool(state.halted):
            return state
        began = time.perf_counter()
        train_step = self.exp.compiled_train_step
        self.log.line(f"compiled in {time.perf_counter() - began:.1f} s")
        self.stop.poll()
        behind: tuple[int, dict[str, jax.Array]] | None = None
        for batch, waited, began in _timed(self.exp.train_batches(step)):
            state, scores = train_step(state, batch)
            step += 1
            if behind:
                # Wait for the step before: two under way keep the device busy, and
                # more would only pile up batches in its memory.
                self._settle(state, *behind)
            behind = (step, scores)
            has_duties = self._has_duties(step)
            if has_duties:
                self._settle(state, *behind)
                behind = None
            self.log.meter.stepped(time.perf_counter() - began, waited)
            self.log.step(step)
            if has_duties:
                state = self._duties(state, step)
                if bool(state.halted):
                    self.log.line(
                        f"early stopping at step {step}: best at {state.best.step}"
                    )
                    break
            if self.stop.requested and step < self.exp.steps:
                if behind:
                    self._settle(state, *behind)
                self._leave(state, pending=False)
        return state

    def _leave(self, state: State, *, pending: bool) -> None:
        """Save `state`, unless that was done, and raise `StoppedError`."""
        step = int(state.step)
        self._check_finite(state, int(state.bad_step))
        self.saves.wait()
        if step not in checkpoint.steps(self.folder.checkpoints):
            self.log.sync()
            self.saves.save_now(state, checkpoint.digests(state), pending=pending)
        raise StoppedError(
            f"asked to; the state after step {step} is saved, and the same command goes on"
        )

    def _settle(self, state: State, step: int, scores: dict[str, jax.Array]) -> None:
        """Wait for a step; write its record if it is due."""
        jax.block_until_ready(scores["loss"])
        if durations.is_due(step, self.exp.every["log"]) or step == self.exp.steps:
            values = {name: float(value) for name, value in scores.items()}
            self._check_finite(state, int(values.pop("bad_step")))
            self.log.train(step, {"loss": values.pop("loss"), **values})

    def _has_duties(self, step: int) -> bool:
        every, last = self.exp.every, step == self.exp.steps
        evaluates = self.exp.config.data.eval and durations.is_due(step, every["eval"])
        return bool(last or evaluates or durations.is_due(step, every["checkpoint"]))

    def _duties(self, state: State, step: int) -> State:
        """Evaluate, record, sync, save: what is due at `step`, in this order."""
        self._check_finite(state, int(state.bad_step))
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
            self.log.digest(step, digesting.combine(digests), digests)
            self.log.sync()
            # The best and the last cannot be made again by a later save.
            is_kept = improved or last or bool(state.halted)
            (self.saves.save_now if is_kept else self.saves.save)(state, digests)
            self.log.meter.apart("save", time.perf_counter() - began)
        return state

    def _evaluate(self, state: State, step: int) -> State:
        """The state that knows of the evaluation at `step`."""
        config = self.exp.config
        n, values = evaluate.score(
            self.exp,
            state._asdict(),
            config.data.eval,
            "data.eval",
            abandon=lambda: self.stop.requested,
        )
        self.log.evaluation(step, "eval", config.data.eval, n, values)
        return self.exp.record_evaluation(state, values[config.best.metric])

    def _check_finite(self, state: State, bad_step: int) -> None:
        """Raise `DivergedError` after a bad step, with the last finite state saved."""
        if bad_step < 0:
            return
        self.saves.wait()  # One under way may be of this very step.
        if bad_step not in checkpoint.steps(self.folder.checkpoints):
            self.log.sync()
            self.saves.save_now(state, checkpoint.digests(state))
        raise DivergedError(
            f"the loss or a gradient was not finite in the update after step {bad_step}"
            f" (lr peak {self.exp.lr:g}); the state before it is"
            f" {self.folder.given}/checkpoints/{bad_step}; in a new --workdir try a lower"
            " --config.optim.lr or --config.optim.clip_norm=1"
        )


def _timed(batches: Iterator[DeviceBatch]) -> Iterator[tuple[DeviceBatch, float, float]]:
    """(batch, seconds waited for it, when the wait began)."""
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - began, began


def _finish(
    exp: Experiment, folder: Workdir, log: logs.RunLog, state: State, stop: Stop
) -> dict[str, Any]:
    """Score the best (or last) state on data.test, once, and write the final record."""
    stop.poll()
    step, best = int(state.step), int(state.best.step)
    weights = state._asdict()
    if best not in (-1, step):
        try:
            weights = checkpoint.restore_weights(folder.checkpoints, best, exp.state_like)
        except checkpoint.CorruptError as error:
            raise InputError(
                f"the best checkpoint, {folder.checkpoints / str(best)}, is not whole"
                f" ({error}); the last one is: evaluate it with --checkpoint=last"
            ) from None
    at = {"at": "best", "best_step": best} if best >= 0 else {"at": "last"}
    split = next((exp.config.data[r] for r in ("test", "eval") if exp.config.data[r]), "")
    key = "data.test" if exp.config.data.test else "data.eval"
    try:
        n, values = (
            evaluate.score(exp, weights, split, key, abandon=lambda: stop.requested)
            if split
            else (0, {})
        )
    except evaluate.Abandoned:
        raise StoppedError(
            f"asked to; step {step}, the last, is saved, and the same command scores it"
        ) from None
    log.evaluation(step, "final", split, n, values, **at)
    log.sync()
    return finished(folder) or {}
