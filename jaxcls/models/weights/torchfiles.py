"""Tensors of torch's files (.pth, .pt, .bin, .ckpt), read without running code from them.

The pickle is interpreted and describes each tensor. Only then are elements read. From a zip
file only the state_dict's storages are read. Objects of other classes, such as a trainer's
arguments, are left out; nothing of them is imported or made.
"""

import functools
import io
import math
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxcls import pickles
from jaxcls.errors import InputError, first_line, printable
from jaxcls.pickles import Global, Inert, RefusedError, kind_of

REMEDY = "download it again, or convert it to .safetensors"
# Python lines that make of another file one that is read.
_SAVE = "torch.save({}, 'weights.pth')"
_MODULE = _SAVE.format("torch.load({!r}, weights_only=False){}.state_dict()")

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # The format before torch 1.6.
# Of several dicts of tensors in a file, the first of these is taken.
NESTED = ("model", "state_dict", "model_ema", "state_dict_ema")

_MOST_SHARING = 8  # The most bytes of all tensors together, in multiples of the file's.
_MOST_DIMENSIONS = 64  # NumPy's limit.


class StateDict(NamedTuple):
    """The tensors of a file by name, in the file's dtypes.

    notes: what was chosen, in words. architecture: what the file tells of it, as timm's and
    PyTorch's training checkpoints do; None if nothing.
    """

    tensors: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()
    architecture: str | None = None


class _OtherError(RefusedError):
    """The file holds something else; `remedy` says what makes tensors of it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


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


class _Chosen(NamedTuple):
    """A state_dict in the content of a file; the rest as in `StateDict`."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    architecture: str | None = None


Choose = Callable[[Any], _Chosen]


