"""A folder of images and their features, which a file keeps from one time to the next.

A file of the folder is as it was where its path, size, and times of change are: content
that differs is then not looked for, as reading everything would cost what was saved. The
time of the last change of status is one of them, for a copy may have the old one's other
time, and no copy has that. What is kept is of one model (`key`), or is not used.
"""

import os
import pathlib
import tempfile
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxcls.data import files
from jaxcls.data.files import Bad
from jaxcls.errors import InputError, first_line, shown
from jaxcls.predict import features

# Of the file's own arrays.
FORMAT = 1
KINDS = "new", "changed", "gone", "kept"
# Paths, as they are asked for -> of each its features [D], or why there are none.
Compute = Callable[[Iterator[str]], Iterator[np.ndarray | Bad]]


class Listing(NamedTuple):
    """The image files of a folder, none opened, in the order of `files.below`.

    names: paths within it. status: [n, 3] int64, bytes and the times (ns) of the last
    change of content and of status. identity: [n, 2] uint64, what two paths to one
    file share. bad: what there is no image of.
    """

    folder: str
    names: list[str]
    status: np.ndarray
    identity: np.ndarray
    bad: list[Bad]


class Gallery(NamedTuple):
    """Images whose features are known.

    paths: as they are opened. features: [n, D] float32, mapped from a file. identity: as
    in `Listing`. counts: how many were "new", "changed", "gone" and "kept". bad: what has
    no features, and why.
    """

    paths: list[str]
    features: np.ndarray
    identity: np.ndarray
    counts: Counter[str]
    bad: list[Bad]

    def rows_of(self, path: str) -> np.ndarray:
        """The rows [k] int64 that are the file `path` itself, this very path first."""
        try:
            which = np.array(_identity(os.stat(path)), np.uint64)
        except OSError:
            return np.empty(0, np.int64)
        rows = np.flatnonzero((self.identity == which).all(1))
        is_other = [self.paths[row] != path for row in rows.tolist()]
        return rows[np.argsort(is_other, kind="stable")]


def listed(folder: str, without: pathlib.Path | None = None) -> Listing:
    """The images below a folder; raises `InputError` where there is none.

    without: a file that is none of them, such as one that is made of them.
    """
    if not os.path.isdir(folder):
        raise InputError(
            f"--gallery={shown(folder)} is not a folder; give a folder of images"
        )
    start, left_out = os.path.join(folder, ""), str(without.resolve()) if without else ""
    names, bad = list[str](), list[Bad]()
    status, identity = array("q"), array("Q")  # Of a million, a tenth of what lists take.
    for each in files.below(folder):
        if isinstance(each, Bad):
            bad.append(each)
            continue
        if os.path.basename(each) == os.path.basename(left_out) and (
            os.path.realpath(each) == left_out
        ):
            continue
        try:
            its = os.stat(each)
        except OSError as error:
            bad.append(Bad(each, error.strerror or str(error)))
            continue
        names.append(each.removeprefix(start))
        status.extend((its.st_size, its.st_mtime_ns, its.st_ctime_ns))
        identity.extend(_identity(its))
    if not names:
        raise InputError(f"--gallery={shown(folder)} {files.NO_IMAGE}")
    return Listing(
        folder,
        names,
        np.array(status, np.int64).reshape(-1, 3),
        np.array(identity, np.uint64).reshape(-1, 2),
        bad,
    )


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def refreshed(
    listing: Listing,
    cache: pathlib.Path,
    key: str,
    width: int,
    compute: Compute,
    say: Callable[[str], None],
) -> Gallery:
    """The gallery of a listing, with features from `cache`, or computed and kept there.

    key: what else features are a function of. width: how many an image has. say: is told
    why what was kept is not used. Another process may do the same: the last one's file
    stays. Raises `InputError` where the file cannot be written, holds something else, or no
    image can be read.
    """
    old = _kept(cache, key, width, say)
    row_of = {name: row for row, name in enumerate(old.names)}
    rows, kinds = _compared(listing, old, row_of)
    if np.array_equal(rows, np.arange(len(old.names))):
        paths = [os.path.join(listing.folder, name) for name in listing.names]
        found = Gallery(paths, old.embed, listing.identity, Counter(), listing.bad)
        made = list(range(len(paths)))
    else:
        found, made = _written(listing, old, rows, cache, key, compute)
    counts = Counter(kinds[made].tolist())
    counts["gone"] = len(row_of.keys() - set(listing.names))
    return found._replace(counts=counts)


