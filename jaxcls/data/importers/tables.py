"""Reads the tables that label files: labels.csv, or metadata as Hugging Face has it."""

import csv
import functools
import io
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxcls.data.decode import DecodeError
from jaxcls.data.importers import names, splits
from jaxcls.data.importers.splits import SPLITS
from jaxcls.data.importers.tars import plain
from jaxcls.data.importers.trees import Tree
from jaxcls.errors import InputError, shown

LABELS = "labels.csv"
# Of Hugging Face's imagefolder; each names files below the folder that it lies in.
METADATA = ("metadata.csv", "metadata.jsonl")

# (row of the tree, split, class name)
Rows = Iterator[tuple[int, str, str]]


class Table(NamedTuple):
    """A table in a tree: its path, its row, and the columns of paths and labels."""

    name: str
    row: int
    path_column: str
    label_column: str

    @property
    def folder(self) -> str:
        """The folder that its paths begin in, which ends with "/", or ""."""
        return self.name.removesuffix(self.name.split("/")[-1])


def of_tree(tree: Tree, path: pathlib.Path) -> tuple[list[Table], str]:
    """Returns the tables that label the files of a tree, and a hint about unusable ones.

    They are labels.csv, or else each metadata.csv and metadata.jsonl, on top or in a folder
    on top, with the columns file_name and label. Raises `InputError` for a damaged table.
    """
    row = tree.find(os.fsencode(LABELS))
    if row is not None:
        return [Table(LABELS, row, "path", "label")], ""
    tops = {name.split(b"/")[0] + b"/" for name in tree.names if b"/" in name}
    found, hint = [], ""
    for top in sorted({b"", *tops}):
        for end in METADATA:
            name = top + os.fsencode(end)
            row = tree.find(name)
            if row is None:
                continue
            table = Table(os.fsdecode(name), row, "file_name", "label")
            first = next(_entries(tree, table, path), (1, {}))[1]
            if {"file_name", "label"} <= set(first):
                found.append(table)
            else:
                hint = (
                    f"; {shown(name)} has the columns {', '.join(first) or 'none'}, and"
                    " must have file_name and label"
                )
    return found, hint


def is_on_top(tree: Tree) -> bool:
    """Returns whether a table lies on top of a tree."""
    return any(tree.find(os.fsencode(name)) is not None for name in (LABELS, *METADATA))


def rows(
    tree: Tree,
    tables: list[Table],
    path: pathlib.Path,
    rejected: list[tuple[str, str]],
    notes: list[str],
) -> Rows:
    """Yields row, split and class of each file in tables.

    A labels.csv may have the column split; metadata has its splits by the folders on top.
    Adds lines without a usable file to `rejected`, and a line for unlisted files to
    `notes`. Raises `InputError` for a line without a path or a label, or with another
    split.
    """
    used = np.zeros(len(tree.names), bool)
    used[[table.row for table in tables]] = True
    find, near, split_of = *_finders(tree), _splits(tree)
    for table in tables:
        for line, entry in _entries(tree, table, path):
            name, label = entry.get(table.path_column, ""), entry.get("label", "")
            split = entry.get("split", "") or "train"
            if table.name != LABELS:
                split = ""
            row = find(table.folder + name)
            if not name or not label or split not in (*SPLITS, ""):
                raise InputError(
                    f"{path}: {shown(table.name)} line {line} needs a {table.path_column},"
                    f" a label and, if any, a split of {', '.join(SPLITS)}; it has"
                    f" {name!r}, {label!r}, {split!r}"
                )
            where = f"in {shown(table.name)} line {line}"
            if row is None:
                close = near(table.folder + name)
                why = f"named {where}, and not there{close and f'; {close} is'}"
                rejected.append((table.folder + name, why))
            elif used[row]:
                rejected.append((table.folder + name, f"named a second time {where}"))
            else:
                used[row] = True
                top = os.fsdecode(tree.names[row]).split("/")[0]
                yield row, split or split_of.get(top, "train"), label
    if not used.all():
        first = shown(bytes(tree.names[np.argmin(used)]))
        listed = " and ".join(shown(table.name) for table in tables[:2])
        more = f" and {len(tables) - 2} more" if len(tables) > 2 else ""
        notes.append(f"{(~used).sum():,} files are not in {listed}{more}, such as {first}")


def _splits(tree: Tree) -> dict[str, str]:
    """Returns folder on top -> split, for the folders that are named as splits."""
    paths = map(os.fsdecode, tree.names)
    tops = {name.split("/")[0] for name in paths if "/" in name}
    alone = {name: name.lower() for name in tops if name.lower() in SPLITS}
    return splits.of_folders(tops) or alone


def _finders(
    tree: Tree,
) -> tuple[Callable[[str], int | None], Callable[[str], str]]:
    """Returns two functions of a path in a table: the row of its file, or None; a near one.

    The path may have backslashes, and other forms of its letters than the file's name. A
    near file differs in capitals only; its name is for a message.
    """

    @functools.cache
    def composed() -> dict[str, int]:
        return {names.composed(os.fsdecode(n)): row for row, n in enumerate(tree.names)}

    @functools.cache
    def folded() -> dict[str, int]:
        return {name.casefold(): row for name, row in composed().items()}

    def find(path: str) -> int | None:
        for form in (plain(path), plain(path.replace("\\", "/"))):
            row = tree.find(os.fsencode(form))
            if row is None and not form.isascii():
                row = composed().get(names.composed(form))
            if row is not None:
                return row
        return None

    def near(path: str) -> str:
        form = names.composed(plain(path.replace("\\", "/")))
        row = folded().get(form.casefold())
        return "" if row is None else shown(bytes(tree.names[row]))

    return find, near


def _entries(
    tree: Tree, table: Table, path: pathlib.Path
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line number, {column: text}) of each line of a table.

    Raises `InputError` for a damaged table, or a labels.csv without its columns.
    """
    name = f"{path}: {shown(table.name)}"
    try:
        text = tree.read(table.row).decode("utf-8-sig")
        if table.name.endswith(".jsonl"):
            yield from _json_lines(text, name)
            return
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
        fields = [field.strip() for field in reader.fieldnames or []]
        wanted = {table.path_column, table.label_column}
        if table.name == LABELS and not wanted <= set(fields):
            raise InputError(
                f"{name} has the columns {', '.join(fields) or 'none'}; its first line must"
                " name path and label (and may name split)"
            )
        reader.fieldnames = fields
        for entry in reader:
            # Cells beyond the header are listed under None.
            cells = ((key, value) for key, value in entry.items() if key is not None)
            yield reader.line_num, {key: value.strip() for key, value in cells}
    except UnicodeDecodeError:
        raise InputError(f"{name} is not UTF-8; save it as UTF-8") from None
    except (csv.Error, DecodeError, OSError) as error:
        raise InputError(f"{name} cannot be read ({error})") from None


def _json_lines(text: str, name: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line number, {key: text}) of JSON lines; raises `InputError` for another."""
    for number, line in zip(itertools.count(1), text.split("\n"), strict=False):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict):
            raise InputError(
                f'{name} line {number} is no JSON object, such as {{"file_name": "1.png",'
                ' "label": "cat"}'
            )
        yield number, {key: _text(value) for key, value in entry.items()}


def _text(value: Any) -> str:
    """Returns a string or a number as text, and "" for what can be no label."""
    if isinstance(value, str):
        try:
            os.fsencode(value)  # JSON may hold a half of a letter, which no file has.
        except UnicodeEncodeError:
            return ""
        return value.strip()
    return json.dumps(value) if isinstance(value, int | float) else ""
