"""What torch pickles, followed by an interpreter that can do nothing else.

It knows the few opcodes that torch writes, calls nothing but the functions of `_CALLS`,
hashes nothing but plain keys, and allocates nothing for the sizes that it is told.
"""

import math
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

_MOST_DIMENSIONS = 64  # As NumPy has it.


class RefusedError(Exception):
    """Why a pickle is not followed, or a file of torch not read."""


class Global(NamedTuple):
    """A name in a pickle, which stays a name."""

    module: str
    name: str


class Storage(NamedTuple):
    """`length` elements from `start` on, of those that lie under `key` in the file."""

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


def kind_of(value: Any) -> str:
    """What a thing of a pickle is called in messages."""
    return "tensor" if type(value) is Tensor else type(value).__name__.strip("_").lower()


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    """An OrderedDict; Python 2 gives its items at once."""
    made: dict[Any, Any] = {}
    for key, value in pairs:
        _put(made, key, value)
    return made


def _put(target: Any, key: Any, value: Any) -> None:
    if type(target) is not dict or type(key) not in (str, int, float, bool, type(None)):
        raise RefusedError(f"it puts a {kind_of(key)} as a key into a {kind_of(target)}")
    target[key] = value


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """A tensor that lies within its storage."""
    if type(storage) is not Storage or type(size) is not tuple or type(stride) is not tuple:
        raise RefusedError("a tensor has no storage, size or stride")
    numbers = (offset, *size, *stride)
    if any(type(n) is not int or not 0 <= n < 2**62 for n in numbers):
        raise RefusedError("a tensor's offset, size or stride is no number, or negative")
    if len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
        raise RefusedError(f"a tensor has {len(size)} sizes and {len(stride)} strides")
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
    """Where a tensor was: here it is on the host."""


# All that a pickle may call, and with whatever it pleases: none trusts what it is given.
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

_VALUES = (
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "BINUNICODE8"}
    | {"SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"}
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NOTHING = {"PROTO", "FRAME", "STOP"}


class Machine:
    """Follows a pickle; `storages` are the (dtype, count) that it named, by key.

    room: bytes of the file, which all storages together cannot exceed.
    """

    def __init__(self, room: int) -> None:
        self.storages: dict[str, tuple[np.dtype, int]] = {}
        self._room = room
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # The stacks under each mark.
        self._memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        """What the pickle at the file's position is; the file is left after it."""
        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name
            if name in _VALUES:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _ACTIONS:
                _ACTIONS[name](self, argument)
            elif name not in _NOTHING:
                raise RefusedError(f"it has opcode {name}, which no state_dict needs")
        return self._stack.pop()

    def _mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _marked(self) -> list[Any]:
        """What lies above the last mark, taken off."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def _make_list(self, _: Any) -> None:
        self._stack.append([])

    def _make_dict(self, _: Any) -> None:
        self._stack.append({})

    def _make_tuple(self, count: int | None) -> None:
        if count is None:
            items = self._marked()
        else:
            items = [self._stack.pop() for _ in range(count)][::-1]
        self._stack.append(tuple(items))

    def _append(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise RefusedError(f"it appends to a {kind_of(self._stack[-1])}")
        self._stack[-1].extend(items)

    def _set_items(self, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            _put(self._stack[-1], key, value)

    def _set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        _put(self._stack[-1], key, value)

    def _remember(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def _recall(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _global(self, argument: str | None) -> None:
        if argument is None:
            name, module = self._stack.pop(), self._stack.pop()
        else:
            module, _, name = argument.partition(" ")
        found = Global(str(module), str(name))
        if found not in _CALLS and found not in _STORAGES:
            raise RefusedError(
                f"it names {'.'.join(found)[:90]}, which is refused:"
                " torch.save(model.state_dict(), FILE) names none such"
            )
        self._stack.append(found)

    def _reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(function) is not Global or type(arguments) is not tuple:
            raise RefusedError(f"it calls a {kind_of(function)}")
        if function not in _CALLS:
            raise RefusedError(f"it calls {'.'.join(function)}")
        self._stack.append(_CALLS[function](*arguments))

    def _build(self, _: Any) -> None:
        """State such as the _metadata of a state_dict, which is not needed."""
        self._stack.pop()
        if type(self._stack[-1]) is not dict:
            raise RefusedError(f"it gives state to a {kind_of(self._stack[-1])}")

    def _persistent(self, _: Any) -> None:
        """("storage", class, key, device, count[, view]) -> a storage of this file."""
        identity = self._stack.pop()
        if type(identity) is not tuple or len(identity) not in (5, 6):
            raise RefusedError("it has a persistent id that is no storage's")
        label, kind, key, _, count = identity[:5]
        if label != "storage" or type(kind) is not Global or kind not in _STORAGES:
            raise RefusedError("it has a persistent id that is no storage's")
        if type(key) is not str or type(count) is not int or count < 0:
            raise RefusedError("a storage has no key, or a negative count")
        dtype = _STORAGES[kind]
        if key not in self.storages:
            self._room -= count * dtype.itemsize
            if self._room < 0:
                raise RefusedError("its storages have more bytes than it has itself")
            self.storages[key] = dtype, count
        elif self.storages[key] != (dtype, count):
            raise RefusedError(f"storage {key[:20]} has two dtypes or sizes")
        view = identity[5] if len(identity) == 6 else None
        self._stack.append(Storage(key, dtype, *_view(view, count)))


def _view(view: Any, count: int) -> tuple[int, int]:
    """(start, count) of a view of a storage of `count` elements, as early files have."""
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


_ACTIONS: Mapping[str, Callable[[Machine, Any], None]] = {
    "MARK": Machine._mark,
    "EMPTY_LIST": Machine._make_list,
    "EMPTY_DICT": Machine._make_dict,
    "TUPLE": Machine._make_tuple,
    "TUPLE1": lambda machine, _: machine._make_tuple(1),
    "TUPLE2": lambda machine, _: machine._make_tuple(2),
    "TUPLE3": lambda machine, _: machine._make_tuple(3),
    "APPEND": lambda machine, _: machine._append([machine._stack.pop()]),
    "APPENDS": lambda machine, _: machine._append(machine._marked()),
    "SETITEM": Machine._set_item,
    "SETITEMS": lambda machine, _: machine._set_items(machine._marked()),
    "PUT": Machine._remember,
    "BINPUT": Machine._remember,
    "LONG_BINPUT": Machine._remember,
    "MEMOIZE": Machine._remember,
    "GET": Machine._recall,
    "BINGET": Machine._recall,
    "LONG_BINGET": Machine._recall,
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._global,
    "REDUCE": Machine._reduce,
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent,
}
