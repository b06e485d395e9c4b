"""Every file of a dataset that decides what a model learns is summed and checked."""

import json
import random
import shutil

import numpy as np
import pytest

from jaxcls.config import loading
from jaxcls.data import sources, writer
from jaxcls.data.example import MANIFEST
from jaxcls.data.pipeline import Data
from jaxcls.errors import InputError
from tests.data.test_writer import ROWS, dataset


@pytest.fixture
def prepared(tmp_path):
    """The folder of a dataset "some" of two splits, below tmp_path."""
    folder = tmp_path / "some/1.0.0"
    folder.mkdir(parents=True)
    dataset(folder, {"train": ROWS, "val": ROWS[:2]})
    return folder


def opened(folder):
    return sources.Dataset("some", str(folder.parent.parent))


def test_the_manifest_sums_every_file_but_itself(prepared):
    saved = json.loads((prepared / MANIFEST).read_text())
    shards = {each["file"] for split in saved["shards"].values() for each in split}
    there = {file.name for file in prepared.iterdir()}
    assert {*saved["files"]} | shards | {MANIFEST} == there
    assert {"labels-train.npy", "dataset_info.json", "features.json"} <= {*saved["files"]}
    assert opened(prepared).facts.splits == {"train": 7, "val": 2}


def test_a_flipped_bit_of_any_file_is_named(prepared):
    rng = random.Random(0)
    for name in [*json.loads((prepared / MANIFEST).read_text())["files"], MANIFEST]:
        file = prepared / name
        before = file.read_bytes()
        for _ in range(6):
            place = rng.randrange(len(before))
            flipped = bytearray(before)
            flipped[place] ^= 1 << rng.randrange(8)
            file.write_bytes(bytes(flipped))
            with pytest.raises(InputError, match=rf"{name} (is damaged|cannot be read)"):
                opened(prepared)
        file.unlink()
        if name not in (MANIFEST, "dataset_info.json"):  # Which says that it is there.
            with pytest.raises(InputError, match=rf"{name} is damaged .FileNotFound"):
                opened(prepared)
        file.write_bytes(before)
    opened(prepared)


def test_a_dataset_of_an_earlier_version_has_no_sums_and_opens(prepared):
    file = prepared / MANIFEST
    saved = json.loads(file.read_text())
    del saved["files"], saved["seal"]
    file.write_text(json.dumps(saved))
    assert opened(prepared).facts.fingerprint == saved["fingerprint"]


def test_a_label_that_the_file_of_labels_denies_is_refused(prepared):
    # As if somebody had changed the labels and the sums: records still have their own.
    labels = np.load(prepared / "labels-train.npy")
    np.save(prepared / "labels-train.npy", 1 - labels)
    saved = json.loads((prepared / MANIFEST).read_text())
    saved["files"]["labels-train.npy"] = writer.sha256(prepared / "labels-train.npy")
    saved["seal"] = writer.seal_of(saved)
    (prepared / MANIFEST).write_text(json.dumps(saved))
    given = {
        "data.name": "some", "data.dir": str(prepared.parent.parent), "data.classes": "1",
        "batch_size": 2, "data.resident": "off", "mesh.devices": 1,
        "data.train_ops": "decode | resize(8)", "data.eval_ops": "decode | resize(8)",
    }  # fmt: skip
    data = Data(loading.from_flat(given), None)
    with pytest.raises(InputError, match=r"record 0 of those in use has label 0, and the"):
        next(data.train_batches(0, 1))


def test_a_copy_is_as_good_as_the_original(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy/some/1.0.0")
    found = sources.Dataset("some", str(tmp_path / "copy"))
    assert found.facts == opened(prepared).facts


def test_an_example_is_called_by_its_file(prepared):
    source = opened(prepared).source("train[2:]", "data.train")
    shard = "some-train.array_record-00000-of-00001"
    assert (
        source.where(1) == f"a/3.png, record 1 of split 'train[2:]' (record 3 of {shard})"
    )


def test_a_file_of_odd_letters_is_shown_and_not_obeyed(tmp_path):
    folder = tmp_path / "some/1.0.0"
    folder.mkdir(parents=True)
    dataset(folder, {"train": [(b"a/\x1b[2J.png", ROWS[0][1], 0)]})
    source = opened(folder).source("train", "data.train")
    assert source.where(0).startswith("'a/\\x1b[2J.png', record 0 of split 'train'")
