"""Lists images in class folders, or labelled by tables, in a folder or an archive."""

import decimal
import os
import pathlib
import re
from typing import NamedTuple

import numpy as np

from jaxcls.data import files
from jaxcls.data.importers import names, splits, tables
from jaxcls.data.importers.listing import ImageSource, Listing
from jaxcls.data.importers.parts import split_off
from jaxcls.data.importers.splits import SPLITS
from jaxcls.data.importers.tables import Rows
from jaxcls.data.importers.trees import Tree, open_tree
from jaxcls.errors import InputError, shown

_NUMBER = re.compile(r"[+-]?\d{1,19}(\.\d{0,19})?(e[+-]?\d{1,3})?", re.IGNORECASE)


def folders(
    path: pathlib.Path,
    scratch: pathlib.Path,
    val_fraction: float,
    test_fraction: float = 0.0,
) -> ImageSource:
    """Lists ``train/<class>/*`` with val or test, ``<class>/*``, or images with a table.

    Tables are labels.csv, and metadata.csv and .jsonl of Hugging Face's imagefolder. The
    folders of splits may have other names, such as training_set and test_set.
    val_fraction, test_fraction: the share of each class that becomes split "val" or "test",
    by `parts.split_off`, if the source has only split "train".
    Raises `InputError` for a source that holds none of these.
    """
    tree = open_tree(path, scratch)
    if not len(tree.names):
        raise InputError(
            f"{path} holds no file{_such_as(tree.rejected)}; give a folder of class folders"
            " of images"
        )
    tree, beside = _unwrapped(tree)
    rejected, notes = list(tree.rejected), list(tree.notes)
    left_out = {
        "hidden, or of a system": tree.hidden,
        "beside the one folder of images": beside,
    }
    labelled, hint = tables.of_tree(tree, path)
    if not labelled:
        kind = "class folders"
        places = _places(tree)
        found = sorted(_by_folder(tree, places, rejected, notes, left_out))
        left_out["a folder without an image"] = _empty_folders(tree, places, found)
    else:
        kind = labelled[0].name.split("/")[-1]
        found = sorted(tables.rows(tree, labelled, path, rejected, notes))
    if not found:
        raise InputError(
            f"{path} holds no image by {kind}{_such_as(rejected)}; it must hold"
            " train/<class>/* and val/<class>/*, or <class>/*, or a labels.csv with the"
            f" columns path, label{hint}"
        )
    class_of = names.class_names({given for _, _, given in found})
    class_names = _in_order(set(class_of.values()))
    notes += names.merged(class_of)
    if not labelled:
        _check_no_split(path, class_names, hint)
    numbers = {name: label for label, name in enumerate(class_names)}
    labels = np.zeros(len(tree.names), np.int32)
    rows_of: dict[str, list[int]] = {split: [] for split in SPLITS}
    for row, split, given in found:
        labels[row] = numbers[class_of[given]]
        rows_of[split].append(row)
    whole = Listing(tree.names, labels, tree.read)
    listings = {s: whole.subset(np.array(rows)) for s, rows in rows_of.items() if rows}
    listings = split_off(listings, {"val": val_fraction, "test": test_fraction})
    left_out = {why: paths for why, paths in left_out.items() if paths}
    return ImageSource(kind, tuple(class_names), 3, listings, rejected, notes, left_out)


def _unwrapped(tree: Tree) -> tuple[Tree, list[str]]:
    """Returns the tree without the folders that wrap the whole source, such as flowers/.

    Such a folder is neither a split nor a class. Returns also the paths of the files beside
    it, such as a README; none of them is an image.
    """
    beside: list[str] = []
    while not tables.is_on_top(tree):
        top, others = set[bytes](), set[bytes]()
        for name in tree.names:
            if files.is_image(os.fsdecode(name)):
                top.add(name.split(b"/")[0])
            elif b"/" in name:
                others.add(name.split(b"/")[0])
        top = top or others
        if len(top) != 1 or {name.lower() for name in top} & set(map(os.fsencode, SPLITS)):
            break
        (folder,) = top
        inner = tree.below(folder)
        is_flat = [b"/" not in name for name in inner.names]
        # A class with a folder in it, beside a class whose images are yet to come.
        is_class = all(is_flat) or (any(is_flat) and _tops(tree.folders) > 1)
        if is_class and not tables.is_on_top(inner):
            break
        outer = (name for name in tree.names if not name.startswith(folder + b"/"))
        beside += map(os.fsdecode, outer)
        tree = inner
    return tree, beside


