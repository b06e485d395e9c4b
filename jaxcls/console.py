"""Prints tables, CSV and JSON on standard output, for commands."""

import contextlib
import csv
import errno
import io
import json
import math
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from jaxcls.errors import InputError, printable


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leaves a pipe without a reader to `outlived`; rich would exit with 1."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def console(width: int = 120) -> Console:
    """Returns a console for tables, without markup; `width` applies to a pipe."""
    wide = None if sys.stdout.isatty() else width
    return _Console(width=wide, highlight=False, markup=False, emoji=False)


class _Table(Table):
    """A table whose cells may be of anybody: an escape sequence is shown, not obeyed."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(printable(str(cell)) for cell in cells), **options)


def table(title: str, *columns: str, texts: int = 1) -> Table:
    """Returns an empty table; the first `texts` columns hold text, the others numbers."""
    made = _Table(title=title, box=box.SIMPLE, title_justify="left", title_style="bold")
    for number, name in enumerate(columns):
        is_text = number < texts
        made.add_column(name, justify="left" if is_text else "right", no_wrap=not is_text)
    return made


@contextlib.contextmanager
def outlived() -> Iterator[None]:
    """Goes on without standard output if its reader or its terminal is gone.

    A pipe without a reader gives EPIPE, and a terminal that was closed EIO.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.EPIPE and not (error.errno == errno.EIO and _is_hung_up()):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_hung_up() -> bool:
    """Returns whether standard output is a terminal that was closed: a disk has EIO too."""
    descriptor = sys.stdout.fileno()
    return stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor)


def as_text(value: float | None) -> str:
    """Formats a number with four decimals; "-" for None or a non-finite number."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Raises `InputError` if standard output cannot be written, as on a full disk."""
    try:
        yield
    except BrokenPipeError:  # The reader closed the pipe.
        raise
    except OSError as error:
        # Discard the buffered rest, or Python tries to write it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InputError(
            f"the answers cannot be written ({error.strerror or error}); make room"
        ) from None


def as_csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a header and rows as CSV; the bytes of a path stay unchanged."""
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
    """Prints one JSON array, a value per line; a truncated output is not valid JSON."""
    before = "["
    for value in values:
        print(f"{before}\n{json.dumps(value)}", end="")
        sys.stdout.flush()
        before = ","
    print("[]" if before == "[" else "\n]")