class _Kept(NamedTuple):
    """What a file has of the last time: names, status [n, 3], embed [n, D]."""

    names: list[str]
    status: np.ndarray
    embed: np.ndarray


def _compared(
    listing: Listing, old: _Kept, row_of: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Of each image the row [n] int64 that is kept, -1 where none is, and its kind [n]."""
    rows = np.array([row_of.get(name, -1) for name in listing.names], np.int64)
    kinds = np.where(rows < 0, "new", "kept").astype("U7")
    there = rows >= 0
    same = (old.status[rows[there]] == listing.status[there]).all(1)
    kinds[np.flatnonzero(there)[~same]] = "changed"
    return np.where(kinds == "kept", rows, -1), kinds


def _kept(cache: pathlib.Path, key: str, width: int, say: Callable[[str], None]) -> _Kept:
    """What a file has, nothing where it is not there, damaged or of another model."""
    nothing = _Kept([], np.empty((0, 3), np.int64), np.empty((0, width), np.float32))
    try:
        found = features.read(cache)
    except FileNotFoundError:
        return nothing
    except (OSError, ValueError) as error:
        say(f"{shown(str(cache))} is damaged ({first_line(error)}); all are read anew")
        return nothing
    if "gallery" not in found:
        raise InputError(
            f"{shown(str(cache))} holds something else than features of a gallery; try"
            " --cache=gallery.npz"
        )
    if found["gallery"].tolist() != [str(FORMAT), key]:
        say(f"{shown(str(cache))} is of another model or version; all are read anew")
        return nothing
    names, status, embed = (found.get(name) for name in ("path", "status", "embed"))
    if names is None or status is None or embed is None or embed.shape[1:] != (width,):
        say(f"{shown(str(cache))} is damaged (not all is in it); all are read anew")
        return nothing
    return _Kept(names.tolist(), status, embed)


def _written(
    listing: Listing,
    old: _Kept,
    rows: np.ndarray,
    cache: pathlib.Path,
    key: str,
    compute: Compute,
) -> tuple[Gallery, list[int]]:
    """The gallery, once `cache` has it, without counts, and which of the listing it has.

    rows: of `old`, of those that are as they were; -1 of the others.
    """
    paths = [os.path.join(listing.folder, name) for name in listing.names]
    about: dict[str, Any] = {"gallery": np.array([str(FORMAT), key])}
    made, bad = list[int](), list[Bad](listing.bad)
    try:
        # Of its own, for another process may be about to replace the file, too.
        scratch = tempfile.TemporaryDirectory(dir=cache.parent, prefix=".gallery-")
    except OSError as error:
        raise InputError(
            f"{shown(str(cache))} cannot be written ({error.strerror}); try"
            " --cache=gallery.npz"
        ) from None
    with scratch as folder:
        file = pathlib.Path(folder) / "new.npz"
        with features.writing(file, old.embed.shape[1], about) as add:
            items = zip(paths, rows.tolist(), strict=True)
            for number, each in enumerate(in_place(items, old.embed, compute)):
                if isinstance(each, Bad):
                    bad.append(each)
                else:
                    add(listing.names[number], each)
                    made.append(number)
            about["status"] = listing.status[made]
            if not made:
                raise InputError(
                    f"--gallery={shown(listing.folder)}: none of its {len(paths)} images"
                    f" can be read, {shown(bad[-1].path)}: {bad[-1].why}"
                )
        embed = features.read(file)["embed"]
        file.replace(cache)
    identity = listing.identity[made]
    paths = [paths[number] for number in made]
    return Gallery(paths, embed, identity, Counter(), bad), made


def in_place(
    items: Iterable[tuple[str | Bad, int]], known: np.ndarray, compute: Compute
) -> Iterator[np.ndarray | Bad]:
    """Features [D] of each item in order, or why there are none.

    items: (path, its row of `known` [n, D], or -1: it is computed). Taken as needed.
    """
    waiting: deque[Bad | int] = deque()

    def unknown() -> Iterator[str]:
        for path, row in items:
            if isinstance(path, Bad):
                waiting.append(path)
                continue
            waiting.append(row)
            if row == -1:
                yield path

    def before() -> Iterator[np.ndarray | Bad]:
        while waiting and waiting[0] != -1:
            row = waiting.popleft()
            yield row if isinstance(row, Bad) else np.asarray(known[row])

    for made in compute(unknown()):
        yield from before()
        waiting.popleft()
        yield made
    yield from before()