def load(path: pathlib.Path, name: str = "") -> StateDict:
    """Returns the tensors of a state_dict that torch saved.

    It reads both of torch's formats, and views of shared storages. name: the entry of a
    training checkpoint that holds the state_dict. "" takes the first of "model",
    "state_dict", "model_ema" and "state_dict_ema" that has tensors, or the only dict of
    tensors. The arrays are read-only, and are views if tensors share storage. Raises
    `InputError` for a file that is damaged, has no dict of tensors, or several of which
    none is named, and for a tensor that another class makes. Nothing that the file names
    is imported or called.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\3\4"
            file.seek(0)
            read = _from_zip if is_zip else _from_legacy
            return read(file, size, functools.partial(_tensors, path, size, name))
    except Exception as error:  # Damaged pickles and archives raise almost any error.
        reason = first_line(error)
        reason = reason if reason.isprintable() else ascii(reason)  # It may quote the file.
        remedy = error.remedy if isinstance(error, _OtherError) else REMEDY
        raise InputError(
            f"{path} cannot be read as tensors of torch ({reason}); {remedy}"
        ) from None


def _from_zip(file: IO[bytes], size: int, choose: Choose) -> StateDict:
    """Reads the format since torch 1.6: a pickle, and a member for each storage."""
    with zipfile.ZipFile(file) as archive:
        root = archive.namelist()[0].partition("/")[0]
        content, _ = _unpickled(io.BytesIO(_member(archive, f"{root}/data.pkl")))
        chosen = choose(content)
        if f"{root}/byteorder" in archive.namelist():
            order = _member(archive, f"{root}/byteorder")
            if order != b"little":
                raise RefusedError(f"its byteorder is {order[:20]!r}, and must be 'little'")
        elements = {}
        storages = {tensor.storage for tensor in chosen.tensors.values()}
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
    return StateDict(_arrays(chosen.tensors, elements), *chosen[1:])


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Returns a member's bytes; zipfile compares its checksum."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise RefusedError(f"{name} is compressed, as torch never does")
    return archive.read(info)


def _from_legacy(opened: IO[bytes], size: int, choose: Choose) -> StateDict:
    """Reads the format before torch 1.6: pickles, then counts and bytes of storages."""
    if not size:
        raise RefusedError("it is empty")
    data = opened.read()
    file = io.BytesIO(data)
    for expected in (MAGIC, PROTOCOL):
        if _unpickled(file)[0] != expected:
            raise RefusedError("it does not begin as a file of torch does")
    _unpickled(file)  # The writer's system; storages are little-endian.
    content, storages = _unpickled(file)
    chosen = choose(content)
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
    return StateDict(_arrays(chosen.tensors, elements), *chosen[1:])


def _arrays(
    tensors: Mapping[str, Tensor], elements: Mapping[Storage, np.ndarray]
) -> dict[str, np.ndarray]:
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


def _tensors(path: pathlib.Path, size: int, name: str, content: Any) -> _Chosen:
    """Returns the state_dict of `load` in the content of a file of `size` bytes."""
    if type(content) is Inert:
        remedy = f"where you trust it: {_MODULE.format(path.name, '')}"
        reason = f"it is a pickle of a whole {kind_of(content)}, of which nothing is run"
        raise _OtherError(reason, remedy)
    if type(content) is not dict:
        raise RefusedError(
            f"it holds a {kind_of(content)}, and must hold a dict of tensors"
        )
    taken, notes, _ = _chosen(path, name, content)
    if not any(type(value) is Tensor for value in taken.values()):
        entries = [f"{name!r} ({kind_of(v)})"[:60] for name, v in content.items()]
        shown = ", ".join(entries)[:100] or "it is empty"
        reason = f"it holds no dict of tensors: {shown}"
        for key in ("model_ema", "ema", "model", "net", "module"):
            if type(content.get(key)) is Inert:
                line = _MODULE.format(path.name, f"[{key!r}]")
                raise _OtherError(reason, f"where you trust it: {line}")
        raise RefusedError(reason)
    for each, value in taken.items():
        if type(each) is not str or type(value) is not Tensor:
            raise RefusedError(f"entry {str(each)[:60]!r} is a {kind_of(value)}, no tensor")
    total = sum(math.prod(t.size) * t.storage.dtype.itemsize for t in taken.values())
    if total > _MOST_SHARING * size:
        raise RefusedError(f"it has {size} bytes, and its tensors {total}")
    arch = content.get("arch")
    return _Chosen(
        taken, notes, printable(arch)[:200] if type(arch) is str and arch else None
    )


def _chosen(path: pathlib.Path, name: str, content: dict[Any, Any]) -> _Chosen:
    """Returns the dict of tensors among the entries of a file, or its content itself."""
    dicts = {
        key: inner
        for key, inner in content.items()
        if type(key) is str
        and type(inner) is dict
        and any(type(value) is Tensor for value in inner.values())
    }
    are_top = any(type(value) is Tensor for value in content.values())
    usual = [key for key in NESTED if key in dicts]
    if name and name not in dicts:
        shown = ", ".join(map(repr, dicts)) or "none"
        raise _OtherError(
            f"it has no dict of tensors {name!r}; those that it has: {shown}",
            f"give one of these after a #, as {path.name}#{next(iter(dicts))}"
            if dicts
            else f"give the file, {path.name}",
        )
    if not name and not usual and are_top and dicts:
        key = next(iter(dicts))
        raise _OtherError(
            f"it holds tensors at its top and in {key!r}",
            f"say which, as {path.name}#{key}",
        )
    if not name and not usual and not dicts:
        return _Chosen(content)
    # A loss or a metric may keep a few numbers; a model has matrices.
    large = [
        key
        for key, inner in dicts.items()
        if any(type(value) is Tensor and len(value.size) > 1 for value in inner.values())
    ]
    large = large or list(dicts)
    if not name and not usual and len(large) > 1:
        raise _OtherError(
            f"it holds tensors in {' and in '.join(map(repr, large))}",
            f"say which, as {path.name}#{large[0]}",
        )
    key = name or (usual or large)[0]
    others = [other for other in large if other != key]
    notes = [f"of the file, {key!r} is taken"] if others or key not in NESTED else []
    if others and not name:
        notes = [f"{notes[0]} ({path.name}#{others[0]} takes {others[0]!r})"]
    return _Chosen(dicts[key], tuple(notes))


def _unpickled(file: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
    """Returns the value of the next pickle of a file, and the storages that it names."""
    storages: dict[str, Storage] = {}

    def persistent(identity: Any) -> Storage | Inert | Global:
        """Returns the storage of ("storage", class, key, device, count[, None])."""
        match identity:
            case ("storage", Global() as kind, str(key), _, int(count), *view) if (
                kind in _STORAGES and count >= 0 and view in ([], [None])
            ):
                storage = Storage(key, _STORAGES[kind], count)
            case ("storage", Global() as kind, str(), _, int(), *_) if (
                kind not in _STORAGES and kind not in _NAMES
            ):
                return Inert(".".join(kind))
            case ("module", Global() as kind, *_) if kind not in _NAMES:
                return kind  # With its source, before torch 1.6.
            case _:
                raise RefusedError("it has a persistent id that is no storage's")
        if storages.setdefault(key, storage) != storage:
            raise RefusedError(f"storage {key[:20]} has two dtypes or sizes")
        return storage

    def build(value: Any, state: Any) -> None:
        """Ignores state of a dict, such as a state_dict's _metadata."""
        if type(value) is not dict:
            raise RefusedError(f"it gives state to a {kind_of(value)}")

    found = pickles.load(file, _NAMES, build, persistent=persistent, inert=True)
    return found, storages


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    """Returns an OrderedDict as a dict; Python 2's pickles pass items as an argument."""
    made: dict[Any, Any] = {}
    for key, value in pairs:
        pickles.put(made, key, value)
    return made


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *rest: Any
) -> Tensor | Inert:
    """Returns a tensor; raises `RefusedError` unless it lies within its storage.

    Of a storage of another dtype, such as complex numbers, it returns `Inert`.
    rest: whether it requires gradients, hooks, and perhaps metadata.
    """
    if type(storage) is Inert:
        return storage
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
