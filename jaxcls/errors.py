"""How a command ends other than well: one line, and a status that says which."""

import difflib
import os
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")

# Statuses of a command: done, bad input, a run that diverged, checked and it differs.
DONE, BAD_INPUT, DIVERGED, DIFFERS = 0, 2, 3, 4
# Statuses with which a run leaves on a signal: to be run again, and at once.
STOPPED, INTERRUPTED = 75, 130
# Of a process that another of the same run keeps waiting, or that lost it.
LOST = 70


class InputError(Exception):
    """A bad input. Its text names the thing, the value, the rule, a value that works.

    The command line prints it on one line and leaves with status 2.
    """


class InUseError(InputError):
    """Another process holds the folder that is asked for."""


class DivergedError(Exception):
    """A loss or gradient that is not finite ended a run; a command leaves with 3."""


class StoppedError(Exception):
    """A run was asked to stop, and has saved; a command leaves with 75."""


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """The entry of `table` called `name`; a typo is answered with the nearest name.

    The only way a name in a config becomes a thing.
    Raises `InputError` naming `kind`, the near miss and every known name.
    """
    if name in table:
        return table[name]
    raise InputError(
        f"unknown {kind} {name!r}{did_you_mean(name, table)};"
        f" known: {', '.join(sorted(table))}"
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' for the nearest of `known`, or '' when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def first_line(error: Exception) -> str:
    """The first line of an error's text, of 200 characters; its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def shown(name: str | bytes) -> str:
    """The name of a file as it can be printed on a line, in any terminal's encoding."""
    name = os.fsdecode(name)
    return name if name.isprintable() else ascii(name)
