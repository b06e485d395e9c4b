"""TensorBoard and Weights & Biases: what they are told; a run is none the wiser."""

import io
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import recall_score

from jaxcls import experiment
from jaxcls.config import loading
from jaxcls.data import pictures
from jaxcls.errors import InputError
from jaxcls.experiment import show
from jaxcls.training import trackers, train
from tests.conftest import ROOT
from tests.dying import Crash, Dying, dying
from tests.events import scalars, values
from tests.limits import files_of_at_most
from tests.run_folders import record_bytes


def image(value):
    return np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))


def text(value):
    return value.tensor.string_val[0].decode()


def told(folder, labels, predicted, names):
    """{tag: value} of what TensorBoard is told of a step's predictions."""
    board = trackers.TensorBoard(folder, 0)
    board.classes("eval", 7, {"label": labels, "predicted": predicted}, names)
    board.close()
    return {tag: value for tag, step, value in values(folder) if step == 7}


def test_torch_is_not_imported_for_tensorboard_and_can_be_afterwards(tmp_path):
    (tmp_path / "torch.py").write_text("print('imported')")
    code = (
        "import pathlib, sys; from jaxcls.training import trackers;"
        " trackers.TensorBoard(pathlib.Path(sys.argv[1]), 0).close(); print('written');"
        " import torch"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "events")],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "written\nimported\n", done.stderr


def test_recall_is_a_table_of_the_classes_that_occur(tmp_path):
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, 200), rng.integers(-1, 5, 200)
    found = told(tmp_path, labels, predicted, ["ant", "bee", "cat", "dog", "none"])
    (table,) = (value for tag, value in found.items() if "recall" in tag)
    expected = recall_score(labels, predicted, labels=range(4), average=None)
    rows = zip(["ant", "bee", "cat", "dog"], expected, np.bincount(labels), strict=True)
    assert text(table).splitlines()[2:] == [
        f"| {name} | {share:.4f} | {n} |" for name, share, n in rows
    ]
    assert image(found["eval/confusion"]).shape == (290, 290, 3)


def test_of_many_classes_there_is_a_histogram_of_recall(tmp_path):
    labels = np.arange(202) % 101
    predicted = np.where(labels < 25, labels, 0)
    found = told(tmp_path, labels, predicted, [str(k) for k in range(101)])
    assert found.keys() == {"eval/recall"}
    histogram = found["eval/recall"].histo
    assert (histogram.num, histogram.sum) == (101, 25)


def use(board):
    """More events than any queue or buffer holds, of each kind."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 101
    for step in range(400):
        board.scalars("train", step, {"loss": 1.0, "top1": 0.5})
    board.picture("noise", 400, rng.integers(0, 255, (99, 99, 3), np.uint8))
    for names in (range(101), range(100)):
        columns = {"label": labels % len(names), "predicted": labels % 7}
        board.classes("eval", 400, columns, [str(k) for k in names])
    board.flush()
    board.rewind(200)
    board.scalars("train", 201, {"loss": 1.0})
    board.close()


@pytest.mark.parametrize("size", [0, 100, 5000, 30_000])
def test_a_disk_that_is_full_is_said_once_and_nothing_waits_for_it(size, tmp_path):
    said = []
    with files_of_at_most(size):
        use(trackers.TensorBoard(tmp_path / "events", 0, said.append))
    assert said == [
        f"TensorBoard: {tmp_path}/events cannot be written ([Errno 27] File too large);"
        " the run goes on without it"
    ]


def test_a_file_in_the_place_of_the_folder_is_said_once(tmp_path):
    said = []
    (tmp_path / "events").touch()
    use(trackers.TensorBoard(tmp_path / "events", 0, said.append))
    (line,) = said
    assert line.startswith(f"TensorBoard: {tmp_path}/events cannot be written ([Errno 17]")


def test_a_value_that_cannot_be_written_is_said_and_not_raised(tmp_path):
    said = []
    board = trackers.TensorBoard(tmp_path, 0, said.append)
    board.scalars("train", 1, {"loss": "x"})
    use(board)
    assert len(said) == 1


def test_every_event_is_in_the_files_and_those_before_a_rewind_too(tmp_path):
    said = []
    use(trackers.TensorBoard(tmp_path, 0, said.append))
    steps = [step for tag, step, _ in values(tmp_path) if tag == "train/loss"]
    assert steps == [*range(400), 201]
    assert not said


@pytest.mark.slow
def test_a_run_is_the_same_with_tensorboard_and_without_and_across_a_resume(
    tiny, whole, tmp_path
):
    (folder, _), exp = whole(tiny()), dying(tiny())
    watched = Dying(tiny(**{"log.tensorboard": True}), None)
    watched.programs = exp.programs  # To compile them again takes seconds.
    watched.at = 7
    with pytest.raises(Crash):
        train.run(watched, str(tmp_path))
    watched.at = 10**9
    train.run(watched, str(tmp_path))
    assert record_bytes(tmp_path) == record_bytes(folder)

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
    final = json.loads(lines[-1])
    for group, prefix in (("final", ""), ("final/ema", "ema_")):
        (table,) = (v for (tag, _), v in found.items() if tag.startswith(f"{group}/recall"))
        cells = [row.split("|")[2:4] for row in text(table).splitlines()[2:]]
        hits = sum(float(recall) * int(n) for recall, n in cells)
        assert hits / 360 == pytest.approx(final[f"{prefix}top1"], abs=1e-4)


def test_weights_and_biases_that_is_not_installed_is_one_line(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    exp = experiment.build(tiny(**{"log.wandb": "probe"}))
    with pytest.raises(InputError, match=r"log.wandb='probe' needs .* pip install wandb"):
        train.run(exp, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


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
def trained(tiny, started, monkeypatch):
    """``trained(folder, until, kill, **environment)`` -> what a run with wandb prints."""
    pytest.importorskip("wandb")
    # Once wandb has begun in this process, its children would share the process it started.
    monkeypatch.delenv("WANDB_SERVICE", raising=False)

    def run(folder, until=0, kill=0, **environment):
        flat = loading.flat(tiny(**{"log.wandb": "probe"}))
        quiet = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"} | environment
        process = started("-c", SCRIPT, devices=8, **quiet)
        given = json.dumps([flat, str(folder), until, kill])
        out, said = process.communicate(given, timeout=400)
        assert process.returncode == 0, said
        return out

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
    trained, tiny, whole, tmp_path
):
    folder, _ = whole(tiny())
    assert "stopped" in trained(tmp_path, until=7)
    assert "done" not in trained(tmp_path)
    assert record_bytes(tmp_path) == record_bytes(folder)
    ids, steps, summary, config = history(tmp_path)
    assert ids == {(tmp_path / "wandb-id").read_text()}
    assert config["optim"]["lr"] == 0.01
    for record in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        for name in ("loss", "top1"):
            assert steps[record["step"]][f"{record['kind']}/{name}"] == record[name]
        if record["kind"] == "final":
            assert summary["final/top1"] == record["top1"]
            assert summary["final/at"] == record["at"]


OUT_OF_REACH = {
    "WANDB_MODE": "online", "WANDB_API_KEY": "a" * 40, "WANDB_INIT_TIMEOUT": "1",
    "WANDB_BASE_URL": "http://127.0.0.1:9",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fault", [{"kill": 6}, OUT_OF_REACH], ids=["killed", "no network"])
def test_a_run_goes_on_without_weights_and_biases(trained, tiny, whole, tmp_path, fault):
    folder, _ = whole(tiny())
    assert trained(tmp_path, **fault).count("the run goes on without it") == 1
    assert record_bytes(tmp_path) == record_bytes(folder)
