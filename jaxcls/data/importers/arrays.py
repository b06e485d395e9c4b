"""Lists CIFAR's python archives and MNIST's idx files, without TensorFlow."""

import gzip
import itertools
import math
import pathlib
import struct
import tarfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from jaxcls.data.decode import DecodeError
from jaxcls.data.files import MAX_BYTES, check_size
from jaxcls.data.importers import cifar_files
from jaxcls.data.importers.listing import ImageSource, Listing
from jaxcls.data.importers.trees import open_tree
from jaxcls.errors import InputError


class Layout(NamedTuple):
    """The files of a CIFAR, and the keys in them."""

    title: str
    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    names_key: str
    labels_key: str
    notes: tuple[str, ...]


CIFARS = (
    Layout(
        title="CIFAR-10",
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test=("test_batch",),
        meta="batches.meta",
        names_key="label_names",
        labels_key="labels",
        notes=(),
    ),
    Layout(
        title="CIFAR-100",
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        train=("train",),
        test=("test",),
        meta="meta",
        names_key="fine_label_names",
        labels_key="fine_labels",
        notes=("the labels are the 100 fine ones; the 20 coarse ones are left out",),
    ),
)
IDX_SPLITS = {"train": "train", "test": "t10k"}
IMAGES, LABELS = "images-idx3", "labels-idx1"


def is_cifar(path: pathlib.Path) -> bool:
    """Returns whether `path` is or holds CIFAR-10 or -100 for python, packed or not."""
    return bool(_locate(path))


def cifar(path: pathlib.Path, scratch: pathlib.Path) -> ImageSource:
    """Lists the CIFAR at `path`; holds it in memory (180 MB), and gives images as PNG.

    Raises `InputError` for a path with two CIFARs or with a damaged one.
    """
    (layout, place), *others = _locate(path)
    if others:
        raise InputError(
            f"{path} holds {place} and {others[0][1]}; give one, such as {place}"
        )
    tree = open_tree(place, scratch)

    def load(name: str) -> tuple[dict, str]:
        """Returns the dict in a file, and the file's name in errors."""
        where = f"{place}: {name}"
        data = tree.content(name, f"{place}", cifar_files.REMEDY)
        return cifar_files.load(data, where), where

    class_names = cifar_files.class_names(*load(layout.meta), layout.names_key)
    splits = {}
    for split, batches in {"train": layout.train, "test": layout.test}.items():
        names, labels, images = [], [], []
        for batch in batches:
            content, where = load(batch)
            key, classes = layout.labels_key, len(class_names)
            labels.append(cifar_files.labels(content, key, classes, where))
            images.append(cifar_files.images(content, len(labels[-1]), where))
            names.append(_numbered(batch, len(labels[-1])))
        splits[split] = Listing(
            np.concatenate(names), np.concatenate(labels), _reader(np.concatenate(images))
        )
    kind = f"{layout.title} for python"
    return ImageSource(kind, class_names, 3, splits, [], list(layout.notes))


def is_idx(path: pathlib.Path) -> bool:
    """Returns whether `path` is a folder with an image or label file named as in MNIST."""
    pairs = itertools.product(IDX_SPLITS.values(), (IMAGES, LABELS))
    return any(_idx_file(path, stem, kind) for stem, kind in pairs)


