"""Features of many images -> one .npz file."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import numpy as np

from jaxcls.errors import InputError

Add = Callable[[str, np.ndarray], None]


@contextlib.contextmanager
def writing(file: str, width: int) -> Iterator[Add]:
    """Gives ``add(path, features [width] float32)``; at the end `file` has all of them.

    It has path [n] (text) and embed [n, width] float32, in the order they were added. It
    appears, or replaces an old one, when it is whole, and not where the block raises.
    Features wait on the disk, beside it. Raises `InputError` where it cannot be written.
    """
    target, paths = pathlib.Path(file), list[str]()
    temporary = target.with_name(f"{target.name}.tmp")
    with contextlib.ExitStack() as stack:
        with _explained(file):
            if target.is_dir():
                raise IsADirectoryError(0, "it is a folder")
            rows = stack.enter_context(tempfile.TemporaryFile(dir=target.parent))

        def add(path: str, features: np.ndarray) -> None:
            with _explained(file):
                rows.write(np.asarray(features, np.float32).tobytes())
            paths.append(path)

        yield add
        with _explained(file):
            rows.flush()
            shape = len(paths), width
            # NumPy maps no empty file.
            embed = (
                np.memmap(rows, np.float32, "r", shape=shape)
                if paths
                else np.empty(shape, np.float32)
            )
            stack.callback(temporary.unlink, missing_ok=True)
            with temporary.open("wb") as out:
                np.savez(out, path=np.array(paths, np.str_), embed=embed)
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(target)


@contextlib.contextmanager
def _explained(file: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"--embed={file} cannot be written ({error.strerror or error}); make room, or"
            " name another place"
        ) from None
