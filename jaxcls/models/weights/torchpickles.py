"""Interpreter of torch's pickles: storages, tensors, and the dicts that hold them."""

import io
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxcls import pickles
from jaxcls.pickles import Global, RefusedError, kind_of

_MOST_DIMENSIONS = 64  # NumPy's limit.


class Storage(NamedTuple):
    """`length` elements from `start` on, of the elements under `key` in the file."""

    key: str
    dtype: np.dtype
    start: int
    length: int


class Tensor(NamedTuple):
    """A view of a storage; offset and stride count elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    """Returns an OrderedDict as a dict; Python 2's pickles pass items as an argument."""
    made: dict[Any, Any] = {}
    for key, value in pairs:
        pickles.put(made, key, value)
    return made


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """Returns a tensor; raises `RefusedError` unless it lies within its storage."""
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


def _tensor_v2(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    metadata: Any = None,
) -> Tensor:
    if metadata:
        raise RefusedError("a tensor is marked as conjugate or negative")
    return _tensor(storage, offset, size, stride)


def _parameter(tensor: Any, requires_grad: Any, hooks: Any) -> Tensor:
    if type(tensor) is not Tensor:
        raise RefusedError(f"a parameter is a {kind_of(tensor)}, no tensor")
    return tensor


def _size(values: Any = ()) -> tuple[Any, ...]:
    if type(values) is not tuple:
        raise RefusedError(f"a size is a {kind_of(values)}, no tuple")
    return values


def _device(*arguments: Any) -> None:
    """Ignores a tensor's device: here every tensor is on the host."""


_CALLS: dict[Global, Callable[..., Any]] = {
    Global("collections", "OrderedDict"): _dict,
    Global("torch._utils", "_rebuild_tensor"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
    Global("torch._utils", "_rebuild_parameter"): _parameter,
    Global("torch", "Size"): _size,
    Global("torch", "device"): _device,
}
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
    Global("torch.storage", "UntypedStorage"): np.dtype(np.uint8),
}

_NAMES = pickles.Names(_CALLS, frozenset(_STORAGES))


Named = dict[str, tuple[np.dtype, int]]  # Key -> (dtype, count) of a storage.


def load(file: io.BytesIO, room: int) -> tuple[Any, Named]:
    """Returns the value of one of torch's pickles, and the storages that it names.

    The file's position is then after the pickle. room: the most bytes of all storages
    together, the size of the file. Raises `RefusedError` for any other pickle.
    """
    storages = _Storages(room)
    try:
        return pickles.load(file, _NAMES, _build, persistent=storages.find), storages.named
    except pickles.UnknownNameError as error:
        raise RefusedError(
            f"{error}: torch.save(model.state_dict(), FILE) names none such"
        ) from None


def _build(value: Any, state: Any) -> None:
    """Ignores state of a dict, such as a state_dict's _metadata; refuses other state."""
    if type(value) is not dict:
        raise RefusedError(f"it gives state to a {kind_of(value)}")


class _Storages:
    """The storages that a pickle has named so far, of at most `room` bytes together."""

    def __init__(self, room: int) -> None:
        self.named: Named = {}
        self._room = room

    def find(self, identity: Any) -> Storage:
        """Returns the storage of ("storage", class, key, device, count[, view])."""
        if type(identity) is not tuple or len(identity) not in (5, 6):
            raise RefusedError("it has a persistent id that is no storage's")
        label, kind, key, _, count = identity[:5]
        if label != "storage" or type(kind) is not Global or kind not in _STORAGES:
            raise RefusedError("it has a persistent id that is no storage's")
        if type(key) is not str or type(count) is not int or count < 0:
            raise RefusedError("a storage has no key, or a negative count")
        dtype = _STORAGES[kind]
        if key not in self.named:
            self._room -= count * dtype.itemsize
            if self._room < 0:
                raise RefusedError("its storages have more bytes than it has itself")
            self.named[key] = dtype, count
        elif self.named[key] != (dtype, count):
            raise RefusedError(f"storage {key[:20]} has two dtypes or sizes")
        view = identity[5] if len(identity) == 6 else None
        return Storage(key, dtype, *_view(view, count))


def _view(view: Any, count: int) -> tuple[int, int]:
    """Returns (start, length) of a view of a storage of `count` elements.

    Early files have such views.
    """
    if view is None:
        return 0, count
    if type(view) is not tuple or len(view) != 3:
        raise RefusedError("a view of a storage is damaged")
    _, start, length = view
    if type(start) is not int or type(length) is not int or min(start, length) < 0:
        raise RefusedError("a view of a storage begins or ends nowhere")
    if start + length > count:
        raise RefusedError(f"a view of a storage leaves its {count} elements")
    return start, length
