"""A run: take the folder, restore, loop to the end, score the best once."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from jaxcls.config import loading as configs
from jaxcls.devices import compiling, hosts, jax_settings, memory
from jaxcls.errors import DivergedError, InputError, StoppedError
from jaxcls.evaluation import passes
from jaxcls.experiment import Experiment, checks, show
from jaxcls.learning.step import State
from jaxcls.runs import checkpoint, provenance, saving
from jaxcls.runs import records as run_records
from jaxcls.runs.workdir import Workdir
from jaxcls.training import (
    extending,
    hints,
    meter,
    probe,
    profiling,
    stepping,
    trackers,
    watchdog,
)
from jaxcls.training.log import RunLog
from jaxcls.training.loop import Loop, OnDigest
from jaxcls.training.means import Means
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
    exp = exp.resuming(hosts.on_first(folder.convolution))
    known = hosts.on_first(lambda: folder.weights_of(exp.config))
    implied, stepper = hosts.together(lambda: (_prepared(exp, known), stepping.choose(exp)))
    hosts.agree(_same_everywhere(exp, workdir, implied))
    fsdp = exp.config.mesh.fsdp
    topology: dict[str, Any] = {"fsdp": fsdp} if fsdp > 1 else {}
    topology |= {"loop": 1} if stepper.most > 1 else {}
    topology |= {"convolution": exp.convolution} if exp.convolution else {}

    def begin() -> dict[str, Any] | None:
        """Locks the folder, and records the start; returns the record if it has ended."""
        held.enter_context(folder.lock())
        if final := _finished_before(exp, folder):
            return final
        before = folder.length_before(exp.config)
        if before:
            folder.check_same({k: v for k, v in implied.items() if k != "steps"})
            extending.reopen(folder)
        folder.adopt(exp.config, implied)
        folder.keep_plugins(exp.plugins)
        folder.begin(
            [device.device_kind for device in exp.mesh.devices.flat],
            local_devices=jax.local_device_count(),
            hosts=hosts.count(),
            data=exp.selection.facts.fingerprint,
            **({"plugins": exp.plugins.digests} if exp.plugins.sources else {}),
            **({"length_before": before} if before else {}),
            **topology,
        )
        return None

    with contextlib.ExitStack() as held:
        if final := hosts.on_first(begin):
            return Result(final, folder.given, already=True)
        end = held.enter_context(_ending(folder, stop))
        size = exp.config.batch_size
        held.enter_context(memory.explained("batch_size", size, ", or data.resident=off"))
        dog = held.enter_context(_watched(exp, end))
        record = _run_locked(
            exp, folder, stepper, stop=stop, dog=dog, until=until, on_digest=on_digest
        )
    return Result(record, folder.given, already=False)


def _finished_before(exp: Experiment, folder: Workdir) -> dict[str, Any] | None:
    """Returns the final record of a folder in which this run has ended, else None."""
    if before := folder.length_before(exp.config):
        final = finished(folder)
        ended = final["step"] if final else None
        if why := extending.reason_against(exp, folder, before, ended):
            folder.check_identity(exp.config, f"it cannot be made longer: {why}")
        return None
    folder.check_identity(exp.config)
    final = finished(folder)
    if final:
        starts = folder.starts()
        sealed = starts[-1].get("records", {}) if starts else {}
        if not isinstance(sealed, dict):
            raise InputError(
                f"{folder.path / 'manifest.json'}: records={sealed!r} of a start must be an"
                " object; put the file right, or start in another --workdir"
            )
        # Not by the plan: the data need not be there any more.
        _check_records(folder, sealed, final["step"], False, "manifest.json")
        same: dict[str, Any] = {
            "weights": _fingerprint(exp, folder.weights_of(exp.config)),
            "plugins": exp.plugins.digests,
        }
        if exp.config.distill.run != folder.config().distill.run:
            same["teacher"] = exp.teacher.fingerprint if exp.teacher else ""
        folder.check_same(same)
    else:
        folder.check_numerics()
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
        "JAX's settings": jax_settings.others(),
        "data": implied,
        "convolutions": exp.convolution,
        **{f"config.{key}": value for key, value in values if key not in _OF_EACH},
    }


@contextlib.contextmanager
def _ending(folder: Workdir, stop: Stop) -> Iterator[Callable[[str], None]]:
    """Records the end of the start in the folder; yields the function that does so."""

    def end(reason: str) -> None:
        if hosts.is_first():
            with contextlib.suppress(InputError):  # A full disk, which is reported already.
                folder.end(reason)

    reasons: dict[type[BaseException], str] = {
        DivergedError: "diverged",
        StoppedError: "stopped",
        KeyboardInterrupt: "interrupted",
    }
    with stop.during(lambda: end("stopped")):
        try:
            yield end
        except BaseException as error:
            end(reasons.get(type(error), "failed"))
            raise
        end("done")


def _watched(exp: Experiment, end: Callable[[str], None]) -> watchdog.Watchdog:
    """Returns the watchdog of a run; one process waits for nobody, except in a save."""
    limits, first, later, who = exp.config.watchdog, 0, 0, "the run"
    if hosts.count() > 1:
        first, later = limits.first, limits.later
        who = f"process {jax.process_index()} of {hosts.count()}"
    return watchdog.Watchdog(first, later, limits.later, who, lambda: end("watchdog"))


def finished(folder: Workdir) -> dict[str, Any] | None:
    """Returns the final record of a run that has ended, or None; changes nothing."""
    records = run_records.read(folder.metrics)
    is_final = bool(records) and records[-1]["kind"] == "final"
    return _without_kind(records[-1]) if is_final else None


def _without_kind(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "kind"}


def _run_locked(
    exp: Experiment, folder: Workdir, stepper: Stepper, **more: Any
) -> dict[str, Any]:
    """Runs from the newest checkpoint (or step 0) to the final record, and returns it.

    more: The other fields of the `Loop`.
    """
    saved = folder.checkpoints
    hosts.on_first(lambda: checkpoint.bring_back(saved))
    restored = hosts.together(
        lambda: checkpoint.restore_newest(saved, exp.programs.state_like)
    )
    state = exp.init() if restored is None else restored
    start, config = int(state.step), exp.config
    is_pending, means = False, Means(("loss", *(m.name for m in exp.recipe.metrics)))
    if restored is not None:
        is_pending, sums = hosts.on_first(lambda: _checked_records(folder, start))
        means.restore(sums)
    is_first = hosts.is_first()
    if is_first:
        folder.note(resumed_from=start if restored else None)
        before = folder.starts()[-1].get("length_before", "")
    log = RunLog(
        folder,
        meter.Meter(start, exp.plan.steps, config.batch_size),
        start,
        exp.plan.steps,
        is_pending,
        hint=lambda share: hints.input_bound(exp, share),
    )
    saves = saving.Checkpoints(saved, config.checkpoint.keep, more["dog"].saving)
    count = config.log.profile if is_first else 0
    traced = profiling.traced(stepper, count, folder.profile, log.line)
    with log, saves, traced as stepper:
        log.line(f"resuming from step {start}" if restored else "starting from step 0")
        if is_first and before:
            log.line(f"the run is longer: length {before!r} -> {config.length!r}")
        if exp.convolution == compiling.BY_FLAGS:
            log.line("XLA_FLAGS choose the library of convolutions")
        if restored and (changed := hosts.on_first(folder.changes)):
            log.line(f"changed since an earlier start, so bits may change: {changed}")
        for note in exp.initial.notes if not restored and exp.initial else []:
            log.line(note)
        for note in checks.notes(exp) if not restored else []:
            log.line(f"note: {note}")
        hosts.together(lambda: _add_trackers(exp, folder, log, start))
        loop = Loop(exp, stepper, folder, log=log, saves=saves, means=means, **more)
        if config.log.tensorboard and not restored and not config.probe.penalties:
            loop.compile()  # It refuses a batch that does not fit before making it.
            grid = show.grid(exp)
            if log.tensorboard:
                log.tensorboard.picture("train/first_batch", 0, grid)
        if config.probe.penalties and not restored:
            state, is_pending = _probed(loop, state), True
        state = loop.run(state, is_pending)
        saves.wait()
        hosts.on_first(lambda: checkpoint.bring_back(saved))
        return _final_record(loop, state)


def _probed(loop: Loop, state: State) -> State:
    """Returns the state of a probe at its one step, and writes the record of its choice.

    A request to stop ends it at once: there is nothing to save before.
    """
    loop.dog.beat("the features of a probe", compiles=True)
    state, chosen = probe.fit(loop.exp, state, loop.log.line)
    values = {"penalty": chosen.penalty, "loss": chosen.loss, "top1": chosen.top1}
    loop.log.event(int(state.step), "probe", **values)
    return state


def _checked_records(folder: Workdir, step: int) -> tuple[bool, dict[str, Any]]:
    """Returns (whether work is pending at the checkpoint of `step`, its "means").

    Moves a pending checkpoint aside.

    Raises `InputError` unless the records up to it are those that it was saved with.
    """
    meta = checkpoint.meta_of(folder.checkpoints, step)
    sealed, is_pending = meta.get("records", {}), bool(meta.get("pending"))
    _check_records(folder, sealed, step, is_pending, f"checkpoints/{step}")
    return checkpoint.take_pending(folder.checkpoints, step), meta.get("means", {})


def _check_records(
    folder: Workdir, sealed: Mapping[str, str], step: int, is_pending: bool, place: str
) -> None:
    """Raises `InputError` unless the records up to `step` have the seals of a place."""
    for name, path in {"metrics": folder.metrics, "digests": folder.digests}.items():
        last = step - is_pending if name == "digests" else step
        text = run_records.up_to(path, last, is_pending)
        run_records.check_sealed(path, text, sealed.get(name, ""), place)


def _add_trackers(exp: Experiment, folder: Workdir, log: RunLog, start: int) -> None:
    """Connects the first process to the trackers of the config."""
    config = exp.config
    if config.log.tensorboard and hosts.is_first():
        log.tensorboard = trackers.TensorBoard(folder.tensorboard, start, log.line)
    if config.log.wandb and hosts.is_first():
        project, values = config.log.wandb, config.to_dict()
        log.wandb = trackers.WandB(project, folder.path, values, log.line)


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
    role = "test" if exp.config.data.test else "eval"
    try:
        if exp.config.data[role]:
            record, _ = loop.score(weights, step, "final", role, **at)
        else:
            record = loop.log.evaluation(step, "final", {}, **at)
    except passes.Abandoned:
        raise StoppedError(
            f"asked to; step {step}, the last, is saved, and the same command scores it"
        ) from None
    loop.log.sync()
    if hosts.is_first():
        folder.note(records=loop.log.seals())
    loop.log.done()
    return _without_kind(record)
