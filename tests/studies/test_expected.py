"""What is recorded of a recipe: where, what of it, and what is not recorded."""

import json

import numpy as np
import pytest

from jaxcls.config import loading
from jaxcls.errors import InputError
from jaxcls.studies import expected, summary
from jaxcls.studies.cells import Cell
from jaxcls.studies.outcomes import Outcome
from tests import run_folders
from tests.conftest import ROOT


def recorded(tmp_path, *top1):
    """What is recorded of runs with these values, or ends: a text."""
    runs = []
    for seed, value in enumerate(top1, 3):
        values = {} if isinstance(value, str) else {"test_best": {"top1": value}}
        state = "done" if values else value
        runs.append(Outcome(seed, state, 4, dict.fromkeys(values, 9), values))
    options = {"metric": "top1", "baseline": "base", "best_metric": "top1"}
    result = summary.summarise([Cell("base", {}, ())], {"base": runs}, **options)
    run = run_folders.write(tmp_path / "base" / "seed-3")
    start = {"jaxcls": "1", "code": "c", "python": "3", "versions": {"jax": "0"}}
    run.begin(["cpu"])
    run.note(**start)
    file = tmp_path / "x.expected.json"
    expected.record(file, result, loading.from_flat({"optim.lr": 0.1}), tmp_path, 0.5)
    return expected.read(file)


def test_it_stands_beside_the_config_and_is_of_this_config():
    assert expected.file_of("configs/vit_s16.py:300").name == "vit_s16-300.expected.json"
    files = sorted((ROOT / "configs").glob("*.expected.json"))
    assert files
    for file in files:
        name, _, argument = file.name.removesuffix(".expected.json").partition("-")
        config = f"configs/{name}.py{':' if argument else ''}{argument}"
        assert expected.file_of(config) == file
        now = loading.load(config)
        before = loading.from_flat(expected.read(file)["config"])
        assert not [
            key for key in loading.differences(before, now) if loading.is_identity(key, now)
        ]
        assert "/" not in json.dumps(expected.read(file)["config"])


def test_mean_and_deviation_are_those_of_the_runs(tmp_path):
    found = recorded(tmp_path, 0.8, 0.9)
    assert found["seeds"] == [3, 4]
    assert found["figures"]["test_best"]["top1"] == {
        "n": 2,
        "mean": pytest.approx(0.85),
        "deviation": pytest.approx(np.std([0.8, 0.9], ddof=1)),
        "least": 0.8,
        "most": 0.9,
    }
    assert (found["metric"], found["place"], found["margin"]) == ("top1", "test_best", 0.5)
    assert found["config"]["optim.lr"] == 0.1
    assert not {"seed", "data.dir"} & set(found["config"])
    assert (found["data"]["name"], found["versions"]) == ("made", {"jax": "0"})
    assert "cpu" not in found


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ((0.8, "diverged"), "seed 4 has not ended well"),
        ((0.8, "missing"), "seed 4 has not ended well"),
        ((0.8,), "there is one seed"),
    ],
)
def test_what_is_not_whole_is_not_recorded(tmp_path, runs, message):
    with pytest.raises(InputError, match=message):
        recorded(tmp_path, *runs)
    assert not list(tmp_path.glob("*.json"))


def test_another_file_is_refused(tmp_path):
    file = tmp_path / "x.expected.json"
    file.write_text('{"format": 1}')
    with pytest.raises(InputError, match=r"x\.expected\.json is not what jaxcls study"):
        expected.read(file)


@pytest.mark.parametrize("lost", ["metric", "data", "versions", "margin", "figures"])
def test_a_record_that_lacks_a_part_is_refused(tmp_path, lost):
    file = tmp_path / "x.expected.json"
    whole = json.loads(expected.file_of("configs/digits.py").read_text())
    file.write_text(json.dumps(whole))
    assert expected.read(file) == whole
    for value in (None, 10**400, {}):
        file.write_text(json.dumps({**whole, lost: value}))
        with pytest.raises(InputError, match=r"x\.expected\.json "):
            expected.read(file)
    del whole[lost]
    file.write_text(json.dumps(whole))
    with pytest.raises(InputError, match=r"is not what jaxcls study writes"):
        expected.read(file)
