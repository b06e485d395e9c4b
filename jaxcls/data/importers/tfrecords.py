"""Reads TFRecord files, and finds the TFDS folders that hold them, without TensorFlow."""

import json
import os
import pathlib
import re
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
            size = os.fstat(file.fileno()).st_size
            number = 0
            while header := file.read(12):
                at = f"{path}: record {number} at byte {file.tell() - len(header)}"
                if len(header) < 12:
                    raise _fault(at, "is cut short in its header")
                length, checksum = struct.unpack("<QI", header)
                if masked_crc(header[:8]) != checksum:
                    raise _fault(at, "has a length whose checksum (crc32c) does not match")
                left = size - file.tell()
                if length + 4 > left:  # Python would try to allocate any stated length.
                    raise _fault(at, f"is cut short: {left} of {length + 4} bytes are left")
                data = file.read(length)
                if struct.pack("<I", masked_crc(data)) != file.read(4):
                    raise _fault(at, "has data whose checksum (crc32c) does not match")
                yield data
                number += 1
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}); give a TFRecord file"
        ) from None


def masked_crc(data: bytes) -> int:
    """Returns TFRecord's checksum: crc32c, rotated by 15 bits, plus a constant."""
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def tfds_folder(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of a TFDS dataset in TFRecord: `path`, its one version, or None.

    A dataset_info.json without fileFormat is older than any other format, so it means
    TFRecord.
    """
    if _is_tfrecord(path):
        return path
    try:
        versions = [
            entry
            for entry in path.iterdir()
            if re.fullmatch(r"\d+\.\d+\.\d+", entry.name) and _is_tfrecord(entry)
        ]
    except OSError:
        return None
    return versions[0] if len(versions) == 1 else None


def _is_tfrecord(folder: pathlib.Path) -> bool:
    try:
        info = json.loads((folder / "dataset_info.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(info, dict) and info.get("fileFormat", "tfrecord") == "tfrecord"


def _fault(at: str, what: str) -> InputError:
    return InputError(f"{at} {what}; copy the file again, or prepare the dataset again")
