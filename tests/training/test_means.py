"""Means of training values since the record before, by hand and over a resume."""

import json
import math

import pytest

from jaxcls.errors import StoppedError
from jaxcls.runs import checkpoint, forms, records
from jaxcls.training import train
from jaxcls.training.means import Means
from tests.dying import dying
from tests.run_folders import record_bytes
from tests.settings import BARE


def trained(config, folder, **more):
    train.run(dying(config), str(folder), **more)
    return [r for r in records.read(folder / "metrics.jsonl") if r["kind"] == "train"]


def test_a_record_has_the_means_of_the_steps_since_the_one_before(tiny, tmp_path):
    changes = {"eval.every": "12 steps", "checkpoint.every": "12 steps", **BARE}
    each = trained(tiny(**changes, **{"log.every": "1 steps"}), tmp_path / "each")
    few = tiny(**changes, **{"log.every": "5 steps"})
    found = trained(few, tmp_path / "few")
    assert [r["step"] for r in found] == [5, 10, 12]
    for record, (first, last) in zip(found, [(0, 5), (5, 10), (10, 12)], strict=True):
        for name in ("loss", "top1"):
            values = [r[name] for r in each[first:last]]
            assert values[-1] == record[name]
            assert record[f"mean_{name}"] == math.fsum(values) / len(values)
    with pytest.raises(StoppedError):
        trained(few, tmp_path / "stopped", until=8)
    trained(few, tmp_path / "stopped")
    assert record_bytes(tmp_path / "stopped") == record_bytes(tmp_path / "few")


def test_a_checkpoint_without_means_goes_on_with_those_of_its_own_steps(tiny, tmp_path):
    config = tiny(**{"log.every": "6 steps", "eval.every": "6 steps", **BARE})
    with pytest.raises(StoppedError):
        trained(config, tmp_path, until=4)
    file = tmp_path / "checkpoints" / "4" / "meta" / "metadata"
    meta = json.loads(file.read_text())
    assert meta["means"]["count"] == 4
    del meta["means"], meta["seal"]
    file.write_text(json.dumps({**meta, "seal": checkpoint.seal_of(meta)}))
    found = trained(config, tmp_path)
    assert [r["step"] for r in found] == [6, 12]
    assert all(math.isfinite(r["mean_loss"]) for r in found)


def test_sums_are_kept_exactly_and_no_step_is_no_mean():
    means, other = Means(["loss"]), Means(["loss"])
    for value in (0.1, 1e300, 5e-324):
        means.add({"loss": value, "lr": 1.0})
    other.restore(json.loads(json.dumps(means.saved())))
    assert other.take() == means.take() == {"mean_loss": (0.1 + 1e300 + 5e-324) / 3}
    assert math.isnan(means.take()["mean_loss"])


@pytest.mark.parametrize(
    "saved",
    [{"count": "x"}, {"count": None}, {"sums": [1]}, {"sums": {"loss": 1}}, [],
     {"sums": {"loss": "0x1.0p+99999"}}, {"sums": {"loss": "0x1.0p+1024"}},
     {"sums": {"loss": "1e3"}}, {"count": math.inf}],
)  # fmt: skip
def test_a_checkpoint_with_means_of_another_form_is_not_whole(saved):
    meta = {"format": 1, "step": 4, "best_step": -1, "digests": {}}
    means = Means(["loss"])
    for value in (0.0, -1e308, 5e-324, math.inf):
        means.add({"loss": value})
        assert forms.is_meta(meta | {"means": means.saved()})
    assert isinstance(saved, list) or not forms.is_meta(
        meta | {"means": means.saved() | saved}
    )
    assert not forms.is_meta(meta | {"means": saved})
