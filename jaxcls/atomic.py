"""Writes files and folders that appear whole or not at all, and JSON in such files."""

import contextlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import IO, Any

from jaxcls.errors import InputError, first_line

_REMEDY = "make room, or let it be written there"


@contextlib.contextmanager
def writing(
    path: pathlib.Path, mode: str = "w", remedy: str = _REMEDY
) -> Iterator[IO[Any]]:
    """Opens a new file that replaces `path` when the block succeeds.

    If the block fails, an old file stays and the new one is removed. mode: "w" (text in
    UTF-8) or "wb". Raises `InputError`, which ends with `remedy`, if the file cannot be
    written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    encoding = None if "b" in mode else "utf-8"
    with (
        becoming(path, temporary, remedy),
        temporary.open(mode, encoding=encoding) as file,
    ):
        yield file


def write(path: pathlib.Path, text: str) -> None:
    """Writes `text` to a file; raises `InputError` as `writing` does."""
    with writing(path) as file:
        file.write(text)


@contextlib.contextmanager
def folder(path: pathlib.Path, flag: str) -> Iterator[pathlib.Path]:
    """Makes an empty folder that becomes `path` when the block succeeds.

    If the block fails, the folder is removed. flag: the flag that named `path`. Raises
    `InputError` if `path` exists or cannot be written.
    """
    if path.exists() or path.is_symlink():
        raise InputError(f"{flag}={path} exists, and is not replaced; name a new folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.incomplete")
    with becoming(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary


@contextlib.contextmanager
def becoming(
    path: pathlib.Path, temporary: pathlib.Path, remedy: str = _REMEDY
) -> Iterator[None]:
    """Renames `temporary` to `path` when the block succeeds.

    `temporary` is a file or folder beside `path`. Its bytes are synced to the disk first.
    If the block fails, `temporary` is removed. Raises `InputError` in place of OSError.
    """
    with explained(path, remedy):
        try:
            yield
            if temporary.is_dir():
                for file in temporary.iterdir():
                    _sync(file)
            _sync(temporary)
            temporary.replace(path)
            with contextlib.suppress(OSError):  # Some file systems cannot sync folders.
                _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            with contextlib.suppress(OSError):  # It may be a file.
                temporary.unlink()


@contextlib.contextmanager
def explained(path: pathlib.Path, remedy: str = _REMEDY) -> Iterator[None]:
    """Raises `InputError` in place of an OSError: `path` cannot be written; `remedy`."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); {remedy}"
        ) from None


def read_json(file: pathlib.Path) -> Any:
    """Returns the value in a JSON file, or None without a file; raises `InputError`."""
    try:
        return json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {first_line(error)}") from None


def write_json(file: pathlib.Path, value: Any) -> None:
    """Writes a value as JSON, through `finite`; raises `InputError`."""
    write(file, json.dumps(finite(value), indent=1, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Replaces non-finite numbers by None and tuples by lists, as JSON needs."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
