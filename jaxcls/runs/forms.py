"""The forms of what a run's files hold: records, and the implied facts of config.json."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from jaxcls.errors import InputError

# The keys that each record of a file has, besides its step.
_NEEDED = {"metrics": ("kind",), "digests": ("digest", "arrays")}
# Every other value is a number, or null where a number was not finite.
_NUMBER: tuple[Any, str] = ((int, float, type(None)), "a number")
_KINDS: dict[str, tuple[Any, str]] = {
    "step": (int, "a whole number"),
    "best_step": (int, "a whole number"),
    "n": (int, "a whole number"),
    **dict.fromkeys(("kind", "at", "split", "digest"), (str, "a text")),
    "index": (list, "a list"),
    "arrays": (dict, "an object"),
}
_MOST = 2**63 - 1


def fault(record: Any, name: str) -> str:
    """Returns what a line of the file `name`.jsonl has wrong, or "" for a record."""
    if not isinstance(record, dict):
        return " (it is no JSON object)"
    needed = ["step", *_NEEDED.get(name, ())]
    if name == "metrics" and record.get("kind") == "final":
        needed += ["at", *(["best_step"] if record.get("at") == "best" else [])]
    if name == "metrics" and "split" in record and record.get("kind") in ("eval", "final"):
        needed += ["n"]
    for key in needed:
        if key not in record:
            return f" (it has no {key!r})"
    for key, value in record.items():
        kind, what = _KINDS.get(key, _NUMBER)
        if not isinstance(value, kind) or isinstance(value, bool):
            return f" ({key!r} must be {what})"
        if isinstance(value, int) and not -_MOST <= value <= _MOST:
            return f" ({key!r} must be below 2^63)"
    return ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_shape(value: Any) -> bool:
    sides = isinstance(value, list) and len(value) == 3
    return sides and all(side is None or (_is_count(side) and side) for side in value)


def _is_table(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Returns a function: whether a value is a dict whose values all fit."""
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


# {key: (whether a value has the form, the form in words)} of what a start reads back.
_Forms = Mapping[str, tuple[Callable[[Any], bool], str]]
_IMPLIED: _Forms = {
    "facts": (lambda value: isinstance(value, dict), "an object"),
    "plugins": (_is_table(_is_text), "an object of texts"),
    "steps": (_is_count, "a whole number"),
    "weights": (_is_text, "a text"),
    "teacher": (_is_text, "a text"),
}
FACTS: _Forms = {
    "name": (_is_text, "a text"),
    "version": (_is_text, "a text"),
    "image_shape": (_is_shape, "three sizes, such as [32, 32, 3]"),
    # A head of more would fill memory before anything could be said.
    "num_classes": (
        lambda value: _is_count(value) and value <= 1_000_000,
        "a whole number up to 1,000,000",
    ),
    "class_names": (_is_names, "a list of texts"),
    "splits": (_is_table(_is_count), "an object of whole numbers"),
    "fingerprint": (_is_text, "a text"),
}


def check_implied(implied: dict[str, Any], file: pathlib.Path) -> None:
    """Raises `InputError` for an implied fact of another form than it is written in.

    file: where the facts are from, for messages. A fact may be missing.
    """
    _check_forms(_IMPLIED, implied, f"{file}: implied.")
    _check_forms(FACTS, implied.get("facts", {}), f"{file}: implied.facts.")


def _check_forms(table: _Forms, values: dict[str, Any], where: str) -> None:
    for key, (fits, what) in table.items():
        if key in values and not fits(values[key]):
            raise InputError(
                f"{where}{key}={repr(values[key])[:80]} must be {what}; put the file right,"
                " or name a new folder"
            )
