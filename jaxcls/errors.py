"""Errors that end a command with one line, and the exit statuses."""

import difflib
import os
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")
# The search for a near name takes quadratic time.
_LONGEST_NAME = 200

# Exit statuses: success, bad input, a run diverged, a check found a difference.
DONE, BAD_INPUT, DIVERGED, DIFFERS = 0, 2, 3, 4
# Exit statuses on a signal: stopped after saving (run it again), and interrupted.
STOPPED, INTERRUPTED = 75, 130
# Exit status of a process whose save is stuck, or whose peer does not respond or is lost.
LOST = 70


# The most characters of an error's text: it may quote a value of any length.
MOST_TEXT = 2000


class InputError(Exception):
    """A bad input. The text names the thing, the value, the rule and a value that works.

    The text is one printable line of about `MOST_TEXT` characters at most, whatever it
    quotes. A command prints it and exits with status 2.
    """

    def __init__(self, text: str) -> None:
        text = printable(text).replace("\n", " ")
        if len(text) > MOST_TEXT:
            half = MOST_TEXT // 2
            text = f"{text[:half]} ... {text[-half:]}"
        super().__init__(text)


class InUseError(InputError):
    """Another process holds the lock of the folder."""


class DivergedError(Exception):
    """A non-finite loss or gradient ended a run; the command exits with 3."""


class StoppedError(Exception):
    """A run stopped on request, after saving; the command exits with 75."""


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """Returns the entry `name` of `table`; every name in a config is resolved here.

    Raises `InputError` with `kind`, the nearest name and all known names.
    """
    if name in table:
        return table[name]
    raise InputError(
        f"unknown {kind} {name!r}{did_you_mean(name, table)};"
        f" known: {', '.join(sorted(table))}"
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ' (did you mean ...?)' for the nearest of `known`, or '' if none is near."""
    if len(name) > _LONGEST_NAME:
        return ""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def first_line(error: Exception) -> str:
    """Returns an error's first line, cut to 200 characters; its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def is_whole_number(text: str) -> bool:
    """Returns whether a text is a whole number in ASCII digits, at most 18 of them."""
    return text.isascii() and text.isdecimal() and len(text) <= 18


def printable(text: str) -> str:
    """Returns text with its control characters as escapes, but for the end of a line.

    What comes from another's folder could otherwise move a terminal's cursor.
    """
    if text.isprintable():
        return text
    kept = (c if c.isprintable() or c == "\n" else _escaped(c) for c in text)
    return "".join(kept)


def _escaped(character: str) -> str:
    """Returns a character's escape; a space, a joiner or a byte of no text is itself.

    The marks that turn the direction of text are escaped.
    """
    is_harmless = unicodedata.category(character) in ("Zs", "Cf", "Co", "Cs")
    is_turning = "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
    return character if is_harmless and not is_turning else ascii(character)[1:-1]


def shown(name: str | bytes) -> str:
    """Returns a file's name in a form that prints on one line in any terminal."""
    name = os.fsdecode(name)
    return name if name.isprintable() else ascii(name)
