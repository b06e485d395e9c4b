"""MNIST's idx files, written here byte by byte, come back whole."""

import gzip
import pathlib
import struct
import tempfile

import hypothesis
import hypothesis.extra.numpy as numpy_strategies
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxcls.data.importers import idx as importer
from jaxcls.data.importers import open_source
from jaxcls.errors import InputError
from tests.images import pillow
from tests.properties import few_examples

RANDOM = np.random.default_rng(0)


def idx(values):
    """An idx file of uint8 values."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + (
        values.tobytes()
    )


IMAGES = RANDOM.integers(0, 256, (6, 28, 20), np.uint8)
DIGITS = np.array([7, 2, 0, 4, 9, 1], np.uint8)


def mnist(folder, dotted=False, pack=False, **replaced):
    """A folder of MNIST's files: 6 images in train, 2 in test."""
    folder.mkdir(exist_ok=True)
    contents = {
        "train-images-idx3-ubyte": idx(IMAGES),
        "train-labels-idx1-ubyte": idx(DIGITS),
        "t10k-images-idx3-ubyte": idx(IMAGES[:2]),
        "t10k-labels-idx1-ubyte": idx(DIGITS[:2]),
    }
    for key, data in replaced.items():
        contents[next(n for n in contents if n.startswith(key.replace("_", "-")))] = data
    for name, data in contents.items():
        if data is not None:
            name = name.replace("-idx", ".idx") if dotted else name
            path = folder / (name + ".gz" * pack)
            path.write_bytes(gzip.compress(data) if pack else data)
    return folder


@pytest.mark.parametrize(("dotted", "pack"), [(False, False), (True, True)])
def test_idx_files_come_back(tmp_path, dotted, pack):
    found = open_source(mnist(tmp_path, dotted, pack), tmp_path, 0)
    assert (found.channels, found.rejected) == (1, [])
    assert found.class_names == tuple("0123456789")
    assert "name no class" in found.notes[0]
    assert list(found.splits) == ["train", "test"]
    for split, count in {"train": 6, "test": 2}.items():
        listing = found.splits[split]
        assert listing.names.tolist() == [f"{split}/{i:05}".encode() for i in range(count)]
        assert listing.labels.tolist() == DIGITS[:count].tolist()
        assert listing.labels.dtype == np.int32
        for i in range(count):
            assert np.array_equal(pillow(listing.read(i), "L"), IMAGES[i])


def test_other_things_are_no_idx(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").mkdir()
    for path in (tmp_path, *tmp_path.iterdir(), tmp_path / "nowhere"):
        assert importer(path, tmp_path) is None


cubes = numpy_strategies.arrays(
    np.uint8, numpy_strategies.array_shapes(min_dims=3, max_dims=3, max_side=6)
)


@few_examples
@hypothesis.given(images=cubes, pack=st.booleans(), draw=st.data())
def test_idx_files_of_any_shape_come_back_and_no_other_length(images, pack, draw):
    whole, labels = idx(images), idx(np.zeros(len(images), np.uint8))
    cut = draw.draw(st.integers(0, len(whole) - 1))
    with tempfile.TemporaryDirectory() as name:
        # A browser may unpack a file and keep its name.
        path = pathlib.Path(name) / "train-images-idx3-ubyte.gz"
        (path.parent / "train-labels-idx1-ubyte").write_bytes(labels)
        path.write_bytes(gzip.compress(whole) if pack else whole)
        listing = open_source(path.parent, path.parent, 0).splits["train"]
        found = [pillow(listing.read(i), "L") for i in range(len(images))]
        assert np.array_equal(np.stack(found), images)
        for damaged in (whole[:cut], whole + b"\0", gzip.compress(whole)[:-1]):
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=r"idx3-ubyte.gz (has no|holds|cannot be)"):
                open_source(path.parent, path.parent, 0)


def test_classes_and_names_are_as_many_as_the_labels_need(tmp_path):
    labels = np.zeros(100_001, np.uint8)
    labels[7] = 46
    images = idx(np.zeros((100_001, 1, 1), np.uint8))
    source = mnist(tmp_path, train_images=images, train_labels=idx(labels))
    found = open_source(source, tmp_path, 0)
    assert found.class_names == tuple(str(k) for k in range(47))
    names = found.splits["train"].names
    assert (names[0], names[-1]) == (b"train/000000", b"train/100000")
    assert np.all(names[1:] > names[:-1])


WHOLE = idx(IMAGES)


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({"train_labels": None}, "lacks train-labels-idx1-ubyte of its split train"),
        ({"t10k_images": None}, "lacks t10k-images-idx3-ubyte of its split test"),
        ({"train_images": idx(DIGITS)}, "has no header of uint8 values in 3 dimensions"),
        ({"train_labels": b"\0\0\x0d\1" + idx(DIGITS)[4:]}, "values in 1 dimensions"),
        (
            {"train_images": WHOLE[:4] + b"\xff" * 12 + WHOLE[16:]},
            "holds 3360 values for its shape (4294967295, 4294967295, 4294967295)",
        ),
        ({"train_images": idx(IMAGES[:0])}, "holds 0 values for its shape (0, 28, 20)"),
        ({"train_images": idx(IMAGES[:5])}, "holds 5 images, and train-labels-idx1-ubyte"),
    ],
)
def test_a_fault_of_idx_is_named(tmp_path, replaced, said):
    with pytest.raises(InputError) as refused:
        open_source(mnist(tmp_path, **replaced), tmp_path, 0)
    assert said in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_a_gzip_that_unpacks_beyond_the_limit_is_not_unpacked_to_its_end(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("jaxcls.data.files.MAX_BYTES", 10_000)
    path = mnist(tmp_path, pack=True, train_images=WHOLE + bytes(10**7))
    with pytest.raises(InputError, match=r"\(10,001 bytes, over the limit of 10,000\)"):
        open_source(path, tmp_path, 0)
