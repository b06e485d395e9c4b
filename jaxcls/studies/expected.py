"""Expected results of a recipe: a file beside its config, recorded from real runs.

``configs/digits.expected.json`` belongs to ``configs/digits.py``, and
``vit_s16-300.expected.json`` to ``configs/vit_s16.py:300``.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcls import atomic
from jaxcls.errors import InputError
from jaxcls.studies.outcomes import Outcome, values_of
from jaxcls.studies.spread import spread

FORMAT = 1
# The fields of a `Spread` that a record keeps.
_KEPT = ("n", "mean", "deviation", "least", "most")


def file_of(config: pathlib.Path, argument: str) -> pathlib.Path:
    """Returns the path of the record for a config file and its argument ("": none)."""
    stem = f"{config.stem}-{argument}" if argument else config.stem
    return config.with_name(f"{stem}.expected.json")


def record(
    file: pathlib.Path,
    runs: Sequence[Outcome],
    *,
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    start: Mapping[str, Any],
    metric: str,
    place: str,
    margin: float,
) -> None:
    """Writes the record of the runs of one recipe.

    config: {key: value}. facts: of the dataset. start: an entry of manifest.json, for
    versions and devices. metric, place: the figure that a later check compares. margin:
    the largest allowed difference, in the metric's unit.
    Raises `InputError` if a run is not done, or there are fewer than two runs.
    """
    lost = [run.seed for run in runs if run.state != "done"]
    if lost or len(runs) < 2:
        what = f"seed {lost[0]} has not ended well" if lost else "there is one seed"
        raise InputError(f"--record: {what}; make every run first, of two seeds at least")
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for where in runs[0].values:
        figures[where] = {}
        for name in runs[0].values[where]:
            values = np.array([*values_of(runs, where, name).values()])
            found = spread(values)._asdict()
            figures[where][name] = {key: found[key] for key in _KEPT}
    whole = {
        "format": FORMAT,
        "metric": metric,
        "place": place,
        "margin": margin,
        "seeds": [run.seed for run in runs],
        "figures": figures,
        "data": facts,
        "config": config,
        **{key: start[key] for key in ("jaxcls", "code", "python", "versions", "devices")},
    }
    atomic.write_json(file, whole)


def read(file: pathlib.Path) -> dict[str, Any]:
    """Returns the content of a record; raises `InputError` if it is missing or invalid."""
    found = atomic.read_json(file)
    if found is None:
        raise InputError(
            f"{file} is not there: nothing is recorded of this recipe; --record makes it"
        )
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(
            f"{file} is no record of format {FORMAT}; make it anew with --record"
        )
    return found
