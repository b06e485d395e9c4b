import json
import shutil

import pytest

from jaxcls import experiment
from jaxcls.errors import InputError, StoppedError
from jaxcls.runs import checkpoint, records
from jaxcls.runs.workdir import Workdir
from jaxcls.training import train
from jaxcls.version import NUMERICS
from tests.dying import dying
from tests.settings import BARE


def test_records_are_written_at_their_steps_and_in_order(tiny, whole):
    folder, _ = whole(tiny())
    found = records.read(folder / "metrics.jsonl")
    expected = [(step, "train") for step in range(2, 13, 2)]
    expected += [(step, "eval") for step in (4, 8, 12)]
    expected.sort(key=lambda each: (each[0], each[1] == "eval"))
    assert [(r["step"], r["kind"]) for r in found] == [*expected, (12, "final")]
    values = {"loss", "top1", "lr", "grad_norm", "mean_loss", "mean_top1"}
    assert set(found[0]) == {"step", "kind"} | values
    rate = float(experiment.build(tiny()).recipe.schedule(1))
    assert found[0]["lr"] == pytest.approx(rate)
    timing = {"step", "images_per_s", "data_wait", "train_s", "eval_s", "save_s"}
    timing |= {"start", "seconds"}
    assert set(records.read(folder / "timing.jsonl")[0]) == timing
    (start,) = json.loads((folder / "manifest.json").read_text())["starts"]
    assert start["reason"] == "done"
    assert start["resumed_from"] is None
    assert start["versions"]["jax"]


def test_the_best_of_the_evaluations_and_the_last_checkpoint_are_kept(tiny, whole):
    folder, result = whole(tiny())
    evals = [r for r in records.read(folder / "metrics.jsonl") if r["kind"] == "eval"]
    best = max(evals, key=lambda r: (r["top1"], -r["step"]))["step"]
    assert result.record["best_step"] == best
    assert checkpoint.steps(folder / "checkpoints") == sorted({best, 12})
    assert checkpoint.find(folder / "checkpoints", "best") == (best, "best")


def test_without_an_eval_split_the_last_state_is_scored(tiny, whole):
    folder, result = whole(tiny(**BARE | {"data.eval": "", "length": "3 steps"}))
    record = result.record
    assert (record["at"], record["split"], record["n"]) == ("last", "test", 360)
    kinds = [r["kind"] for r in records.read(folder / "metrics.jsonl")]
    assert kinds == ["train", "train", "final"]


def test_without_a_test_split_the_best_eval_score_is_the_result(tiny, whole):
    folder, result = whole(tiny(**BARE | {"data.test": "", "length": "4 steps"}))
    evaluated = records.read(folder / "metrics.jsonl")[-2]
    assert evaluated["kind"] == "eval"
    assert result.record["split"] == "train[90%:]"
    assert result.record["top1"] == evaluated["top1"]


@pytest.mark.slow
def test_with_no_split_to_score_the_run_still_ends(tiny, whole):
    _, result = whole(tiny(**{"data.eval": "", "data.test": "", "length": "2 steps"}))
    assert result.line.startswith("step=2 at=last workdir=")


def test_other_data_than_the_run_began_with_is_refused(tiny, tmp_path):
    exp = experiment.build(tiny(**BARE | {"length": "3 steps", "data.test": ""}))
    train.run(exp, str(tmp_path))
    (tmp_path / "metrics.jsonl").unlink()  # As if it had not finished.
    facts = exp.selection.facts._replace(version="1.0.1")
    with pytest.raises(
        InputError, match=r'facts.version was "1.0.0" and is "1.0.1".*--workdir='
    ):
        train.run(experiment.build(exp.config, facts), str(tmp_path))


def test_a_short_run_has_a_training_record_at_each_evaluation(tiny):
    exp = experiment.build(tiny(**{"log.every": "50 steps", "eval.every": "5 steps"}))
    due = {step for step in range(1, 13) if exp.plan.due(step).record}
    assert due == {5, 10, 12}
    without = experiment.build(tiny(**{"log.every": "7 steps", "data.eval": ""}))
    assert {step for step in range(1, 13) if without.plan.due(step).record} == {7, 12}


def test_a_lost_best_checkpoint_is_said(tiny, tmp_path, monkeypatch):
    # It learns nothing, so that the first evaluation is the best, and not the last.
    exp = dying(tiny(**BARE | {"optim.lr": 1e-12}))
    best = train.run(exp, str(tmp_path)).record["best_step"]
    assert best == 4
    folder = Workdir(tmp_path)
    *others, _ = folder.metrics.read_text().splitlines(keepends=True)
    folder.metrics.write_text("".join(others))  # Without the final record.
    shutil.rmtree(folder.checkpoints / str(best) / "weights")
    with pytest.raises(InputError, match=rf"/{best}, is not whole .*checkpoint=last"):
        train.run(exp, str(tmp_path))


def test_a_run_goes_on_under_the_code_that_began_it_or_says_what_changed(
    tiny, tmp_path, capsys
):
    exp, manifest = dying(tiny()), tmp_path / "run/manifest.json"
    with pytest.raises(StoppedError):
        train.run(exp, str(tmp_path / "run"), until=5)
    saved = json.loads(manifest.read_text())
    del saved["seal"]  # As an earlier version wrote it.
    start = saved["starts"][0]
    start["numerics"] = 10**6
    manifest.write_text(json.dumps(saved))
    said = r"numerics 1000000, and this is \d+\); go on with another jaxcls"
    with pytest.raises(InputError, match=said):
        train.run(exp, str(tmp_path / "run"))
    assert json.loads(manifest.read_text()) == saved
    start["numerics"], start["code"] = NUMERICS, "0123"
    start["versions"] |= {"jax": "0.1"}
    manifest.write_text(json.dumps(saved))
    capsys.readouterr()
    train.run(exp, str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert "changed since an earlier start, so bits may change: code 0123 -> " in said
    assert "; jax 0.1 -> " in said
    assert said.count("bits may change") == 1
