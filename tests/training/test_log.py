"""What a run says: records, their trimming, rates, and TensorBoard's events."""

import json
import math
import pathlib
import subprocess
import sys

import pytest

from jaxcls.errors import InputError
from jaxcls.runs import records
from jaxcls.runs.workdir import Workdir
from jaxcls.training import meter, trackers
from jaxcls.training.log import RunLog
from tests.events import scalars

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def opened(folder, start=0, tensorboard=False, **more):
    board = trackers.TensorBoard(folder / "tensorboard", start) if tensorboard else None
    return RunLog(
        Workdir(folder),
        meter.Meter(start, 100, 32),
        tensorboard=board,
        start=start,
        steps=100,
        **more,
    )


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def write(log, *steps):
    for step in steps:
        log.train(step, {"loss": step / 4, "lr": 0.1})
        log.digest(step, f"{step:016x}", {"params/w": "ab"})


def test_records_are_one_json_object_a_line(tmp_path, capsys):
    with opened(tmp_path) as log:
        log.train(10, {"loss": 0.5, "lr": 0.1})
        log.evaluation(10, "eval", "train[90%:]", 144, {"loss": 0.25, "top1": 0.75})
        log.evaluation(12, "final", "test", 360, {"top1": 1.0}, at="best", best_step=10)
        log.digest(12, "00ff", {"params/w": "12"})
        log.line("hello")
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 10, "kind": "train", "loss": 0.5, "lr": 0.1},
        {"step": 10, "kind": "eval", "split": "train[90%:]", "n": 144, "loss": 0.25,
         "top1": 0.75},
        {"step": 12, "kind": "final", "at": "best", "best_step": 10, "split": "test",
         "n": 360, "top1": 1.0},
    ]  # fmt: skip
    assert lines(tmp_path / "digests.jsonl") == [
        {"step": 12, "digest": "00ff", "arrays": {"params/w": "12"}}
    ]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("step 10: loss=0.5 lr=0.1 | 0 images/s, data wait 0%")
    assert printed[1:] == [
        "step 10: eval split=train[90%:] n=144 loss=0.25 top1=0.75",
        "step 12: final split=test n=360 top1=1",
        "hello",
    ]


def test_numbers_of_numpy_and_jax_are_written_exactly(tmp_path):
    import jax.numpy as jnp
    import numpy as np

    with opened(tmp_path) as log:
        log.train(1, {"loss": jnp.float32(0.1), "top1": np.float32(0.3), "n": np.int64(3)})
    (record,) = lines(tmp_path / "metrics.jsonl")
    assert np.float32(record["loss"]) == np.float32(0.1)
    assert np.float32(record["top1"]) == np.float32(0.3)
    assert record["n"] == 3


def test_times_are_in_timing_jsonl_and_in_no_other_file(tmp_path):
    def run(folder, seconds):
        folder.mkdir()
        with opened(folder) as log:
            log.meter.stepped(seconds, seconds / 2)
            log.meter.apart("eval", seconds)
            write(log, 1, 2)
        return [(folder / f"{name}.jsonl").read_bytes() for name in ("metrics", "digests")]

    assert run(tmp_path / "fast", 0.25) == run(tmp_path / "slow", 5.0)
    first, second = lines(tmp_path / "fast/timing.jsonl")
    assert first == {
        "step": 1, "images_per_s": 128.0, "data_wait": 0.5, "train_s": 0.25,
        "eval_s": 0.25, "save_s": 0.0,
    }  # fmt: skip
    assert second == {
        "step": 2, "images_per_s": 0.0, "data_wait": 0.0, "train_s": 0.0, "eval_s": 0.0,
        "save_s": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_null(value, tmp_path):
    with opened(tmp_path) as log:
        log.evaluation(1, "eval", "test", 3, {"loss": value, "top1": 0.5})
    (record,) = records.read(tmp_path / "metrics.jsonl")
    assert (record["loss"], record["top1"]) == (None, 0.5)


def test_a_bad_line_before_good_ones_is_named_and_nothing_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nspoilt\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl:2 is not a record"):
        records.trim(path, 5)
    assert path.read_text().count("\n") == 3


def test_records_are_on_disk_after_a_sync(tmp_path):
    with opened(tmp_path) as log:
        write(log, 1)
        log.sync()
        assert len(lines(tmp_path / "metrics.jsonl")) == 1
        assert len(lines(tmp_path / "timing.jsonl")) == 1
        assert len(lines(tmp_path / "digests.jsonl")) == 1


def test_a_resume_drops_the_records_after_its_step_and_a_torn_last_line(tmp_path):
    with opened(tmp_path) as log:
        write(log, 2, 4)
    expected = (tmp_path / "metrics.jsonl").read_bytes()
    with opened(tmp_path, start=4) as log:
        write(log, 6, 8)
    for name in ("metrics", "digests"):
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.write('{"step": 9, "ki')
    with opened(tmp_path, start=4):
        pass
    assert (tmp_path / "metrics.jsonl").read_bytes() == expected
    assert [r["step"] for r in lines(tmp_path / "digests.jsonl")] == [2, 4]
    with opened(tmp_path, start=0):
        pass
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_run_that_was_killed_and_resumed_has_the_records_of_one_that_was_not(tmp_path):
    for folder, starts in (("whole", [0]), ("killed", [0, 4, 6])):
        (tmp_path / folder).mkdir()
        for start in starts:
            with opened(tmp_path / folder, start=start) as log:
                write(log, *range(start + 1, 9))
    for name in ("metrics.jsonl", "digests.jsonl"):
        whole, killed = (tmp_path / f / name for f in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes()


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", []),
        ('{"step": 1}\n{"step": 2}\n', [1, 2]),
        ('{"step": 1}\n{"step": 2}', [1]),
        ('{"step": 1}\n{"st', [1]),
        ('{"step": 1}\n\0\0\0\0', [1]),
    ],
)
def test_reading_leaves_out_a_torn_last_line(text, steps, tmp_path):
    (tmp_path / "x.jsonl").write_text(text)
    assert [record["step"] for record in records.read(tmp_path / "x.jsonl")] == steps


