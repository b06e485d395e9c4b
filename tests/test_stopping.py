"""A run that is asked to stop: what is saved, what it leaves with, how it goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxcls import checkpoint, experiment, saving, stopping, train
from jaxcls.errors import StoppedError
from tests.conftest import ROOT

RECORDS = ("metrics.jsonl", "digests.jsonl")


class Asked(experiment.Experiment):
    """An experiment during which a stop is asked for, at a batch or in an evaluation."""

    stop = None
    at_batch = at_evaluation = -1

    def train_batches(self, start=0):
        for step, batch in enumerate(super().train_batches(start), start):
            if step == self.at_batch:
                self.stop.ask()
            yield batch

    def eval_batches(self, split, key, batch_size=0):
        for i, batch in enumerate(super().eval_batches(split, key, batch_size)):
            if i == 1 and self.at_evaluation == 0:
                self.stop.ask()
            yield batch
        self.at_evaluation -= 1


@pytest.fixture(scope="module")
def made():
    """Experiments by config: what is compiled once serves every test."""
    return {}


@pytest.fixture
def run(made, tiny, tmp_path):
    """``run(at_batch=3)`` -> (how it ended, workdir) of one start after another."""
    config = tiny(**{"eval.batch_size": 16, "checkpoint.every": "100 steps"})
    exp = made.setdefault("exp", Asked(config, None))

    def start(workdir="run", at_batch=-1, at_evaluation=-1):
        exp.at_batch, exp.at_evaluation = at_batch, at_evaluation
        exp.stop = stopping.Stop()
        folder = tmp_path / workdir
        try:
            return train.run(exp, str(folder), exp.stop), folder
        except StoppedError as error:
            return str(error), folder

    return start


def records(folder):
    return {name: (folder / name).read_bytes() for name in RECORDS}


def ended(folder):
    starts = json.loads((folder / "manifest.json").read_text())["starts"]
    return [start["reason"] for start in starts]


@pytest.fixture
def whole(run, made):
    """The records and the last line of a run that no one stopped."""
    if "whole" not in made:
        result, folder = run("whole")
        made["whole"] = records(folder), result.line.split(" workdir=")[0]
    return made["whole"]


def finish(run, whole):
    result, folder = run()
    assert records(folder) == whole[0]
    assert result.line.split(" workdir=")[0] == whole[1]
    assert not list((folder / "checkpoints").glob("*.pending"))
    return folder


@pytest.mark.parametrize("batch", [0, 1, 4, 6, 10])
def test_a_stop_in_training_saves_the_step_and_goes_on_bit_for_bit(run, whole, batch):
    said, folder = run(at_batch=batch)
    assert said == (
        f"asked to; the state after step {batch + 1} is saved, and the same command goes on"
    )
    assert batch + 1 in checkpoint.steps(folder / "checkpoints")
    finish(run, whole)
    assert ended(folder) == ["stopped", "done"]


@pytest.mark.parametrize("evaluation", [0, 1, 2])
def test_a_stop_in_an_evaluation_saves_and_makes_it_again(run, whole, evaluation):
    said, folder = run(at_evaluation=evaluation)
    step = 4 * (evaluation + 1)
    assert f"the state after step {step} is saved" in said
    assert step in checkpoint.steps(folder / "checkpoints")
    finish(run, whole)


def test_a_stop_in_the_last_scoring_loses_nothing(run, whole):
    said, _ = run(at_evaluation=3)
    assert said == "asked to; step 12, the last, is saved, and the same command scores it"
    finish(run, whole)


def test_an_evaluation_may_be_stopped_again_and_again(run, whole):
    run(at_evaluation=1)
    for _ in range(2):
        said, folder = run(at_evaluation=0)
        assert "the state after step 8 is saved" in said
    finish(run, whole)
    assert ended(folder) == ["stopped", "stopped", "stopped", "done"]


def test_a_death_after_the_records_of_a_pending_step_and_before_its_save(
    run, whole, monkeypatch
):
    _, folder = run(at_evaluation=1)
    save = saving.Checkpoints.save

    def dying(self, *args, **kwargs):
        raise KeyboardInterrupt  # After the evaluation at step 8 is recorded and synced.

    monkeypatch.setattr(saving.Checkpoints, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        run()
    said = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert (8, "eval") in [(record["step"], record["kind"]) for record in said]
    monkeypatch.setattr(saving.Checkpoints, "save", save)
    finish(run, whole)


def test_a_death_while_a_pending_step_is_aside_loses_nothing(run, whole):
    _, folder = run(at_evaluation=1)
    checkpoints = folder / "checkpoints"
    assert checkpoint.take_pending(checkpoints, 8)
    assert 8 not in checkpoint.steps(checkpoints)
    finish(run, whole)


@pytest.mark.slow
def test_a_stop_at_every_step_still_ends_in_the_same_bits(run, whole):
    for batch in range(11):
        run(at_batch=batch)
    finish(run, whole)


def test_nothing_is_asked_by_itself(tiny):
    stop = stopping.Stop()
    assert not stop.requested
    stop.poll()
    stop.ask()
    assert stop.requested


@pytest.fixture
def started(tmp_path, data_dir):
    """``started(argument...)`` -> a training process in tmp_path/run."""
    processes = []

    def start(*arguments):
        environment = {
            **os.environ,
            "TFDS_DATA_DIR": str(data_dir),
            "JAX_NUM_CPU_DEVICES": "1",
        }
        config = ["--config=configs/digits.py", f"--workdir={tmp_path / 'run'}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxcls.main", *config, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def until(process, beginning):
    while not (line := process.stdout.readline()).startswith(beginning):
        assert line, process.stderr.read()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_compiling_ends_the_process_at_once(started, tmp_path, number):
    slow = "--config.model.name=resnet50(stem='small')"
    process = started(slow, "--config.batch_size=512", "--config.data.resident=off")
    until(process, "starting from step 0")
    time.sleep(1)
    began = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert process.returncode == 75
    assert said == "stopped before the first step; the same command starts\n"
    assert ended(tmp_path / "run") == ["stopped"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_training_saves_and_leaves_with_75(started, tmp_path, number):
    short = ["--config.length=9 epochs", "--config.model.name=cnn(widths=(4, 8))"]
    process = started(*short)
    until(process, "step 20:")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert said.startswith("stopped: asked to; the state after step ")
    again = started(*short)
    out, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert "resuming from step" in out
    assert ended(tmp_path / "run") == ["stopped", "done"]
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert np.all(np.diff([json.loads(line)["step"] for line in lines]) >= 0)


@pytest.mark.slow
def test_a_second_signal_leaves_at_once_with_130(started, tmp_path):
    small = "--config.model.name=cnn(widths=(4, 8))"
    process = started(small, "--config.length=400 epochs", "--config.eval.every=1 steps")
    until(process, "step 1: eval")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)  # Two of one kind may reach it as one.
    process.communicate(timeout=60)
    assert process.returncode == 130
