"""What came of a run, read from its folder alone."""

import json

import pytest

from jaxcls.errors import InputError
from jaxcls.runs.workdir import Workdir
from jaxcls.studies import outcomes
from tests import run_folders


def evaluation(step, top1):
    return {"step": step, "kind": "eval", "split": "b", "n": 9, "loss": 0.5, "top1": top1}


@pytest.fixture
def folder(tmp_path):
    """``folder(records, test="t", reason="done")`` -> Workdir of a run that said these."""

    def write(records, test="t", reason="done"):
        return run_folders.write(tmp_path, records, reason=reason, data__test=test)

    return write


FINAL = {"step": 8, "kind": "final", "at": "best", "best_step": 4, "split": "t", "n": 30}


def test_the_best_and_the_last_step_are_told_apart_on_both_splits(folder):
    records = [evaluation(4, 0.9), evaluation(8, 0.7), {**FINAL, "loss": 1.0, "top1": 0.8}]
    workdir = folder(records)
    found = outcomes.read(workdir, 3)
    assert (found.seed, found.state, found.steps) == (3, "done", 8)
    assert found.values == {
        "test_best": {"loss": 1.0, "top1": 0.8},
        "eval_best": {"loss": 0.5, "top1": 0.9},
        "eval_last": {"loss": 0.5, "top1": 0.7},
    }
    assert outcomes.is_left(workdir)  # The last step on the test split.
    last = {"step": 8, "split": "t", "n": 30, "loss": 2.0, "top1": 0.6}
    (workdir.path / outcomes.LAST_STEP).write_text(json.dumps(last))
    assert not outcomes.is_left(workdir)
    found = outcomes.read(workdir, 3)
    assert found.values["test_last"] == {"loss": 2.0, "top1": 0.6}
    assert found.n == {"test_best": 30, "test_last": 30, "eval_best": 9, "eval_last": 9}
    # A run that was made longer since has another last step.
    (workdir.path / outcomes.LAST_STEP).write_text(json.dumps({**last, "step": 6}))
    assert outcomes.is_left(workdir)
    assert "test_last" not in outcomes.read(workdir, 3).values


def test_a_last_step_that_is_the_best_is_scored_once(folder):
    final = {**FINAL, "best_step": 8, "loss": 1.0, "top1": 0.8}
    workdir = folder([evaluation(4, 0.1), evaluation(8, 0.7), final])
    assert not outcomes.is_left(workdir)
    values = outcomes.read(workdir, 0).values
    assert values["test_best"] == values["test_last"] == {"loss": 1.0, "top1": 0.8}
    assert values["eval_best"] == values["eval_last"]


def test_without_a_test_split_the_final_record_is_of_data_eval(folder):
    final = {**FINAL, "split": "b", "n": 9, "loss": 0.5, "top1": 0.9}
    workdir = folder([evaluation(4, 0.9), evaluation(8, 0.7), final], test="")
    found = outcomes.read(workdir, 0)
    assert list(found.values) == ["eval_best", "eval_last"]
    assert found.values["eval_last"]["top1"] == 0.7
    assert not outcomes.is_left(workdir)


def test_without_evaluations_there_is_the_last_step_alone(folder):
    final = {"step": 8, "kind": "final", "at": "last", "split": "t", "n": 30, "top1": 0.8}
    assert outcomes.read(folder([final]), 0).values == {"test_last": {"top1": 0.8}}


def test_a_value_that_was_not_finite_is_not_there(folder):
    final = {**FINAL, "best_step": 8, "loss": None, "top1": 0.1}
    assert outcomes.read(folder([evaluation(8, 0.1), final]), 0).values["test_best"] == {
        "top1": 0.1
    }


@pytest.mark.parametrize(
    ("reason", "state"),
    [("diverged", "diverged"), ("stopped", "missing"), ("killed", "missing")],
)
def test_a_run_that_did_not_end_is_missing_unless_it_diverged(folder, reason, state):
    workdir = folder([evaluation(4, 0.9)], reason=reason)
    assert outcomes.read(workdir, 1) == outcomes.Outcome(1, state, 0, {}, {})
    assert outcomes.is_left(workdir) == (state == "missing")
    never = Workdir(workdir.path / "none")
    assert outcomes.read(never, 1).state == "missing"
    assert outcomes.is_left(never)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "is not a run's folder: it has no config.json"),
        ("metrics.jsonl", json.dumps(FINAL) + "\n", "has lost the evaluation of step 4"),
    ],
)
def test_a_damaged_file_is_named_on_one_line(folder, name, content, message):
    workdir = folder([evaluation(4, 0.9), evaluation(8, 0.7), FINAL])
    file = workdir.path / name
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.raises(InputError, match=message) as refused:
        outcomes.read(workdir, 0)
    assert str(workdir.path) in str(refused.value)
