"""The two samples of a comparison: runs of a study, runs of a cell, or single runs."""

import pathlib
import re
from typing import Any, NamedTuple

from jaxcls.config import loading as configs
from jaxcls.errors import InputError
from jaxcls.runs.workdir import Workdir
from jaxcls.studies import cells, outcomes
from jaxcls.studies import folder as study_folder
from jaxcls.studies.outcomes import Outcome

_SEED = re.compile(r"seed-(\d+)")


class Sample(NamedTuple):
    """Runs of one recipe: a name, outcomes by seed, and {seed: folder}."""

    name: str
    runs: list[Outcome]
    folders: dict[int, Workdir]

    @property
    def folder(self) -> Workdir:
        """The folder of the first run."""
        return self.folders[min(self.folders)]


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
    return Sample(text.rstrip("/"), runs, folders)


def check_same_examples(one: Sample, other: Sample) -> None:
    """Raises `InputError` unless both samples are scored on the same dataset and splits.

    Runs are compared with those of the same seed; where there is none, with the first run,
    but for the seed that draws data.eval, which a study may vary.
    """
    common = one.folders.keys() & other.folders.keys()
    for seed in sorted(one.folders.keys() | other.folders.keys()):
        before, after = (
            _scored(sample.folders.get(seed, sample.folder)) for sample in (one, other)
        )
        if common and seed not in common and {*before} == {*after}:
            before |= {key: after[key] for key in ("data.split_seed",) if key in after}
        for what in [*before, *after]:
            if before.get(what) != after.get(what):
                raise InputError(
                    f"--compare: {one.name} and {other.name} are scored on other examples"
                    f" ({what}: {before.get(what, -1)} and {after.get(what, -1)}); compare"
                    " runs of the same"
                )


def _scored(folder: Workdir) -> dict[str, Any]:
    """Returns what decides the examples that a run is scored on, by name."""
    saved = folder.read()
    facts, config = saved["implied"]["facts"], saved["config"]
    found = {"data": facts["fingerprint"] or facts["name"]}
    found |= {key: config.get(key, "") for key in ("data.test", "data.eval")}
    if not config.get("data.test") and config.get("data.split_seed", -1) >= 0:
        # Which examples are in data.eval follows from all that they are drawn from.
        found |= {key: config[key] for key in ("data.split_seed", "data.train")}
    return found


def differences(one: Sample, other: Sample) -> list[str]:
    """Returns the differences of the recipes, without seeds: 'optim.lr: 0.1, 0.2'."""
    before, after = one.folder.config(), other.folder.config()
    found = configs.differences(before, after).items()
    seeds = {"seed", *cells.SEED_OF.values()}
    return [
        f"{key}: {old!r}, {new!r}"
        for key, (old, new) in found
        if configs.is_identity(key, after) and key not in seeds
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
