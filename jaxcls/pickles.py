"""An interpreter of pickles that calls only the functions in its caller's table.

A name in a pickle stays a name unless the table has a function for it. The interpreter does
not recurse into values and hashes only plain keys, so nested or circular values cost no
more than their opcodes. It allocates no memory for a size that the pickle states.
"""

import dataclasses
import io
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxcls.errors import first_line

# A checkpoint of 10,000 tensors has 400,000 opcodes; CIFAR-100 has 300,000.
MOST_OPCODES = 1 << 21
_MOST_ARGUMENTS = 16  # Per call.
# Larger integers are refused as keys: any number of them can share one hash.
_LARGEST_KEY = 1 << 60


class RefusedError(Exception):
    """A pickle is refused; the text gives the reason."""


class Global(NamedTuple):
    """A name in a pickle; it is not imported."""

    module: str
    name: str


class Inert(NamedTuple):
    """A value that an unknown name would make; nothing is made, and its parts are dropped.

    name: "argparse.Namespace".
    """

    name: str


# The names that a pickle may use. The pickle chooses the arguments of the functions, so
# they must check them. A name without a function is passed on as a `Global`.
Names = Mapping[Global, Callable[..., Any] | None]


def load(
    file: io.BytesIO,
    names: Names,
    build: Callable[[Any, Any], None],
    *,
    persistent: Callable[[Any], Any] | None = None,
    inert: bool = False,
) -> Any:
    """Returns the value of the pickle at the file's position, and reads no further.

    Args:
      file: the whole file; all calls together get no more values than it has bytes.
      names: the names that the pickle may use.
      build: is called with a value and its state.
      persistent: maps a persistent id to its value; None refuses persistent ids.
      inert: Take what other names make as `Inert` values, else refuse other names.

    Strings of Python 2 are text, each byte a character.
    Raises `RefusedError`, and nothing else, for any other pickle.
    """
    try:
        room = len(file.getbuffer())
        return _Machine(names, build, persistent, inert, room).run(file)
    except RefusedError:
        raise
    except Exception as error:  # Damaged pickles raise almost every type.
        raise RefusedError(first_line(error)) from None


def kind_of(value: Any) -> str:
    """Returns the name of a value's type, for messages."""
    if type(value) is Inert:
        return value.name[:90]
    return type(value).__name__.strip("_").lower()


def put(target: Any, key: Any, value: Any) -> None:
    """Sets an entry of a dict; raises `RefusedError` for another target or a nested key."""
    is_plain = type(key) in (str, bytes, float, bool, type(None))
    is_plain |= type(key) is int and abs(key) < _LARGEST_KEY
    if type(target) is not dict or not is_plain:
        raise RefusedError(f"it puts a {kind_of(key)} as a key into a {kind_of(target)}")
    target[key] = value


