"""Opens a folder, a .tar, .tgz or .zip in one form: sorted paths, and a reader of files.

Members of an archive are read in place and never extracted, so no path in an archive can
overwrite a file.
"""

import array
import bz2
import errno
import gzip
import lzma
import os
import pathlib
import re
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxcls.data import files
from jaxcls.data.decode import DecodeError
from jaxcls.data.importers import tars
from jaxcls.errors import InputError, shown

_FREE = 1 << 30  # Unpacking leaves this many bytes free on the disk.
# The standard library has no one exception for damaged archives. zipfile raises
# NotImplementedError for an unknown compression or version.
_DAMAGES = (
    *(tarfile.TarError, zipfile.BadZipFile, EOFError),
    *(zlib.error, lzma.LZMAError),
    *(ValueError, NotImplementedError, struct.error),
)

Read = Callable[[int], bytes]


class Tree(NamedTuple):
    """The files of a folder or an archive.

    names: [n] bytes (dtype S), sorted, with '/' separators.
    read: index -> the bytes of that file.
    folders: the paths of folders, down to three levels.
    rejected: (name, reason) of links in a folder or tar, of paths that lead out of the
    root, and of members that are no regular file.
    hidden: the paths of what is hidden or of a system; of such a folder only its own.
    notes: remarks for the user, one line each.
    """

    names: np.ndarray
    read: Read
    folders: list[bytes]
    rejected: list[tuple[str, str]]
    hidden: list[str]
    notes: list[str]

    def find(self, name: bytes) -> int | None:
        """Returns the index of a file, or None if it is not there."""
        at = int(np.searchsorted(self.names, name))
        return at if at < len(self.names) and self.names[at] == name else None

    def content(self, name: str, where: str, remedy: str) -> bytes:
        """Returns the file `name` that is nearest to the root.

        where: the tree's name in errors. Raises `InputError`, which ends with `remedy`, if
        the file is missing or unreadable.
        """
        end = os.fsencode(f"/{name}")
        rows = [row for row, path in enumerate(self.names) if (b"/" + path).endswith(end)]
        if not rows:
            raise InputError(f"{where} lacks {name}; {remedy}")
        try:
            return self.read(min(rows, key=lambda row: len(self.names[row])))
        except (DecodeError, OSError) as error:
            raise InputError(
                f"{where}: {name} cannot be read ({error}); {remedy}"
            ) from None

    def below(self, folder: bytes) -> "Tree":
        """Returns the tree in a folder; its paths begin below the folder."""
        prefix = folder + b"/"
        rows = [row for row, name in enumerate(self.names) if name.startswith(prefix)]
        names = np.array([self.names[row][len(prefix) :] for row in rows], np.bytes_)
        folders = [name[len(prefix) :] for name in self.folders if name.startswith(prefix)]
        return self._replace(
            names=names, read=lambda i: self.read(rows[i]), folders=folders
        )


