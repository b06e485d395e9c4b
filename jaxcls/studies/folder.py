"""The folder of a study: its lock, plan.json, study.json, and the folders of its runs."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxcls import atomic
from jaxcls.errors import InputError
from jaxcls.runs.workdir import Workdir
from jaxcls.studies.cells import Cell
from jaxcls.version import __version__

PLAN, RESULT = "plan.json", "study.json"
# The format version of both files, and of expected.json.
FORMAT = 1


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


def read(file: pathlib.Path, *keys: str) -> dict[str, Any] | None:
    """Returns a JSON file of a study, or None if it is missing.

    Raises `InputError` if the file lacks one of `keys`, or is of another format.
    """
    found = atomic.read_json(file)
    if found is None:
        return None
    if not isinstance(found, dict) or not {"format", *keys} <= found.keys():
        raise _foreign(file)
    if found["format"] != FORMAT:
        raise InputError(
            f"{file} has format {found['format']}, and jaxcls {__version__} reads"
            f" {FORMAT}; use the jaxcls that wrote it"
        )
    return found


def read_plan(folder: pathlib.Path) -> StudyPlan | None:
    """Returns the plan of a study's folder, or None if there is no such file.

    Raises `InputError` if the file is no plan of this format.
    """
    found = read(folder / PLAN, *StudyPlan._fields)
    if found is None:
        return None
    try:
        cells = [Cell(**{**c, "streams": tuple(c["streams"])}) for c in found["cells"]]
        is_ours = bool(cells) and isinstance(found["config"], dict)
        is_ours &= all(isinstance(cell.name, str) for cell in cells)
    except (KeyError, TypeError):
        is_ours = False
    if not is_ours:
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
    found = read(folder / RESULT, "cells", "headline", "metric")
    if found is None:
        raise InputError(
            f"{flag}={folder} is not a study's folder: it has no {RESULT}, which jaxcls"
            " study writes into its --workdir where it ends or is stopped; give that"
        )
    if not isinstance(found["cells"], list):
        raise _foreign(folder / RESULT)
    return found


def _foreign(file: pathlib.Path) -> InputError:
    return InputError(
        f"{file} is not what jaxcls study writes; put it right, or move it away"
    )
