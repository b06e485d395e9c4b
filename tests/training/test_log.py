"""What a run says: records, their trimming, rates, and TensorBoard's events."""

import contextlib
import io
import json
import math
import os
import pty
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.errors import InputError
from jaxcls.runs import records
from jaxcls.runs.workdir import Workdir
from jaxcls.training import meter
from jaxcls.training.log import RunLog
from tests.conftest import ROOT
from tests.events import scalars
from tests.terminals import Screen


def opened(folder, start=0, **more):
    return RunLog(Workdir(folder), meter.Meter(start, 100, 32), start, 100, **more)


def test_a_terminal_has_a_bar_below_the_lines(tmp_path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    with opened(tmp_path) as log:
        log.step(37)
        log.line("hello")
    text = terminal.getvalue()
    assert "37/100" in text
    assert "images/s" in text
    assert text.count("hello") == 1


@pytest.fixture
def terminal(monkeypatch):
    """``seen = terminal(80)`` makes standard output a terminal of so many columns.

    ``seen(b"...")`` types a text, and gives the screen after it.
    """
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    os.set_blocking(ours, False)
    screen = None

    def seen(typed=b""):
        os.write(ours, typed)
        file.flush()
        with contextlib.suppress(BlockingIOError):
            while text := os.read(ours, 2**16):
                screen.write(text.decode())
        return screen

    def begin(columns=80):
        nonlocal screen
        screen = Screen(columns)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "stdout", file)
        return seen

    with open(theirs, "w") as file:
        # In the test itself: pytest gives each of its phases another standard output.
        yield begin
    os.close(ours)


def bars(screen):
    return [row for row in screen.lines() if "/100" in row]


@pytest.mark.parametrize("typed", [b"", b"\x03", b"\x03\x03"])
def test_an_echo_leaves_no_bar_above_the_live_one(tmp_path, terminal, typed):
    seen = terminal()
    with opened(tmp_path) as log:
        log.step(37)
        log._console._bar.refresh()
        assert "37/100" in bars(seen(typed))[0]
        log.line("hello")
        log.step(38)
        log._console._bar.refresh()
        (bar,) = bars(seen())
        assert "38/100" in bar
        assert not seen().is_cursor_hidden  # Whatever ends the process now.
        log.line("time: 1 s")
    print("done: step=38")
    assert seen().lines() == ["hello", "time: 1 s", "done: step=38", ""]


@pytest.mark.parametrize("columns", [40, 70, 80, 200])
def test_a_bar_says_how_far_it_is_and_how_long_it_takes(tmp_path, terminal, columns):
    seen = terminal(columns)
    with opened(tmp_path) as log:
        log.meter.stepped(0.5, 0.1)
        log.step(37)
        log._console._bar.refresh()
        (bar,) = bars(seen())
        assert re.search(r"━+.* 37/100 .*ETA 0:\d\d$", bar)
        assert ("images/s, data wait 20%" in bar) == (columns >= 80)
        assert len(bar) <= columns


def test_standard_error_stays_in_its_file_beside_a_bar(tmp_path, terminal, monkeypatch):
    errors, seen = io.StringIO(), terminal()
    monkeypatch.setattr(sys, "stderr", errors)
    with opened(tmp_path):
        print("a warning", file=sys.stderr)
    assert errors.getvalue() == "a warning\n"
    assert "warning" not in "".join(seen().lines())


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def write(log, *steps):
    for step in steps:
        log.train(step, {"loss": step / 4, "lr": 0.1})
        log.digest(step, f"{step:016x}", {"params/w": "ab"})


def test_records_are_one_json_object_a_line_with_exact_numbers(tmp_path, capsys):
    with opened(tmp_path) as log:
        log.train(10, {"loss": jnp.float32(0.1), "lr": np.float32(0.3)})
        whole = {"split": "train[90%:]", "n": 144}
        log.evaluation(10, "eval", {"loss": math.nan, "top1": 0.75}, **whole)
        best = {"at": "best", "best_step": np.int32(10)}
        log.evaluation(12, "final", {"top1": math.inf}, **best, split="test", n=360)
        log.digest(12, "00ff", {"params/w": "12"})
        log.line("hello")
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 10, "kind": "train", "loss": float(np.float32(0.1)),
         "lr": float(np.float32(0.3))},
        {"step": 10, "kind": "eval", "split": "train[90%:]", "n": 144, "loss": None,
         "top1": 0.75},
        {"step": 12, "kind": "final", "at": "best", "best_step": 10, "split": "test",
         "n": 360, "top1": None},
    ]  # fmt: skip
    assert lines(tmp_path / "digests.jsonl") == [
        {"step": 12, "digest": "00ff", "arrays": {"params/w": "12"}}
    ]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith(" | 0 images/s, data wait 0%, ETA ?")
    assert printed[1:] == [
        "step 10: eval split=train[90%:] n=144 loss=nan top1=0.75",
        "step 12: final split=test n=360 top1=inf",
        "hello",
    ]


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


