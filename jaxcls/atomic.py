"""Files that are there whole or not at all."""

import contextlib
import os
import pathlib
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
def explained(path: pathlib.Path) -> Iterator[None]:
    """Raise `InputError` in place of an OSError: `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); make room, or let it"
            " be written there"
        ) from None
