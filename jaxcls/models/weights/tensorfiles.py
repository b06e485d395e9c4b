"""Tensors of .safetensors files, read in every dtype, written whole and reproducibly."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from jaxcls import atomic
from jaxcls.errors import InputError, first_line

_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}


def load(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a file by name, in the file's dtypes.

    Raises `InputError` for a file that cannot be read, is damaged, or has no tensor.
    """
    tensors = {}
    try:
        # The library's NumPy reader does not support bfloat16.
        for name, entry in sorted(safetensors.deserialize(file.read_bytes())):
            if entry["dtype"] not in _DTYPES:
                raise _damaged(
                    file,
                    f"{name} is of dtype {entry['dtype']}, not of {', '.join(_DTYPES)}",
                )
            dtype = _DTYPES[entry["dtype"]]
            raw = np.frombuffer(entry["data"], dtype.newbyteorder("<"))
            values = raw.astype(dtype, copy=False)
            if dtype == np.bool_:
                values = raw.view(np.uint8) != 0
            tensors[name] = values.reshape(entry["shape"])
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise _damaged(file, first_line(error)) from None
    if not tensors:
        raise _damaged(file, "it holds no tensor")
    return tensors


def metadata(file: pathlib.Path) -> dict[str, str]:
    """Returns a file's metadata without its tensors; raises `InputError` like `load`."""
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            return opened.metadata() or {}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise _damaged(file, first_line(error)) from None


def write(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a file, whole or not at all: the same bytes for the same input.

    Raises `InputError` if `path` exists or cannot be written, and `KeyError` for a dtype
    that such files do not have.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    head = _head(names, tensors, metadata)
    remedy = "make room, or give a path where you may write"
    with atomic.explained(path, remedy):
        if path.exists() or path.is_symlink():
            raise InputError(f"{path} exists, and is not replaced; give another name")
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.writing(path, "wb", remedy) as file:
        file.write(head)
        for name in names:
            file.write(_little(tensors[name]).tobytes())


def _head(
    names: Sequence[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> bytes:
    """Returns the header of a safetensors file.

    The library would write metadata in random order.
    """
    codes = {dtype: code for code, dtype in _DTYPES.items()}
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    start = 0
    for name in names:
        values = tensors[name]
        entries[name] = {
            "dtype": codes[values.dtype.newbyteorder("=")],
            "shape": list(values.shape),
            "data_offsets": [start, start + values.nbytes],
        }
        start += values.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _little(values: np.ndarray) -> np.ndarray:
    """Returns the values in little-endian byte order."""
    big = values.dtype.newbyteorder("=").newbyteorder(">")
    return values.byteswap() if values.itemsize > 1 and values.dtype == big else values


def _damaged(file: pathlib.Path, reason: str) -> InputError:
    reason = reason if reason.isprintable() else ascii(reason)
    return InputError(
        f"{file} cannot be read as safetensors ({reason}); download it again, or write it"
        " again"
    )
