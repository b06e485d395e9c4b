"""Lists CIFAR's archives for python, without TensorFlow; nothing in a pickle can run."""

import io
import itertools
import os
import pathlib
import tarfile
from typing import Any, NamedTuple

import numpy as np

from jaxcls import pickles
from jaxcls.data.importers.listing import ImageSource, of_arrays
from jaxcls.data.importers.trees import open_tree
from jaxcls.errors import InputError
from jaxcls.pickles import Global, RefusedError, kind_of

REMEDY = "download it again from https://www.cs.toronto.edu/~kriz/cifar.html"


class Layout(NamedTuple):
    """The files of a CIFAR, and the keys in them; splits: split -> its files."""

    title: str
    folder: str
    splits: dict[str, tuple[str, ...]]
    meta: str
    names_key: str
    labels_key: str


CIFARS = (
    Layout(
        "CIFAR-10",
        "cifar-10-batches-py",
        {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)},
        "batches.meta",
        "label_names",
        "labels",
    ),
    Layout(
        "CIFAR-100",
        "cifar-100-python",
        {"train": ("train",), "test": ("test",)},
        "meta",
        "fine_label_names",
        "fine_labels",
    ),
)
FINE = "the labels are the 100 fine ones; the 20 coarse ones are left out"


def cifar(path: pathlib.Path, scratch: pathlib.Path) -> ImageSource | None:
    """Lists the CIFAR at `path`; holds it in memory (180 MB), and gives images as PNG.

    Returns None unless `path` is or holds CIFAR-10 or -100 for python, packed or not.
    Raises `InputError` for a path with two CIFARs or with a damaged one.
    """
    places = _locate(path)
    if not places:
        return None
    (layout, place), *others = places
    if others:
        raise InputError(
            f"{path} holds {place} and {others[0][1]}; give one, such as {place}"
        )
    tree = open_tree(place, scratch)

    def content(name: str) -> dict:
        found = load(tree.content(name, f"{place}", REMEDY), f"{place}: {name}")
        # Python 2 has keys of bytes.
        return {k.decode("latin1") if type(k) is bytes else k: found[k] for k in found}

    names = content(layout.meta).get(layout.names_key)
    if type(names) is not list or not names or {*map(type, names)} - {bytes, str}:
        raise InputError(f"{place}: {layout.meta} lists no {layout.names_key}; {REMEDY}")
    splits = {}
    for split, batches in layout.splits.items():
        parts = {}
        for batch in batches:
            where, key, last = f"{place}: {batch}", layout.labels_key, len(names) - 1
            found = content(batch)
            labels: Any = found.get(key)
            are_whole = type(labels) is list and {*map(type, labels)} == {int}
            if not are_whole or min(labels) < 0 or max(labels) > last:
                raise InputError(f"{where} lists no {key} of 0..{last}; {REMEDY}")
            images = _images(found.get("data"), len(labels), where)
            parts[batch] = images, np.array(labels, np.int32)
        splits[split] = of_arrays(parts)
    kind, class_names = f"{layout.title} for python", tuple(map(os.fsdecode, names))
    notes = [FINE] if layout.labels_key == "fine_labels" else []
    return ImageSource(kind, class_names, 3, splits, [], notes)


def _locate(path: pathlib.Path) -> list[tuple[Layout, pathlib.Path]]:
    """Returns each CIFAR that `path` is or directly holds, once: unpacked before packed."""
    located = []
    for layout in CIFARS:
        archive = f"{layout.title.lower()}-python.tar.gz"
        places = path, path / layout.folder, path / archive
        place = next((place for place in places if _is_layout(place, layout)), None)
        if place is not None:
            located.append((layout, place))
    return located


def _is_layout(place: pathlib.Path, layout: Layout) -> bool:
    if place.is_dir():
        marks = layout.meta, layout.splits["train"][0]
        return all((place / mark).is_file() for mark in marks)
    try:
        with tarfile.open(place) as archive:
            # The first members suffice. To list a large archive may take an hour.
            members = itertools.islice(archive, 4)
            return any(layout.folder in member.name.split("/") for member in members)
    except Exception:  # tarfile and its codecs raise many exception types.
        return False


def _images(data: Any, count: int, where: str) -> np.ndarray:
    """Returns the images of a batch, [count, 32, 32, 3] uint8 RGB; raises `InputError`."""
    if type(data) is not np.ndarray or data.shape != (count, 3072):
        raise InputError(
            f"{where} has no uint8 data of shape {(count, 3072)} for its {count} labels;"
            f" {REMEDY}"
        )
    return data.reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)


def load(data: bytes, where: str) -> dict:
    """Loads a dict from a pickle of plain values and uint8 arrays.

    where: the file's name in errors. Raises `InputError` for any other pickle, and calls no
    function that a pickle names.
    """
    try:
        content = pickles.load(io.BytesIO(data), _NAMES, _build)
    except RefusedError as error:
        reason = str(error) if str(error).isprintable() else ascii(str(error))
        raise InputError(f"{where} is no pickle of CIFAR ({reason}); {REMEDY}") from None
    if type(content) is not dict:
        raise InputError(
            f"{where} is a pickled {kind_of(content)}, and must be a dict; {REMEDY}"
        )
    return content


def _build(value: Any, state: Any) -> None:
    """Sets the state of an array; every dtype is uint8 whatever its state."""
    if type(value) is np.ndarray:
        value.__setstate__(state)
    elif value is not _UINT8:
        raise RefusedError(f"it gives state to a {kind_of(value)}")


def _array(*arguments: Any) -> np.ndarray:
    return np.empty(0, np.uint8)


def _dtype(code: Any, *arguments: Any) -> np.dtype:
    if type(code) not in (bytes, str) or code not in (b"u1", "u1"):
        raise RefusedError("it holds an array that is not uint8")
    return _UINT8


def _encode(text: Any, encoding: Any) -> bytes:
    """Returns bytes; Python 3 pickles bytes for Python 2 as a call of this function."""
    is_text = type(text) is str and type(encoding) in (bytes, str)
    if not is_text or encoding not in (b"latin1", "latin1"):
        raise RefusedError("it holds bytes in another encoding than latin1")
    return text.encode("latin1")


_UINT8 = np.dtype(np.uint8)
_NAMES: pickles.Names = {
    Global("numpy.core.multiarray", "_reconstruct"): _array,
    Global("numpy._core.multiarray", "_reconstruct"): _array,
    Global("numpy", "dtype"): _dtype,
    Global("_codecs", "encode"): _encode,
    Global("numpy", "ndarray"): None,
}
