"""Files and folders that are there whole or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import IO, Any

from jaxcls.errors import InputError


@contextlib.contextmanager
def writing(path: pathlib.Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file, of text in UTF-8 or of bytes, that becomes `path` when the block ends well.

    Else an old one stays, and nothing is left of the new. mode: "w" or "wb". Raises
    `InputError` where it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    encoding = None if "b" in mode else "utf-8"
    with explained(path):
        try:
            with temporary.open(mode, encoding=encoding) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def write(path: pathlib.Path, text: str) -> None:
    """Make `text` all that a file holds; raises `InputError` as `writing` does."""
    with writing(path) as file:
        file.write(text)


@contextlib.contextmanager
def folder(path: pathlib.Path, flag: str) -> Iterator[pathlib.Path]:
    """An empty folder to fill, which becomes `path` when the block ends well.

    Else nothing is left of it. flag: what named `path`. Raises `InputError` where that
    exists or cannot be written.
    """
    if path.exists() or path.is_symlink():
        raise InputError(f"{flag}={path} exists, and is not replaced; name a new folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.incomplete")
    with explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            yield temporary
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def explained(path: pathlib.Path) -> Iterator[None]:
    """Raise `InputError` in place of an OSError: `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); make room, or let it"
            " be written there"
        ) from None
