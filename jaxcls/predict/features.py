"""Writes the features of many images to one .npz file."""

import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import numpy as np

from jaxcls import atomic

Add = Callable[[str, np.ndarray], None]


@contextlib.contextmanager
def writing(file: pathlib.Path, width: int) -> Iterator[Add]:
    """Yields ``add(path, features [D] float32)``; writes `file` after the block.

    The file holds path [n] (text) and embed [n, D] float32, D being `width`, in the order
    of the calls. It appears, or replaces an old file, only when it is whole; if the block
    raises, nothing changes. Until then, a temporary file in the same folder holds the
    features. Raises `InputError` if a file cannot be written.
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
            embed = np.empty((0, width), np.float32)
            if paths:  # NumPy cannot map an empty file.
                embed = np.memmap(rows, np.float32, "r").reshape(len(paths), width)
            np.savez(out, path=np.array(paths, np.str_), embed=embed)
