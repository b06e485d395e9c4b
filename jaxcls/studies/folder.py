"""The folder of a study: its lock, plan.json, study.json, cost.json, and its runs'."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jaxcls import atomic
from jaxcls.errors import InputError
from jaxcls.runs import forms
from jaxcls.runs.workdir import Workdir
from jaxcls.studies.cells import Cell
from jaxcls.studies.outcomes import PLACES
from jaxcls.version import __version__

PLAN, RESULT, COST = "plan.json", "study.json", "cost.json"
# The format version of these files, and of expected.json.
FORMAT = 1


_ENDS = {"value": forms.is_number, "low": forms.is_number, "high": forms.is_number}


def _is_interval(value: Any) -> bool:
    """Returns whether a value is an interval: with both ends, or with none."""
    is_one = not forms.misfit(value, _ENDS)
    return is_one and (value["low"] is None) == (value["high"] is None)


def _is_share(value: Any) -> bool:
    """Returns whether a value is an interval whose ends are known if its value is."""
    return _is_interval(value) and (value["value"] is None) == (value["low"] is None)


def _is_figure(value: Any) -> bool:
    """Returns whether a value has the form of `spread.spread`."""
    known = ("mean", "least", "most")
    form = {
        **{"n": forms.is_count, "deviation": forms.is_number, "t": _is_interval},
        **dict.fromkeys(known, forms.is_finite),
        **{"median": _is_interval, "coverage_median": forms.is_number},
        **{"iqm": _is_interval, "coverage_iqm": forms.is_number},
    }
    if isinstance(value, dict) and "bca" in value:  # Older versions wrote none.
        form |= {"bca": _is_interval, "coverage_bca": forms.is_number}
    return not forms.misfit(value, form) and all(
        value[name]["low"] is None or value[f"coverage_{name}"] is not None
        for name in ("median", "iqm", "bca")
        if name in value
    )


def _is_comparison(value: Any) -> bool:
    """Returns whether a value is a comparison; older versions wrote less."""
    form = {
        **{"unpaired": forms.is_count, "comparisons": forms.is_count},
        **{"difference": _is_interval},
        **{"p_corrected": forms.is_number, "words": forms.is_text},
    }
    if isinstance(value, dict) and "bca" in value:
        form |= {"bca": _is_interval, "n": forms.is_count}
    is_one = not forms.misfit(value, form)
    return is_one and ("superiority" not in value or _is_share(value["superiority"]))


def _is_needed(value: Any) -> bool:
    """Returns whether a value is a plan; older versions wrote no comparisons."""
    form = {
        **{"of": forms.is_text, "deviation": forms.is_finite},
        "seeds": {forms.ANY: forms.or_none(forms.is_count)},
    }
    is_one = not forms.misfit(value, form)
    return is_one and forms.is_count(value.get("comparisons", 1))


_CELL = {"name": forms.is_text, "overrides": {forms.ANY: forms.is_text}}


def _is_vary(value: object) -> bool:
    return value == "all" or not forms.misfit(value, [forms.is_text])


# What is read back of study.json, as `summary.summarise` makes it.
_RESULT = {
    **dict.fromkeys(("metric", "unit", "baseline"), forms.is_text),
    **dict.fromkeys(("done", "diverged", "missing"), forms.is_count),
    "headline": lambda value: value in ("", *PLACES),
    "budget": {"steps": forms.is_count},
    "cells": [
        {
            **_CELL,
            "vary": _is_vary,
            "runs": [
                {
                    "seed": forms.is_count,
                    "state": forms.is_text,
                    "values": {forms.ANY: {forms.ANY: forms.is_number}},
                }
            ],
            "figures": {forms.ANY: {forms.ANY: _is_figure}},
        }
    ],
    "comparisons": {forms.ANY: {forms.ANY: _is_comparison}},
    "selected": forms.or_none(
        {"cell": forms.is_text, "metric": forms.is_text, "mean": forms.is_finite}
    ),
    "streams": {forms.ANY: {forms.ANY: _is_share}},
    "runs_needed": forms.or_none(_is_needed),
}
_PLAN = {
    "config": {},
    "cells": [{**_CELL, "streams": [forms.is_text]}],
    "seeds": [forms.is_count],
}


class StudyPlan(NamedTuple):
    """The base config of a study, and the cells and seeds of all its calls."""

    config: dict[str, Any]
    cells: list[Cell]
    seeds: list[int]


def run_folder(study: pathlib.Path, cell: str, seed: int) -> Workdir:
    """Returns the folder of one run of the study in the folder `study`."""
    return Workdir(study / cell / f"seed-{seed}")


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Locks a study's folder within the block; waits for other processes.

    Makes the folder if it is missing. Raises `InputError` if it cannot be written.
    """
    with atomic.explained(folder, "give a folder you may write to: --workdir=DIR"):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read(file: pathlib.Path, form: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns a JSON file of a study, or None if it is missing.

    form: see `forms.misfit`. Raises `InputError` if the file has not that form, or is of
    another format.
    """
    found = atomic.read_json(file)
    if found is None:
        return None
    if not isinstance(found, dict) or "format" not in found:
        raise _foreign(file)
    if found["format"] != FORMAT:
        raise InputError(
            f"{file} has format {found['format']}, and jaxcls {__version__} reads"
            f" {FORMAT}; use the jaxcls that wrote it"
        )
    if wrong := forms.misfit(found, form):
        raise _foreign(file, f": {wrong} is of another form")
    return found


def read_plan(folder: pathlib.Path) -> StudyPlan | None:
    """Returns the plan of a study's folder, or None if there is no such file.

    Raises `InputError` if the file is no plan of this format.
    """
    found = read(folder / PLAN, _PLAN)
    if found is None:
        return None
    cells = [Cell(c["name"], c["overrides"], tuple(c["streams"])) for c in found["cells"]]
    if not cells:
        raise _foreign(folder / PLAN)
    return StudyPlan(found["config"], cells, found["seeds"])


def write_plan(folder: pathlib.Path, plan: StudyPlan) -> None:
    """Writes the plan of a study."""
    cells = [cell._asdict() for cell in plan.cells]
    saved = {"format": FORMAT, **plan._asdict(), "cells": cells}
    atomic.write_json(folder / PLAN, saved)


def read_result(folder: pathlib.Path, flag: str) -> dict[str, Any]:
    """Returns study.json of a study's folder.

    Raises `InputError`, which names `flag`, if the file is missing or invalid.
    """
    found = read(folder / RESULT, _RESULT)
    if found is None:
        raise InputError(
            f"{flag}={folder} is not a study's folder: it has no {RESULT}, which jaxcls"
            " study writes into its --workdir where it ends or is stopped; give that"
        )
    if not found["cells"]:
        raise _foreign(folder / RESULT)
    return found


def _foreign(file: pathlib.Path, why: str = "") -> InputError:
    return InputError(
        f"{file} is not what jaxcls study writes{why}; put it right, or move it away"
    )
