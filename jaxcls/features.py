"""Features of many images -> one .npz file."""

import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import numpy as np

from jaxcls import atomic

Add = Callable[[str, np.ndarray], None]


@contextlib.contextmanager
def writing(file: pathlib.Path, width: int) -> Iterator[Add]:
    """Gives ``add(path, features [width] float32)``; at the end `file` has all of them.

    It has path [n] (text) and embed [n, width] float32, in the order they were added. It
    appears, or replaces an old one, when it is whole, and not where the block raises.
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
            np.savez(out, path=np.array(paths, np.str_), embed=embed)
