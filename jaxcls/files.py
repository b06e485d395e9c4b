"""Which image files are meant, in what order, and their bytes."""

import io
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from jaxcls.decode import DecodeError
from jaxcls.errors import InputError
from jaxcls.importers.folders import IMAGE_SUFFIXES
from jaxcls.importers.listing import shown
from jaxcls.importers.trees import MAX_DEPTH, check_size, is_hidden

T = TypeVar("T")
SUFFIXES = tuple(os.fsdecode(suffix) for suffix in IMAGE_SUFFIXES)
LIST = "-"  # Stands for a list of paths on standard input.
_CHUNK = 1 << 16  # Bytes of the list that are read at once; no path is as long.


class Bad(NamedTuple):
    """A path that no image comes from, and why."""

    path: str
    why: str


def asked(arguments: Sequence[str], null: bool) -> Iterator[str | Bad]:
    """The images that a command line means, as `images` gives them, lists read.

    null: whether a NUL ends each path of a list. Raises `InputError` at once where no
    image can be meant.
    """
    if null and LIST not in arguments:
        raise InputError("--null is of a list on standard input; give - for it, too")
    check(arguments)
    return images(given(arguments, b"\0" if null else b"\n"))


def check(arguments: Sequence[str]) -> None:
    """Raise `InputError` where no image can be meant: no such path, none below it.

    Where only some cannot, they are bad when their turn comes.
    """
    if arguments.count(LIST) > 1:
        raise InputError(f"{LIST} is given twice, and standard input is one list")
    found = [_why_none(path) for path in arguments]
    if found and all(found):
        raise InputError(f"{shown(arguments[0]) or repr('')} {found[0]}")


def _why_none(path: str) -> str:
    """Why no image can come from an argument; "" where one may."""
    if path == LIST:
        return ""
    if not os.path.lexists(path):
        return "is not a file; give image files or folders"
    is_empty = os.path.isdir(path) and next(below(path), None) is None
    return NO_IMAGE if is_empty else ""


def given(arguments: Iterable[str], end: bytes) -> Iterator[str]:
    """The arguments, and in the place of "-" the paths that standard input lists."""
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
    """The paths of a list as it comes, each followed by `end`; empty ones are none.

    Raises `InputError` for what is no list of paths.
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
    """Files as given, and the images below folders; what cannot be read is `Bad`.

    Nothing is opened, and nothing is looked at before it is asked for.
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
    """What was found of good files, as it comes; bad ones are said on standard error.

    Counts both, as "answered" and "bad".
    """
    for each in found:
        if isinstance(each, Bad):
            counts["bad"] += 1
            say(each)
            continue
        counts["answered"] += 1
        yield each


def say(bad: Bad) -> None:
    """Name a bad file on standard error, on one line."""
    print(f"error: {shown(bad.path)}: {' '.join(bad.why.split())}", file=sys.stderr)


def below(folder: str) -> Iterator[str | Bad]:
    """The image files below a folder by their suffix, those of each folder by name.

    Links are followed; hidden and system files are left out, as `prepare` does.
    """

    def walk(path: str, above: frozenset[tuple[int, int]]) -> Iterator[str | Bad]:
        try:
            status = os.stat(path)
            here = status.st_dev, status.st_ino
            with os.scandir(path) as inside:
                entries = sorted(inside, key=lambda entry: entry.name)
        except OSError as error:
            yield Bad(path, _reason(error))
            return
        if here in above:
            yield Bad(path, "a link to a folder that it lies in")
        elif len(above) > MAX_DEPTH:
            yield Bad(path, f"a folder over {MAX_DEPTH} deep")
        else:
            for entry in entries:
                if is_hidden(os.fsencode(entry.name)):
                    continue
                if _is_folder(entry):
                    yield from walk(entry.path, above | {here})
                elif entry.name.lower().endswith(SUFFIXES):
                    yield entry.path
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    yield Bad(entry.path, "a broken link")

    return walk(folder, frozenset())


def read(path: str) -> bytes:
    """A file's bytes; raises `DecodeError` where it cannot be, or should not be, read."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # A pipe would be waited for.
            raise DecodeError("not a regular file")
        check_size(status.st_size)
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise DecodeError(_reason(error)) from None


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # Such as a link to itself.
        return False


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


NO_IMAGE = f"holds no image; {', '.join(sorted(SUFFIXES))} are"