def idx(path: pathlib.Path, _: pathlib.Path) -> ImageSource:
    """Lists the idx files in folder `path`; holds them in memory, and gives grey PNG.

    The files name no classes, so the classes have their numbers as names. Raises
    `InputError` if images or labels are missing, damaged or of different number.
    """
    splits = {}
    for split, stem in IDX_SPLITS.items():
        image_file, label_file = (_idx_file(path, stem, k) for k in (IMAGES, LABELS))
        if image_file is None and label_file is None:
            continue
        if image_file is None or label_file is None:
            lacking = IMAGES if image_file is None else LABELS
            raise InputError(
                f"{path} lacks {stem}-{lacking}-ubyte of its split {split}; copy it there"
            )
        images, labels = _idx_array(image_file, 3), _idx_array(label_file, 1)
        if len(images) != len(labels):
            raise InputError(
                f"{image_file} holds {len(images)} images, and {label_file.name}"
                f" {len(labels)} labels; take both from one download"
            )
        splits[split] = Listing(
            _numbered(split, len(labels)),
            labels.astype(np.int32),
            _reader(images[..., None]),
        )
    most = max(int(listing.labels.max()) for listing in splits.values())
    class_names = tuple(str(number) for number in range(max(10, most + 1)))
    notes = ["idx files name no class; the classes are called by their number"]
    return ImageSource("idx files in MNIST's form", class_names, 1, splits, [], notes)


def _locate(path: pathlib.Path) -> list[tuple[Layout, pathlib.Path]]:
    """Returns each CIFAR that `path` is or directly holds, once: unpacked before packed."""
    located = []
    for layout in CIFARS:
        places = path, path / layout.folder, path / layout.archive
        place = next((place for place in places if _is_layout(place, layout)), None)
        if place is not None:
            located.append((layout, place))
    return located


def _is_layout(place: pathlib.Path, layout: Layout) -> bool:
    try:
        if place.is_dir():
            marks = layout.meta, layout.train[0]
            is_marked = all((place / mark).is_file() for mark in marks)
            return is_marked or place.name == layout.folder
        if not place.is_file():
            return False
        with tarfile.open(place) as archive:
            # The first members suffice. To list a large archive may take an hour.
            members = itertools.islice(archive, 4)
            return any(layout.folder in member.name.split("/") for member in members)
    except Exception:  # tarfile and its codecs raise many exception types.
        return False


def _idx_file(folder: pathlib.Path, stem: str, kind: str) -> pathlib.Path | None:
    """Returns the file under one of the names that mirrors give it, or None."""
    dotted = kind.replace("-idx", ".idx")
    names = [f"{stem}-{k}-ubyte{end}" for end in ("", ".gz") for k in (kind, dotted)]
    places = (folder / name for name in names)
    return next((place for place in places if place.is_file()), None)


def _idx_array(path: pathlib.Path, dimensions: int) -> np.ndarray:
    """Returns the uint8 array in an idx file, gzipped or not; raises `InputError`."""
    remedy = "download it again, in MNIST's idx form"
    try:
        with path.open("rb") as plain:
            packed = plain.peek(2).startswith(b"\x1f\x8b")
            file = gzip.GzipFile(fileobj=plain) if packed else plain
            # A small gzip may unpack to more than memory holds.
            data = file.read(MAX_BYTES + 1)
        check_size(len(data))
    except (OSError, EOFError, zlib.error, DecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); {remedy}") from None
    start = 4 + 4 * dimensions
    if data[:4] != bytes((0, 0, 8, dimensions)) or len(data) < start:
        raise InputError(
            f"{path} has no header of uint8 values in {dimensions} dimensions; {remedy}"
        )
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    size = len(data) - start
    if size != math.prod(shape) or not size:
        raise InputError(f"{path} holds {size} values for its shape {shape}; {remedy}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _numbered(prefix: str, count: int) -> np.ndarray:
    """Returns [count] bytes such as prefix/00017, in the order of their numbers."""
    width = max(5, len(str(count - 1)))
    return np.array([f"{prefix}/{n:0{width}}".encode() for n in range(count)])


def _reader(images: np.ndarray) -> Callable[[int], bytes]:
    """Returns a function: index -> the PNG of that image in [N, H, W, 1 or 3], RGB."""

    def read(index: int) -> bytes:
        # OpenCV expects BGR; the reversal changes nothing in one channel.
        pixels = np.ascontiguousarray(images[index, :, :, ::-1])
        return cv2.imencode(".png", pixels)[1].tobytes()

    return read
