"""Parses one line of text into calls: ``"decode | random_resized_crop(224)"``.

The text is in Python's grammar, with literals as the only arguments. It is parsed with
`ast` and never evaluated, so a config from a run folder can run no code.
"""

import ast
import inspect
import itertools
import math
import operator
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxcls.errors import InputError, first_line, lookup


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
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise _malformed(text, key, example) from None
    nodes: list[ast.expr] = []
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
        nodes.append(tree.right)
        tree = tree.left
    return [_call(node, text, key, example) for node in [tree, *reversed(nodes)]]


def build(text: str, table: Mapping[str, Callable[..., Any]], key: str) -> list[Any]:
    """Builds ``"a(1) | b"`` as ``[table["a"](1), table["b"]()]``.

    Raises `InputError` for an unknown name, or arguments that the entry does not take.
    """
    return [_bind(call, table, key) for call in parse(text, key, _example(table))]


def build_one(
    text: str, table: Mapping[str, Callable[..., Any]], key: str, **given: Any
) -> Any:
    """Builds ``"sgd(momentum=0.9)"`` as ``table["sgd"](momentum=0.9, **given)``.

    Raises `InputError` like `build`, and unless the text is exactly one call.
    """
    calls = parse(text, key, _example(table, most=1))
    if len(calls) != 1:
        raise InputError(
            f"{key}={text!r} names {len(calls)} things where one is needed;"
            f" one of: {', '.join(sorted(table))}"
        )
    return _bind(calls[0], table, key, **given)


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


def _call(node: ast.expr, text: str, key: str, example: str) -> Call:
    if isinstance(node, ast.Name):
        return Call(node.id, (), {})
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise _malformed(text, key, example)
    if any(keyword.arg is None for keyword in node.keywords):
        raise _malformed(text, key, example)
    try:
        args = tuple(ast.literal_eval(arg) for arg in node.args)
        kwargs = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except (TypeError, ValueError):
        raise InputError(
            f"{key}={text!r}: the arguments of {node.func.id!r} must be literals,"
            " such as 224, 0.5, True, 'text' or (1, 2)"
        ) from None
    if not all(map(_is_finite, (args, *kwargs.values()))):
        raise InputError(f"{key}={text!r}: the numbers must be finite, such as 1e-3")
    if len(kwargs) < len(node.keywords):
        raise InputError(f"{key}={text!r}: {node.func.id!r} is given an argument twice")
    return Call(node.func.id, args, kwargs)


def _is_finite(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _bind(
    call: Call, table: Mapping[str, Callable[..., Any]], key: str, **given: Any
) -> Any:
    function = lookup(table, call.name, key)
    signature = inspect.signature(function)
    shown = ", ".join(
        str(p).split(":")[0] if p.default is p.empty else f"{p.name}={p.default!r}"
        for p in signature.parameters.values()
        if p.name not in given and p.name not in ("name", "parent")
    )
    # name and parent are fields of every Flax module, not options of a model.
    clash = (set(given) | {"name", "parent"}) & set(call.kwargs)
    try:
        if clash:
            raise TypeError(f"{sorted(clash)[0]!r} is not set here")
        if given:
            call = _named(call, [p for p in signature.parameters if p not in given])
        bound = signature.bind(*call.args, **call.kwargs, **given)
        _check_types(
            bound, {name: p.annotation for name, p in signature.parameters.items()}
        )
    except TypeError as error:
        raise InputError(
            f"{key}: {call.name} does not take these arguments ({error});"
            f" it takes {call.name}({shown})"
        ) from None
    try:
        return function(*call.args, **call.kwargs, **given)
    except (TypeError, ValueError) as error:
        raise InputError(f"{key}: {call.name}: {error}") from None


def _named(call: Call, options: Sequence[str]) -> Call:
    """Turns positional arguments into keywords, because `given` may precede them."""
    by_place = call.args[: len(options)]
    names = dict(zip(options, by_place, strict=False))
    if twice := names.keys() & call.kwargs.keys():
        raise TypeError(f"{sorted(twice)[0]!r} is given twice")
    return Call(call.name, call.args[len(options) :], {**names, **call.kwargs})


def _check_types(bound: inspect.BoundArguments, hints: Mapping[str, Any]) -> None:
    """Raises TypeError if a literal is not of the type in the parameter's annotation."""
    for name, value in bound.arguments.items():
        if not _is_a(value, hints[name]):
            raise TypeError(
                f"{name}={value!r} is not {inspect.formatannotation(hints[name])}"
            )


def _is_a(value: Any, hint: Any) -> bool:
    """Returns whether a literal fits an annotation; an unknown one fits any value."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(value, each) for each in inner)
    if origin is tuple and inner[-1:] != (Ellipsis,):
        return (
            isinstance(value, tuple | list)
            and len(value) == len(inner)
            and all(_is_a(v, h) for v, h in zip(value, inner, strict=True))
        )
    if origin in (tuple, Sequence):
        return isinstance(value, tuple | list) and all(_is_a(v, inner[0]) for v in value)
    if hint is types.NoneType:
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not (hint in (bool, str) and not isinstance(value, hint))


def _malformed(text: str, key: str, example: str) -> InputError:
    return InputError(
        f"{key}={text!r} is not a pipeline; write names with literal arguments"
        f" joined by '|', such as {example!r}"
    )


def _example(table: Mapping[str, Callable[..., Any]], most: int = 2) -> str:
    """Returns a text that works: the first entries of a table that need no argument."""
    names = (name for name, entry in table.items() if not _needs(entry))
    return " | ".join(itertools.islice(names, most)) or next(iter(table))


def _needs(entry: Callable[..., Any]) -> bool:
    """Returns whether a call must give an argument."""
    parameters = inspect.signature(entry).parameters.values()
    return any(p.default is p.empty and p.kind is not p.KEYWORD_ONLY for p in parameters)


def table(text: str, key: str, *, example: str) -> dict[str, Any]:
    """Parses ``"{'bias$': 64}"``, regular expression -> value; ``""`` gives {}.

    Values are numbers above 0, or texts if `example` has a text. key: the config key that
    the text comes from. example: a text that works. Both are for the message of
    `InputError`.
    """
    if not text.strip():
        return {}
    kind = type(next(iter(ast.literal_eval(example).values())))
    try:
        found = ast.literal_eval(text.strip())
        for pattern, value in found.items():
            re.compile(pattern)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            fits = is_number and 0 < value < math.inf
            if kind is str:
                fits = isinstance(value, str)
            if not fits:
                rule = "a text" if kind is str else "a number above 0"
                raise ValueError(f"{value!r} is not {rule}")
    except _NO_TABLE as error:
        raise InputError(
            f"{key}={text!r} must be a table of regular expressions ({first_line(error)});"
            f" try {example}"
        ) from None
    return found


# The exceptions of literal_eval, of re.compile and of a value that is not a dict.
_NO_TABLE = (
    *(AttributeError, MemoryError, OverflowError, RecursionError, re.error, SyntaxError),
    *(TypeError, ValueError),
)
