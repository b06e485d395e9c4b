"""Lists images in class folders, or beside a labels.csv, in a folder or an archive."""

import csv
import hashlib
import io
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from jaxcls.data import files
from jaxcls.data.decode import DecodeError
from jaxcls.data.importers.listing import ImageSource, Listing
from jaxcls.data.importers.tars import is_below, plain
from jaxcls.data.importers.trees import Tree, open_tree
from jaxcls.errors import InputError, shown

SPLITS = ("train", "val", "valid", "validation", "test")
# Common names of split folders. If all classes have such names, they are splits.
LIKE_SPLITS = {*SPLITS, "training", "testing", "dev", "eval"}
VAL = "val"

# (row of the tree, split, class name)
Rows = Iterator[tuple[int, str, str]]


def folders(path: pathlib.Path, scratch: pathlib.Path, val_fraction: float) -> ImageSource:
    """Lists ``train/<class>/*`` with val or test, ``<class>/*``, or images with labels.csv.

    val_fraction: the share of the training images that becomes split "val", if the source
    has only split "train". A hash of each path decides, so that new files move no old one.
    Raises `InputError` for a source that holds none of these.
    """
    tree = open_tree(path, scratch)
    if not len(tree.names):
        raise InputError(
            f"{path} holds no file{_such_as(tree.rejected)}; give a folder of class folders"
            " of images"
        )
    prefix = _wrapper(tree)
    rejected, notes = list(tree.rejected), []
    if tree.hidden:
        notes.append(f"{tree.hidden:,} hidden or system files are left out")
    table = _find(tree, prefix + b"labels.csv")
    if table is None:
        kind = "class folders"
        rows = _by_folder(tree, prefix, rejected, notes)
        empty = _classes_of_folders(tree, prefix)
    else:
        kind = "labels.csv"
        rows, empty = _by_table(tree, prefix, table, path, rejected, notes), set()
    split_of = np.full(len(tree.names), -1, np.int8)
    class_of = np.zeros(len(tree.names), np.int32)
    numbers: dict[str, int] = {}  # Class -> number, in order of appearance.
    for row, split, class_name in rows:
        split_of[row] = SPLITS.index(split)
        class_of[row] = numbers.setdefault(class_name, len(numbers))
    if not numbers:
        lacks = "in a class folder" if table is None else "that its labels.csv names"
        raise InputError(
            f"{path} holds no image {lacks}{_such_as(rejected)}; it must hold"
            " train/<class>/* and val/<class>/*, or <class>/*, or a labels.csv with the"
            " columns path, label"
        )
    class_names = _in_order(set(numbers) | empty)
    if table is None and all(name.lower() in LIKE_SPLITS for name in class_names):
        raise InputError(
            f"{path}: the folders {', '.join(class_names)} look like splits, not classes;"
            " name them train, val and test, and train must be there"
        )
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of[name] for name in numbers], np.int32)[class_of]
    names = tree.names
    if prefix:
        names = np.array([name[len(prefix) :] for name in names])
    whole = Listing(names, labels, tree.read)
    listings = {
        split: _subset(whole, np.flatnonzero(split_of == number))
        for number, split in enumerate(SPLITS)
        if (split_of == number).any()
    }
    if val_fraction:
        listings = _split_off(listings, val_fraction)
    return ImageSource(kind, tuple(class_names), 3, listings, rejected, notes)


def _wrapper(tree: Tree) -> bytes:
    """Returns the folder that wraps the whole source, or b"" if there is none.

    The folder is neither a split nor a class. For ``flowers/rose/1.jpg`` and
    ``flowers/lily/1.jpg`` it is ``b"flowers/"``.
    """
    prefix = b""
    while True:
        depth = prefix.count(b"/")
        # A README beside the wrapper changes nothing.
        inside = [
            name
            for name in tree.names
            if name.count(b"/") > depth or files.is_image(os.fsdecode(name))
        ]
        if not inside or _find(tree, prefix + b"labels.csv") is not None:
            return prefix
        whole = b"/".join(inside[0].split(b"/")[: depth + 1]) + b"/"
        is_split = os.fsdecode(whole.split(b"/")[depth]) in SPLITS
        if is_split or not all(name.startswith(whole) for name in inside):
            return prefix
        folders = [folder + b"/" for folder in tree.folders]
        if any(not (f.startswith(whole) or whole.startswith(f)) for f in folders):
            return prefix  # An empty class folder is beside it.
        deeper = any(name.count(b"/") > depth + 1 for name in tree.names)
        if not deeper and _find(tree, whole + b"labels.csv") is None:
            return prefix
        prefix = whole


def _find(tree: Tree, name: bytes) -> int | None:
    at = int(np.searchsorted(tree.names, name))
    return at if at < len(tree.names) and tree.names[at] == name else None


def _has_splits(tree: Tree, prefix: bytes) -> bool:
    """Returns whether folder train holds folders; with only images, it is a class."""
    depth = prefix.count(b"/") + 2
    below = (name for name in tree.names if name.startswith(prefix + b"train/"))
    return any(name.count(b"/") >= depth for name in below)