def _tops(folders: list[bytes]) -> int:
    """Returns the number of folders on top."""
    return len({folder.split(b"/")[0] for folder in folders})


def _check_no_split(path: pathlib.Path, class_names: list[str], hint: str) -> None:
    """Raises `InputError` for class folders that are named as splits."""
    alike = [*splits.of_folders(class_names)]
    if all(splits.read(name) for name in class_names):
        alike = class_names
    if alike:
        raise InputError(
            f"{path}: the folders {', '.join(map(shown, alike))} look like splits, not"
            " classes; name them train, val and test, with a folder for each class in train"
            " at least, or give a labels.csv with the columns path, label"
            f"{hint}"
        )


class _Places(NamedTuple):
    """Where the classes of a tree are.

    splits: folder -> split; empty if the class folders are on top. doubled: the folders of
    splits with all in one more folder of their name, such as seg_train/seg_train/.
    """

    splits: dict[str, str]
    doubled: frozenset[str]

    def of(self, path: str) -> tuple[str, str] | None:
        """Returns the split and the class of what is in a class folder, or None."""
        split, parts = "train", path.split("/")
        if self.splits:
            top, *parts = parts
            if top not in self.splits:
                return None
            split, parts = self.splits[top], parts[top in self.doubled :]
        return (split, parts[0]) if len(parts) >= 2 else None


def _places(tree: Tree) -> _Places:
    """Returns where the classes are: in splits only if train holds folders with files.

    A folder train with only images is a class.
    """
    folders, deep, single = set[str](), set[str](), set[str]()
    for name in map(os.fsdecode, tree.names):
        top, *parts = name.split("/")
        if parts:
            folders.add(top)
        if len(parts) > 1:
            deep.add(top)
        if parts[:1] != [top] or len(parts) < 3:
            single.add(top)
    named = splits.of_folders(folders)
    if not any(split == "train" for folder, split in named.items() if folder in deep):
        named = {name: name.lower() for name in folders if name.lower() in SPLITS}
        if "train" not in {named[folder] for folder in deep if folder in named}:
            return _Places({}, frozenset())
        splits.check(named)
    return _Places(named, frozenset(named) - single)


def _by_folder(
    tree: Tree,
    places: _Places,
    rejected: list[tuple[str, str]],
    notes: list[str],
    left_out: dict[str, list[str]],
) -> Rows:
    """Yields row, split and class of each file from its path.

    Adds images outside a class folder to `rejected`, other files to `left_out`, and a line
    about renamed splits to `notes`.
    """
    renamed = [f"{k}={v}" for k, v in sorted(places.splits.items()) if k != v]
    if renamed:
        notes.append(f"folders taken as splits: {', '.join(map(shown, renamed))}")
    others = left_out.setdefault("not named as an image", [])
    for row, name in enumerate(map(os.fsdecode, tree.names)):
        found = places.of(name)
        if not files.is_image(name):
            others.append(name)
        elif found:
            yield row, *found
        else:
            rejected.append((name, "in no class folder"))


def _empty_folders(
    tree: Tree, places: _Places, found: list[tuple[int, str, str]]
) -> list[str]:
    """Returns the class folders whose class has no image in any split.

    found: the images. A class without any image cannot be learned, and has no score.
    """
    known = set(names.class_names({given for _, _, given in found}).values())
    empty: dict[str, str] = {}
    for name in map(os.fsdecode, tree.folders):
        place = places.of(f"{name}/")
        if place and not known.issuperset(names.class_names([place[1]]).values()):
            empty.setdefault("/".join(place), f"{name}/")
    return [*empty.values()]


def _such_as(rejected: list[tuple[str, str]]) -> str:
    """Formats the first rejected file for a message; it may be the only file."""
    return f" (refused: {shown(rejected[0][0])}, {rejected[0][1]})" if rejected else ""


def _in_order(given: set[str]) -> list[str]:
    """Sorts names; if all are numbers, sorts them as such: 2 before 10, -1.5 before 0."""
    if all(_NUMBER.fullmatch(name) for name in given):
        return sorted(given, key=lambda name: (decimal.Decimal(name), name))
    return sorted(given)
