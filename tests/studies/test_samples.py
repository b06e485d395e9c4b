"""What is compared with what: studies, their cells, and runs by themselves."""

import json

import pytest

from jaxcls.errors import InputError
from jaxcls.studies import samples
from tests import run_folders


@pytest.fixture
def made(tmp_path):
    """A study with one cell, one with two, and a run by itself of seed 7."""
    for study, cells in {"one": ["base"], "two": ["a", "b"]}.items():
        for cell in cells:
            for seed in (0, 1):
                top1 = 0.5 + seed / 10
                run_folders.write(
                    tmp_path / study / cell / f"seed-{seed}", run_folders.scored(top1)
                )
        parts = [{"name": name, "overrides": {}, "streams": []} for name in cells]
        plan = {"format": 1, "config": {}, "cells": parts, "seeds": [0, 1]}
        (tmp_path / study / "plan.json").write_text(json.dumps(plan))
    run_folders.write(tmp_path / "alone", run_folders.scored(0.9), seed=7)
    return tmp_path


@pytest.mark.parametrize("name", ["one", "one/base", "two/b", "one/"])
def test_a_study_of_one_cell_and_a_cell_are_sides(made, name):
    found = samples.read(f"{made}/{name}")
    assert [run.seed for run in found.runs] == [0, 1]
    assert [run.values["test_best"]["top1"] for run in found.runs] == [0.5, 0.6]
    assert found.name == f"{made}/{name}".rstrip("/")


def test_a_cell_of_two_keys_has_a_comma_in_its_name(made):
    cell = made / "two" / "optim.lr=1,batch_size=8"
    run_folders.write(cell / "seed-3", run_folders.scored(0.7))
    found = samples.read(str(cell))
    assert ([run.seed for run in found.runs], found.name) == ([3], str(cell))


def test_runs_of_a_study_have_the_seeds_of_their_names(made):
    # Where order alone varies, config.seed is that of all of them.
    pair = ",".join(str(made / "one" / "base" / f"seed-{seed}") for seed in (0, 1))
    assert [run.seed for run in samples.read(pair).runs] == [0, 1]


def test_runs_by_themselves_have_the_seeds_of_their_configs(made):
    found = samples.read(f"{made}/alone,{made}/one/base/seed-0")
    assert [run.seed for run in found.runs] == [0, 7]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}/two", "the study has 2 cells; name one: {}/two/a"),
        ("{}/none", "{}/none is no folder of a run"),
        ("{0}/alone,{0}/alone", "two of its runs are of seed 7; give each once"),
        ("{}/new", "no run of it has ended"),
        ("", "is no folder of a run"),
    ],
)
def test_what_is_no_side_is_said(made, text, message):
    run_folders.write(made / "new", [])
    with pytest.raises(InputError, match="--compare") as error:
        samples.read(text.format(made))
    assert message.format(made) in str(error.value)


@pytest.mark.parametrize(
    ("changed", "is_same"),
    [
        ({}, True),
        ({"optim__lr": 0.5}, True),
        ({"data__test": "other"}, False),
        ({"data__eval": "other"}, False),
        ({"facts": {"fingerprint": "f2"}}, False),
        ({"facts": {"fingerprint": "", "name": "another"}}, False),
    ],
)
def test_only_what_was_scored_on_the_same_examples_is_compared(made, changed, is_same):
    run_folders.write(made / "changed", run_folders.scored(0.5), **changed)
    pair = samples.read(f"{made}/alone"), samples.read(f"{made}/changed")
    if is_same:
        samples.check_same_examples(*pair)
    else:
        with pytest.raises(InputError, match="are scored on other examples"):
            samples.check_same_examples(*pair)


def test_differences_are_of_the_recipe_alone(made):
    run_folders.write(
        made / "changed", run_folders.scored(0.5), seed=3, optim__lr=0.5, data__threads=3
    )
    pair = samples.read(f"{made}/alone"), samples.read(f"{made}/changed")
    (said,) = samples.differences(*pair)
    assert said.startswith("optim.lr: ")
    assert said.endswith(", 0.5")
