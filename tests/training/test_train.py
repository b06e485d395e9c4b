import json

import pytest

from jaxcls import experiment
from jaxcls.errors import InputError
from jaxcls.runs import checkpoint, records
from jaxcls.runs.workdir import Workdir
from jaxcls.training import train


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """``ran(config)`` -> the finished run's folder, trained once a config."""
    made = {}

    def get(config):
        key = config.to_json()
        if key not in made:
            folder = tmp_path_factory.mktemp("ran") / "run"
            made[key] = folder, train.run(experiment.build(config), str(folder))
        return made[key]

    return get


def test_records_are_written_at_their_steps_and_in_order(tiny, ran):
    folder, _ = ran(tiny())
    steps = [(r["step"], r["kind"]) for r in records.read(folder / "metrics.jsonl")]
    evals = {4, 8, 12}
    expected = [
        (step, kind)
        for step in range(2, 13, 2)
        for kind in ("train", "eval")
        if kind == "train" or step in evals
    ]
    assert steps == [*expected, (12, "final")]


def test_a_record_holds_the_values_and_the_rate_of_its_step(tiny, ran):
    folder, _ = ran(tiny())
    record = records.read(folder / "metrics.jsonl")[0]
    assert set(record) == {"step", "kind", "loss", "top1", "lr", "grad_norm"}
    assert record["lr"] == pytest.approx(float(experiment.build(tiny()).recipe.schedule(1)))


def test_the_best_and_the_last_checkpoint_are_kept(tiny, ran):
    folder, result = ran(tiny())
    assert checkpoint.steps(folder / "checkpoints") == sorted(
        {result.record["best_step"], 12}
    )
    best = result.record["best_step"]
    assert checkpoint.find(folder / "checkpoints", "best") == (best, "best")


def test_the_best_is_that_of_the_evaluations(tiny, ran):
    folder, result = ran(tiny())
    evals = [r for r in records.read(folder / "metrics.jsonl") if r["kind"] == "eval"]
    best = max(evals, key=lambda r: (r["top1"], -r["step"]))
    assert result.record["best_step"] == best["step"]


def test_times_are_apart_from_metrics(tiny, ran):
    folder, _ = ran(tiny())
    (first, *_) = records.read(folder / "timing.jsonl")
    assert {"step", "images_per_s", "data_wait", "train_s", "eval_s", "save_s"} == set(
        first
    )


def test_without_an_eval_split_the_last_state_is_scored(tiny, ran):
    folder, result = ran(tiny(**{"data.eval": "", "length": "3 steps"}))
    assert (result.record["at"], result.record["split"], result.record["n"]) == (
        "last",
        "test",
        360,
    )
    assert [r["kind"] for r in records.read(folder / "metrics.jsonl")] == [
        "train",
        "train",
        "final",
    ]


def test_without_a_test_split_the_best_eval_score_is_the_result(tiny, ran):
    folder, result = ran(tiny(**{"data.test": "", "length": "4 steps"}))
    (evaluated,) = [
        r for r in records.read(folder / "metrics.jsonl") if r["kind"] == "eval"
    ]
    assert result.record["split"] == "train[90%:]"
    assert result.record["top1"] == evaluated["top1"]


@pytest.mark.slow
def test_with_no_split_to_score_the_run_still_ends(tiny, ran):
    _, result = ran(tiny(**{"data.eval": "", "data.test": "", "length": "2 steps"}))
    assert result.line.startswith("step=2 at=last workdir=")


def test_the_manifest_tells_how_each_start_ended(tiny, ran):
    folder, _ = ran(tiny())
    (start,) = json.loads((folder / "manifest.json").read_text())["starts"]
    assert start["reason"] == "done"
    assert start["resumed_from"] is None
    assert start["versions"]["jax"]


def test_other_data_than_the_run_began_with_is_refused(tiny, tmp_path):
    exp = experiment.build(tiny(**{"length": "3 steps", "data.test": ""}))
    train.run(exp, str(tmp_path))
    (tmp_path / "metrics.jsonl").unlink()  # As if it had not finished.
    facts = exp.selection.facts._replace(version="1.0.1")
    with pytest.raises(
        InputError, match=r'facts.version was "1.0.0" and is "1.0.1".*--workdir='
    ):
        train.run(experiment.build(exp.config, facts), str(tmp_path))


def test_a_lost_best_checkpoint_is_said(tiny, tmp_path, monkeypatch):
    exp = experiment.build(tiny())
    best = train.run(exp, str(tmp_path)).record["best_step"]
    if best == 12:
        pytest.fail("the config must have its best before its end for this test")
    (tmp_path / "metrics.jsonl").unlink()
    folder = Workdir(tmp_path)
    for item in (folder.checkpoints / str(best) / "weights").rglob("*"):
        if item.is_file():
            item.write_bytes(b"")
    with pytest.raises(InputError, match=rf"/{best}, is not whole .*checkpoint=last"):
        train.run(exp, str(tmp_path))
