"""Writes the features of many images to one .npz file, and reads them."""

import contextlib
import pathlib
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxcls import atomic

Add = Callable[[str, np.ndarray], None]


@contextlib.contextmanager
def writing(
    file: pathlib.Path, width: int, about: Mapping[str, Any] | None = None
) -> Iterator[Add]:
    """Yields ``add(path, features [width] float32)``; writes `file` after the block.

    The file holds path [n] (text) and embed [n, width] float32, in the order of the calls,
    and the arrays of `about`, which the block may still fill. It appears, or replaces an
    old file, only when it is whole; if the block raises, nothing changes. Until then, a
    temporary file in the same folder holds the features. Raises `InputError` if a file
    cannot be written.
    """
    paths: list[str] = []
    with contextlib.ExitStack() as stack:
        with atomic.explained(file):
            rows = stack.enter_context(tempfile.TemporaryFile(dir=file.parent))

        def add(path: str, features: np.ndarray) -> None:
            with atomic.explained(file):
                rows.write(np.asarray(features, np.float32).tobytes())
            paths.append(path)

        yield add
        with atomic.writing(file, "wb") as out:
            rows.flush()
            shape = len(paths), width
            # NumPy cannot map an empty file.
            embed = (
                np.memmap(rows, np.float32, "r", shape=shape)
                if paths
                else np.empty(shape, np.float32)
            )
            np.savez(out, path=np.array(paths, np.str_), embed=embed, **(about or {}))


def read(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file that `writing` wrote; embed is memory-mapped, read-only.

    Raises OSError if the file cannot be read, and ValueError if it is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():  # testzip reads the archive in blocks.
                raise ValueError(f"{damaged} is not as it was written")
            names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
            if "embed" in names:
                embed = _mapped(file, archive.getinfo("embed.npy"))
        with np.load(file, allow_pickle=False) as whole:
            found = {name: whole[name] for name in names if name != "embed"}
    # zipfile raises several types for damage: NotImplementedError for an unknown
    # compression or version, RuntimeError for a password.
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(str(error)) from None
    return {**found, "embed": embed} if "embed" in names else found


def _mapped(file: pathlib.Path, info: zipfile.ZipInfo) -> np.ndarray:
    """Memory-maps an array that an archive stores uncompressed.

    Raises ValueError if the array is compressed or no array of rows.
    """
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed")
    with file.open("rb") as raw:
        raw.seek(info.header_offset + 26)  # A local header has two lengths here.
        lengths = raw.read(4)
        raw.seek(sum(lengths[::2]) + 256 * sum(lengths[1::2]), 1)
        if np.lib.format.read_magic(raw) != (1, 0):
            raise ValueError(f"{info.filename} is of another version of NumPy's format")
        shape, in_columns, kind = np.lib.format.read_array_header_1_0(raw)
        if kind.hasobject or in_columns or not all(shape):  # NumPy maps no empty array.
            raise ValueError(f"{info.filename} is no array of rows")
        return np.memmap(raw, kind, "r", raw.tell(), shape)
