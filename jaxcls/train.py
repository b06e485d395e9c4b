"""A run: take the folder, restore, loop to the end, score the best once."""

from typing import Any, NamedTuple

import jax

from jaxcls import checkpoint, evaluate, logs, memory
from jaxcls.errors import DivergedError, InputError, StoppedError
from jaxcls.experiment import Experiment
from jaxcls.loop import Loop
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
        loop = Loop(exp, folder, log, saves, stop)
        state = loop.run(state, is_pending)
        saves.wait()
        checkpoint.bring_back(folder.checkpoints)
        return _finish(exp, folder, log, state, stop)


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