def test_a_bad_line_before_good_ones_is_named_and_nothing_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = '{"step": 1, "kind": "train"}\n'
    path.write_text(f"{good}spoilt\n{good}")
    with pytest.raises(InputError, match=r"metrics.jsonl:2 is not a record"):
        records.trim(path, 5)
    assert path.read_text().count("\n") == 3


@pytest.mark.parametrize(
    ("name", "line", "says"),
    [
        ("metrics", '{"kind": "train"}', "it has no 'step'"),
        ("metrics", '{"step": 1}', "it has no 'kind'"),
        ("metrics", '{"step": "1", "kind": "train"}', "'step' must be a whole number"),
        ("metrics", '{"step": true, "kind": "train"}', "'step' must be a whole number"),
        ("metrics", '{"step": 1.0, "kind": "train"}', "'step' must be a whole number"),
        ("metrics", '{"step": null, "kind": "train"}', "'step' must be a whole number"),
        ("metrics", '{"step": 1, "kind": 2}', "'kind' must be a text"),
        ("metrics", '{"step": 1, "kind": "eval", "loss": "x"}', "'loss' must be a number"),
        ("metrics", '{"step": 1, "kind": "eval", "top1": [1]}', "'top1' must be a number"),
        ("metrics", f'{{"step": {10**30}, "kind": "eval"}}', "'step' must be below 2^63"),
        ("metrics", '{"step": 1, "kind": "final"}', "it has no 'at'"),
        ("metrics", '{"step": 1, "kind": "final", "at": "best"}', "it has no 'best_step'"),
        ("metrics", '{"step": 1, "kind": "eval", "split": "test"}', "it has no 'n'"),
        ("metrics", "[" * 100_000, "it is no JSON object"),
        ("timing", '{"step": 1, "train_s": {}}', "'train_s' must be a number"),
        ("digests", '{"step": 1, "digest": "a"}', "it has no 'arrays'"),
        (
            "digests",
            '{"step": 1, "digest": "a", "arrays": 1}',
            "'arrays' must be an object",
        ),
    ],
)
def test_a_line_of_another_form_is_named_with_what_is_wrong(name, line, says, tmp_path):
    path = tmp_path / f"{name}.jsonl"
    path.write_text(f'{line}\n{{"step": 2, "kind": "train"}}\n')
    with pytest.raises(InputError) as caught:
        records.read(path)
    assert str(caught.value).startswith(f"{path}:1 is not a record ({says}")


@pytest.mark.parametrize("name", ["metrics", "timing", "digests"])
def test_a_folder_in_the_place_of_a_file_of_records_is_named(name, tmp_path):
    (tmp_path / f"{name}.jsonl").mkdir()
    with pytest.raises(InputError, match=rf"{name}\.jsonl cannot be .*Is a directory"):
        opened(tmp_path)


def test_records_are_on_disk_after_a_sync(tmp_path):
    with opened(tmp_path) as log:
        write(log, 1)
        log.sync()
        for name in ("metrics", "timing", "digests"):
            assert len(lines(tmp_path / f"{name}.jsonl")) == 1


def test_a_run_that_was_killed_and_resumed_has_the_records_of_one_that_was_not(tmp_path):
    names = "metrics.jsonl", "digests.jsonl"
    for folder, starts in (("whole", [0]), ("killed", [0, 4, 6])):
        (tmp_path / folder).mkdir()
        for start in starts:
            with opened(tmp_path / folder, start) as log:
                write(log, *range(start + 1, 9))
            for name in names:
                with (tmp_path / folder / name).open("a") as file:
                    file.write('{"step": 9, "ki')
        with opened(tmp_path / folder, 8):  # It drops what is torn.
            pass
    for name in names:
        whole, killed = (tmp_path / f / name for f in ("whole", "killed"))
        assert [r["step"] for r in lines(whole)] == [*range(1, 9)]
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


# Writes a record for TensorBoard where TensorFlow cannot be imported.
TOLD = """
import pathlib, sys
from jaxcls.training import trackers
from tests.training.test_log import opened
sys.modules["tensorflow"] = None
with opened(pathlib.Path(sys.argv[1])) as log:
    log.tensorboard = trackers.TensorBoard(pathlib.Path(sys.argv[1]) / "tensorboard", 0)
    log.train(5, {"loss": 0.5, "top1": 0.25})
    log.evaluation(5, "eval", {"top1": 0.75}, split="test", n=3)
"""


@pytest.mark.slow
def test_tensorboard_gets_the_values_of_the_records_without_tensorflow(tmp_path):
    subprocess.run([sys.executable, "-c", TOLD, str(tmp_path)], check=True, cwd=ROOT)
    assert scalars(tmp_path / "tensorboard") == {
        ("train/loss", 5): 0.5, ("train/top1", 5): 0.25, ("eval/top1", 5): 0.75,
    }  # fmt: skip


def test_the_closing_line_names_everything_but_the_kind():
    record = {"step": 12, "kind": "final", "at": "best", "n": 360, "top1": 0.991666}
    assert records.summary(record, "runs/x") == (
        "step=12 at=best n=360 top1=0.9917 workdir=runs/x"
    )
