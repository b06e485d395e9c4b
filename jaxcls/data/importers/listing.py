"""Listings: the content of a source of images, before any image is read."""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Listing(NamedTuple):
    """The files of one split, as arrays; a million files take some 100 MB.

    names: [n] bytes (dtype S), each file's path within the source, with '/' separators. The
    names decide the order and the val split, so they must not depend on the location of the
    source.
    labels: [n] int32.
    read: index -> the encoded file. It is safe from many threads, and raises
    `decode.DecodeError` or OSError for an unreadable file.
    """

    names: np.ndarray
    labels: np.ndarray
    read: Callable[[int], bytes]


class ImageSource(NamedTuple):
    """The splits and classes of a folder or an archive.

    kind: a description for the manifest. channels: 1 (grey) or 3. rejected: (name, reason)
    of each file that is never read. notes: remarks for the user, one line each.
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
    """Returns the unique names [n], sorted, and the index of each in the list.

    The first file of a name is taken. Adds the others to `rejected`.
    """
    given = np.array(names, np.bytes_)
    kept, order = np.unique(given, return_index=True)
    if len(kept) < len(given):
        rejected += [
            (os.fsdecode(name), "the same path a second time")
            for name in np.delete(given, order)
        ]
    return kept, order
