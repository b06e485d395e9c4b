"""Expected results of a recipe: a file beside its config, recorded from real runs.

``configs/digits.expected.json`` belongs to ``configs/digits.py``, and
``vit_s16-300.expected.json`` to ``configs/vit_s16.py:300``.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxcls import atomic, experiment
from jaxcls.config import loading as configs
from jaxcls.data import sources
from jaxcls.errors import InputError
from jaxcls.runs import forms
from jaxcls.studies import folder

# The fields of a spread that a record keeps.
_KEPT = ("n", "mean", "deviation", "least", "most")
_FORM = {
    **{"metric": forms.is_text, "place": forms.is_text, "seeds": [forms.is_count]},
    "margin": forms.is_finite,
    "figures": {forms.ANY: {forms.ANY: dict.fromkeys(_KEPT, forms.is_finite)}},
    **{"config": {}, "data": forms.is_facts},
    "versions": {"jax": forms.is_text},
    "devices": lambda value: bool(value) and not forms.misfit(value, [forms.is_text]),
}


def file_of(config: str) -> pathlib.Path:
    """Returns the path of the record for a config file, ``FILE.py`` or ``FILE.py:ARG``."""
    name, _, argument = config.partition(":")
    file = configs.find(name)
    stem = f"{file.stem}-{argument}" if argument else file.stem
    return file.with_name(f"{stem}.expected.json")


def record(
    file: pathlib.Path,
    result: Mapping[str, Any],
    config: ConfigDict,
    study: pathlib.Path,
    margin: float,
) -> None:
    """Writes the record of a study's runs of its base config.

    result: of study.json; its metric and headline are what a later check compares.
    study: its folder, for data, versions and devices of the first run. margin: the largest
    allowed difference, in the metric's unit.
    Raises `InputError` if a run is not done, or there are fewer than two runs.
    """
    (cell,) = [cell for cell in result["cells"] if cell["name"] == "base"]
    seeds = [run["seed"] for run in cell["runs"]]
    lost = [run["seed"] for run in cell["runs"] if run["state"] != "done"]
    if lost or len(seeds) < 2:
        what = f"seed {lost[0]} has not ended well" if lost else "there is one seed"
        raise InputError(f"--record: {what}; make every run first, of two seeds at least")
    first = folder.run_folder(study, "base", seeds[0])
    start = first.starts()[-1]
    whole = {
        "format": folder.FORMAT,
        "metric": result["metric"],
        "place": result["headline"],
        "margin": margin,
        "seeds": seeds,
        "figures": {
            place: {name: {key: each[key] for key in _KEPT} for name, each in of.items()}
            for place, of in cell["figures"].items()
        },
        "data": first.read()["implied"]["facts"],
        "config": {
            key: value
            for key, value in configs.flat(config).items()
            if configs.is_identity(key, config) and key != "seed"
        },
        **{key: start[key] for key in ("jaxcls", "code", "python", "versions", "devices")},
    }
    atomic.write_json(file, whole)


def read(file: pathlib.Path) -> dict[str, Any]:
    """Returns the content of a record; raises `InputError` if it is missing or invalid."""
    found = folder.read(file, _FORM)
    if found and found["metric"] not in found["figures"].get(found["place"], {}):
        raise InputError(
            f"{file} has no {found['metric']} of {found['place']}, which it is recorded by;"
            " put it right, or record it anew"
        )
    if found is None:
        raise InputError(
            f"{file} is not there: nothing is recorded of this recipe; --record makes it"
        )
    return found


def check_same(recorded: Mapping[str, Any], config: ConfigDict) -> None:
    """Raises `InputError` if the recipe or the dataset of a record is another one."""
    before = configs.from_flat({**recorded["config"], "seed": config.seed})
    changed = configs.differences(before, config)
    if other := [key for key in changed if configs.is_identity(key, config)]:
        raise InputError(
            f"--verify: the recipe is not the recorded one ({', '.join(other)} differ);"
            " leave --config.KEY out, or record it anew"
        )
    facts = sources.facts_of({"facts": recorded["data"]})
    of_data = configs.from_flat({**configs.flat(config), "plugins": ""})
    sources.check_same(facts, experiment.build(of_data).selection.facts)
