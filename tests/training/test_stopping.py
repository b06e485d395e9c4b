"""A run that is asked to stop: what is saved, what it leaves with, how it goes on."""

import contextlib
import fcntl
import functools
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import pytest

from jaxcls import commands
from jaxcls.training import stopping
from tests.conftest import ROOT
from tests.terminals import Screen


def ended(folder):
    starts = json.loads((folder / "manifest.json").read_text())["starts"]
    return [start["reason"] for start in starts]


def test_nothing_is_asked_by_itself(tiny):
    stop = stopping.Stop()
    assert not stop.requested
    stop.poll()
    stop.ask()
    assert stop.requested


@pytest.fixture
def train(started, tmp_path):
    """``train(argument...)`` -> a training process in tmp_path/run."""
    config = ["--config=configs/digits.py", f"--workdir={tmp_path / 'run'}"]
    return functools.partial(started, "-m", "jaxcls.main", *config)


def until(process, beginning):
    while not (line := process.stdout.readline()).startswith(beginning):
        assert line, process.stderr.read()


@pytest.mark.slow
def test_sigterm_while_compiling_ends_the_process_at_once(train, tmp_path):
    slow = "--config.model.name=resnet50(stem='small')"
    process = train(slow, "--config.batch_size=512", "--config.data.resident=off")
    until(process, "starting from step 0")
    time.sleep(1)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert process.returncode == 75
    assert said == "stopped before the first step; the same command starts\n"
    assert ended(tmp_path / "run") == ["stopped"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_training_saves_and_leaves_with_75(
    train, tmp_path, number, data_dir, monkeypatch, capsys
):
    short = ["--config.length=9 epochs", "--config.model.name=cnn(widths=(4, 8))"]
    short.append("--config.mesh.devices=1")
    process = train(*short)
    until(process, "step 20:")
    process.send_signal(number)
    if number == signal.SIGHUP:  # A terminal that closes sends two.
        time.sleep(0.001)
        process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    first, second = said.splitlines()
    assert first == "stopping: the state is saved first; a second signal ends at once"
    assert second.startswith("stopped: asked to; the state after step ")
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    monkeypatch.chdir(ROOT)
    config = ["--config=configs/digits.py", f"--workdir={tmp_path / 'run'}"]
    assert commands.main(["train", *config, *short]) == 0
    assert "resuming from step" in capsys.readouterr().out
    assert ended(tmp_path / "run") == ["stopped", "done"]
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert np.all(np.diff([json.loads(line)["step"] for line in lines]) >= 0)


@pytest.mark.slow
def test_a_second_signal_leaves_at_once_with_130(train, tmp_path):
    small = "--config.model.name=cnn(widths=(4, 8))"
    process = train(small, "--config.length=400 epochs", "--config.eval.every=1 steps")
    until(process, "step 1: eval")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)  # Two of one kind may reach it as one.
    process.communicate(timeout=60)
    assert process.returncode == 130


@pytest.mark.slow
def test_a_run_that_ignores_sighup_outlives_its_terminal(data_dir, tmp_path):
    code = (
        "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
        "sys.argv[0] = 'jaxcls'; from jaxcls.__main__ import main; main()"
    )
    flags = ["--config=configs/digits.py", f"--workdir={tmp_path}/run"]
    flags += ["--config.length=90 steps", "--config.model.name=cnn(widths=(4,))"]
    ours, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, "train", *flags],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        cwd=ROOT,
        env={**os.environ, "TFDS_DATA_DIR": str(data_dir), "JAX_NUM_CPU_DEVICES": "1"},
    )
    os.close(terminal)
    seen = b""
    while b"step 20:" not in seen:
        seen += os.read(ours, 2**16)
    os.close(ours)
    assert process.wait(timeout=120) == 0
    assert ended(tmp_path / "run") == ["done"]
    last = (tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["kind"] == "final"


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_leaves_lines_and_no_bar(data_dir, tmp_path):
    flags = ["--config=configs/digits.py", f"--workdir={tmp_path}/run"]
    flags += ["--config.length=90 epochs", "--config.model.name=cnn(widths=(4,))"]
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 300, 0, 0))
    # The terminal becomes that of the new session, so that ^C is a signal to it.
    code = (
        f"import fcntl, termios; fcntl.ioctl(0, {termios.TIOCSCTTY}, 0);"
        "from jaxcls.__main__ import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "train", *flags],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        cwd=ROOT,
        env={**os.environ, "TFDS_DATA_DIR": str(data_dir), "TERM": "xterm"}
        | {"JAX_NUM_CPU_DEVICES": "1"},
    )
    os.close(terminal)
    seen = b""
    with contextlib.suppress(OSError):  # EIO where the process has ended.
        while text := os.read(ours, 2**16):
            is_first = b"step 20:" in text and b"step 20:" not in seen
            seen += text
            if is_first:
                os.write(ours, b"\x03")
    os.close(ours)
    assert process.wait(timeout=120) == 75
    screen = Screen(300).write(seen.decode())
    assert not screen.is_cursor_hidden
    assert not [row for row in screen.lines() if "training" in row]
    assert [row[:8] for row in screen.lines() if row][-2:] == ["stopping", "stopped:"]


@pytest.mark.slow
def test_a_name_that_the_terminal_cannot_show_ends_no_run(train, started, tmp_path):
    flags = ["--config=configs/digits.py", f"--workdir={tmp_path}/grün"]
    flags += ["--config.model.name=cnn(widths=(4,))"]
    process = started(
        "-m", "jaxcls", "train", *flags, "--config.length=2 steps", PYTHONIOENCODING="ascii"
    )
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert out.splitlines()[-1].endswith("gr\\xfcn")