def _by_folder(
    tree: Tree, prefix: bytes, rejected: list[tuple[str, str]], notes: list[str]
) -> Rows:
    """Yields row, split and class of each file from its path.

    Adds images outside a class folder to `rejected`, and a line for other left-out files to
    `notes`.
    """
    has_splits = _has_splits(tree, prefix)
    left_out: dict[str, list[str]] = {"in no class folder": [], "not named as images": []}
    for row, name in enumerate(tree.names):
        split, parts = "train", name[len(prefix) :].split(b"/")
        if has_splits:
            split, parts = os.fsdecode(parts[0]), parts[1:]
        in_class = len(parts) >= 2 and split in SPLITS
        is_image = files.is_image(os.fsdecode(name))
        if in_class and is_image:
            yield row, split, os.fsdecode(parts[0])
        elif is_image:
            rejected.append((os.fsdecode(name), "in no class folder"))
        else:
            why = "not named as images" if in_class else "in no class folder"
            left_out[why].append(shown(bytes(name)))
    for why, names in left_out.items():
        if names:
            more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
            notes.append(f"left out, {why}: {', '.join(names[:3])}{more}")


def _classes_of_folders(tree: Tree, prefix: bytes) -> set[str]:
    """Returns the names of class folders, also of empty ones."""
    below = [f[len(prefix) :].split(b"/") for f in tree.folders if f.startswith(prefix)]
    has_splits = _has_splits(tree, prefix)
    depth = 2 if has_splits else 1
    return {
        os.fsdecode(parts[-1])
        for parts in below
        if len(parts) == depth and (not has_splits or os.fsdecode(parts[0]) in SPLITS)
    }


def _by_table(
    tree: Tree,
    prefix: bytes,
    table: int,
    path: pathlib.Path,
    rejected: list[tuple[str, str]],
    notes: list[str],
) -> Rows:
    """Yields row, split and class of each file in labels.csv.

    Its columns are path and label, and optionally split. Adds rows without a usable file to
    `rejected`, and a line for unlisted files to `notes`.
    """
    used = np.zeros(len(tree.names), bool)
    used[table] = True
    for line, name, label, split in _lines(tree, table, path):
        row = _find(tree, prefix + os.fsencode(plain(name)))
        if row is None:  # Windows may have written it.
            row = _find(tree, prefix + os.fsencode(plain(name.replace("\\", "/"))))
        if not name or not label:
            raise InputError(f"{path}: labels.csv line {line} lacks a path or a label")
        if split not in SPLITS:
            raise InputError(
                f"{path}: labels.csv line {line}: split {split!r} is none of"
                f" {', '.join(SPLITS)}"
            )
        if not is_below(name):
            rejected.append((name, "its path leads out of the source"))
        elif row is None:
            rejected.append((name, f"named in labels.csv line {line}, and not there"))
        elif used[row]:
            rejected.append((name, f"named a second time in labels.csv line {line}"))
        else:
            used[row] = True
            yield row, split, label
    if not used.all():
        first = shown(bytes(tree.names[np.argmin(used)]))
        notes.append(f"{(~used).sum():,} files are not in labels.csv, such as {first}")


def _lines(
    tree: Tree, table: int, path: pathlib.Path
) -> Iterator[tuple[int, str, str, str]]:
    """Yields (line number, path, label, split) of each line of labels.csv but the first."""
    try:
        text = tree.read(table).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
        fields = [field.strip() for field in reader.fieldnames or []]
        if not {"path", "label"} <= set(fields):
            raise InputError(
                f"{path}: labels.csv has the columns {', '.join(fields) or 'none'}; its"
                " first line must name path and label (and may name split)"
            )
        reader.fieldnames = fields
        for entry in reader:
            name, label = entry["path"].strip(), entry["label"].strip()
            yield reader.line_num, name, label, entry.get("split", "").strip() or "train"
    except UnicodeDecodeError:
        raise InputError(f"{path}: labels.csv is not UTF-8; save it as UTF-8") from None
    except (csv.Error, DecodeError, OSError) as error:
        raise InputError(f"{path}: labels.csv cannot be read ({error})") from None


def _such_as(rejected: Sequence[tuple[str, str]]) -> str:
    """Formats the first rejected file for a message; it may be the only file."""
    return f" (refused: {shown(rejected[0][0])}, {rejected[0][1]})" if rejected else ""


def _in_order(names: set[str]) -> list[str]:
    """Sorts names; if all are numbers, sorts them as numbers: 2 before 10."""
    if all(name.isdecimal() and len(name) < 20 for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _split_off(listings: dict[str, Listing], fraction: float) -> dict[str, Listing]:
    """Splits "val" off "train" by a hash of each path."""
    if set(listings) != {"train"}:
        raise InputError(
            f"--val_fraction={fraction}: the source has its own {', '.join(listings)};"
            " leave the flag out"
        )
    train = listings["train"]
    limit = int(fraction * 2**64)
    is_val = np.array([name_hash(name, b"jaxcls val") < limit for name in train.names])
    parts = {"train": np.flatnonzero(~is_val), VAL: np.flatnonzero(is_val)}
    for split, rows in parts.items():
        if not rows.size:
            raise InputError(
                f"--val_fraction={fraction} of {len(train.names)} files leaves split"
                f" {split} empty; try 0.2"
            )
    return {split: _subset(train, rows) for split, rows in parts.items()}


def _subset(listing: Listing, rows: np.ndarray) -> Listing:
    return Listing(
        listing.names[rows], listing.labels[rows], lambda i: listing.read(int(rows[i]))
    )


def name_hash(name: bytes, purpose: bytes = b"jaxcls order") -> int:
    """Returns 64 bits that depend only on the name and the purpose."""
    digest = hashlib.blake2b(name, digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "big")
