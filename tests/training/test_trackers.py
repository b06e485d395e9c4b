"""TensorBoard and Weights & Biases: what they are told; a run is none the wiser."""

import io
import json
import os
import pathlib
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import recall_score

from jaxcls import experiment
from jaxcls.data import pictures
from jaxcls.errors import InputError
from jaxcls.evaluation import scoring
from jaxcls.experiment import show
from jaxcls.training import trackers, train
from tests.dying import Crash, Dying
from tests.events import scalars, values
from tests.scoring import predictions

RECORDS = ("metrics.jsonl", "digests.jsonl")


def records(folder):
    return {name: (folder / name).read_bytes() for name in RECORDS}


def image(value):
    return np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))


def text(value):
    return value.tensor.string_val[0].decode()


def test_recall_is_a_table_of_the_classes_that_occur(tmp_path):
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, 200), rng.integers(-1, 5, 200)
    board = trackers.TensorBoard(tmp_path, 0)
    board.classes("eval", 7, labels, predicted, ["ant", "bee", "cat", "dog", "none"])
    board.close()
    found = {(tag, step): value for tag, step, value in values(tmp_path)}
    (table,) = (v for (tag, step), v in found.items() if "recall" in tag and step == 7)
    expected = recall_score(labels, predicted, labels=range(4), average=None)
    support = np.bincount(labels)
    rows = [
        f"| {name} | {share:.4f} | {n} |"
        for name, share, n in zip(
            ["ant", "bee", "cat", "dog"], expected, support, strict=True
        )
    ]
    assert text(table).splitlines()[2:] == rows
    assert image(found["eval/confusion", 7]).shape == (290, 290, 3)


