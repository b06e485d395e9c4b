"""CIFAR's pickles, written here byte by byte, come back whole."""

import gzip
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest

from jaxcls.data.importers import open_source
from jaxcls.data.importers.cifar import cifar
from jaxcls.errors import InputError
from tests import archives
from tests.images import pillow, write

RANDOM = np.random.default_rng(0)
NAMES = {
    "cifar-10-batches-py": [f"class{k}" for k in range(10)],
    "cifar-100-python": [f"fine{k:02}" for k in range(100)],
}
TRAIN10 = [f"data_batch_{k}" for k in range(1, 6)]


def pickled_array(values):
    """A uint8 array as Python 2 and numpy of 2009 pickled it."""
    shape = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in values.shape) + b"t"
    data = b"T" + struct.pack("<i", values.size) + values.tobytes("A")
    by_column = b"I01\n" if np.isfortran(values) else b"I00\n"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tU\x01btR"
        b"(K\x01" + shape + b"cnumpy\ndtype\n(U\x02u1K\0K\x01tR"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb" + by_column + data + b"tb"
    )


def pickled(value):
    if isinstance(value, np.ndarray):
        return pickled_array(value)
    if isinstance(value, dict):
        items = b"".join(pickled(k) + pickled(v) for k, v in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(pickled(v) for v in value) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    return b"U" + bytes([len(value)]) + value.encode("latin1")


def python2(value):
    """A pickle of protocol 2 as Python 2 writes it: every string is bytes."""
    return b"\x80\x02" + pickled(value) + b"."


def python3(value):
    return pickle.dumps(value, 2)


def batch(count, labels_key, classes):
    labels = RANDOM.integers(0, classes, count).tolist()
    data = RANDOM.integers(0, 256, (count, 3072), np.uint8)
    return {"batch_label": "some", labels_key: labels, "data": data, "filenames": ["a.png"]}


def cifar10(dumps=python2):
    """({name: bytes}, {name: batch}) of a CIFAR-10 of 2 images a batch."""
    batches = {name: batch(2, "labels", 10) for name in [*TRAIN10, "test_batch"]}
    names = NAMES["cifar-10-batches-py"]
    files = {name: dumps(content) for name, content in batches.items()}
    meta = dumps({"num_cases_per_batch": 2, "label_names": names, "num_vis": 3072})
    return {**files, "batches.meta": meta}, batches


def cifar100(dumps=python2):
    batches = {"train": batch(7, "fine_labels", 100), "test": batch(3, "fine_labels", 100)}
    for content in batches.values():
        content["coarse_labels"] = [19] * len(content["fine_labels"])
    files = {name: dumps(content) for name, content in batches.items()}
    names = NAMES["cifar-100-python"]
    meta = dumps({"fine_label_names": names, "coarse_label_names": ["c"] * 20})
    return {**files, "meta": meta}, batches


def unpacked(root, folder, files):
    (root / folder).mkdir(parents=True, exist_ok=True)
    return write(root / folder, files)


def packed(path, folder, files, mode="w:gz"):
    top = archives.member(folder, kind=tarfile.DIRTYPE)
    inside = {f"{folder}/{name}": data for name, data in files.items()}
    path.write_bytes(archives.tar(inside, [top], mode))
    return path


def image_of(row):
    """One row of CIFAR, as its page describes it: 1024 red, 1024 green, 1024 blue."""
    return np.stack([row[at : at + 1024].reshape(32, 32) for at in (0, 1024, 2048)], -1)


def check(listing, batches, labels_key):
    """The listing holds these batches, in their order."""
    names = [f"{b}/{k:05}" for b, each in batches.items() for k in range(len(each["data"]))]
    assert listing.names.tolist() == [name.encode() for name in sorted(names)]
    labels = [label for each in batches.values() for label in each[labels_key]]
    assert listing.labels.tolist() == labels
    assert listing.labels.dtype == np.int32
    rows = np.concatenate([each["data"] for each in batches.values()])
    for i, row in enumerate(rows):
        assert listing.read(i).startswith(b"\x89PNG")
        assert np.array_equal(pillow(listing.read(i)), image_of(row))


@pytest.mark.parametrize(
    ("dumps", "form"),
    [(python2, "archive"), (python3, "tar"), (python2, "flat"), (python3, "above")],
)
def test_cifar10_comes_back_in_every_form(tmp_path, dumps, form):
    files, batches = cifar10(dumps)
    folder = "cifar-10-batches-py"
    path = {
        "archive": lambda: packed(tmp_path / "download", folder, files),
        "tar": lambda: packed(tmp_path / "c.tar", f"./{folder}", files, "w"),
        "flat": lambda: unpacked(tmp_path, "mine", files),
        "above": lambda: unpacked(tmp_path, folder, files).parent,
    }[form]()
    found = open_source(path, tmp_path, 0)
    assert (found.kind, found.channels) == ("CIFAR-10 for python", 3)
    assert found.class_names == tuple(NAMES[folder])
    assert (found.rejected, found.notes) == ([], [])
    assert list(found.splits) == ["train", "test"]
    test = {"test_batch": batches.pop("test_batch")}
    check(found.splits["train"], batches, "labels")
    check(found.splits["test"], test, "labels")


@pytest.mark.parametrize("dumps", [python2, python3])
def test_cifar100_gives_its_fine_labels(tmp_path, dumps):
    files, batches = cifar100(dumps)
    if dumps is python2:  # Pixels by column are put in order.
        batches["test"]["data"] = np.asfortranarray(batches["test"]["data"])
        files["test"] = python2(batches["test"])
    packed(tmp_path / "cifar-100-python.tar.gz", "cifar-100-python", files)
    found = open_source(tmp_path, tmp_path, 0)
    assert (found.kind, found.channels) == ("CIFAR-100 for python", 3)
    assert found.class_names == tuple(NAMES["cifar-100-python"])
    assert "20 coarse ones are left out" in found.notes[0]
    for split in ("train", "test"):
        check(found.splits[split], {split: batches[split]}, "fine_labels")


def test_other_things_are_no_cifar(tmp_path):
    unpacked(tmp_path, "images/train", {"a.png": b""})
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"no archive")
    (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(bytes(5000))[:20])
    packed(tmp_path / "cifar-100-python.tar.gz", "cats", {"train": b"", "meta": b""})
    for path in (tmp_path, *tmp_path.iterdir(), tmp_path / "nowhere"):
        assert cifar(path, tmp_path) is None


