"""The content of a source of images, before any image is read."""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Listing(NamedTuple):
    """The files of one split, as arrays: a million of them is some 100 MB.

    names: [n] bytes (dtype S), the path of each within the source, '/' between parts;
    it decides order and val split, so it must not depend on where the source lies.
    labels: [n] int32. read: index -> the encoded file; safe from many threads, raises
    `decode.DecodeError` or OSError where one file cannot be read.
    """

    names: np.ndarray
    labels: np.ndarray
    read: Callable[[int], bytes]


class ImageSource(NamedTuple):
    """The splits and classes of a folder or an archive.

    kind: in words, for the manifest. channels: 1 (grey) or 3. rejected: (name, reason)
    of each file that is not read at all. notes: remarks for the user, one line each.
    """

    kind: str
    class_names: tuple[str, ...]
    channels: int
    splits: dict[str, Listing]
    rejected: list[tuple[str, str]]
    notes: list[str]


def sorted_once(
    names: list[bytes], rejected: list[tuple[str, str]]
) -> tuple[np.ndarray, np.ndarray]:
    """The names [n] in order, each once, and the place of each in the list.

    Adds to `rejected` the names that come again: the first file of a name is taken.
    """
    given = np.array(names, np.bytes_)
    kept, order = np.unique(given, return_index=True)
    if len(kept) < len(given):
        rejected += [
            (os.fsdecode(name), "the same path a second time")
            for name in np.delete(given, order)
        ]
    return kept, order
