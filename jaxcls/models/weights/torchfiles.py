"""Tensors of torch's files (.pth, .pt, .bin), read without running code from them.

The pickle is interpreted and describes each tensor. Only then are elements read. From a zip
file only the state_dict's storages are read.
"""

import io
import math
import pathlib
import zipfile
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxcls import pickles
from jaxcls.errors import InputError, first_line
from jaxcls.pickles import Global, RefusedError, kind_of

REMEDY = "download it again, or convert it to .safetensors"

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # The format before torch 1.6.
NESTED = ("model", "state_dict", "model_ema", "state_dict_ema")

_MOST_SHARING = 8  # The most bytes of all tensors together, in multiples of the file's.
_MOST_DIMENSIONS = 64  # NumPy's limit.


class Storage(NamedTuple):
    """The `length` elements under `key` in the file."""

    key: str
    dtype: np.dtype
    length: int


class Tensor(NamedTuple):
    """A view of a storage; offset and stride count elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


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
            return _from_zip(file, size) if is_zip else _from_legacy(file.read())
    except Exception as error:  # Damaged pickles and archives raise almost any error.
        reason = first_line(error)
        reason = reason if reason.isprintable() else ascii(reason)  # It may quote the file.
        raise InputError(
            f"{path} cannot be read as tensors of torch ({reason}); {REMEDY}"
        ) from None


def _from_zip(file: IO[bytes], size: int) -> dict[str, np.ndarray]:
    """Reads the format since torch 1.6: a pickle, and a member for each storage."""
    with zipfile.ZipFile(file) as archive:
        root = archive.namelist()[0].partition("/")[0]
        content, _ = _unpickled(io.BytesIO(_member(archive, f"{root}/data.pkl")))
        tensors = _tensors(content, size)
        if f"{root}/byteorder" in archive.namelist():
            order = _member(archive, f"{root}/byteorder")
            if order != b"little":
                raise RefusedError(f"its byteorder is {order[:20]!r}, and must be 'little'")
        elements = {}
        storages = {tensor.storage for tensor in tensors.values()}
        # Members may lie within each other, so that a small file holds large storages.
        total = sum(each.length * each.dtype.itemsize for each in storages)
        if total > size:
            raise RefusedError(f"it has {size} bytes, and its storages {total}")
        for storage in storages:
            name = f"{root}/data/{storage.key}"
            found = np.frombuffer(_member(archive, name), storage.dtype)
            if len(found) != storage.length:
                raise RefusedError(
                    f"{name} has {len(found)} elements, and must have {storage.length}"
                )
            elements[storage] = found
    return {name: _array(each, elements[each.storage]) for name, each in tensors.items()}


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Returns a member's bytes; zipfile compares its checksum."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise RefusedError(f"{name} is compressed, as torch never does")
    return archive.read(info)


def _from_legacy(data: bytes) -> dict[str, np.ndarray]:
    """Reads the format before torch 1.6: pickles, then counts and bytes of storages."""
    if not data:
        raise RefusedError("it is empty")
    file = io.BytesIO(data)
    for expected in (MAGIC, PROTOCOL):
        if _unpickled(file)[0] != expected:
            raise RefusedError("it does not begin as a file of torch does")
    _unpickled(file)  # The writer's system; storages are little-endian.
    content, storages = _unpickled(file)
    tensors = _tensors(content, len(data))
    keys, _ = _unpickled(file)
    is_texts = type(keys) is list and all(type(key) is str for key in keys)
    if not is_texts or sorted(keys) != sorted(storages):
        raise RefusedError("its list of storages is not that of its tensors")
    elements = {}
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(file.read(8), "little", signed=True)
        if count != storage.length:
            raise RefusedError(f"storage {key} has {count} elements, not {storage.length}")
        elements[storage] = np.frombuffer(data, storage.dtype, count, file.tell())
        file.seek(elements[storage].nbytes, io.SEEK_CUR)
    return {name: _array(each, elements[each.storage]) for name, each in tensors.items()}


def _array(tensor: Tensor, elements: np.ndarray) -> np.ndarray:
    """Returns a tensor as a view of its storage's elements; `_tensor` checks the bounds."""
    if 0 in tensor.size:
        return np.zeros(tensor.size, elements.dtype)
    bytes_apart = [
        step * elements.itemsize if length > 1 else 0
        for length, step in zip(tensor.size, tensor.stride, strict=True)
    ]
    return np.lib.stride_tricks.as_strided(
        elements[tensor.offset :], tensor.size, bytes_apart, writeable=False
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
    if not any(type(value) is Tensor for value in content.values()):
        entries = [f"{name!r} ({kind_of(v)})"[:40] for name, v in content.items()]
        shown = ", ".join(entries)[:100] or "it is empty"
        raise RefusedError(f"it holds no dict of tensors: {shown}")
    for name, value in content.items():
        if type(name) is not str or type(value) is not Tensor:
            raise RefusedError(f"entry {str(name)[:60]!r} is a {kind_of(value)}, no tensor")
    total = sum(math.prod(t.size) * t.storage.dtype.itemsize for t in content.values())
    if total > _MOST_SHARING * size:
        raise RefusedError(f"it has {size} bytes, and its tensors {total}")
    return content


def _unpickled(file: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
    """Returns the value of the next pickle of a file, and the storages that it names."""
    storages: dict[str, Storage] = {}

    def persistent(identity: Any) -> Storage:
        """Returns the storage of ("storage", class, key, device, count[, None])."""
        match identity:
            case ("storage", Global() as kind, str(key), _, int(count), *view) if (
                kind in _STORAGES and count >= 0 and view in ([], [None])
            ):
                storage = Storage(key, _STORAGES[kind], count)
            case _:
                raise RefusedError("it has a persistent id that is no storage's")
        if storages.setdefault(key, storage) != storage:
            raise RefusedError(f"storage {key[:20]} has two dtypes or sizes")
        return storage

    def build(value: Any, state: Any) -> None:
        """Ignores state of a dict, such as a state_dict's _metadata."""
        if type(value) is not dict:
            raise RefusedError(f"it gives state to a {kind_of(value)}")

    return pickles.load(file, _NAMES, build, persistent=persistent), storages


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    """Returns an OrderedDict as a dict; Python 2's pickles pass items as an argument."""
    made: dict[Any, Any] = {}
    for key, value in pairs:
        pickles.put(made, key, value)
    return made


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """Returns a tensor; raises `RefusedError` unless it lies within its storage.

    rest: whether it requires gradients, hooks, and perhaps metadata.
    """
    if any(rest[2:]):
        raise RefusedError("a tensor is marked as conjugate or negative")
    if type(storage) is not Storage or type(size) is not tuple or type(stride) is not tuple:
        raise RefusedError("a tensor has no storage, size or stride")
    if len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
        raise RefusedError(f"a tensor has {len(size)} sizes and {len(stride)} strides")
    numbers = (offset, *size, *stride)
    if any(type(n) is not int or not 0 <= n < 2**62 for n in numbers):
        raise RefusedError("a tensor's offset, size or stride is no number, or negative")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    inside = offset <= storage.length if count == 0 else last < storage.length
    if not inside or count > storage.length:
        raise RefusedError(
            f"a tensor of size {size} at {offset} leaves its {storage.length} elements"
        )
    return Tensor(storage, offset, size, stride)


def _first(value: Any = (), *rest: Any) -> Any:
    """Returns the tensor of a parameter, the tuple of a size, or the name of a device."""
    return value


_STORAGES: dict[Global, np.dtype] = {
    Global("torch", "FloatStorage"): np.dtype(np.float32),
    Global("torch", "HalfStorage"): np.dtype(np.float16),
    Global("torch", "BFloat16Storage"): np.dtype(ml_dtypes.bfloat16),
    Global("torch", "DoubleStorage"): np.dtype(np.float64),
    Global("torch", "LongStorage"): np.dtype(np.int64),
    Global("torch", "IntStorage"): np.dtype(np.int32),
    Global("torch", "ShortStorage"): np.dtype(np.int16),
    Global("torch", "CharStorage"): np.dtype(np.int8),
    Global("torch", "ByteStorage"): np.dtype(np.uint8),
    Global("torch", "BoolStorage"): np.dtype(np.bool_),
}
_NAMES: dict[Global, Callable[..., Any] | None] = {
    Global("collections", "OrderedDict"): _dict,
    Global("torch._utils", "_rebuild_tensor"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Global("torch._utils", "_rebuild_parameter"): _first,
    Global("torch", "Size"): _first,
    Global("torch", "device"): _first,
    **dict.fromkeys(_STORAGES),
}