@dataclasses.dataclass
class _Machine:
    """The stack and memo of one pickle."""

    names: Names
    build: Callable[[Any, Any], None]
    persistent: Callable[[Any], Any] | None
    inert: bool
    # The values that calls may still get; a memo can pass one long text many times.
    room: int
    stack: list[Any] = dataclasses.field(default_factory=list)
    marks: list[int] = dataclasses.field(default_factory=list)
    memo: dict[int, Any] = dataclasses.field(default_factory=dict)

    def run(self, file: io.BytesIO) -> Any:
        stack, memo = self.stack, self.memo
        argument: Any
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count == MOST_OPCODES:
                raise RefusedError(f"it has more than {MOST_OPCODES:,} opcodes")
            name = opcode.name
            if name in _VALUES:
                stack.append(argument)
            elif name in _PUTS:
                memo[len(memo) if argument is None else argument] = stack[-1]
            elif name in _GETS:
                stack.append(memo[argument])
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in _ACTIONS:
                _ACTIONS[name](self, argument)
            elif self.inert and name in _OBJECTS:
                _OBJECTS[name](self, argument)
            elif name not in _NOTHING:
                raise RefusedError(f"it has opcode {name}, which is not needed")
        return stack.pop()

    def top(self, count: int) -> list[Any]:
        """Pops and returns the last `count` values."""
        start = len(self.stack) - count
        if start < 0:
            raise RefusedError("its stack is empty")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def marked(self) -> list[Any]:
        """Pops and returns the values above the last mark."""
        return self.top(len(self.stack) - self.marks.pop())

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is Inert:
            return
        if type(self.stack[-1]) is not list:
            raise RefusedError(f"it appends to a {kind_of(self.stack[-1])}")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is Inert:
            return
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not Inert:
                put(self.stack[-1], key, value)

    def make_dict(self, _: Any) -> None:
        items = self.marked()
        self.stack.append({})
        self.set_items(items)

    def find(self, argument: str | None) -> None:
        module, name = argument.split(" ", 1) if argument is not None else self.top(2)
        if type(name) is not str or type(module) is not str:
            raise RefusedError(f"it names a {kind_of(name)} of a {kind_of(module)}")
        found = Global(module, name)
        if found not in self.names and not self.inert:
            raise RefusedError(f"it names {f'{module}.{name}'[:90]}, which is refused")
        self.stack.append(found)

    def call(self, _: Any) -> None:
        name, arguments = self.top(2)
        is_other = type(name) is Global and name not in self.names
        if type(name) is Inert or is_other:  # Which `find` lets pass if `inert`.
            self.stack.append(_inert(name))
            return
        if type(name) is not Global or type(arguments) is not tuple:
            raise RefusedError(f"it calls a {kind_of(name)}")
        function = self.names[name]
        if function is None:
            raise RefusedError(f"it calls {'.'.join(name)}")
        if len(arguments) > _MOST_ARGUMENTS:
            raise RefusedError(f"it calls {name.name} with {len(arguments)} arguments")
        self.room -= sum(len(value) for value in arguments if type(value) in _SIZED)
        if self.room < 0:
            raise RefusedError("its calls are given more than the file has bytes")
        self.stack.append(function(*arguments))

    def make_object(self, items: list[Any]) -> None:
        """Pushes what a class, the first of `items`, would make of the others."""
        self.stack.append(_inert(items[0]))

    def drop(self, items: list[Any]) -> None:
        """Leaves popped values out."""

    def set_state(self, _: Any) -> None:
        (state,) = self.top(1)
        if type(self.stack[-1]) is Inert:
            return
        self.build(self.stack[-1], state)

    def persist(self, _: Any) -> None:
        if self.persistent is None:
            raise RefusedError("it has a persistent id")
        self.stack.append(self.persistent(self.stack.pop()))


def _inert(name: Any) -> Inert:
    """Returns the value of a call to a name, or of an object that such a call made."""
    if type(name) not in (Global, Inert):
        raise RefusedError(f"it calls a {kind_of(name)}")
    return name if type(name) is Inert else Inert(f"{name.module}.{name.name}")


_SIZED = (str, bytes, list, tuple, dict)
_VALUES = (
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"}
    | {"UNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE"}
    | {"BINBYTES", "SHORT_BINBYTES"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING"}  # Of Python 2, as text by Latin-1.
)
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NOTHING = {"PROTO", "FRAME", "STOP"}
_ACTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "LIST": lambda machine, _: machine.stack.append(machine.marked()),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "DICT": _Machine.make_dict,
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.stack.append(tuple(machine.top(1))),
    "TUPLE2": lambda machine, _: machine.stack.append(tuple(machine.top(2))),
    "TUPLE3": lambda machine, _: machine.stack.append(tuple(machine.top(3))),
    "APPEND": lambda machine, _: machine.append(machine.top(1)),
    "APPENDS": lambda machine, _: machine.append(machine.marked()),
    "SETITEM": lambda machine, _: machine.set_items(machine.top(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.marked()),
    "GLOBAL": _Machine.find,
    "STACK_GLOBAL": _Machine.find,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.persist,
}

# What pickles of objects need besides.
_OBJECTS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "INST": lambda machine, argument: machine.make_object(
        [Global(*argument.split(" ", 1)), *machine.marked()]
    ),
    "OBJ": lambda machine, _: machine.make_object(machine.marked()),
    "NEWOBJ": lambda machine, _: machine.make_object(machine.top(2)),
    "NEWOBJ_EX": lambda machine, _: machine.make_object(machine.top(3)),
    "EMPTY_SET": lambda machine, _: machine.stack.append(Inert("builtins.set")),
    "ADDITEMS": lambda machine, _: machine.append(machine.marked()),
    "FROZENSET": lambda machine, _: machine.make_object(
        [Inert("builtins.frozenset"), *machine.marked()]
    ),
    "POP": lambda machine, _: machine.drop(machine.top(1)),
    "POP_MARK": lambda machine, _: machine.drop(machine.marked()),
    "BYTEARRAY8": lambda machine, _: machine.stack.append(Inert("builtins.bytearray")),
}
