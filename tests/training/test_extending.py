"""A run that is made longer has the bits of one that was as long from its start."""

import json
import shutil

import pytest

from jaxcls.errors import InputError, StoppedError
from jaxcls.runs import records
from jaxcls.training import train
from tests.dying import dying
from tests.run_folders import record_bytes
from tests.settings import BARE

CONSTANT = {"optim.schedule": "constant", "mix": ""}
BRIEF = BARE | CONSTANT | {"eval.every": "6 steps", "checkpoint.every": "6 steps"}
COOLED = {
    "optim.schedule": "rsqrt('4 steps')",
    "optim.warmup": "2 steps",
    "optim.cooldown": "4 steps",
}


def run(config, folder, **more):
    return train.run(dying(config), str(folder), **more)


def refused(config, folder):
    before = record_bytes(folder)
    with pytest.raises(InputError) as error:
        run(config, folder)
    assert record_bytes(folder) == before
    assert f"--config.init.weights={folder}" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("until", "changes"),
    [
        (0, BRIEF),
        pytest.param(0, {**BRIEF, "compile.loop": "on"}, marks=pytest.mark.slow),
        pytest.param(5, {**COOLED, "optim.head_first": "3 steps"}, marks=pytest.mark.slow),
    ],
)
def test_a_longer_run_has_the_bits_of_one_from_nothing(
    tiny, whole, tmp_path, until, changes
):
    short, long = (tiny(length=f"{n} steps", **changes) for n in (12, 24))
    if until:
        with pytest.raises(StoppedError):
            run(short, tmp_path / "a", until=until)
    else:
        shutil.copytree(whole(short)[0], tmp_path / "a")
    found = run(long, tmp_path / "a")
    folder, wanted = whole(long)
    assert not found.already
    assert found.record == wanted.record
    assert found.record["step"] == 24
    assert record_bytes(tmp_path / "a") == record_bytes(folder)
    assert all(record_bytes(tmp_path / "a"))
    saved = json.loads((tmp_path / "a" / "config.json").read_text())
    assert saved == json.loads((folder / "config.json").read_text())
    starts = json.loads((tmp_path / "a" / "manifest.json").read_text())["starts"]
    assert starts[-1]["length_before"] == "12 steps"
    assert run(long, tmp_path / "a").already
    assert "one 12" in refused(short, tmp_path / "a")


@pytest.mark.slow
def test_a_length_in_epochs_is_made_longer_and_one_that_dies_goes_on(tiny, tmp_path):
    changes = {**CONSTANT, "data.train": "train[:128]", "eval.every": "1 epoch"}
    short, long = (tiny(length=f"{n} epochs", **changes) for n in (3, 6))
    run(short, tmp_path / "a")
    ended = records.read(tmp_path / "a" / "metrics.jsonl")[-1]
    with pytest.raises(StoppedError):
        run(long, tmp_path / "a", until=7)
    assert ended not in records.read(tmp_path / "a" / "metrics.jsonl")
    assert "one 6" in refused(short, tmp_path / "a")
    run(long, tmp_path / "a")
    run(long, tmp_path / "b")
    assert record_bytes(tmp_path / "a") == record_bytes(tmp_path / "b")


def test_a_rate_of_the_past_that_would_be_another_is_refused(tiny, tmp_path):
    run(tiny(length="4 steps", **BARE), tmp_path)
    text = refused(tiny(length="8 steps", **BARE), tmp_path)
    # Half a cosine by hand: 0.01 * (1 + cos(pi / 8)) / 2 and 0.01 * (1 + cos(pi / 4)) / 2.
    assert "optim.schedule='cosine'" in text
    assert "the rate 0.0096194 in place of 0.00853553 at step 1" in text
    assert "\n" not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"optim.cooldown": "2 steps"}, "the rate 0.01 in place of 0.005 at step 3"),
        ({"mix": "mixup_or_cutmix(0.8, 1.0, until=0.7)"}, "follows the share"),
        ({"augment": "randaugment(1, (5, 15))"}, "follows the share"),
        ({"optim.wrapper": "lookahead(2)"}, "follows the share"),
        ({"optim.head_first": "50 percent"}, "follows the share"),
        ({"eval.every": "50 percent"}, "eval.every"),
        ({"eval.every": "3 steps"}, "at its last step, 4,"),
        ({"checkpoint.every": "3 steps"}, "at its last step, 4,"),
        ({"data.train_ops": "decode(1) | random_resized_crop(((0, 6), (0.5, 8)))",
          "model.name": "resnet18(stem='small', width=4, stages=(1,))"}, "train_ops"),
        ({"optim.lr": 1e-30, "eval.every": "1 steps", "early_stop.patience": 1,
          "early_stop.min_delta": 0.9}, "early stopping ended it at step 2"),
    ],
)  # fmt: skip
def test_what_else_follows_the_length_is_refused(tiny, tmp_path, changes, reason):
    # One thing alone, each with a schedule that does not follow the length.
    changes = {**BARE, **CONSTANT, "checkpoint.every": "4 steps", **changes}
    run(tiny(length="4 steps", **changes), tmp_path)
    text = refused(tiny(length="8 steps", **changes), tmp_path)
    assert "cannot be made longer: " in text
    assert reason in text


def test_other_data_refuse_a_longer_run_and_its_records_stay(tiny, whole, tmp_path):
    shutil.copytree(whole(tiny(length="12 steps", **BRIEF))[0], tmp_path / "a")
    file = tmp_path / "a/config.json"
    saved = json.loads(file.read_text())
    saved["implied"]["examples"]["train"] += 1
    file.write_text(json.dumps(saved))
    before = record_bytes(tmp_path / "a")
    with pytest.raises(InputError, match=r"the data changed: examples\.train was"):
        run(tiny(length="24 steps", **BRIEF), tmp_path / "a")
    assert record_bytes(tmp_path / "a") == before
    assert b'"final"' in before[0]
