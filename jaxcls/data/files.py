"""Finds the image files that arguments name, in a fixed order, and reads them.

`prepare`, `predict` and `search` find the files of a folder by the same `walk`.
"""

import contextlib
import io
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from jaxcls.data.decode import DecodeError
from jaxcls.errors import InputError, shown

T = TypeVar("T")
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".heic", ".heif", ".avif"),
)
# Files that operating systems leave behind.
SYSTEM = ("Thumbs.db", "desktop.ini", "__MACOSX")
# The largest readable file in bytes; MAX_PIXELS at 16 bits a sample fits.
MAX_BYTES = 1 << 30
MAX_DEPTH = 100  # The deepest nesting of folders.
FILE, FOLDER, HIDDEN, BAD = "file", "folder", "hidden", "bad"  # Kinds of `Entry`.
LIST = "-"  # Stands for a list of paths on standard input.
_CHUNK = 1 << 16  # Bytes per read of the list; every path is shorter.


class Entry(NamedTuple):
    """A result of `walk`: the path below the folder, its kind, the reason if it is BAD."""

    path: str
    kind: str
    why: str = ""


class Bad(NamedTuple):
    """A path without a readable image, and the reason."""

    path: str
    why: str


def asked(arguments: Sequence[str], null: bool) -> Iterator[str | Bad]:
    """Returns the images of a command line, by `images`; "-" is a list on standard input.

    null: whether a NUL ends each path of the list. Raises `InputError` at once if the
    arguments name no image.
    """
    if null and LIST not in arguments:
        raise InputError("--null is of a list on standard input; give - for it, too")
    check(arguments)
    return images(given(arguments, b"\0" if null else b"\n"))


def check(arguments: Sequence[str]) -> None:
    """Raises `InputError` if no argument can give an image, or if "-" is given twice.

    If only some arguments give no image, `images` reports these as `Bad`.
    """
    if arguments.count(LIST) > 1:
        raise InputError(f"{LIST} is given twice, and standard input is one list")
    found = [_why_none(path) for path in arguments]
    if found and all(found):
        raise InputError(f"{shown(arguments[0]) or repr('')} {found[0]}")


def _why_none(path: str) -> str:
    """Returns the reason why an argument gives no image; "" if it may give one."""
    if path == LIST:
        return ""
    if not os.path.lexists(path):
        return "is not a file; give image files or folders"
    is_empty = os.path.isdir(path) and next(below(path), None) is None
    return NO_IMAGE if is_empty else ""


def given(arguments: Iterable[str], end: bytes) -> Iterator[str]:
    """Yields the arguments; the paths on standard input replace "-"."""
    for argument in arguments:
        if argument != LIST:
            yield argument
            continue
        try:
            with open(0, "rb", closefd=False) as stream:
                yield from listed(stream, end)
        except OSError as error:
            raise InputError(
                f"standard input cannot be read ({_reason(error)}); pipe a list of paths"
                " into it"
            ) from None


def listed(stream: io.BufferedIOBase, end: bytes) -> Iterator[str]:
    """Yields the paths of a list, each as soon as it is read; skips empty paths.

    end: the byte that ends each path. Raises `InputError` for data that are not a list of
    paths.
    """
    rest = b""
    while chunk := stream.read1(_CHUNK):
        if end != b"\0" and b"\0" in chunk:
            raise InputError(
                "standard input has a NUL byte; give a path a line, or --null for a list"
                " such as that of find -print0"
            )
        *whole, rest = (rest + chunk).split(end)
        yield from (os.fsdecode(path) for path in whole if path)
        if len(rest) > _CHUNK:
            raise InputError(
                f"standard input has over {_CHUNK} bytes in one line; give a path a line"
            )
    if rest:
        yield os.fsdecode(rest)


def images(paths: Iterable[str]) -> Iterator[str | Bad]:
    """Yields files as given, and the images below folders; an unreadable path gives `Bad`.

    Opens no file, and visits a path only when the iterator reaches it.
    """
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        is_empty = True
        for image in below(path):
            is_empty = False
            yield image
        if is_empty:
            yield Bad(path, NO_IMAGE)


