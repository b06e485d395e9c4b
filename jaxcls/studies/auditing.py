"""Audit a part of a run: train it again from a kept checkpoint that is as recorded."""

import pathlib
import shutil
from typing import Any

from jaxcls import atomic
from jaxcls.errors import InputError
from jaxcls.experiment import Experiment
from jaxcls.runs import checkpoint, records
from jaxcls.runs.archive import Recorded
from jaxcls.runs.workdir import Workdir
from jaxcls.version import NUMERICS, home_of


def part(recorded: Recorded, source: Workdir, first: int) -> Recorded:
    """Returns the proof of a run after step `first`, from the start that trained it on.

    source: the folder of the run. Raises `InputError`, which lists the steps that can be
    audited from, unless the checkpoint of `first` is kept and has a recorded digest.
    """
    of = recorded.digests.keys() - {max(recorded.digests)}  # Nothing follows the last.
    found = [step for step in checkpoint.steps(source.checkpoints) if step in of]
    kept = [step for step in found if not _is_pending(source, step)]
    if first not in kept:
        there = ", ".join(map(str, kept)) or "none"
        raise InputError(
            f"--from={first} is no kept checkpoint with digests of it and of a later step;"
            f" there are {there} (checkpoint.keep keeps more; an archive has none)"
        )
    from_step = [start["resumed_from"] or 0 for start in recorded.starts]
    began = max(i for i, step in enumerate(from_step) if step <= first)
    if (before := recorded.starts[began].get("numerics", 0)) != NUMERICS:
        raise InputError(
            f"--from={first}: the run went on from there with code that computes other bits"
            f" (numerics {before}, and this is {NUMERICS}); audit it with"
            f" {home_of(before)}, or the whole without --from"
        )
    return recorded._replace(
        starts=recorded.starts[began:],
        digests={step: of for step, of in recorded.digests.items() if step > first},
        metrics=[record for record in recorded.metrics if record["step"] > first],
    )


def _is_pending(source: Workdir, step: int) -> bool:
    """Returns whether a checkpoint was saved before the duties at its step, as a stop does.

    Its digest, if there is one, is of the state after them.
    """
    try:
        return bool(checkpoint.meta_of(source.checkpoints, step).get("pending"))
    except checkpoint.CorruptError:
        return False  # `differences` tells.


def differences(exp: Experiment, recorded: Recorded, source: Workdir, first: int) -> str:
    """Returns how the checkpoint of step `first` differs from its record; "" if not.

    Its arrays must have the digests that it was saved with, and these must be recorded in
    digests.jsonl. recorded: of the whole run.
    """
    try:
        state = checkpoint.restore(source.checkpoints, first, exp.programs.state_like)
    except checkpoint.CorruptError as error:
        return f"checkpoints/{first} is not as it was saved: {error}"
    now, before = checkpoint.digests(state), recorded.digests[first]
    names = now.keys() | before.keys()
    other = sorted(name for name in names if now.get(name) != before.get(name))
    if not other:
        return ""
    return (
        f"checkpoints/{first} is not what digests.jsonl records: {len(other)} of"
        f" {len(names)} arrays differ: {', '.join(other[:5])}"
    )


def lay_out(
    source: Workdir, first: int, start: dict[str, Any], folder: pathlib.Path
) -> None:
    """Copies a run up to the checkpoint of step `first` into `folder`, to go on there.

    The copy has all checkpoints up to it: the run may return to the best of them. start:
    the only one of the copy. Raises `InputError` unless the records up to the checkpoint
    are those that it was saved with.
    """
    target, texts = Workdir(folder), {}
    sealed = checkpoint.meta_of(source.checkpoints, first).get("records", {})
    for path in (source.metrics, source.digests):
        texts[path.name] = text = records.up_to(path, first)
        seal = sealed.get(path.stem, "")
        records.check_sealed(path, text, seal, f"checkpoints/{first}")
    with atomic.explained(folder, "give another folder with --scratch=DIR"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text)
        shutil.copy(source.path / "config.json", folder)
        for name in map(str, checkpoint.steps(source.checkpoints)):
            if int(name) <= first:
                shutil.copytree(source.checkpoints / name, target.checkpoints / name)
    target.write_starts([start])
