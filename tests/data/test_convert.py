"""digits in TFRecord, framed here, becomes the same digits in ArrayRecord."""

import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.proto import tf_example_pb2

from jaxcls import commands
from jaxcls.data import convert, sources
from jaxcls.errors import InputError
from tests.data.importers.test_tfrecords import frame


def records_of(folder, split):
    for path in sorted(folder.glob(f"digits-{split}.array_record-*")):
        with ArrayRecordDataSource(str(path)) as source:
            yield from source.__getitems__(range(len(source)))


def write_split(folder, split, records, shards=2):
    parts = np.array_split(np.arange(len(records)), shards)
    for k, part in enumerate(parts):
        path = folder / f"digits-{split}.tfrecord-{k:05}-of-{shards:05}"
        path.write_bytes(b"".join(frame(records[i]) for i in part))
    return [str(len(part)) for part in parts]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_dir):
    """All of digits, as TFDS itself writes it in TFRecord, without TensorFlow."""
    (old,) = (data_dir / "digits").iterdir()
    folder = tmp_path_factory.mktemp("old") / "digits" / "1.0.0"
    folder.mkdir(parents=True)
    for name in ("features.json", "label.labels.txt"):
        if (old / name).exists():
            shutil.copy(old / name, folder)
    info = json.loads((old / "dataset_info.json").read_text())
    info["fileFormat"], info["version"] = "tfrecord", "1.0.0"
    for split in info["splits"]:
        split["shardLengths"] = write_split(
            folder, split["name"], list(records_of(old, split["name"]))
        )
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.fixture
def source(whole, tmp_path):
    """A copy to damage."""
    return shutil.copytree(whole, tmp_path / "source" / "digits" / "1.0.0")


def run(source, tmp_path, *more, name="digits"):
    arguments = f"--source={source}", f"--name={name}", f"--data_dir={tmp_path}/new"
    return commands.main(["prepare", *arguments, *more])


def refused(source, tmp_path, said, *more, **options):
    with pytest.raises(InputError, match=said) as caught:
        run(source, tmp_path, *more, **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("new/*/*"))


@pytest.mark.parametrize("where", ["version", "parent"])
def test_records_are_copied_byte_for_byte_and_used(
    whole, tmp_path, data_dir, capsys, where
):
    assert run(whole if where == "version" else whole.parent, tmp_path) == 0
    out = capsys.readouterr().out.replace("test=360 train=1437", "train=1437 test=360")
    assert "digits train=1437 test=360 classes=10 rejected=0 sha256:" in out
    (old,) = (data_dir / "digits").iterdir()
    new = tmp_path / "new" / "digits" / "1.0.0"
    labels = {}
    for split in ("train", "test"):
        assert list(records_of(new, split)) == list(records_of(old, split))
        data = tfds.builder_from_directory(new).as_data_source(split)
        labels[split] = [int(example["label"]) for example in data]
        assert np.load(new / f"labels-{split}.npy").tolist() == labels[split]
    dataset = sources.Dataset("digits", str(tmp_path / "new"))
    assert dataset.facts.splits == {"train": 1437, "test": 360}
    manifest = json.loads((new / "manifest.json").read_text())
    assert manifest["source"] == "TFDS, converted from TFRecord"
    assert manifest["examples"] == {s: np.bincount(n).tolist() for s, n in labels.items()}


def record(images, label):
    """A framed tf.train.Example with any number of images."""
    feature = {
        "image": {"bytes_list": {"value": images}},
        "label": {"int64_list": {"value": [label]}},
    }
    return frame(tf_example_pb2.Example(features={"feature": feature}).SerializeToString())


