"""Lists the files in an uncompressed tar lazily, and reads them in place."""

import array
import io
import os
import pathlib
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


class _Tar(tarfile.TarFile):
    """A tar whose list of headers can be cleared, because it would hold a million."""

    members: list[tarfile.TarInfo]


class Reader:
    """Maps an index to the bytes of one file in a tar, by pread: safe from many threads.

    places: start and size of each file, one after the other, in tar order. order: [n], each
    index's number in the tar. Raises `DecodeError` for a file over MAX_BYTES, and OSError
    if the tar became shorter.
    """

    def __init__(
        self, path: pathlib.Path, places: "array.array[int]", order: np.ndarray
    ) -> None:
        self._spans = np.array(places, np.int64).reshape(-1, 2)[order]
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __call__(self, index: int) -> bytes:
        at, size = self._spans[index].tolist()
        check_size(size)
        data = b""
        while len(data) < size:  # One call reads at most 2 GiB, and may read less.
            more = os.pread(self._descriptor, size - len(data), at + len(data))
            if not more:
                raise OSError(f"{len(data)} of {size} bytes are left in the tar")
            data += more
        return data


def files(
    file: IO[bytes],
    where: str,
    rejected: list[tuple[str, str]],
    *,
    nested: bool = False,
    remedy: str = "copy it again",
) -> Iterator[tuple[str, tarfile.TarInfo, IO[bytes] | None]]:
    """Yields (name, member, content) of each file and folder of a tar.

    The content of a folder is None. nested: the tar lies in another tar. Adds links,
    special files and paths outside the archive's root to `rejected`. Raises `InputError`
    for a truncated or damaged tar, because tarfile stops there silently.
    """
    try:
        with _Tar.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()
                if member.size < 0:  # The next header would lie before this one.
                    raise tarfile.ReadError(f"a size of {member.size} bytes")
                reason = _fault(member)
                if reason:
                    rejected.append((member.name, reason))
                elif member.isdir():
                    yield plain(member.name), member, None
                else:
                    with tar.extractfile(member) or io.BytesIO() as content:
                        yield plain(member.name), member, content
            file.seek(tar.offset)
            block = file.read(tarfile.BLOCKSIZE)
            # The outer tar states the length of a nested tar, so it may end without zeros.
            if block.strip(b"\0") or not (block or nested):
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
    if member.issym() or member.islnk():
        return LINK
    if not (member.isdir() or member.isreg()) or member.issparse():
        return "not a regular file"
    return ""
