"""Answers -> standard output, each as it comes: CSV for pipes, JSON as one array."""

import contextlib
import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jaxcls.errors import InputError


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Raise `InputError` where standard output cannot be written, as on a full disk."""
    try:
        yield
    except BrokenPipeError:  # Its reader has seen enough.
        raise
    except OSError as error:
        # What waits to be written is not tried again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InputError(
            f"the answers cannot be written ({error.strerror or error}); make room"
        ) from None


def as_csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A header, then a row each; paths of any bytes leave as they came."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    plain = csv.writer(sys.stdout, lineterminator="\n")
    # Python 3.11 leaves a carriage return bare, and readers end the row there.
    quoted = csv.writer(sys.stdout, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(header)
    for cells in rows:
        (quoted if any("\r" in cell for cell in cells) else plain).writerow(cells)
        sys.stdout.flush()


def as_json(values: Iterable[Any]) -> None:
    """One array with a value a line: no JSON until its end, so a cut one is not taken."""
    before = "["
    for value in values:
        print(f"{before}\n{json.dumps(value)}", end="")
        sys.stdout.flush()
        before = ","
    print("[]" if before == "[" else "\n]")
