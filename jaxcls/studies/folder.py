"""The folder of a study: its lock, plan.json, study.json, and the folders of its runs."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from jaxcls import atomic
from jaxcls.errors import InputError
from jaxcls.runs.workdir import Workdir
from jaxcls.studies.cells import Cell
from jaxcls.version import __version__

# The plan has the config, the cells, and all seeds of all calls. The result has figures.
PLAN, RESULT = "plan.json", "study.json"
# The format version of both files.
FORMAT = 1


def run_folder(study: pathlib.Path, cell: str, seed: int) -> Workdir:
    """Returns the folder of one run of the study in the folder `study`."""
    return Workdir(study / cell / f"seed-{seed}")


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Locks a study's folder within the block; waits for other processes.

    Makes the folder if it is missing. Raises `InputError` if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a")
    except OSError as error:
        raise InputError(
            f"--workdir={folder} cannot be written ({error.strerror}); give a folder you"
            " may write to: --workdir=DIR"
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_plan(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns plan.json of a study's folder, or None if there is no such file.

    Raises `InputError` if the file is no plan of this format.
    """
    plan: dict[str, Any] | None = atomic.read_json(folder / PLAN)
    kinds = {"config": dict, "cells": list, "seeds": list}
    if plan is None:
        return None
    is_plan = isinstance(plan, dict) and all(
        isinstance(plan.get(key), kind) for key, kind in kinds.items()
    )
    if not (is_plan and plan["cells"] and plan["seeds"]):
        raise _no_plan(folder)
    _check_format(folder / PLAN, plan)
    return plan


def cells_of(folder: pathlib.Path, plan: Mapping[str, Any]) -> list[Cell]:
    """Returns the cells of the plan of `folder`; raises `InputError` for a bad cell."""
    try:
        made = [Cell(**cell) for cell in plan["cells"]]
        return [cell._replace(streams=tuple(cell.streams)) for cell in made]
    except TypeError:
        raise _no_plan(folder) from None


def _no_plan(folder: pathlib.Path) -> InputError:
    return InputError(
        f"{folder / PLAN} is no plan of a study; put it right, or begin the study in a new"
        " folder"
    )


def read_result(folder: pathlib.Path, flag: str) -> dict[str, Any]:
    """Returns study.json of a study's folder.

    Raises `InputError`, which names `flag`, if the file is missing or invalid.
    """
    file = folder / RESULT
    found: dict[str, Any] | None = atomic.read_json(file)
    if found is None:
        raise InputError(f"{flag}={folder} {_why_no_study(folder)}")
    kinds = {"format": int, "cells": list, "headline": str}
    if not isinstance(found, dict) or not all(
        isinstance(found.get(key), kind) for key, kind in kinds.items()
    ):
        raise InputError(
            f"{flag}={folder} is not a study's folder: its {RESULT} is another program's"
        )
    _check_format(file, found)
    return found


def _check_format(file: pathlib.Path, found: Mapping[str, Any]) -> None:
    if found.get("format") != FORMAT:
        raise InputError(
            f"{file} has format {found.get('format')}, and jaxcls {__version__} reads"
            f" {FORMAT}; use the jaxcls that wrote it"
        )


def _why_no_study(folder: pathlib.Path) -> str:
    """Returns why a folder has no study.json, and the remedy, for a message."""
    if (folder / "config.json").is_file():
        above = folder.parent.parent
        whole = f"; the study's is {above}" if (above / RESULT).is_file() else ""
        return f"is a run's folder: give it as --workdir={folder}{whole}"
    if (folder / PLAN).is_file():
        return (
            f"has no {RESULT} yet; the command that began the study goes on with it, and"
            " writes it where it ends or is stopped"
        )
    return (
        f"is not a study's folder: it has no {RESULT}; give what --workdir of jaxcls study"
        " was"
    )
