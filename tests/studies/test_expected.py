"""What is recorded of a recipe: where, what of it, and what is not recorded."""

import json
import pathlib

import numpy as np
import pytest

from jaxcls.config import loading
from jaxcls.errors import InputError
from jaxcls.studies import expected
from jaxcls.studies.outcomes import Outcome
from tests.conftest import ROOT

START = {
    "jaxcls": "1",
    "code": "c",
    "python": "3",
    "versions": {"jax": "0"},
    "devices": ["cpu"],
}


def outcome(seed, top1, state="done"):
    values = {"test_best": {"top1": top1}} if state == "done" else {}
    return Outcome(seed, state, 4, dict.fromkeys(values, 9), values)


def recorded(tmp_path, runs):
    file = tmp_path / "x.expected.json"
    expected.record(
        file,
        runs,
        config={"optim.lr": 0.1},
        facts={"name": "made"},
        start=START | {"cpu": "not recorded"},
        metric="top1",
        place="test_best",
        margin=0.5,
    )
    return file


@pytest.mark.parametrize(
    ("argument", "name"),
    [("", "vit_s16.expected.json"), ("300", "vit_s16-300.expected.json")],
)
def test_it_stands_beside_the_config(argument, name):
    file = expected.file_of(pathlib.Path("configs/vit_s16.py"), argument)
    assert file == pathlib.Path("configs") / name


def test_mean_and_deviation_are_those_of_the_runs(tmp_path):
    found = expected.read(recorded(tmp_path, [outcome(3, 0.8), outcome(5, 0.9)]))
    assert found["seeds"] == [3, 5]
    assert found["figures"]["test_best"]["top1"] == {
        "n": 2,
        "mean": pytest.approx(0.85),
        "deviation": pytest.approx(np.std([0.8, 0.9], ddof=1)),
        "least": 0.8,
        "most": 0.9,
    }
    assert found["versions"] == {"jax": "0"}
    assert "cpu" not in found


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([outcome(0, 0.8), outcome(1, 0, "diverged")], "seed 1 has not ended well"),
        ([outcome(0, 0.8), outcome(1, 0, "missing")], "seed 1 has not ended well"),
        ([outcome(0, 0.8)], "there is one seed"),
    ],
)
def test_what_is_not_whole_is_not_recorded(tmp_path, runs, message):
    with pytest.raises(InputError, match=message):
        recorded(tmp_path, runs)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 0}'])
def test_another_file_is_refused(tmp_path, text):
    file = tmp_path / "x.expected.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"x\.expected\.json"):
        expected.read(file)


def test_what_is_recorded_of_our_configs_is_of_these_configs():
    files = sorted((ROOT / "configs").glob("*.expected.json"))
    assert files
    for file in files:
        name, _, argument = file.name.removesuffix(".expected.json").partition("-")
        now = loading.load(f"configs/{name}.py{':' if argument else ''}{argument}")
        before = loading.from_flat(expected.read(file)["config"])
        assert not [
            key for key in loading.differences(before, now) if loading.is_identity(key, now)
        ]
        assert "/" not in json.dumps(expected.read(file)["config"])
