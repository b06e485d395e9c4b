"""A gallery: a folder of images, and a cache file of their features.

A file counts as unchanged if its path, size, mtime and ctime are unchanged. Its content is
not compared, because a read would cost as much as the cache saves. ctime is included
because a copy may keep the old mtime, and no copy keeps the old ctime. A cache belongs to
one model (`key`); a cache of another model is not used.
"""

import os
import pathlib
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxcls import atomic
from jaxcls.data import files
from jaxcls.data.files import Bad
from jaxcls.errors import InputError, first_line, shown

# The version of the arrays in the cache.
FORMAT = 1
KINDS = "new", "changed", "gone", "kept"
# Paths, taken as needed -> the features [D] of each, or Bad.
Compute = Callable[[Iterator[str | Bad]], Iterator[np.ndarray | Bad]]


class Status(NamedTuple):
    """A file's size in bytes, mtime and ctime in ns; identity: its device and inode."""

    stamp: tuple[int, int, int]
    identity: tuple[int, int]


class Listing(NamedTuple):
    """The image files of a folder, none of them opened, in the order of `files.below`.

    status: of each path within the folder. bad: the files without an image.
    """

    folder: str
    status: dict[str, Status]
    bad: list[Bad]


class Gallery(NamedTuple):
    """Images whose features are known.

    paths: the paths to open. features: [n, D] float32. rows: the rows of each identity.
    counts: the numbers of "new", "changed", "gone" and "kept" images. bad: the files
    without features, with reasons.
    """

    paths: list[str]
    features: np.ndarray
    rows: dict[tuple[int, int], list[int]]
    counts: Counter[str]
    bad: list[Bad]

    def rows_of(self, path: str) -> list[int]:
        """Returns the rows of the file `path`, by whatever path; [] if it has none."""
        try:
            return self.rows.get(_status(path).identity, [])
        except OSError:
            return []


def listed(
    folder: str,
    without: pathlib.Path | None = None,
    left_out: list[str] | None = None,
) -> Listing:
    """Returns the images below a folder; raises `InputError` if there is none.

    without: a file to leave out, such as a contact sheet in the folder. left_out: of
    `files.below`.
    """
    if not os.path.isdir(folder):
        raise InputError(
            f"--gallery={shown(folder)} is not a folder; give a folder of images"
        )
    found, start = Listing(folder, {}, []), os.path.join(folder, "")
    unwanted = _status(without).identity if without and without.exists() else None
    for each in files.below(folder, left_out):
        if isinstance(each, Bad):
            found.bad.append(each)
            continue
        try:
            status = _status(each)
        except OSError as error:
            found.bad.append(Bad(each, error.strerror or str(error)))
            continue
        if status.identity != unwanted:
            found.status[each.removeprefix(start)] = status
    if not found.status:
        raise InputError(f"--gallery={shown(folder)} {files.NO_IMAGE}")
    return found


def _status(path: str | pathlib.Path) -> Status:
    its = os.stat(path)
    stamp = its.st_size, its.st_mtime_ns, its.st_ctime_ns
    return Status(stamp, (its.st_dev, its.st_ino))


def refreshed(
    listing: Listing,
    cache: pathlib.Path | None,
    key: str,
    compute: Compute,
    say: Callable[[str], None],
) -> Gallery:
    """Returns the gallery of a listing, with features from `cache` or computed anew.

    Writes the features to `cache` if they changed. Two processes may write it at once; the
    last file stays. None keeps nothing.

    key: a digest of the other inputs of the features. say: receives the reason if the cache
    is not used. Raises `InputError` if the cache cannot be written or holds something else,
    or no image can be read.
    """
    old = _kept(cache, key, say) if cache else {}
    kinds = {name: "changed" if name in old else "new" for name in listing.status}
    kinds |= {
        name: "kept"
        for name, status in listing.status.items()
        if name in old and old[name][0] == status.stamp
    }
    path_of = {name: os.path.join(listing.folder, name) for name in kinds}
    computed = compute(path_of[name] for name, kind in kinds.items() if kind != "kept")
    made, bad = dict[str, np.ndarray](), list(listing.bad)
    for name, kind in kinds.items():
        each = old[name][1] if kind == "kept" else next(computed)
        if isinstance(each, Bad):
            bad.append(each)
        else:
            made[name] = each
    if not made:
        raise InputError(
            f"--gallery={shown(listing.folder)}: none of its {len(kinds)} images can be"
            f" read, {shown(bad[-1].path)}: {bad[-1].why}"
        )
    status, features = [listing.status[name] for name in made], np.stack([*made.values()])
    counts = Counter(kinds[name] for name in made)
    counts["gone"] = len(old.keys() - kinds.keys())
    if cache and counts["kept"] < counts.total():
        _write(cache, key, list(made), [each.stamp for each in status], features)
    rows = defaultdict[tuple[int, int], list[int]](list)
    for row, its in enumerate(status):
        rows[its.identity].append(row)
    return Gallery([path_of[name] for name in made], features, rows, counts, bad)


def _kept(
    cache: pathlib.Path, key: str, say: Callable[[str], None]
) -> dict[str, tuple[tuple[int, ...], np.ndarray]]:
    """Returns {name: (size and times, features)} of a cache.

    It is empty if the cache is missing, damaged or another model's.
    """
    try:
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = dict(archive)
    except FileNotFoundError:
        return {}
    except Exception as error:  # NumPy and zipfile raise many types for a damaged file.
        say(f"{shown(str(cache))} is damaged ({first_line(error)}); all are read anew")
        return {}
    if "gallery" not in found:
        raise InputError(
            f"{shown(str(cache))} holds something else than features of a gallery; try"
            " --cache=gallery.npz"
        )
    if found["gallery"].tolist() != [str(FORMAT), key]:
        say(f"{shown(str(cache))} is of another model or version; all are read anew")
        return {}
    try:
        paths, stamps = found["path"].tolist(), [tuple(x) for x in found["status"].tolist()]
        embed = found["embed"].astype(np.float32, casting="no")
        if embed.ndim != 2 or not np.isfinite(embed).all():
            raise ValueError("its features are not finite rows")
        return dict(zip(paths, zip(stamps, embed, strict=True), strict=True))
    except (KeyError, TypeError, ValueError) as error:
        say(f"{shown(str(cache))} is damaged ({first_line(error)}); all are read anew")
        return {}


def _write(
    cache: pathlib.Path,
    key: str,
    names: list[str],
    stamps: list[tuple[int, int, int]],
    features: np.ndarray,
) -> None:
    with (
        atomic.explained(cache, "try --cache=gallery.npz"),
        # A folder for this process, as another process may write the cache too.
        tempfile.TemporaryDirectory(dir=cache.parent, prefix=".gallery-") as folder,
    ):
        file = pathlib.Path(folder) / "new.npz"
        np.savez(
            file,
            gallery=np.array([str(FORMAT), key]),
            path=np.array(names, np.str_),
            status=np.array(stamps, np.int64),
            embed=features,
        )
        file.replace(cache)