def test_two_sets_in_one_folder_are_refused(tmp_path):
    unpacked(tmp_path, "cifar-10-batches-py", cifar10()[0])
    packed(tmp_path / "cifar-100-python.tar.gz", "cifar-100-python", {"meta": b""})
    said = r"holds .*/cifar-10-batches-py and .*/cifar-100-python.tar.gz; give one, such as"
    with pytest.raises(InputError, match=said):
        open_source(tmp_path, tmp_path, 0)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_does_not_run(tmp_path, protocol):
    trap, name = tmp_path / "ran", "data_batch_3"
    files, _ = cifar10()
    files[name] = pickle.dumps({"data": Touch(trap)}, protocol)
    path = unpacked(tmp_path, "cifar-10-batches-py", files)
    with pytest.raises(InputError) as refused:
        open_source(path, tmp_path, 0)
    assert f"{path}: {name} is no pickle of CIFAR (it names " in str(refused.value)
    assert not trap.exists()
    pickle.loads(files[name])
    assert trap.exists()  # The trap works, where plain pickle reads it.


@pytest.mark.parametrize(
    "attack",
    [
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cnumpy\nndarray.tofile\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
        b"c_codecs\nopen\n.",
        b"c__builtin__\neval\n.",
        b"ccopy_reg\n_reconstructor\n.",
        b"\x80\x04\x8c\x03\n\x1b[\x8c\x01x\x93.",
        b"\x80\x04X\x00\x02\x00\x00" + b"o" * 512 + b"\x8c\x01x\x93.",
        b"(S'ls'\nios\nsystem\n.",
        b"Pposix.system\n.",
        b"\x82\x01.",
    ],
)
def test_no_other_name_is_found(tmp_path, attack):
    files = {**cifar100()[0], "train": attack}
    with pytest.raises(InputError) as refused:
        open_source(unpacked(tmp_path, "mine", files), tmp_path, 0)
    assert "mine: train is no pickle of CIFAR (" in str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 600


def changed(**entries):
    """A file of CIFAR-100's test split with other entries; None takes one away."""
    content = {**batch(3, "fine_labels", 100), **entries}
    return python2({key: value for key, value in content.items() if value is not None})


ROWS = np.zeros((3, 3072), np.uint8)
WANTED = "test has no uint8 data of shape (3, 3072) for its 3 labels"
STATE = python2({"data": ROWS, "fine_labels": [1, 2, 3]})


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("test", None, "lacks test;"),
        ("meta", b"", "meta is no pickle of CIFAR (pickle exhausted before seeing STOP"),
        ("test", STATE[:-100], "test is no pickle of CIFAR (expected 9216 bytes in a"),
        ("test", python2([1]), "test is a pickled list, and must be a dict"),
        ("test", python3({"data": ROWS.astype("f4")}), "an array that is not uint8"),
        ("test", STATE.replace(b"J\x03\0\0\0J", b"J\x04\0\0\0J"), "(buffer size does not"),
        ("test", changed(data=None), WANTED),
        ("test", changed(data=ROWS[:2]), WANTED),
        ("test", changed(data=ROWS[:, 1:]), WANTED),
        ("test", changed(fine_labels=None), "test lists no fine_labels"),
        ("test", changed(fine_labels=[]), "test lists no fine_labels"),
        ("test", changed(fine_labels=[1, 2, "3"]), "test lists no fine_labels"),
        ("test", changed(fine_labels=[1, 100, 2]), "lists no fine_labels of 0..99"),
        ("test", changed(fine_labels=[1, 2, -1]), "lists no fine_labels of 0..99"),
        ("train", python3({"fine_labels": [2**70]}), "lists no fine_labels of 0..99"),
        ("meta", python2({"fine_label_names": []}), "meta lists no fine_label_names"),
        ("meta", python2({"fine_label_names": [3]}), "meta lists no fine_label_names"),
    ],
)
def test_a_fault_of_cifar_is_named(tmp_path, name, data, said):
    files = {**cifar100()[0], name: data}
    files = {name: data for name, data in files.items() if data is not None}
    with pytest.raises(InputError) as refused:
        open_source(unpacked(tmp_path, "mine", files), tmp_path, 0)
    text = str(refused.value)
    assert said in text
    assert text.startswith(str(tmp_path))
    assert "download it again from https://www.cs.toronto.edu" in text
    assert "\n" not in text
