"""Compares names that systems store differently: composed or not, in capitals or not."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from jaxcls.errors import shown


def composed(text: str) -> str:
    """Returns a name in NFC: macOS stores é as two characters, others mostly as one."""
    return unicodedata.normalize("NFC", text)


def class_names(given: Iterable[str]) -> dict[str, str]:
    """Returns given name -> class name, which is composed and without spaces around it."""
    return {name: composed(name).strip() or name for name in given}


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