def test_of_many_classes_there_is_a_histogram_of_recall(tmp_path):
    labels = np.arange(202) % 101
    predicted = np.where(labels < 25, labels, 0)
    board = trackers.TensorBoard(tmp_path, 0)
    board.classes("eval", 7, labels, predicted, [str(k) for k in range(101)])
    board.close()
    ((tag, _, value),) = values(tmp_path)
    assert tag == "eval/recall"
    assert (value.histo.num, value.histo.sum) == (101, 25)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The folder of a run that nothing watched, and its experiment, by its config."""
    made = {}

    def get(config):
        if config.to_json() not in made:
            folder = tmp_path_factory.mktemp("plain")
            exp = Dying(config, None)
            train.run(exp, str(folder))
            made[config.to_json()] = folder, exp
        return made[config.to_json()]

    return get


@pytest.mark.slow
def test_a_run_is_the_same_with_tensorboard_and_without_and_across_a_resume(
    tiny, plain, tmp_path
):
    folder, exp = plain(tiny())
    watched = Dying(tiny(**{"log.tensorboard": True}), None)
    watched.programs = exp.programs  # To compile them again takes seconds.
    watched.at = 7
    with pytest.raises(Crash):
        train.run(watched, str(tmp_path))
    watched.at = 10**9
    train.run(watched, str(tmp_path))
    assert records(tmp_path) == records(folder)

    told = list(values(tmp_path / "tensorboard"))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    by_tag = scalars(tmp_path / "tensorboard")
    for record in map(json.loads, lines):
        for name in ("loss", "top1"):
            tag = f"{record['kind']}/{name}", record["step"]
            assert by_tag[tag] == pytest.approx(record[name], rel=1e-6)
    pictured = {(tag, step) for tag, step, value in told if value.HasField("image")}
    expected = {
        (f"{kind}{ema}/confusion", step)
        for kind, step in (("eval", 4), ("eval", 8), ("eval", 12), ("final", 12))
        for ema in ("", "/ema")
    }
    assert pictured == expected | {("train/first_batch", 0)}

    found = {(tag, step): value for tag, step, value in told}
    images, targets = show.pixels(exp)
    captions = [show.caption(target, exp.selection.class_names) for target in targets]
    grid = pictures.grid(images, captions)
    np.testing.assert_array_equal(image(found["train/first_batch", 0]), grid)
    _, step, _, weights = scoring.load(str(tmp_path), "best", {})
    assert step == json.loads(lines[-1])["best_step"]
    for name, variables in (("", weights), ("/ema", weights["ema"])):
        of_model = {k: variables[k] for k in ("params", "batch_stats")}
        logits, labels = predictions(exp, of_model, "test")
        matrix = np.zeros((10, 10), int)
        np.add.at(matrix, (labels, logits.argmax(-1)), 1)
        drawn = pictures.confusion(matrix, exp.selection.class_names)
        shown = image(found[f"final{name}/confusion", 12])
        np.testing.assert_array_equal(shown, drawn)


def test_weights_and_biases_that_is_not_installed_is_one_line(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    exp = experiment.build(tiny(**{"log.wandb": "probe"}))
    with pytest.raises(InputError, match=r"log.wandb='probe' needs .* pip install wandb"):
        train.run(exp, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    # A folder that runs left is a package of that name.
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "wandb").mkdir()
    with pytest.raises(InputError, match="pip install wandb"):
        trackers.imported("probe")


# Trains in a process of its own, as wandb starts one and hooks into the interpreter.
SCRIPT = """
import json, os, signal, subprocess, sys
from jaxcls import experiment
from jaxcls.config import loading as config
from jaxcls.training import train
from jaxcls.errors import StoppedError
values, folder, until, kill = json.load(sys.stdin)
def on_digest(step, digests):
    if step == kill:
        found = subprocess.run(
            ["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True, text=True
        )
        os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
exp = experiment.build(config.from_flat(values))
try:
    train.run(exp, folder, until=until, on_digest=on_digest)
except StoppedError:
    print("stopped")
"""


@pytest.fixture
def trained(tiny):
    """``trained(folder, until, kill, **environment)`` -> what a run with wandb prints."""
    pytest.importorskip("wandb")
    from jaxcls.config import loading

    def run(folder, until=0, kill=0, **environment):
        flat = loading.flat(tiny(**{"log.wandb": "probe"}))
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            input=json.dumps([flat, str(folder), until, kill]),
            capture_output=True,
            text=True,
            timeout=400,
            env={
                **os.environ,
                "WANDB_MODE": "offline",
                "WANDB_SILENT": "true",
                **environment,
            },
            cwd=pathlib.Path(__file__).resolve().parent.parent.parent,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def kept(file):
    """The records of a .wandb file: LevelDB's log format, after a head of 7 bytes."""
    data, at, parts = file.read_bytes(), 7, []
    while at + 7 < len(data):
        room = 32768 - at % 32768
        if room < 7:  # Too little for a record's head: zeros.
            at += room
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # Whole, or the last part.
            yield b"".join(parts)
            parts = []


def history(folder):
    """(run ids, {step: values}, summary, config) of what a folder keeps for wandb sync."""
    from wandb.proto import wandb_internal_pb2

    ids, steps, summary, config = set(), {}, {}, {}
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in kept(file):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
                config |= items(record.run.config.update)
            if row := items(record.history.item):
                steps.setdefault(row.pop("_step"), {}).update(row)
            summary |= items(record.summary.update)
    return ids, steps, summary, config


def items(pairs):
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in pairs
    }


@pytest.mark.slow
def test_weights_and_biases_is_told_the_records_as_one_run_across_a_resume(
    trained, tiny, plain, tmp_path
):
    folder, _ = plain(tiny())
    assert "stopped" in trained(tmp_path, until=7)
    assert "done" not in trained(tmp_path)
    assert records(tmp_path) == records(folder)
    ids, steps, summary, config = history(tmp_path)
    assert ids == {(tmp_path / "wandb-id").read_text()}
    assert config["optim"]["lr"] == 0.01
    for record in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        for name in ("loss", "top1"):
            assert steps[record["step"]][f"{record['kind']}/{name}"] == record[name]
        if record["kind"] == "final":
            assert summary["final/top1"] == record["top1"]
            assert summary["final/at"] == record["at"]


@pytest.mark.slow
def test_a_run_goes_on_when_weights_and_biases_dies(trained, tiny, plain, tmp_path):
    folder, _ = plain(tiny())
    said = trained(tmp_path, kill=6)
    assert said.count("the run goes on without it") == 1
    assert records(tmp_path) == records(folder)


@pytest.mark.slow
def test_a_run_goes_on_where_weights_and_biases_is_out_of_reach(
    trained, tiny, plain, tmp_path
):
    folder, _ = plain(tiny())
    there = {"WANDB_MODE": "online", "WANDB_API_KEY": "a" * 40, "WANDB_INIT_TIMEOUT": "1"}
    said = trained(tmp_path, WANDB_BASE_URL="http://127.0.0.1:9", **there)
    assert said.count("the run goes on without it") == 1
    assert records(tmp_path) == records(folder)
