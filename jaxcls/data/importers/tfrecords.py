"""Reads TFRecord files, and finds the TFDS folders that hold them, without TensorFlow."""

import json
import os
import pathlib
import struct
from collections.abc import Iterator

import google_crc32c

from jaxcls.errors import InputError


def records(path: pathlib.Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file in order, each checked against its checksums.

    Raises `InputError` naming the file, the record (counted from 0) and the fault.
    """
    try:
        with path.open("rb") as file:
            size, number = os.fstat(file.fileno()).st_size, 0
            while header := file.read(12):
                place = file.tell()
                if len(header) == 12 and masked_crc(header[:8]) == header[8:]:
                    (length,) = struct.unpack("<Q", header[:8])
                    # Python would try to allocate any stated length.
                    data = file.read(length) if place + length + 4 <= size else b""
                    if len(data) == length and masked_crc(data) == file.read(4):
                        yield data
                        number += 1
                        continue
                raise InputError(
                    f"{path}: record {number} at byte {place - len(header)} is cut short,"
                    " or its checksum (crc32c) does not match; copy the file again, or"
                    " prepare the dataset again"
                )
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}); give a TFRecord file"
        ) from None


def masked_crc(data: bytes) -> bytes:
    """Returns TFRecord's checksum: crc32c, rotated by 15 bits, plus a constant."""
    crc: int = google_crc32c.value(data)
    rotated = (crc >> 15) | (crc << 17)
    return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def tfds_folder(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of a TFDS dataset in TFRecord: `path`, its one version, or None.

    A dataset_info.json without fileFormat is older than any other format, so it means
    TFRecord.
    """
    if _is_tfrecord(path):
        return path
    versions = [
        folder for folder in path.glob("[0-9]*.[0-9]*.[0-9]*") if _is_tfrecord(folder)
    ]
    return versions[0] if len(versions) == 1 else None


def _is_tfrecord(folder: pathlib.Path) -> bool:
    try:
        info = json.loads((folder / "dataset_info.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(info, dict) and info.get("fileFormat", "tfrecord") == "tfrecord"
