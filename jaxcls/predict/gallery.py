"""A gallery: a folder of images, and a cache file of their features.

A file counts as unchanged if its path, size, mtime and ctime are unchanged. Its content is
not compared, because a read would cost as much as the cache saves. ctime is included
because a copy may keep the old mtime, and no copy keeps the old ctime. A cache belongs to
one model (`key`); a cache of another model is not used.
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

# The version of the arrays in the cache.
FORMAT = 1
KINDS = "new", "changed", "gone", "kept"
# Paths, taken as needed -> the features [D] of each, or Bad.
Compute = Callable[[Iterator[str]], Iterator[np.ndarray | Bad]]


class Listing(NamedTuple):
    """The image files of a folder, none of them opened, in the order of `files.below`.

    names: paths within the folder. status: [n, 3] int64, size in bytes, mtime and ctime in
    ns. identity: [n, 2] uint64, device and inode, equal for two paths of one file. bad: the
    files without an image.
    """

    folder: str
    names: list[str]
    status: np.ndarray
    identity: np.ndarray
    bad: list[Bad]


class Gallery(NamedTuple):
    """Images whose features are known.

    paths: the paths to open. features: [n, D] float32, mapped from a file. identity: as in
    `Listing`. counts: the numbers of "new", "changed", "gone" and "kept" images. bad: the
    files without features, with reasons.
    """

    paths: list[str]
    features: np.ndarray
    identity: np.ndarray
    counts: Counter[str]
    bad: list[Bad]

    def rows_of(self, path: str) -> np.ndarray:
        """Returns the rows [k] int64 of the file `path`; the row of this path is first."""
        try:
            which = np.array(_identity(os.stat(path)), np.uint64)
        except OSError:
            return np.empty(0, np.int64)
        rows = np.flatnonzero((self.identity == which).all(1))
        is_other = [self.paths[row] != path for row in rows.tolist()]
        return rows[np.argsort(is_other, kind="stable")]


def listed(folder: str, without: pathlib.Path | None = None) -> Listing:
    """Returns the images below a folder; raises `InputError` if there is none.

    without: a file to leave out, such as a contact sheet in the folder.
    """
    if not os.path.isdir(folder):
        raise InputError(
            f"--gallery={shown(folder)} is not a folder; give a folder of images"
        )
    start, left_out = os.path.join(folder, ""), str(without.resolve()) if without else ""
    names, bad = list[str](), list[Bad]()
    status, identity = array("q"), array("Q")  # A tenth of the memory of lists.
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
    """Returns the gallery of a listing, with features from `cache` or computed anew.

    Writes the computed features to `cache`. Two processes may write it at once; the last
    file stays.

    key: a digest of the other inputs of the features. width: the number of features of an
    image. say: receives the reason if the cache is not used. Raises `InputError` if the
    cache cannot be written or holds something else, or no image can be read.
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
    """The content of a cache: names, status [n, 3], embed [n, D]."""

    names: list[str]
    status: np.ndarray
    embed: np.ndarray


def _compared(
    listing: Listing, old: _Kept, row_of: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cached row [n] int64 of each image, or -1, and its kind [n]."""
    rows = np.array([row_of.get(name, -1) for name in listing.names], np.int64)
    kinds = np.where(rows < 0, "new", "kept").astype("U7")
    there = rows >= 0
    same = (old.status[rows[there]] == listing.status[there]).all(1)
    kinds[np.flatnonzero(there)[~same]] = "changed"
    return np.where(kinds == "kept", rows, -1), kinds


def _kept(cache: pathlib.Path, key: str, width: int, say: Callable[[str], None]) -> _Kept:
    """Returns the content of a cache; empty if missing, damaged or another model's."""
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
    """Returns (gallery without counts, its rows of the listing), after it writes `cache`.

    rows: the row of `old` of each unchanged image; -1 for the other images.
    """
    paths = [os.path.join(listing.folder, name) for name in listing.names]
    about: dict[str, Any] = {"gallery": np.array([str(FORMAT), key])}
    made, bad = list[int](), list[Bad](listing.bad)
    try:
        # A folder for this process, as another process may write the cache too.
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
    """Yields the features [D] of each item in order, or `Bad`.

    items: (path, its row of `known` [n, D], or -1 to compute). Taken as needed.
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
