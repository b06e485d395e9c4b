"""The two samples of a comparison: runs of a study, runs of a cell, or single runs."""

import pathlib
import re
from typing import NamedTuple

from jaxcls.config import loading as configs
from jaxcls.errors import InputError
from jaxcls.runs.workdir import Workdir
from jaxcls.studies import folder as study_folder
from jaxcls.studies import outcomes
from jaxcls.studies.outcomes import Outcome

_SEED = re.compile(r"seed-(\d+)")


class Sample(NamedTuple):
    """Runs of one recipe: a name, outcomes by seed, and the folder of one of the runs."""

    name: str
    runs: list[Outcome]
    folder: Workdir


def read(text: str) -> Sample:
    """Returns the sample of a text: one folder, or several run folders with commas.

    A folder belongs to a run, to a cell of a study (with seed-0, seed-1, ... inside), or
    to a study with one cell. Raises `InputError`.
    """
    # The name of a cell may have commas.
    whole = pathlib.Path(text).expanduser().is_dir()
    parts = [text] if whole else text.split(",")
    found = [run for part in parts for run in _runs(part.strip(), text)]
    folders = dict(found)
    runs = [outcomes.read(folder, seed) for seed, folder in sorted(folders.items())]
    wrong = ""
    if len(folders) < len(found):
        wrong = "two of its runs are of one seed; give each once"
    elif not any(run.state == "done" for run in runs):
        wrong = "no run of it has ended; the command that made it goes on"
    if wrong:
        raise InputError(f"--compare {text}: {wrong}")
    return Sample(text.rstrip("/"), runs, folders[min(folders)])


def check_same_examples(one: Sample, other: Sample) -> None:
    """Raises `InputError` unless both samples are scored on the same dataset and splits."""
    scored = []
    for folder in (one.folder, other.folder):
        saved = folder.read()
        facts, config = saved["implied"]["facts"], saved["config"]
        scored.append({"data": facts["fingerprint"] or facts["name"]})
        scored[-1] |= {key: config.get(key, "") for key in ("data.test", "data.eval")}
        if not config.get("data.test"):
            scored[-1]["data.split_seed"] = config.get("data.split_seed", -1)
    for what, before in scored[0].items():
        if before != scored[1][what]:
            raise InputError(
                f"--compare: {one.name} and {other.name} are scored on other examples"
                f" ({what}: {before} and {scored[1][what]}); compare runs of the same"
            )


def differences(one: Sample, other: Sample) -> list[str]:
    """Returns the differences of the recipes, without seeds: 'optim.lr: 0.1, 0.2'."""
    before, after = one.folder.config(), other.folder.config()
    found = configs.differences(before, after).items()
    return [
        f"{key}: {old!r}, {new!r}"
        for key, (old, new) in found
        if configs.is_identity(key, after)
        and key.partition(".")[0] not in ("seed", "seeds")
    ]


def _runs(part: str, text: str) -> list[tuple[int, Workdir]]:
    """Returns (seed, folder) of the runs of one folder; raises `InputError`."""
    path = pathlib.Path(part).expanduser()
    if (path / "config.json").is_file():
        folder = Workdir(path)
        # The folder name has the seed of a study's run; --vary=order keeps config.seed.
        of_study = _SEED.fullmatch(folder.path.name)
        return [(int(of_study[1]) if of_study else folder.config().seed, folder)]
    if plan := study_folder.read_plan(path):
        if len(plan.cells) > 1:
            raise InputError(
                f"--compare {text}: the study has {len(plan.cells)} cells; name one:"
                f" {path / plan.cells[0].name}"
            )
        path /= plan.cells[0].name
    found = [
        (int(match[1]), Workdir(run))
        for run in path.glob("seed-*")
        if (match := _SEED.fullmatch(run.name))
    ]
    if not found:
        raise InputError(
            f"--compare {text}: {part} is no folder of a run, of a study or of a cell of"
            " one; give one, such as runs/digits"
        )
    return found