def good(found: Iterable[T | Bad], counts: Counter[str]) -> Iterator[T]:
    """Yields the results of good files; prints `Bad` results on standard error.

    Counts both in `counts`, as "answered" and "bad".
    """
    for each in found:
        if isinstance(each, Bad):
            counts["bad"] += 1
            say(each)
            continue
        counts["answered"] += 1
        yield each


def say(bad: Bad) -> None:
    """Prints a bad file and the reason on standard error, on one line."""
    print(f"error: {shown(bad.path)}: {' '.join(bad.why.split())}", file=sys.stderr)


def below(folder: str) -> Iterator[str | Bad]:
    """Yields the image files and BAD entries below a folder, in the order of `walk`."""
    for entry in walk(folder):
        path = os.path.join(folder, entry.path) if entry.path else folder
        if entry.kind == BAD:
            yield Bad(path, entry.why)
        elif entry.kind == FILE and is_image(path):
            yield path


def walk(folder: str) -> Iterator[Entry]:
    """Yields the entries below a folder, ordered by the bytes of their whole paths.

    Follows links, except into a folder that contains the link. Hidden and system entries
    are HIDDEN, and such folders are not entered. An entry is BAD if it is unreadable, or
    neither a file nor a folder; the walk continues. A folder comes before its content.
    """

    def inside(prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
        name = prefix.removesuffix("/")
        path = os.path.join(folder, name) if name else folder
        try:
            status = os.stat(path)
            here = status.st_dev, status.st_ino
            with os.scandir(path) as found:
                entries = sorted(found, key=_order)
        except OSError as error:
            yield Entry(name, BAD, _reason(error))
            return
        if here in above:
            yield Entry(name, BAD, "a link to a folder that it lies in")
            return
        if len(above) > MAX_DEPTH:
            yield Entry(name, BAD, f"a folder over {MAX_DEPTH} deep")
            return
        if name:
            yield Entry(name, FOLDER)
        for entry in entries:
            name = prefix + entry.name
            if is_hidden(entry.name):
                yield Entry(name, HIDDEN)
            elif _kind(entry) == FOLDER:
                yield from inside(name + "/", above | {here})
            elif _kind(entry) == FILE:
                yield Entry(name, FILE)
            else:
                broken = entry.is_symlink() and not os.path.exists(entry.path)
                yield Entry(name, BAD, "a broken link" if broken else _NOT_REGULAR)

    return inside("", frozenset())


def is_hidden(path: str) -> bool:
    """Returns whether a component of the path begins with a dot or is a system file."""
    return any(part.startswith(".") or part in SYSTEM for part in path.split("/"))


def is_image(path: str) -> bool:
    """Returns whether a file has the suffix of an image."""
    return path.lower().endswith(SUFFIXES)


def read(path: str) -> bytes:
    """Returns a file's bytes; raises `DecodeError` if it is unreadable or too large."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # Opening a pipe would block.
            raise DecodeError(_NOT_REGULAR)
        check_size(status.st_size)
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise DecodeError(_reason(error)) from None


def check_size(size: int) -> None:
    """Raises `DecodeError` for a file of more than MAX_BYTES."""
    if size > MAX_BYTES:
        raise DecodeError(f"{size:,} bytes, over the limit of {MAX_BYTES:,}")


def _order(entry: "os.DirEntry[str]") -> bytes:
    return os.fsencode(entry.name) + (b"/" if _kind(entry) == FOLDER else b"")


def _kind(entry: "os.DirEntry[str]") -> str:
    with contextlib.suppress(OSError):  # A link to itself raises.
        if entry.is_dir():
            return FOLDER
        if entry.is_file():
            return FILE
    return BAD


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


_NOT_REGULAR = "not a regular file"
NO_IMAGE = f"holds no image; {', '.join(sorted(SUFFIXES))} are"
