"""Features of many images <-> one .npz file."""

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
    """Gives ``add(path, features [width] float32)``; at the end `file` has all of them.

    It has path [n] (text) and embed [n, width] float32, in the order they were added, and
    the arrays `about`, which may be made until the end. It appears, or replaces an old
    one, when it is whole, and not where the block raises.
    Features wait on the disk, beside it. Raises `InputError` where it cannot be written.
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
            # NumPy maps no empty file.
            embed = (
                np.memmap(rows, np.float32, "r", shape=shape)
                if paths
                else np.empty(shape, np.float32)
            )
            np.savez(out, path=np.array(paths, np.str_), embed=embed, **(about or {}))


def read(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file that `writing` made; embed is mapped from it, read-only.

    Raises OSError where it cannot be read, and ValueError where it is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():  # It reads all of it, a little at a time.
                raise ValueError(f"{damaged} is not as it was written")
            names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
            if "embed" in names:
                embed = _mapped(file, archive.getinfo("embed.npy"))
        with np.load(file, allow_pickle=False) as whole:
            found = {name: whole[name] for name in names if name != "embed"}
    # zipfile has no one kind for damage: a compression or version that it does not know is
    # NotImplementedError, a password RuntimeError.
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(str(error)) from None
    return {**found, "embed": embed} if "embed" in names else found


def _mapped(file: pathlib.Path, info: zipfile.ZipInfo) -> np.ndarray:
    """An array of an archive, which stores it as it is, without reading it."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed")
    with file.open("rb") as raw:
        raw.seek(info.header_offset + 26)  # Where a member's own header has two lengths.
        lengths = raw.read(4)
        raw.seek(sum(lengths[::2]) + 256 * sum(lengths[1::2]), 1)
        if np.lib.format.read_magic(raw) != (1, 0):
            raise ValueError(f"{info.filename} is of another version of NumPy's format")
        shape, in_columns, kind = np.lib.format.read_array_header_1_0(raw)
        if kind.hasobject or in_columns or not all(shape):  # NumPy maps no empty array.
            raise ValueError(f"{info.filename} is no array of rows")
        return np.memmap(raw, kind, "r", raw.tell(), shape)
