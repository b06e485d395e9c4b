"""Compares names that systems store differently: composed or not, in capitals or not."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from jaxcls.errors import InputError, printable, shown


def composed(text: str) -> str:
    """Returns a name in NFC: macOS stores é as two characters, others mostly as one."""
    return unicodedata.normalize("NFC", text)


def class_names(given: Iterable[str]) -> dict[str, str]:
    """Returns given name -> class name, which is composed and without spaces around it."""
    return {name: composed(name).strip() or name for name in given}


def check(class_names: Iterable[str]) -> None:
    """Raises `InputError` for a class name that a line of a text file cannot hold.

    Joiners are letters of Persian and of emoji, so they may stay; what moves a cursor or
    turns the direction of text may not.
    """
    for name in class_names:
        if odd := next(filter(_is_odd, name), ""):
            raise InputError(f"class {name!a} has {_described(odd)} in its name; rename it")
        if not name.strip() or name != name.strip():
            raise InputError(
                f"class {name!a} has a space at the start or the end of its name; rename it"
            )


def _is_odd(character: str) -> bool:
    is_byte = unicodedata.category(character) == "Cs"  # As os.fsdecode gives it.
    return is_byte or character == "\n" or printable(character) != character


def _described(character: str) -> str:
    """Returns a character's code point and name, or its byte if it is no Unicode."""
    category = unicodedata.category(character)
    if category == "Cs":
        return f"byte 0x{ord(character) & 0xFF:02X}, which is not UTF-8,"
    nameless = "a control character" if category == "Cc" else "no assigned character"
    name = unicodedata.name(character, nameless)
    return f"U+{ord(character):04X} ({name})"


def merged(names: dict[str, str]) -> list[str]:
    """Returns a line per class that has several given names; names: of `class_names`."""
    spelled: defaultdict[str, list[str]] = defaultdict(list)
    for given, name in sorted(names.items()):
        spelled[name].append(ascii(given))
    return [
        f"class {shown(name)} is of {' and '.join(given)}, which are one name"
        for name, given in sorted(spelled.items())
        if len(given) > 1
    ]


def differing_in_case(names: Iterable[str]) -> list[str]:
    """Returns a line per group of classes whose names differ in capitals only."""
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[name.casefold()].append(shown(name))
    return [
        f"classes {' and '.join(group)} differ in capitals only; if they are one, give them"
        " one name"
        for group in alike.values()
        if len(group) > 1
    ]
