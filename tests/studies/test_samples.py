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


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("{}/one", [0, 1]),
        ("{}/two/b", [0, 1]),
        ("{}/one/", [0, 1]),
        # A cell of two keys has a comma in its name.
        ("{}/two/optim.lr=1,batch_size=8", [3]),
        # Where order alone varies, config.seed is that of all runs of a study.
        ("{0}/one/base/seed-0,{0}/one/base/seed-1", [0, 1]),
        ("{0}/alone,{0}/one/base/seed-0", [0, 7]),
    ],
)
def test_a_study_of_one_cell_and_a_cell_and_runs_are_sides(made, text, seeds):
    cell = made / "two" / "optim.lr=1,batch_size=8"
    run_folders.write(cell / "seed-3", run_folders.scored(0.7))
    found = samples.read(text.format(made))
    assert [run.seed for run in found.runs] == seeds
    assert found.name == text.format(made).rstrip("/")
    if seeds == [0, 1]:
        assert [run.values["test_best"]["top1"] for run in found.runs] == [0.5, 0.6]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}/two", "the study has 2 cells; name one: {}/two/a"),
        ("{}/none", "{}/none is no folder of a run"),
        ("{0}/alone,{0}/alone", "two of its runs are of one seed; give each once"),
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
        ({"optim__lr": 0.5, "data__threads": 3}, True),
        ({"data__test": "other"}, False),
        ({"data__eval": "other"}, False),
        ({"data__split_seed": 4, "data__train": "train[:50%]"}, True),
        ({"facts": {"fingerprint": "f2"}}, False),
        ({"facts": {"fingerprint": "", "name": "another"}}, False),
    ],
)
def test_only_what_was_scored_on_the_same_examples_is_compared(made, changed, is_same):
    run_folders.write(made / "changed", run_folders.scored(0.5), seed=3, **changed)
    pair = samples.read(f"{made}/alone"), samples.read(f"{made}/changed")
    if not is_same:
        with pytest.raises(InputError, match="are scored on other examples"):
            samples.check_same_examples(*pair)
        return
    samples.check_same_examples(*pair)
    # Of the recipe alone, without seeds.
    said = [each.partition(":")[0] for each in samples.differences(*pair)]
    assert said == (["optim.lr"] if "optim__lr" in changed else ["data.train"])


DRAWN = {"data__test": "", "data__split_seed": 0, "data__train": "train[:50%]"}


@pytest.mark.parametrize(
    ("seeds", "changed", "named"),
    [
        # A study that varies the split, and another of the same seeds or of more.
        ([(0, 0), (1, 1)], {}, ""),
        ([(0, 0), (1, 1), (2, 2)], {}, ""),
        ([(0, 0), (1, 2)], {}, "data.split_seed: 1 and 2"),
        ([(3, 3)], {}, "data.split_seed: 0 and 3"),
        ([(0, 0), (1, -1)], {}, "data.split_seed: 1 and -1"),
        # Other examples to draw from are others in data.eval; here of the last run alone.
        ([(0, 0), (1, 1)], {"data__train": "train[:40%]"},
         r"data.train: train\[:50%\] and train\[:40%\]"),
        ([(0, 0), (7, 0)], {"data__eval": "val2"}, "data.eval: val and val2"),
    ],
)  # fmt: skip
def test_runs_whose_data_eval_is_drawn_anew_are_compared_by_seed(
    tmp_path, seeds, changed, named
):
    def write(name, seed, split_seed, **more):
        values = {**DRAWN, "data__split_seed": split_seed, **more}
        folder = tmp_path / name / f"seed-{seed}"
        run_folders.write(folder, run_folders.scored(0.5), **values)

    for seed in (0, 1):
        write("one", seed, seed)
    for seed, split_seed in seeds:
        write("other", seed, split_seed, **(changed if seed == seeds[-1][0] else {}))
    pair = samples.read(f"{tmp_path}/one"), samples.read(f"{tmp_path}/other")
    if named:
        with pytest.raises(InputError, match=named):
            samples.check_same_examples(*pair)
    else:
        samples.check_same_examples(*pair)
