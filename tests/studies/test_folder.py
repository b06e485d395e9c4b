"""The files of a study's folder."""

import fcntl
import json

import pytest

from jaxcls.errors import InputError
from jaxcls.studies import folder
from jaxcls.studies.cells import Cell

CELL = {"name": "base", "overrides": {}, "streams": ["init"]}
PLAN = {"format": 1, "config": {"seed": 0}, "cells": [CELL], "seeds": [0, 1]}


def test_a_plan_is_read_and_none_is_none(tmp_path):
    assert folder.read_plan(tmp_path) is None
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    assert folder.read_plan(tmp_path) == PLAN
    (cell,) = folder.cells_of(tmp_path, PLAN)
    assert cell == Cell("base", {}, ("init",))


NO_LISTS = [{**PLAN, key: value} for key in ("cells", "seeds") for value in (None, 5, [])]


@pytest.mark.parametrize("other", [[], 5, {**PLAN, "config": None}, *NO_LISTS])
def test_what_is_no_plan_is_named(tmp_path, other):
    (tmp_path / "plan.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"plan\.json is no plan of a study; put it right"):
        folder.read_plan(tmp_path)


@pytest.mark.parametrize("cell", [5, {}, {**CELL, "more": 1}, {**CELL, "streams": None}])
def test_what_is_no_cell_is_named(tmp_path, cell):
    with pytest.raises(InputError, match=r"plan\.json is no plan of a study"):
        folder.cells_of(tmp_path, {**PLAN, "cells": [cell]})


def test_a_plan_of_another_format_is_named(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({**PLAN, "format": 2}))
    with pytest.raises(InputError, match=r"plan\.json has format 2, and jaxcls .* reads 1"):
        folder.read_plan(tmp_path)


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    with (
        folder.held(tmp_path / "new"),
        (tmp_path / "new" / "lock").open() as file,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (tmp_path / "new" / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    refused = pytest.raises(InputError, match=r"cannot be written \(Not a directory\)")
    with refused, folder.held(tmp_path / "file" / "study"):
        pass
