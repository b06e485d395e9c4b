"""Parses one line of text into calls: ``"decode | random_resized_crop(224)"``.

The text is in Python's grammar, with literals as the only arguments. It is parsed with
`ast` and never evaluated, so a config from a run folder can run no code.
"""

import ast
import inspect
import math
import operator
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxcls.errors import InputError, first_line, lookup

_LONG = 1000  # The characters of a text that a message shows.
Table = Mapping[str, Callable[..., Any]]


class Call(NamedTuple):
    """One step of a pipeline: ``name(*args, **kwargs)``."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def parse(text: str, key: str, example: str = "decode | center_crop(224)") -> list[Call]:
    """Parses ``"a | b(1, c=2)"`` into calls in order; ``""`` gives none.

    key: the config key that the text comes from. example: a text that works there. Both are
    for the message of `InputError`.
    """
    if not text.strip():
        return []
    malformed = InputError(
        f"{key}={_cut(text)} is not a pipeline; write names with literal arguments"
        f" joined by '|', such as {example!r}"
    )
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # Also of deep texts.
        raise malformed from None
    found: list[Call] = []
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
        found.insert(0, _call(tree.right, f"{key}={_cut(text)}", malformed))
        tree = tree.left
    return [_call(tree, f"{key}={_cut(text)}", malformed), *found]


def _cut(text: str) -> str:
    """Returns a text in quotes for a message, cut where it is long."""
    return repr(text if len(text) <= _LONG else f"{text[:_LONG]}...")


def build(text: str, table: Table, key: str) -> list[Any]:
    """Builds ``"a(1) | b"`` as ``[table["a"](1), table["b"]()]``.

    Raises `InputError` for an unknown name, or arguments that the entry does not take.
    """
    return [_built(call, table, key) for call in parse(text, key, _example(table))]


def build_one(text: str, table: Table, key: str, **given: Any) -> Any:
    """Builds ``"sgd(momentum=0.9)"`` as ``table["sgd"](momentum=0.9, **given)``.

    Raises `InputError` like `build`, and unless the text is exactly one call.
    """
    calls = parse(text, key, _example(table))
    if len(calls) != 1:
        raise InputError(
            f"{key}={_cut(text)} names {len(calls)} things where one is needed;"
            f" one of: {', '.join(sorted(table))}"
        )
    return _built(calls[0], table, key, **given)


def check_range(interval: str, example: Any, **options: Any) -> None:
    """Raises `ValueError` unless each option lies in `interval`, such as "[0, 1)".

    Args:
        interval: A square bracket includes its end, a round one does not.
        example: A value that works, for the message.
        options: Numbers, or sequences of numbers that all lie in the interval.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    is_above = operator.ge if interval[0] == "[" else operator.gt
    is_below = operator.le if interval[-1] == "]" else operator.lt
    for name, value in options.items():
        numbers = value if isinstance(value, tuple | list) else [value]
        if not numbers or not all(is_above(x, low) and is_below(x, high) for x in numbers):
            raise ValueError(f"{name}={value} must be in {interval}, such as {example}")


def check_rising(interval: str, example: Any, **options: Sequence[float]) -> None:
    """Raises `ValueError` unless each option lies in `interval` and its numbers rise."""
    check_range(interval, example, **options)
    for name, numbers in options.items():
        if list(numbers) != sorted(numbers):
            raise ValueError(f"{name}={numbers} must rise, such as {example}")


def _call(node: ast.expr, where: str, malformed: InputError) -> Call:
    """Returns the call of a syntax tree; where: "key=text", for messages."""
    function = node.func if isinstance(node, ast.Call) else node
    dotted = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)
    if not dotted and not isinstance(function, ast.Name):
        raise malformed
    name = ast.unparse(function)  # A name, or two with a dot: "optax.adam".
    if not isinstance(node, ast.Call):
        return Call(name, (), {})
    keywords = {k.arg: k.value for k in node.keywords if k.arg}
    if len(keywords) < len(node.keywords):
        raise InputError(f"{where}: {name!r} is given an argument twice, or with '**'")
    try:
        args = tuple(map(ast.literal_eval, node.args))
        return Call(name, args, {k: ast.literal_eval(v) for k, v in keywords.items()})
    except (TypeError, ValueError, RecursionError, MemoryError):
        raise InputError(
            f"{where}: the arguments of {name!r} must be literals, such as 224, 0.5, True,"
            " 'text' or (1, 2)"
        ) from None


def _built(call: Call, table: Table, key: str, **given: Any) -> Any:
    function = lookup(table, call.name, key)
    # name and parent are fields of every Flax module, not options of a model.
    options = [
        each.replace(kind=each.POSITIONAL_OR_KEYWORD)
        for name, each in inspect.signature(function).parameters.items()
        if name not in given
        and name not in ("name", "parent")
        and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    try:
        bound = inspect.Signature(options).bind(*call.args, **call.kwargs).arguments
        for option in options:
            if option.name in bound and not _is_a(bound[option.name], option.annotation):
                kind = inspect.formatannotation(option.annotation)
                raise TypeError(f"{option.name}={bound[option.name]!r} is not {kind}")
    except TypeError as error:
        shown = inspect.Signature([o.replace(annotation=o.empty) for o in options])
        raise InputError(
            f"{key}: {call.name} does not take these arguments ({error});"
            f" it takes {call.name}{shown}"
        ) from None
    try:
        return function(**bound, **given)
    except (TypeError, ValueError) as error:
        raise InputError(f"{key}: {call.name}: {error}") from None


def _is_a(value: Any, hint: Any) -> bool:
    """Returns whether a literal is finite and fits an annotation, if that is known."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(value, each) for each in inner)
    if origin in (tuple, Sequence):
        if not isinstance(value, tuple | list):
            return False
        if origin is Sequence or inner[-1] is Ellipsis:
            inner = inner[:1] * len(value)
        return len(value) == len(inner) and all(map(_is_a, value, inner))
    if hint in (int, float) and isinstance(value, bool):
        return False
    kinds: dict[Any, Any] = {float: (int, float), types.NoneType: types.NoneType}
    kinds |= {int: int, bool: bool, str: str}
    return hint not in kinds or isinstance(value, kinds[hint])


def _example(table: Table) -> str:
    """Returns a text that works: the first entry that needs no argument."""
    for name, entry in table.items():
        parameters = inspect.signature(entry).parameters.values()
        if all(each.default is not each.empty for each in parameters):
            return name
    return next(iter(table))  # Its argument is given by the program.


def table(text: str, key: str, *, example: str) -> dict[str, float]:
    """Parses ``"{'bias$': 64}"``, regular expression -> number above 0; ``""`` gives {}.

    key: the config key that the text comes from. example: a text that works. Both are for
    the message of `InputError`.
    """
    if not text.strip():
        return {}
    try:
        found: dict[str, float] = ast.literal_eval(text.strip())
        for pattern, value in found.items():
            re.compile(pattern)
            if not _is_a(value, float) or not 0 < value < math.inf:
                raise ValueError(f"{value!r} is not a number above 0")
    except Exception as error:  # literal_eval and compile raise many kinds.
        raise InputError(
            f"{key}={_cut(text)} must be a table of regular expressions"
            f" ({first_line(error)}); try {example}"
        ) from None
    return found