SHARD = "digits-test.tfrecord-00000-of-00002"
GOOD = record([b"png"], 1)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        (SHARD, None, rf"{SHARD} cannot be read \(No such file"),
        (SHARD, b"", r"split test holds 180 records of 360; a shard was changed: copy it"),
        (SHARD, GOOD[:-9] + b"x" + GOOD[-8:], r"record 0 at byte 0 .* checksum \(crc32c\)"),
        (SHARD, record([b"png"], 99), "record 0 of split test has label 99, and there are"),
        (SHARD, GOOD + record([], 1), "record 1 of split test: 0 encoded image"),
        (SHARD, frame(b"\xff no"), "record 0 of split test: no tf.train.Example; it must"),
        ("features.json", b"{", r"dataset_info.json is damaged \(.*copy or prepare"),
        (
            "dataset_info.json",
            b'{"name": "x", "version": "1.0.0"}',
            "has no split; copy it again",
        ),
    ],
    ids=range(8),  # protobuf writes the same map in another order each time.
)
def test_a_damaged_dataset_is_named_and_nothing_is_left(source, tmp_path, name, data, said):
    if data is None:
        (source / name).unlink()
    else:
        (source / name).write_bytes(data)
    refused(source, tmp_path, said, name="other")


def test_a_copy_is_never_written_over_its_source(source, tmp_path):
    files = {path: path.read_bytes() for path in source.iterdir()}
    arguments = ["--name=digits", f"--data_dir={tmp_path}/source"]
    for given in (source, source.parent):
        with pytest.raises(InputError, match="give a --data_dir") as caught:
            commands.main(["prepare", f"--source={given}", *arguments])
        assert "remove it" not in str(caught.value)
    assert files == {path: path.read_bytes() for path in source.iterdir()}


@pytest.mark.parametrize(
    "flag",
    [
        "--val_fraction=0.2",
        "--test_fraction=0.1",
        "--shrink=64",
        "--max_bad=3",
        "--quality=9",
        "--threads=1",
    ],
)
def test_a_flag_that_would_change_nothing_is_refused(whole, tmp_path, flag):
    refused(whole, tmp_path, f"is copied as it is; leave {flag} out", flag)


def test_tfds_needs_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(convert.importlib.util, "find_spec", lambda name: None)
    said = r'^--tfds=cifar10: .*not installed; pip install "jaxcls\[tfds\]", or give'
    with pytest.raises(InputError, match=said):
        commands.main(["prepare", "--tfds=cifar10", f"--data_dir={tmp_path}"])
    with pytest.raises(InputError, match="has a name of its own; leave --name out"):
        commands.main(["prepare", "--tfds=cifar10", "--name=x"])
    with pytest.raises(InputError, match="is copied as it is; leave --shrink=9 out"):
        commands.main(["prepare", "--tfds=cifar10", "--shrink=9"])


def test_what_tfds_prepared_gets_its_manifest(tmp_path, data_dir, monkeypatch, capsys):
    """With a builder that needs no TensorFlow in the place of TFDS's own."""
    shutil.copytree(data_dir / "digits", tmp_path / "digits")
    (folder,) = (tmp_path / "digits").iterdir()
    builder = tfds.builder_from_directory(folder)
    monkeypatch.setattr(convert.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(convert.tfds, "builder", lambda *args, **options: builder)
    monkeypatch.setattr(builder, "download_and_prepare", lambda: None)
    assert commands.main(["prepare", "--tfds=digits", f"--data_dir={tmp_path}"]) == 0
    manifest = sources.manifest(folder)
    assert manifest["source"] == "TFDS"
    assert manifest["fingerprint"][:19] in capsys.readouterr().out
    for split, shards in manifest["shards"].items():
        records = list(records_of(folder, split))
        assert sum(shard["examples"] for shard in shards) == len(records)
        assert sum(shard["bytes"] for shard in shards) == sum(map(len, records))


def test_what_tfds_raises_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(convert.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(
        InputError, match="--tfds=nothing_like_it: TFDS could not"
    ) as caught:
        commands.main(["prepare", "--tfds=nothing_like_it", f"--data_dir={tmp_path}"])
    assert "\n" not in str(caught.value)