def test_a_file_that_is_not_there_has_no_records(tmp_path):
    assert records.read(tmp_path / "absent") == []
    records.trim(tmp_path / "absent", 3)
    assert not (tmp_path / "absent").exists()


def test_tensorboard_gets_the_values_of_the_records(tmp_path):
    with opened(tmp_path, tensorboard=True) as log:
        log.train(5, {"loss": 0.5, "top1": 0.25})
        log.evaluation(5, "eval", "test", 3, {"top1": 0.75})
    assert scalars(tmp_path / "tensorboard") == {
        ("train/loss", 5): 0.5, ("train/top1", 5): 0.25, ("eval/top1", 5): 0.75,
    }  # fmt: skip


def test_a_hint_is_said_once_when_the_records_show_that_the_input_is_slow(tmp_path, capsys):
    def hint(share):
        return f"slow: {share}"

    with opened(tmp_path, hint=hint) as log:
        for step, waited in enumerate((9.0, 1.0, 1.0, 1.0, 7.0, 8.0, 8.0)):
            log.meter.stepped(10.0, waited)
            log.train(step, {"loss": 1.0})
        log.done()
    said = [line for line in capsys.readouterr().out.splitlines() if "slow" in line]
    assert said == ["slow: 0.3"]
    with opened(tmp_path, hint=hint) as log:
        for step in range(2):
            log.meter.stepped(10.0, 9.0)
            log.train(step, {"loss": 1.0})
        log.done()
    *_, said, _ = capsys.readouterr().out.splitlines()
    assert said == "slow: 0.9"


def test_where_the_time_went_is_said_of_this_start(tmp_path, capsys):
    with opened(tmp_path) as log:
        log.done()
    with opened(tmp_path, start=40) as log:
        log.done()
    whole, later = capsys.readouterr().out.splitlines()
    assert whole.startswith("time: 0 s: training 0 %, data wait 0 %")
    assert later.startswith("time since step 40: 0 s: ")


def test_tensorboard_needs_no_tensorflow(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise RuntimeError('TensorFlow imported')")
    (tmp_path / "run").mkdir()
    code = (
        "import sys, pathlib; from tests.training import test_log as t;"
        " log = t.opened(pathlib.Path(sys.argv[1]), tensorboard=True);"
        " t.write(log, 1); log.__exit__(); assert 'tensorflow' not in sys.modules"
    )
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": ""}
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    subprocess.run(command, check=True, env=environment)
    assert ("train/loss", 1) in scalars(tmp_path / "run/tensorboard")


def test_a_terminal_sees_the_lines_above_a_progress_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with opened(tmp_path, start=3) as log:
        log.step(40)
        write(log, 40)
    printed = capsys.readouterr().out
    assert "step 40: loss=10 lr=0.1" in printed
    assert "40/100" in printed


def test_the_closing_line_names_everything_but_the_kind():
    record = {"step": 12, "kind": "final", "at": "best", "n": 360, "top1": 0.991666}
    assert records.summary(record, "runs/x") == (
        "step=12 at=best n=360 top1=0.9917 workdir=runs/x"
    )
