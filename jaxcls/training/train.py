"""A run: take the folder, restore, loop to the end, score the best once."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcls.config import loading as configs
from jaxcls.devices import hosts, memory
from jaxcls.errors import DivergedError, InputError, StoppedError
from jaxcls.evaluation import passes, scoring
from jaxcls.experiment import Experiment, checks, show
from jaxcls.learning.step import State
from jaxcls.runs import checkpoint, provenance, saving
from jaxcls.runs import records as run_records
from jaxcls.runs.workdir import Workdir
from jaxcls.training import hints, meter, profiling, stepping, trackers, watchdog
from jaxcls.training.log import RunLog
from jaxcls.training.loop import Loop, OnDigest
from jaxcls.training.stepping import Stepper
from jaxcls.training.stopping import Stop

# Config keys that may differ between the processes of a run.
_OF_EACH = (
    *("data.dir", "data.threads", "data.prefetch", "init.weights", "distill.run"),
    "compile.cache",
)


class Result(NamedTuple):
    """The final record of a run; `already` is True if it had ended before."""

    record: dict[str, Any]
    workdir: str
    already: bool

    @property
    def line(self) -> str:
        """The closing line: ``step=... at=best split=test n=... workdir=...``."""
        return run_records.summary(self.record, self.workdir)


def run(
    exp: Experiment,
    workdir: str,
    stop: Stop | None = None,
    *,
    until: int = 0,
    on_digest: OnDigest = lambda step, digests: None,
) -> Result:
    """Trains `exp` in `workdir` to its end, from the newest state of the folder.

    until: A step to save and stop at, as if asked to; 0 is none.
    on_digest: Called with the digests for digests.jsonl; its exceptions end the run.

    Raises `InputError` if the folder is in use or belongs to another run, `DivergedError`
    if a loss or gradient was not finite, and `StoppedError` once the state is saved after a
    request of `stop`. Every process of a run must call it.
    """
    folder, stop = Workdir(workdir), stop or Stop()
    if final := hosts.on_first(lambda: _finished_before(exp, folder)):
        return Result(final, folder.given, already=True)
    known = hosts.on_first(lambda: folder.weights_of(exp.config))
    implied, stepper = hosts.together(lambda: (_prepared(exp, known), stepping.choose(exp)))
    hosts.agree(_same_everywhere(exp, workdir, implied))
    with contextlib.ExitStack() as held:
        topology = stepper.topology
        if final := hosts.on_first(lambda: _begin(exp, folder, implied, topology, held)):
            return Result(final, folder.given, already=True)
        with _ending(folder, stop) as end:
            size, also = exp.config.batch_size, ", or data.resident=off"
            with memory.explained("batch_size", size, also), _watched(exp, end) as dog:
                make_loop = functools.partial(
                    Loop,
                    exp,
                    folder=folder,
                    stop=stop,
                    dog=dog,
                    until=until,
                    on_digest=on_digest,
                )
                record = _run_locked(exp, folder, stepper, make_loop)
    return Result(record, folder.given, already=False)


def _finished_before(exp: Experiment, folder: Workdir) -> dict[str, Any] | None:
    """Returns the final record of a folder in which this run has ended, else None."""
    folder.check_identity(exp.config)
    final = finished(folder)
    if final:
        same = {"weights": _fingerprint(exp, folder.weights_of(exp.config))}
        if exp.config.distill.run != folder.config().distill.run:
            same["teacher"] = exp.teacher.fingerprint if exp.teacher else ""
        folder.check_same(same)
    return final


def _fingerprint(exp: Experiment, known: str | None) -> str:
    """Returns the fingerprint of init.weights; `known` if the run has recorded it."""
    if known is not None:
        return known
    return exp.initial.fingerprint if exp.initial else ""


def _prepared(exp: Experiment, weights: str | None) -> dict[str, Any]:
    """Returns the implied facts; raises for all bad input before a file is written.

    weights: The weights' fingerprint if a resume does not need their arrays.
    """
    checks.check(exp)
    if exp.config.log.wandb and hosts.is_first():
        trackers.imported(exp.config.log.wandb)
    return {**exp.implied(), "weights": _fingerprint(exp, weights)}


def _same_everywhere(
    exp: Experiment, workdir: str, implied: dict[str, Any]
) -> dict[str, Any]:
    """Returns the facts that all processes of a run must share."""
    values = configs.flat(exp.config).items()
    return {
        "--workdir": workdir,
        "code": provenance.code(),
        "versions": provenance.versions(),
        "data": implied,
        **{f"config.{key}": value for key, value in values if key not in _OF_EACH},
    }


def _begin(
    exp: Experiment,
    folder: Workdir,
    implied: dict[str, Any],
    topology: Mapping[str, int],
    held: contextlib.ExitStack,
) -> dict[str, Any] | None:
    """Locks the folder until `held` closes, and records the start in it.

    Returns the final record if another process has ended the run in the meantime.
    """
    held.enter_context(folder.lock())
    if final := _finished_before(exp, folder):
        return final
    folder.adopt(exp.config, implied)
    devices = [device.device_kind for device in exp.mesh.devices.flat]
    folder.begin(
        devices,
        local_devices=jax.local_device_count(),
        hosts=hosts.count(),
        data=exp.selection.facts.fingerprint,
        **topology,
    )
    return None


@contextlib.contextmanager
def _ending(folder: Workdir, stop: Stop) -> Iterator[Callable[[str], None]]:
    """Records the end of the start in the folder; yields the function that does so."""

    def end(reason: str) -> None:
        if hosts.is_first():
            with contextlib.suppress(InputError):  # A full disk, which is reported already.
                folder.end(reason)

    reason = "failed"
    with stop.during(lambda: end("stopped")):
        try:
            yield end
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
            end(reason)


def _watched(exp: Experiment, end: Callable[[str], None]) -> watchdog.Watchdog:
    """Returns the watchdog of a run of several processes; one process waits for nobody."""
    limits = exp.config.watchdog
    first, later = (limits.first, limits.later) if hosts.count() > 1 else (0, 0)
    who = f"process {jax.process_index()} of {hosts.count()}"
    return watchdog.Watchdog(first, later, who, lambda: end("watchdog"))


def finished(folder: Workdir) -> dict[str, Any] | None:
    """Returns the final record of a run that has ended, or None; changes nothing."""
    records = run_records.read(folder.metrics)
    if records and records[-1]["kind"] == "final":
        return {k: v for k, v in records[-1].items() if k != "kind"}
    return None


def _run_locked(
    exp: Experiment, folder: Workdir, stepper: Stepper, make_loop: Callable[..., Loop]
) -> dict[str, Any]:
    """Runs from the newest checkpoint (or step 0) to the final record, and returns it.

    make_loop: (stepper=, log=, saves=) -> the loop.
    """
    checkpoint.bring_back(folder.checkpoints)
    restored = hosts.together(
        lambda: checkpoint.restore_newest(folder.checkpoints, exp.programs.state_like)
    )
    state = exp.init() if restored is None else restored
    start = int(state.step)
    is_pending = bool(restored) and checkpoint.take_pending(folder.checkpoints, start)
    if hosts.is_first():
        folder.note(resumed_from=start if restored else None)
    log = _opened(exp, folder, start, is_pending)
    saves = saving.Checkpoints(folder.checkpoints, exp.config.checkpoint.keep)
    traced = profiling.traced(
        stepper,
        exp.config.log.profile if hosts.is_first() else 0,
        folder.profile,
        log.line,
    )
    with log, saves, traced as stepper:
        log.line(f"resuming from step {start}" if restored else "starting from step 0")
        for note in exp.initial.notes if not restored and exp.initial else []:
            log.line(note)
        hosts.together(lambda: _tell_wandb(exp, folder, log))
        loop = make_loop(stepper=stepper, log=log, saves=saves)
        if exp.config.log.tensorboard and not restored:
            loop.compile()  # It refuses a batch that does not fit before making it.
            log.picture("train/first_batch", 0, show.grid(exp))
        state = loop.run(state, is_pending)
        saves.wait()
        checkpoint.bring_back(folder.checkpoints)
        return _final_record(loop, state)


def _opened(exp: Experiment, folder: Workdir, start: int, is_pending: bool) -> RunLog:
    """Returns the log of a run that goes on from step `start`."""
    is_first = hosts.is_first()
    shown = is_first and exp.config.log.tensorboard
    return RunLog(
        folder,
        meter.Meter(start, exp.plan.steps, exp.config.batch_size, exp.plan.left),
        start=start,
        steps=exp.plan.steps,
        tensorboard=trackers.TensorBoard(folder.tensorboard, start) if shown else None,
        is_pending=is_pending,
        is_first=is_first,
        hint=lambda share: hints.input_bound(exp, share),
    )


def _tell_wandb(exp: Experiment, folder: Workdir, log: RunLog) -> None:
    """Connects the first process to Weights & Biases if log.wandb asks for it."""
    project = exp.config.log.wandb
    if project and hosts.is_first():
        config = exp.config.to_dict()
        log.tell(trackers.WandB(project, folder.path, config, log.line))


def _final_record(loop: Loop, state: State) -> dict[str, Any]:
    """Scores the best (or last) state on data.test, once, and writes the final record.

    Without data.test it scores on data.eval.
    """
    exp, folder = loop.exp, loop.folder
    loop.stop.poll()
    step, best = int(state.step), int(state.best.step)
    weights = state._asdict()
    if best not in (-1, step):
        try:
            weights = checkpoint.restore_weights(
                folder.checkpoints, best, exp.programs.state_like
            )
        except checkpoint.CorruptError as error:
            raise hosts.AgreedError(
                f"the best checkpoint, {folder.checkpoints / str(best)}, is not whole"
                f" ({error}); the last one is: evaluate it with --checkpoint=last"
            ) from None
    at = {"at": "best", "best_step": best} if best >= 0 else {"at": "last"}
    split = next((exp.config.data[r] for r in ("test", "eval") if exp.config.data[r]), "")
    key = "data.test" if exp.config.data.test else "data.eval"
    began = time.perf_counter()
    columns: dict[str, np.ndarray] = {}
    try:
        if split:
            asks = loop.asks(f"scoring {key}")
            columns = scoring.score_each(exp, weights, split, key, abandon=asks)
    except passes.Abandoned:
        raise StoppedError(
            f"asked to; step {step}, the last, is saved, and the same command scores it"
        ) from None
    n, values = scoring.means(columns) if split else (0, {})
    record = loop.log.evaluation(step, "final", split, n, values, **at)
    loop.log.classes(step, "final", columns, exp.selection.class_names)
    loop.log.meter.apart("eval", time.perf_counter() - began)
    loop.log.sync()
    loop.log.done()
    return {name: value for name, value in record.items() if name != "kind"}
