"""Lists the idx files of MNIST and Fashion-MNIST."""

import gzip
import math
import pathlib
import struct
import zlib

import numpy as np

from jaxcls.data import files
from jaxcls.data.decode import DecodeError
from jaxcls.data.importers.listing import ImageSource, of_arrays
from jaxcls.errors import InputError

SPLITS = {"train": "train", "test": "t10k"}
IMAGES, LABELS = "images-idx3", "labels-idx1"


def idx(path: pathlib.Path, _: pathlib.Path) -> ImageSource | None:
    """Lists the idx files in folder `path`; holds them in memory, and gives grey PNG.

    Returns None without an image or label file named as in MNIST. The files name no
    classes, so the classes have their numbers as names. Raises `InputError` if images or
    labels are missing, damaged or of different number.
    """
    splits = {}
    for split, stem in SPLITS.items():
        image_file, label_file = (_file(path, stem, kind) for kind in (IMAGES, LABELS))
        if image_file is None and label_file is None:
            continue
        if image_file is None or label_file is None:
            lacking = IMAGES if image_file is None else LABELS
            raise InputError(
                f"{path} lacks {stem}-{lacking}-ubyte of its split {split}; copy it there"
            )
        images, labels = _array(image_file, 3), _array(label_file, 1)
        if len(images) != len(labels):
            raise InputError(
                f"{image_file} holds {len(images)} images, and {label_file.name}"
                f" {len(labels)} labels; take both from one download"
            )
        splits[split] = of_arrays({split: (images[..., None], labels)})
    if not splits:
        return None
    most = max(int(listing.labels.max()) for listing in splits.values())
    class_names = tuple(str(number) for number in range(max(10, most + 1)))
    notes = ["idx files name no class; the classes are called by their number"]
    return ImageSource("idx files in MNIST's form", class_names, 1, splits, [], notes)


def _file(folder: pathlib.Path, stem: str, kind: str) -> pathlib.Path | None:
    """Returns the file under one of the names that mirrors give it, or None."""
    found = sorted(folder.glob(f"{stem}-{kind.replace('-', '?')}-ubyte*"))
    whole = (place for place in found if place.name.endswith(("-ubyte", "-ubyte.gz")))
    return next((place for place in whole if place.is_file()), None)


def _array(path: pathlib.Path, dimensions: int) -> np.ndarray:
    """Returns the uint8 array in an idx file, gzipped or not; raises `InputError`."""
    remedy = "download it again, in MNIST's idx form"
    try:
        with path.open("rb") as plain:
            packed = plain.peek(2).startswith(b"\x1f\x8b")
            file = gzip.GzipFile(fileobj=plain) if packed else plain
            # A small gzip may unpack to more than memory holds.
            data = file.read(files.MAX_BYTES + 1)
        files.check_size(len(data))
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
