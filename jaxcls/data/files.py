"""Finds the image files that arguments name, in a fixed order, and reads them.

`prepare`, `predict` and `search` find the files of a folder by the same `walk`.
"""

import contextlib
import io
import os
import stat
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from jaxcls.data.decode import DecodeError
from jaxcls.errors import InputError, shown

T = TypeVar("T")
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo", ".png", ".apng"),
    *(".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jp2", ".j2k", ".j2c", ".jpf", ".jpx", ".tga", ".qoi", ".heic", ".heif", ".avif"),
)
# What operating systems, network disks and gallery programs leave behind, in small letters.
SYSTEM = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "found.000"),
        *("system volume information", "icon\r", "__macosx", "lost+found"),
        *("@eadir", "@tmp", "#recycle", "@recycle", "#snapshot", "thumbnails"),
        "__pycache__",
    )
)
# The largest readable file in bytes; MAX_PIXELS at 16 bits a sample fits.
MAX_BYTES = 1 << 30
MAX_DEPTH = 100  # The deepest nesting of folders.
LIST = "-"  # Stands for a list of paths on standard input.
_CHUNK = 1 << 16  # Bytes per read of the list; every path is shorter.


class Bad(NamedTuple):
    """A path without a readable image, and the reason."""

    path: str
    why: str


def asked(
    arguments: Sequence[str], null: bool, left_out: list[str] | None = None
) -> Iterator[str | Bad]:
    """Returns the images of a command line, by `images`; "-" is a list on standard input.

    null: whether a NUL ends each path of the list. left_out: of `images`. Raises
    `InputError` at once if the arguments name no image.
    """
    if null and LIST not in arguments:
        raise InputError("--null is of a list on standard input; give - for it, too")
    check(arguments)
    return images(given(arguments, b"\0" if null else b"\n"), left_out)


def check(arguments: Sequence[str]) -> None:
    """Raises `InputError` if no argument can give an image, or if "-" is given twice.

    If only some arguments give no image, `images` reports these as `Bad`.
    """
    if arguments.count(LIST) > 1:
        raise InputError(f"{LIST} is given twice, and standard input is one list")
    for path in arguments:
        is_there = path == LIST or os.path.lexists(path)
        if is_there and next(images([path])) != Bad(path, NO_IMAGE):
            return
    if arguments:
        is_there = os.path.lexists(arguments[0])
        why = NO_IMAGE if is_there else "is not a file; give image files or folders"
        raise InputError(f"{shown(arguments[0]) or repr('')} {why}")


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


def images(paths: Iterable[str], left_out: list[str] | None = None) -> Iterator[str | Bad]:
    """Yields files as given, and the images below folders; an unreadable path gives `Bad`.

    Opens no file, and visits a path only when the iterator reaches it. Adds what is hidden,
    or not named as an image, to `left_out`.
    """
    for path in paths:
        if os.path.isdir(path):
            found = below(path, left_out)
            yield next(found, Bad(path, NO_IMAGE))
            yield from found
        else:
            yield path


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


def say_left_out(paths: Sequence[str]) -> None:
    """Prints on standard error how much of folders was left out, if anything was."""
    if paths:
        first = ", ".join(map(shown, paths[:3]))
        more = f" and {len(paths) - 3:,} more" if len(paths) > 3 else ""
        what = "hidden, or not named as images"
        print(f"note: left out, {what}: {first}{more}", file=sys.stderr)


def below(folder: str, left_out: list[str] | None = None) -> Iterator[str | Bad]:
    """Yields the image files and `Bad` entries below a folder, in the order of `walk`.

    Adds the paths of other files, and of what is hidden, to `left_out`.
    """
    hidden: list[str] = []
    others = [] if left_out is None else left_out
    for entry in walk(folder, hidden):
        if isinstance(entry, Bad):
            path = os.path.join(folder, entry.path) if entry.path else folder
            yield Bad(path, entry.why)
        elif is_image(entry):
            yield os.path.join(folder, entry)
        elif not entry.endswith("/"):
            others.append(os.path.join(folder, entry))
    others += (os.path.join(folder, path) for path in hidden)


def walk(folder: str, left_out: list[str] | None = None) -> Iterator[str | Bad]:
    """Yields the paths below a folder, ordered by the bytes of the whole paths.

    The path of a folder ends with "/" and comes before its content. Follows links, except
    into a folder that contains the link. Leaves out hidden and system entries, and adds
    their paths to `left_out`. An entry is `Bad` if it is unreadable, or neither a file nor
    a folder; the walk continues.
    """

    def inside(prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str | Bad]:
        name, path = prefix.removesuffix("/"), os.path.join(folder, prefix)
        try:
            status = os.stat(path)
            with os.scandir(path) as found:
                entries = sorted(map(_slashed, found), key=os.fsencode)
        except OSError as error:
            yield Bad(name, _reason(error))
            return
        here = status.st_dev, status.st_ino
        if here in above:
            yield Bad(name, "a link to a folder that it lies in")
            return
        if len(above) > MAX_DEPTH:
            yield Bad(name, f"a folder over {MAX_DEPTH} deep")
            return
        if prefix:
            yield prefix
        for entry in entries:
            path = os.path.join(folder, prefix + entry)
            if is_hidden(entry):
                if left_out is not None:
                    left_out.append(prefix + entry)
                continue
            if entry.endswith("/"):
                yield from inside(prefix + entry, above | {here})
                continue
            why = _why_not(path)
            yield Bad(prefix + entry, why) if why else prefix + entry

    return inside("", frozenset())


def is_hidden(path: str) -> bool:
    """Returns whether a component of the path begins with a dot or is of a system."""
    return any(part.startswith(".") or part.lower() in SYSTEM for part in path.split("/"))


def is_image(path: str) -> bool:
    """Returns whether a file has the suffix of an image."""
    return path.lower().endswith(SUFFIXES)


def read(path: str) -> bytes:
    """Returns a file's bytes; raises `DecodeError` if it is unreadable or too large."""
    try:
        if why := _why_not(path):  # Opening a pipe would block.
            raise DecodeError(why)
        check_size(os.path.getsize(path))
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise DecodeError(_reason(error)) from None


def check_size(size: int) -> None:
    """Raises `DecodeError` for a file of more than MAX_BYTES."""
    if size > MAX_BYTES:
        raise DecodeError(f"{size:,} bytes, over the limit of {MAX_BYTES:,}")


def _why_not(path: str) -> str:
    """Returns the reason why a path is no regular file, or ""."""
    try:
        return "" if stat.S_ISREG(os.stat(path).st_mode) else _NOT_REGULAR
    except OSError as error:
        return "a broken link" if os.path.islink(path) else _reason(error)


def _slashed(entry: "os.DirEntry[str]") -> str:
    """Returns the name of an entry; that of a folder ends with "/"."""
    with contextlib.suppress(OSError):  # A link to itself raises.
        if entry.is_dir():
            return entry.name + "/"
    return entry.name


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


_NOT_REGULAR = "not a regular file"
# The suffixes in the text of --help.
NAMED = textwrap.fill(", ".join(SUFFIXES), 88)
NO_IMAGE = f"holds no image; {', '.join(sorted(SUFFIXES))} are"
