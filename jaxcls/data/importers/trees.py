"""Opens a folder, a .tar, .tgz or .zip in one form: sorted paths, and a reader of files.

Members of an archive are read in place and never extracted, so no path in an archive can
overwrite a file.
"""

import array
import bz2
import contextlib
import gzip
import lzma
import os
import pathlib
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import IO, NamedTuple

import numpy as np

from jaxcls.data import files
from jaxcls.data.decode import DecodeError
from jaxcls.data.importers import tars
from jaxcls.data.importers.listing import sorted_once
from jaxcls.errors import InputError

_FREE = 1 << 30  # Unpacking leaves this many bytes free on the disk.

# The standard library has no one exception for damaged archives. zipfile raises
# NotImplementedError for an unknown compression or version.
_DAMAGES = (
    *(tarfile.TarError, zipfile.BadZipFile, EOFError),
    *(zlib.error, lzma.LZMAError, gzip.BadGzipFile),
    *(ValueError, NotImplementedError, struct.error),
)

Read = Callable[[int], bytes]


class Tree(NamedTuple):
    """The files of a folder or an archive.

    names: [n] bytes (dtype S), sorted, with '/' separators.
    read: index -> the bytes of that file.
    folders: the paths of folders, down to three levels.
    rejected: (name, reason) of links, of paths that lead out of the root, and of members
    that are no regular file.
    hidden: the number of hidden and system files left out.
    """

    names: np.ndarray
    read: Read
    folders: list[bytes]
    rejected: list[tuple[str, str]]
    hidden: int

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
        return _tar(_plain_tar(path, scratch), path)
    except _DAMAGES as error:
        raise InputError(
            f"{path} is damaged ({error}); copy or download it again"
        ) from None


class _Names:
    """Collects the paths of a tree; counts hidden files and lists rejected ones."""

    def __init__(self) -> None:
        self.files: list[bytes] = []
        self.folders: list[bytes] = []
        self.rejected: list[tuple[str, str]] = []
        self.hidden = 0

    def add(self, name: bytes) -> bool:
        """Adds a file and returns True; counts a hidden file and returns False."""
        if files.is_hidden(os.fsdecode(name)):
            self.hidden += 1
            return False
        self.files.append(name)
        return True

    def add_folder(self, name: bytes) -> None:
        if name and name.count(b"/") < 3 and not files.is_hidden(os.fsdecode(name)):
            self.folders.append(name)

    def tree(self, reader: Callable[[np.ndarray, np.ndarray], Read]) -> Tree:
        """Returns the tree; ``reader(names, order)`` makes its `read`.

        order: [n], the position of each file in the order of `add`.
        """
        names, order = sorted_once(self.files, self.rejected)
        read = reader(names, order)
        return Tree(names, read, self.folders, self.rejected, self.hidden)


def _folder(root: pathlib.Path) -> Tree:
    """Lists the files below a folder, by `files.walk`."""
    found, base = _Names(), os.fspath(root)
    for path, kind, why in files.walk(base):
        name = os.fsencode(path)
        if kind == files.HIDDEN:
            found.hidden += 1
        elif kind == files.FILE:
            found.add(name)
        elif kind == files.FOLDER:
            found.add_folder(name)
        elif path:
            found.rejected.append((path, why))
        else:
            raise InputError(f"{root} cannot be read ({why}); allow it")

    def reader(names: np.ndarray, order: np.ndarray) -> Read:
        return lambda i: files.read(os.path.join(base, os.fsdecode(names[i])))

    return found.tree(reader)


def _tar(path: pathlib.Path, where: pathlib.Path) -> Tree:
    """Lists the members of an uncompressed tar; errors name `where`, the user's path."""
    found, places = _Names(), array.array("q")
    with path.open("rb") as file:
        for name, member, content in tars.files(file, f"{where}", found.rejected):
            if content is None:
                found.add_folder(os.fsencode(name))
            elif found.add(os.fsencode(name)):
                places.extend((member.offset_data, member.size))

    return found.tree(lambda names, order: tars.Reader(path, places, order))


def _zip(path: pathlib.Path) -> Tree:
    """Lists the members of a zip; many threads may read them.

    Python holds the zip's directory as objects, about 1 kB a member. For millions of files,
    give a tar or a folder.
    """
    archive, found = zipfile.ZipFile(path), _Names()
    members: list[zipfile.ZipInfo] = []
    for member in archive.infolist():
        given = _zip_name(member)
        name, mode = os.fsencode(tars.plain(given)), member.external_attr >> 16
        if given.endswith("/"):
            found.add_folder(name)
        elif not tars.is_below(given):
            found.rejected.append((given, tars.OUTSIDE))
        elif stat.S_ISLNK(mode):
            found.rejected.append((os.fsdecode(name), tars.LINK))
        elif member.flag_bits & 1:
            found.rejected.append((os.fsdecode(name), "encrypted"))
        elif found.add(name):
            members.append(member)

    def read(member: zipfile.ZipInfo) -> bytes:
        files.check_size(member.file_size)
        try:
            return archive.read(member)
        except (*_DAMAGES, RuntimeError, OSError) as error:
            raise DecodeError(f"cannot be unpacked ({error})") from None

    return found.tree(lambda names, order: lambda i: read(members[order[i]]))


def _zip_name(member: zipfile.ZipInfo) -> str:
    """Returns the path of a member; repairs unmarked UTF-8, and backslashes of Windows."""
    name = member.filename
    if not member.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/") if member.create_system == 0 else name


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
        while chunk := _read(packed):
            if out.tell() and shutil.disk_usage(scratch).free < _FREE:
                raise InputError(
                    f"{path} unpacks to more than {out.tell():,} bytes and {scratch} is"
                    " full; unpack it yourself where there is room, and give the folder"
                )
            out.write(chunk)
    return unpacked


def _read(packed: IO[bytes]) -> bytes:
    """Reads the next bytes of a compressed file.

    Raises EOFError in place of OSError, because here it is damage of the file, not of the
    disk.
    """
    try:
        return packed.read(1 << 24)
    except OSError as error:
        raise EOFError(error.strerror or f"{error}") from None
