"""Listings: the content of a source of images, before any image is read."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import cv2
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

    def subset(self, rows: np.ndarray) -> "Listing":
        """Returns the listing of only the files at `rows` [m], in that order."""
        return Listing(
            self.names[rows], self.labels[rows], lambda i: self.read(int(rows[i]))
        )


class ImageSource(NamedTuple):
    """The splits and classes of a folder or an archive.

    kind: a description for the manifest. channels: 1 (grey) or 3. rejected: (name, reason)
    of each file that is never read. notes: remarks for the user, one line each.
    left_out: reason -> the paths that are taken for no image, and are no fault.
    """

    kind: str
    class_names: tuple[str, ...]
    channels: int
    splits: dict[str, Listing]
    rejected: list[tuple[str, str]]
    notes: list[str]
    left_out: Mapping[str, list[str]] = MappingProxyType({})


def of_arrays(parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> Listing:
    """Returns the listing of images in memory, which `read` encodes as PNG.

    parts: prefix -> (images [n, H, W, 1 or 3] uint8, labels [n]). A name is the prefix and
    the number of the image in its part, such as train/00017.
    """
    names = []
    for prefix, (_, labels) in parts.items():
        width = max(5, len(str(len(labels) - 1)))
        names += [f"{prefix}/{n:0{width}}".encode() for n in range(len(labels))]
    images, labels = map(np.concatenate, zip(*parts.values(), strict=True))

    def read(index: int) -> bytes:
        # OpenCV expects BGR; the reversal changes nothing in one channel.
        pixels = np.ascontiguousarray(images[index, :, :, ::-1])
        return cv2.imencode(".png", pixels)[1].tobytes()

    return Listing(np.array(names), labels.astype(np.int32), read)
