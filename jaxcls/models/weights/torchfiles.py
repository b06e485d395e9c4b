"""Tensors of torch's files (.pth, .pt, .bin), read without running code from them.

`torchpickles` interprets the pickle and describes each tensor. Only then are elements
read. From a zip file only the state_dict's storages are read.
"""

import io
import math
import pathlib
import struct
import sys
import zipfile
from typing import IO, Any

import numpy as np

from jaxcls.errors import InputError, first_line
from jaxcls.models.weights import torchpickles
from jaxcls.models.weights.torchpickles import Tensor
from jaxcls.pickles import RefusedError, kind_of

REMEDY = "download it again, or convert it to .safetensors"

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # The format before torch 1.6.
NESTED = ("model", "state_dict", "model_ema", "state_dict_ema")

_MOST_SHARING = 8  # The most bytes of all tensors together, in multiples of the file's.


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a state_dict that torch saved, by name, in the file's dtypes.

    It reads both of torch's formats, and views of shared storages. In a training checkpoint
    it takes the first of "model", "state_dict", "model_ema" and "state_dict_ema" that has
    tensors. The arrays are read-only, and are views if tensors share storage. Raises
    `InputError` for a file that is damaged, has no dict of tensors, or names a class or
    function that tensors do not need. No named class or function is called.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\3\4"
            file.seek(0)
            arrays = _from_zip(file, size) if is_zip else _from_legacy(file.read())
    except Exception as error:  # Damaged pickles and archives raise almost any error.
        reason = first_line(error)
        reason = reason if reason.isprintable() else ascii(reason)  # It may quote the file.
        raise InputError(
            f"{path} cannot be read as tensors of torch ({reason}); {REMEDY}"
        ) from None
    return arrays


def _from_zip(file: IO[bytes], size: int) -> dict[str, np.ndarray]:
    """Reads the format since torch 1.6: a pickle, and a member for each storage."""
    with zipfile.ZipFile(file) as archive:
        root = archive.namelist()[0].partition("/")[0]
        pickled = _member(archive, f"{root}/data.pkl")
        content, storages = torchpickles.load(io.BytesIO(pickled), size)
        tensors = _tensors(content, size)
        order = b"little"
        if f"{root}/byteorder" in archive.namelist():
            order = _member(archive, f"{root}/byteorder")
        if order not in (b"little", b"big"):
            raise RefusedError(f"its byteorder is {order[:20]!r}, not 'little' or 'big'")
        raw = {}
        for key in {tensor.storage.key for tensor in tensors.values()}:
            dtype, count = storages[key]
            data = _member(archive, f"{root}/data/{key}", count * dtype.itemsize)
            raw[key] = _elements(data, dtype, order.decode())
    return {
        name: _array(tensor, raw[tensor.storage.key]) for name, tensor in tensors.items()
    }


def _member(archive: zipfile.ZipFile, name: str, length: int | None = None) -> bytes:
    """Returns a member's bytes; checks its checksum and, if given, `length`."""
    if name not in archive.NameToInfo:
        raise RefusedError(f"it lacks {name}")
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise RefusedError(f"{name} is compressed, as torch never does")
    if length is not None and info.file_size != length:
        raise RefusedError(f"{name} has {info.file_size} bytes, and must have {length}")
    data = archive.read(info)
    if len(data) != info.file_size:
        raise RefusedError(f"{name} is cut short")
    return data


def _from_legacy(data: bytes) -> dict[str, np.ndarray]:
    """Reads the format before torch 1.6: pickles, then counts and bytes of storages."""
    if not data:
        raise RefusedError("it is empty")
    if data[257:262] == b"ustar":
        raise RefusedError("it is a tar, of torch before 0.2 or of something else")
    file = io.BytesIO(data)
    magic, _ = torchpickles.load(file, 0)
    if type(magic) is not int or magic != MAGIC:
        raise RefusedError("it does not begin as a file of torch does")
    protocol, _ = torchpickles.load(file, 0)
    if type(protocol) is not int or protocol != PROTOCOL:
        found = protocol if type(protocol) is int else f"a {kind_of(protocol)}"
        raise RefusedError(f"its protocol is {found}, and must be {PROTOCOL}")
    torchpickles.load(file, 0)  # The writer's system; storages are little-endian.
    content, storages = torchpickles.load(file, len(data))
    tensors = _tensors(content, len(data))
    keys, _ = torchpickles.load(file, 0)
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise RefusedError("it has no list of storages")
    if len(keys) != len(storages) or set(keys) != storages.keys():
        raise RefusedError("its list of storages is not that of its tensors")
    raw = {}
    for key in keys:
        dtype, count = storages[key]
        (found,) = struct.unpack("<q", file.read(8))
        if found != count:
            raise RefusedError(f"storage {key} has {found} elements, not {count}")
        part = memoryview(data)[file.tell() : file.tell() + count * dtype.itemsize]
        if len(part) != count * dtype.itemsize:
            raise RefusedError(f"it ends within storage {key}")
        file.seek(len(part), io.SEEK_CUR)
        raw[key] = _elements(part, dtype, "little")
    return {
        name: _array(tensor, raw[tensor.storage.key]) for name, tensor in tensors.items()
    }


def _elements(data: bytes | memoryview, dtype: np.dtype, order: str) -> np.ndarray:
    """Returns the elements [count] of a storage, in this machine's byte order."""
    raw = np.frombuffer(data, f"u{dtype.itemsize}")
    if order != sys.byteorder:
        raw = raw.byteswap()
    return raw != 0 if dtype == np.bool_ else raw.view(dtype)


def _array(tensor: Tensor, elements: np.ndarray) -> np.ndarray:
    """Returns a tensor as a view of its storage's elements.

    `torchpickles._tensor` has checked the bounds.
    """
    if 0 in tensor.size:
        return np.zeros(tensor.size, elements.dtype)
    start = tensor.storage.start + tensor.offset
    bytes_apart = [
        step * elements.itemsize if length > 1 else 0
        for length, step in zip(tensor.size, tensor.stride, strict=True)
    ]
    return np.lib.stride_tricks.as_strided(
        elements[start:], tensor.size, bytes_apart, writeable=False
    )


def _tensors(content: Any, size: int) -> dict[str, Tensor]:
    """Returns the state_dict in the content of a file of `size` bytes, or raises."""
    if type(content) is not dict:
        raise RefusedError(
            f"it holds a {kind_of(content)}, and must hold a dict of tensors"
        )
    for name in NESTED:
        inner = content.get(name)
        if type(inner) is dict and any(type(v) is Tensor for v in inner.values()):
            content = inner
            break
    entries = ", ".join(f"{name!r} ({kind_of(v)})"[:40] for name, v in content.items())[
        :100
    ]
    if not any(type(value) is Tensor for value in content.values()):
        raise RefusedError(f"it holds no dict of tensors: {entries or 'it is empty'}")
    for name, value in content.items():
        if type(name) is not str or type(value) is not Tensor:
            raise RefusedError(f"entry {str(name)[:60]!r} is a {kind_of(value)}, no tensor")
    total = sum(math.prod(t.size) * t.storage.dtype.itemsize for t in content.values())
    if total > _MOST_SHARING * size:
        raise RefusedError(f"it has {size} bytes, and its tensors {total}")
    return content