def open_tree(path: pathlib.Path, scratch: pathlib.Path) -> Tree:
    """Lists the files of a folder or an archive; unpacks a compressed tar into `scratch`.

    Raises `InputError` for any other file, or for a damaged archive.
    """
    if path.is_dir():
        return _folder(path)
    try:
        # A tar that ends with a small zip looks like a zip too.
        if zipfile.is_zipfile(path) and not tarfile.is_tarfile(path):
            return _zip(path)
        return of_tar(_plain_tar(path, scratch), f"{path}", "copy it again")
    except (*_DAMAGES, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # The folder `scratch` is full.
        raise InputError(
            f"{path} is damaged ({error}); copy or download it again"
        ) from None


class _Found:
    """Collects the paths of a tree; leaves hidden files out and lists rejected ones."""

    def __init__(self) -> None:
        self.files: list[bytes] = []
        self.folders: list[bytes] = []
        self.rejected: list[tuple[str, str]] = []
        self.hidden: dict[str, None] = {}

    def add(self, path: str) -> bool:
        """Adds a file, or a folder whose path ends with "/"; returns whether it is a file.

        A hidden file is none.
        """
        name = os.fsencode(path)
        if files.is_hidden(path):
            parts = path.split("/")
            first = next(n for n, part in enumerate(parts) if files.is_hidden(part))
            end = "/" if first < len(parts) - 1 else ""
            self.hidden["/".join(parts[: first + 1]) + end] = None
            return False
        if not path.endswith("/"):
            self.files.append(name)
            return True
        if len(name) > 1 and name.count(b"/") <= 3:
            self.folders.append(name[:-1])
        return False

    def tree(self, read: Read) -> Tree:
        """Returns the tree; read: number in the order of `add` -> the bytes of the file."""
        given = np.array(self.files, np.bytes_)
        names, order = np.unique(given, return_index=True)
        for name in np.delete(given, order):
            self.rejected.append((os.fsdecode(name), "the same path a second time"))
        return Tree(
            names,
            lambda i: read(int(order[i])),
            self.folders,
            self.rejected,
            [*self.hidden],
            [],
        )


def _folder(root: pathlib.Path) -> Tree:
    """Lists the files below a folder, by `files.walk`."""
    found, base = _Found(), os.fspath(root)
    hidden: list[str] = []
    for entry in files.walk(base, hidden):
        if isinstance(entry, str):
            found.add(entry)
        elif entry.path:
            found.rejected.append((entry.path, entry.why))
        else:
            raise InputError(f"{root} cannot be read ({entry.why}); allow it")
    found.hidden.update(dict.fromkeys(hidden))
    names = np.array(found.files, np.bytes_)  # In the order of `walk`, and of the tree.
    return found.tree(lambda i: files.read(os.path.join(base, os.fsdecode(names[i]))))


def of_tar(
    path: pathlib.Path, where: str, remedy: str, nested: re.Pattern[str] | None = None
) -> Tree:
    """Lists an uncompressed tar as `tars.files` does; errors name `where`."""
    found, places = _Found(), array.array("q")
    links: list[tuple[str, str]] = []
    with path.open("rb") as file:
        members = tars.files(file, where, found.rejected, remedy, nested, links=links)
        for name, start, size in members:
            if found.add(name):
                places.extend((start, size))
    _add_links(found, places, links)
    return found.tree(tars.Reader(path, places))


def _add_links(
    found: _Found, places: "array.array[int]", links: list[tuple[str, str]]
) -> None:
    """Adds each hard link as a file with the place of the member that it names.

    links: (name, name of the member). Rejects a link to what is no file of the archive.
    """
    if not links:
        return  # The index below takes memory for each file.
    numbers: dict[bytes, int] = {}
    for number, member in enumerate(found.files):
        numbers.setdefault(member, number)
    for name, target in links:
        number = numbers.get(os.fsencode(target), -1)
        if number < 0:
            found.rejected.append((name, tars.LOST.format(shown(target))))
        elif found.add(name):
            numbers.setdefault(os.fsencode(name), len(found.files) - 1)
            places.extend(places[2 * number : 2 * number + 2])


def _zip(path: pathlib.Path) -> Tree:
    """Lists the members of a zip; many threads may read them.

    Python holds the zip's directory as objects, about 1 kB a member. For millions of files,
    give a tar or a folder.
    """
    archive, found = zipfile.ZipFile(path), _Found()
    members: list[zipfile.ZipInfo] = []
    guessed: list[str] = []
    for member in archive.infolist():
        given, is_guess = _zip_name(member)
        if is_guess and not files.is_hidden(given):
            guessed.append(given)
        name = tars.plain(given)
        if given.endswith("/"):
            found.add(f"{name}/")
        elif not tars.is_below(given):
            found.rejected.append((given, tars.OUTSIDE))
        elif found.add(name):
            members.append(member)

    def read(number: int) -> bytes:
        files.check_size(members[number].file_size)
        try:
            return archive.read(members[number])
        except (*_DAMAGES, RuntimeError, OSError) as error:
            raise DecodeError(f"cannot be unpacked ({error})") from None

    notes = []
    if guessed:
        notes = [
            f"{len(guessed):,} names in {shown(path.name)} are not UTF-8, and are read as"
            f" code page 437, such as {shown(guessed[0])}; if they look wrong, give the"
            " unpacked folder"
        ]
    return found.tree(read)._replace(notes=notes)


def _zip_name(member: zipfile.ZipInfo) -> tuple[str, bool]:
    """Returns the path of a member, and whether the encoding of its letters is a guess.

    Repairs unmarked UTF-8, and backslashes of Windows.
    """
    name, is_guess = member.filename, False
    if not member.flag_bits & 0x800:
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:  # The archive does not say which code page it is.
            is_guess = True
    return name.replace("\\", "/") if member.create_system == 0 else name, is_guess


def _plain_tar(path: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    """Returns `path`, or its uncompressed copy in `scratch`."""
    with path.open("rb") as file:
        head = file.read(6)
    kinds = {b"\x1f\x8b": gzip.GzipFile, b"\xfd7zXZ\0": lzma.LZMAFile, b"BZh": bz2.BZ2File}
    kind = next((kind for magic, kind in kinds.items() if head.startswith(magic)), None)
    if kind is None:
        if tarfile.is_tarfile(path):
            return path
        if head.startswith(b"PK\3\4"):
            raise zipfile.BadZipFile("a zip without its end")
        raise InputError(
            f"{path} is no folder and no archive; give a folder, a .tar, .tgz or .zip"
        )
    unpacked = scratch / "unpacked.tar"
    with unpacked.open("wb") as out, kind(path) as packed:
        while chunk := packed.read(1 << 24):
            if shutil.disk_usage(scratch).free < _FREE:
                raise InputError(
                    f"{path} unpacks to more than {out.tell():,} bytes, and {scratch} is"
                    " full; unpack it where there is room, and give the folder"
                )
            out.write(chunk)
    return unpacked
