"""Datasets as they are written, read by TFDS and array_record themselves."""

import errno
import fcntl
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from jaxcls.data import writer
from jaxcls.data.example import Example, serialize
from jaxcls.errors import InputError
from tests.images import picture, pixels

NAMES = ("cat, big", "naïve ☃")


def added(contents, rows):
    for example in (Example(*row) for row in rows):
        contents.add(example.digest(), example.label)
        yield serialize(example)


def split_of(folder, records):
    """The shards of a split of records."""
    contents = writer.Contents(folder, "some")
    contents.write_split("train", iter(records))
    return contents.shards["train"]


def dataset(folder, splits, *, shape=(20, 24, 3)):
    """Write {split: [(name, image, label)]} as `prepare` does."""
    contents = writer.Contents(folder, "some")
    for split, rows in splits.items():
        contents.write_split(split, added(contents, rows))
    contents.write_info("of tests", writer.features(NAMES, shape), ("image", "label"))
    contents.write_manifest("tests", NAMES)
    return contents.shards


ROWS = [(b"a/%d.png" % k, picture(k, "PNG"), k % 2) for k in range(7)]


def test_tfds_reads_what_was_written(tmp_path):
    dataset(tmp_path, {"train": ROWS, "val": ROWS[:2]})
    info = tfds.builder_from_directory(tmp_path).info
    assert info.features["label"].names == list(NAMES)
    assert info.features["image"].shape == (20, 24, 3)
    assert info.supervised_keys == ("image", "label")
    assert {s: part.num_examples for s, part in info.splits.items()} == {
        "train": 7, "val": 2,
    }  # fmt: skip
    source = tfds.builder_from_directory(tmp_path).as_data_source("train")
    for k, example in enumerate(source):
        np.testing.assert_array_equal(example["image"], pixels(k))
        assert example["label"] == k % 2
        assert example["file_name"] == ROWS[k][0]


@pytest.mark.parametrize(
    ("limit", "n", "expected"),
    [
        ("SHARD_BYTES", 10, [3, 3, 3, 1]),
        ("SHARD_RECORDS", 500, [250, 250]),
        ("SHARD_BYTES", 0, [0]),
    ],
)
def test_shards_end_with_the_record_that_fills_them(
    tmp_path, monkeypatch, limit, n, expected
):
    monkeypatch.setattr(writer, limit, 250)
    records = [bytes([k % 256]) * 100 for k in range(n)]
    shards = split_of(tmp_path, records)
    assert [shard.examples for shard in shards] == expected
    assert [shard.bytes for shard in shards] == [100 * count for count in expected]
    files = [f"{k:05}-of-{len(expected):05}" for k in range(len(expected))]
    assert [shard.file.split("record-")[1] for shard in shards] == files
    read = []
    for shard in shards:
        data = (tmp_path / shard.file).read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard.sha256
        if shard.examples:
            with ArrayRecordDataSource(str(tmp_path / shard.file)) as source:
                read += source.__getitems__(range(len(source)))
    assert read == records


def test_several_shards_are_one_split_to_tfds(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SHARD_BYTES", 900)
    shards = dataset(tmp_path, {"train": ROWS})
    assert len(shards["train"]) > 2
    source = tfds.builder_from_directory(tmp_path).as_data_source("train[2:]")
    assert [example["file_name"] for example in source] == [row[0] for row in ROWS[2:]]


def test_the_manifest_holds_the_digest_of_the_content(tmp_path):
    dataset(tmp_path, {"train": ROWS, "val": ROWS[:2]})
    digest = hashlib.sha256()
    for split, rows in (("train", ROWS), ("val", ROWS[:2])):
        digest.update(f"split {split}\n".encode())
        for name, image, label in rows:
            size = len(name).to_bytes(8, "little")
            content = hashlib.sha256(image).digest() + size + name + f"{label}".encode()
            digest.update(hashlib.sha256(content).digest())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["fingerprint"] == f"sha256:{digest.hexdigest()}"
    assert manifest["classes"] == list(NAMES)
    assert np.load(tmp_path / "labels-train.npy").tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert np.load(tmp_path / "labels-train.npy").dtype == np.int32


def test_the_same_input_is_the_same_bytes_wherever_it_is_written(tmp_path):
    for name in ("one", "another place"):
        (tmp_path / name).mkdir()
        dataset(tmp_path / name, {"train": ROWS})
    one = {p.name: p.read_bytes() for p in (tmp_path / "one").iterdir()}
    assert one == {p.name: p.read_bytes() for p in (tmp_path / "another place").iterdir()}
    assert not any(str(tmp_path).encode() in data for data in one.values())


def visible(folder):
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def test_a_folder_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "new" / "some" / "1.0.0"
    with writer.whole(target) as folder:
        (folder / "file").write_text("content")
        assert visible(target.parent) == []
    assert (target / "file").read_text() == "content"
    assert os.listdir(target.parent) == ["1.0.0"]


def test_an_error_leaves_nothing(tmp_path):
    def fail():
        with writer.whole(tmp_path / "some" / "1.0.0") as folder:
            (folder / "file").write_text("content")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(tmp_path) == []


def refused(target, said):
    with pytest.raises(InputError, match=said) as caught, writer.whole(target):
        raise AssertionError("it was entered")
    assert "\n" not in str(caught.value)
    assert str(target.parent) in str(caught.value)


def test_the_left_overs_of_a_killed_run_are_removed(tmp_path):
    target = tmp_path / "some" / "1.0.0"
    code = (
        "import os, pathlib, signal\nfrom jaxcls.data import writer\n"
        f"with writer.whole(pathlib.Path({str(target)!r})) as folder:\n"
        "    (folder / 'old').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert visible(target.parent) == []
    assert os.listdir(target.parent)
    with writer.whole(target) as folder:
        assert os.listdir(folder) == []
        (folder / "new").write_text("whole")
    assert os.listdir(target.parent) == ["1.0.0"]
    assert os.listdir(target) == ["new"]


def test_one_writer_at_a_time(tmp_path):
    target = tmp_path / "some" / "1.0.0"
    with writer.whole(target) as folder:
        refused(target, "is being written by another process; wait")
        assert folder.is_dir()
    assert target.is_dir()


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with writer.whole(tmp_path / "some" / "1.0.0"):
        pass
    assert (tmp_path / "some" / "1.0.0").is_dir()


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "some" / "1.0.0", r"written \(Not a directory\); make")
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / ".1.0.0.incomplete").write_text("")
    refused(tmp_path / "some" / "1.0.0", r"cannot be written \(File exists\)")
    refused(tmp_path / ("x" * 300) / "1.0.0", r"cannot be written \(File name too long\)")


def test_array_record_itself_says_when_a_shard_cannot_grow(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    records = (os.urandom(1 << 16) for _ in range(64))
    said = r"cannot be written \(.*\); make room, or give another --data_dir"
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, limits[1]))
    try:
        with (
            pytest.raises(InputError, match=said) as caught,
            writer.whole(tmp_path / "some" / "1.0.0") as folder,
        ):
            split_of(folder, records)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []
