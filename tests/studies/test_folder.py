"""The files of a study's folder."""

import fcntl
import functools
import itertools
import json
import operator

import pytest

from jaxcls.errors import InputError
from jaxcls.report import page
from jaxcls.report.contents import Study
from jaxcls.runs import cost
from jaxcls.studies import folder, summary
from jaxcls.studies.cells import Cell
from jaxcls.studies.outcomes import Outcome
from tests.properties import refusal

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


def result():
    runs = [
        Outcome(k, "done", 9, {"test_best": 5}, {"test_best": {"top1": k / 7}})
        for k in (1, 2, 3)
    ]
    found = {"base": runs, "lr": runs[::-1]}
    cells = [Cell("base", {}, ()), Cell("lr", {"optim.lr": "1"}, ())]
    made = summary.summarise(
        cells, found, metric="top1", baseline="base", best_metric="top1"
    )
    return json.loads(json.dumps(made))


def places(tree, at=()):
    """The path of every value in nested dicts and lists."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))


@pytest.mark.slow
def test_a_result_of_another_form_is_refused_or_can_be_reported(tmp_path):
    file, whole, said = tmp_path / "study.json", result(), []
    file.write_text(json.dumps(whole))
    assert folder.read_result(tmp_path, "--study") == whole
    changes = itertools.product(places(whole), (None, "x", 7, [], {}, float("inf")))
    for number, ((*path, last), value) in enumerate(changes):
        changed = json.loads(json.dumps(whole))
        functools.reduce(operator.getitem, path, changed)[last] = value
        file.write_text(json.dumps(changed))
        said.append(refusal(folder.read_result, tmp_path, "--study"))
        if not said[-1] and number % 7 == 0:
            page.page([], {}, [Study("made", changed, {}, {}, {}, cost.total([]))])
    assert sum(map(bool, said)) > 300


@pytest.mark.parametrize("value", ["x", 7, {"value": 0.5, "low": None, "high": None}])
def test_what_older_versions_did_not_write_may_be_absent_but_not_wrong(tmp_path, value):
    file, whole = tmp_path / "study.json", result()
    del whole["comparisons"]["test_best"]["lr"]["superiority"]
    plan = {"of": "two independent runs", "deviation": 0.5, "seeds": {"1": 7}}
    whole["runs_needed"] = plan
    file.write_text(json.dumps(whole))
    assert folder.read_result(tmp_path, "--study") == whole
    whole["comparisons"]["test_best"]["lr"]["superiority"] = value
    file.write_text(json.dumps(whole))
    assert "comparisons.test_best.lr" in refusal(folder.read_result, tmp_path, "--study")
    whole = result() | {"runs_needed": plan | {"comparisons": "x"}}
    file.write_text(json.dumps(whole))
    assert "runs_needed" in refusal(folder.read_result, tmp_path, "--study")
