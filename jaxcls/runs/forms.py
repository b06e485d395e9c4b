"""The forms of what a run's files hold: records, starts, implied facts, checkpoints."""

import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxcls.errors import InputError

# The keys that each record of a file has, besides its step.
_NEEDED = {"metrics": ("kind",), "digests": ("digest", "arrays")}
# Every other value is a number, or null where a number was not finite.
_NUMBER: tuple[Any, str] = ((int, float, type(None)), "a number")
_KINDS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("step", "best_step", "n", "start"), (int, "a whole number")),
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


def is_text(value: Any) -> bool:
    """Returns whether a value is a text."""
    return isinstance(value, str)


def is_count(value: Any) -> bool:
    """Returns whether a value is a whole number, at least 0 and below 2^63."""
    return type(value) is int and 0 <= value < 2**63


def _is_shape(value: Any) -> bool:
    sides = isinstance(value, list) and len(value) == 3
    return sides and all(side is None or (is_count(side) and side) for side in value)


def _is_table(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Returns a function: whether a value is a dict whose values all fit."""
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


# {key: (whether a value has the form, the form in words)} of what a start reads back.
_Forms = Mapping[str, tuple[Callable[[Any], bool], str]]
_IMPLIED: _Forms = {
    "facts": (lambda value: isinstance(value, dict), "an object"),
    "plugins": (_is_table(is_text), "an object of texts"),
    "steps": (is_count, "a whole number"),
    "weights": (is_text, "a text"),
    "teacher": (is_text, "a text"),
}
FACTS: _Forms = {
    "name": (is_text, "a text"),
    "version": (is_text, "a text"),
    "image_shape": (_is_shape, "three sizes, such as [32, 32, 3]"),
    # A head of more would fill memory before anything could be said.
    "num_classes": (
        lambda value: is_count(value) and value <= 1_000_000,
        "a whole number up to 1,000,000",
    ),
    "class_names": (_is_names, "a list of texts"),
    "splits": (_is_table(is_count), "an object of whole numbers"),
    "fingerprint": (is_text, "a text"),
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


# A form is a function of a value (whether it fits), a list of one form (a list of any
# number of such values) or a dict: {key: form} of keys that are needed, {ANY: form} of all.
ANY = object()


def is_number(value: Any) -> bool:
    """Returns whether a value is a finite number, or null: a non-finite one is so."""
    if type(value) is int:
        return abs(value) <= _MOST
    return value is None or (isinstance(value, float) and math.isfinite(value))


def is_finite(value: Any) -> bool:
    """Returns whether a value is a finite number, and not null."""
    return value is not None and is_number(value)


def misfit(value: Any, form: Any, where: str = "") -> str:
    """Returns the dotted place of the first value that has not its form; "" if all have.

    Keys that the form does not name are free. where: the place of `value`.
    """
    if callable(form):
        return "" if form(value) else where or "the whole"
    if not isinstance(value, type(form)):
        return where or "the whole"
    forms: Any = form
    if isinstance(form, list):
        forms = dict.fromkeys(range(len(value)), form[0])
    elif ANY in form:
        forms = dict.fromkeys(value, form[ANY])
    for key, of_key in forms.items():
        place = f"{where}.{key}"[:80].lstrip(".")
        if isinstance(value, dict) and key not in value:
            return place
        if found := misfit(value[key], of_key, place):
            return found
    return ""


def or_none(form: Any) -> Callable[[Any], bool]:
    """Returns a form that null has, too."""
    return lambda value: value is None or not misfit(value, form)


def is_facts(value: Any) -> bool:
    """Returns whether a value is the whole facts of a dataset."""
    table = {key: fits for key, (fits, _) in FACTS.items()}
    return not misfit(value, table) and value.keys() == table.keys()


# What is read back of a start in manifest.json; an earlier version may lack any of them.
_START: dict[str, Any] = {
    **dict.fromkeys(
        ("reason", "convolution", "xla_flags", "jaxcls", "code", "config"), is_text
    ),
    **dict.fromkeys(("python", "data", "command", "started", "ended"), is_text),
    **dict.fromkeys(("numerics", "hosts", "local_devices", "fsdp", "loop"), is_count),
    "seconds": lambda value: is_finite(value) and value >= 0,
    **dict.fromkeys(("device_bytes", "process_bytes"), is_count),
    "config_next": is_text,
    "commit": or_none(is_text),
    "resumed_from": or_none(is_count),
    "versions": {ANY: or_none(is_text)},
    "devices": lambda value: _is_names(value) and bool(value),
    "cpu": {"instructions": [is_text]},
    "plugins": {ANY: is_text},
    "records": {ANY: is_text},
}


def check_starts(starts: Any, file: pathlib.Path) -> None:
    """Raises `InputError` unless the starts of the manifest `file` have their form."""
    wrong = misfit(starts, [{}], "starts")
    for number, start in enumerate(starts if not wrong else []):
        known = {key: form for key, form in _START.items() if key in start}
        wrong = wrong or misfit(start, known, f"starts.{number}")
    if wrong:
        raise InputError(
            f"{file} is no record of starts: {wrong} is not as it is written; put it right,"
            " or move it away"
        )


_META = {"format": is_count, "step": is_count, "digests": {ANY: is_text}}
_META |= {"best_step": lambda value: type(value) is int}
# A float as float.hex writes it.
_HEX = re.compile(r"-?0x[01]\.[0-9a-f]{1,13}p[+-](\d{1,3}|10[01]\d|102[0-3])|-?inf|nan")
_SUMS = {"count": is_count, "sums": {ANY: lambda x: is_text(x) and _HEX.fullmatch(x)}}
# An earlier version had none of these.
_META_LATER: dict[str, Any] = {
    "records": {ANY: is_text},
    "means": lambda value: value == {} or not misfit(value, _SUMS),
}


def is_meta(meta: Any) -> bool:
    """Returns whether a value has the form of the "meta" of a checkpoint."""
    if misfit(meta, _META):
        return False
    return not misfit(meta, {k: form for k, form in _META_LATER.items() if k in meta})
