"""Lists the files in an uncompressed tar lazily, and reads them in place."""

import array
import os
import pathlib
import re
import tarfile
import weakref
from collections.abc import Iterator
from typing import IO

import numpy as np

from jaxcls.data.files import check_size
from jaxcls.errors import InputError

# The reasons to reject a member of an archive.
OUTSIDE = "its path leads out of the archive"
LINK = "a link; archives are read without following any"
LOST = "a hard link to {}, which is no file of the archive"


class _Tar(tarfile.TarFile):
    """A tar whose list of headers can be cleared, because it would hold a million."""

    members: list[tarfile.TarInfo]


class Reader:
    """Maps the number of a file in a tar to its bytes, by pread: safe from many threads.

    places: start and size of each file, one after the other. Raises `DecodeError` for a
    file over MAX_BYTES, and OSError if the tar became shorter.
    """

    def __init__(self, path: pathlib.Path, places: "array.array[int]") -> None:
        self._spans = np.array(places, np.int64).reshape(-1, 2)
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __call__(self, number: int) -> bytes:
        at, size = self._spans[number].tolist()
        check_size(size)
        data = os.pread(self._descriptor, size, at)  # All of it: one call reads 2 GiB.
        if len(data) < size:
            raise OSError(f"{len(data)} of {size} bytes are left in the tar")
        return data


def files(
    file: IO[bytes],
    where: str,
    rejected: list[tuple[str, str]],
    remedy: str,
    nested: re.Pattern[str] | None = None,
    prefix: str = "",
    at: int = 0,
    links: list[tuple[str, str]] | None = None,
) -> Iterator[tuple[str, int, int]]:
    """Yields (name, start, size) of each file of a tar; a folder's name ends with "/".

    A member whose name matches `nested` is itself a tar: its files come in its place, in a
    folder of the name's first group. prefix, at: the folder and the start of a nested tar.
    Adds (name, name of the file) of each hard link to `links`: it is a second name of
    another member. Adds other links, special files and paths outside the archive's root to
    `rejected`. Raises
    `InputError` for a truncated or damaged tar, because tarfile stops there silently.
    """
    try:
        with _Tar.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()
                if member.size < 0:  # The next header would lie before this one.
                    raise tarfile.ReadError(f"a size of {member.size} bytes")
                name, start = plain(member.name), at + member.offset_data
                reason = _fault(member)
                if reason:
                    rejected.append((prefix + member.name, reason))
                elif member.islnk():
                    if links is not None:
                        links.append((prefix + name, prefix + plain(member.linkname)))
                elif member.isdir():
                    yield f"{prefix}{name}/", start, 0
                elif match := nested and nested.fullmatch(name):
                    folder, inner = f"{match[1]}/", tar.extractfile(member)
                    yield folder, start, 0
                    assert inner is not None  # It is a regular file.
                    inside = f"{where}: {name}"
                    nest = rejected, remedy, None, folder, start, links
                    yield from files(inner, inside, *nest)
                else:
                    yield prefix + name, start, member.size
            file.seek(tar.offset)
            block = file.read(tarfile.BLOCKSIZE)
            # The outer tar states the length of a nested tar, so it may end without zeros.
            if block.strip(b"\0") or not (block or prefix):
                raise tarfile.ReadError(f"no file and no end at byte {tar.offset}")
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        raise InputError(f"{where} is cut short or damaged ({error}); {remedy}") from None


def is_below(name: str) -> bool:
    """Returns whether the path of an archive's member stays below the archive's root."""
    parts = name.replace("\\", "/").split("/")
    return bool(parts[0]) and ".." not in parts


def plain(name: str) -> str:
    """Returns the path of a member without './' and '//', which some archives hold."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _fault(member: tarfile.TarInfo) -> str:
    """Returns the reason why a member is not read, or ''."""
    if not is_below(member.name):
        return OUTSIDE
    if member.issym():
        return LINK
    is_plain = member.isdir() or member.isreg() or member.islnk()
    if not is_plain or member.issparse():
        return "not a regular file"
    return ""
