"""The files of a study's folder."""

import fcntl
import json

import pytest

from jaxcls.errors import InputError
from jaxcls.studies import folder
from jaxcls.studies.cells import Cell

CELL = {"name": "base", "overrides": {}, "streams": ["init"]}
PLAN = {"format": 1, "config": {"seed": 0}, "cells": [CELL], "seeds": [0, 1]}


def test_a_plan_is_read_as_it_was_written_and_none_is_none(tmp_path):
    assert folder.read_plan(tmp_path) is None
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    plan = folder.read_plan(tmp_path)
    assert plan == ({"seed": 0}, [Cell("base", {}, ("init",))], [0, 1])
    folder.write_plan(tmp_path, plan)
    assert json.loads((tmp_path / "plan.json").read_text()) == PLAN


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ([], "is not what jaxcls study writes; put it right"),
        ({"format": 1, "config": {}, "cells": []}, "is not what jaxcls study writes"),
        ({**PLAN, "format": 2}, "has format 2, and jaxcls .* reads 1"),
    ],
)
def test_what_is_no_plan_is_named(tmp_path, other, message):
    (tmp_path / "plan.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=rf"plan\.json {message}"):
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
