"""Reads the pickled files of CIFAR; nothing in them can run."""

import io
import math
import pathlib
import tarfile
import zlib
from typing import IO, Any

import numpy as np

from jaxcls import pickles
from jaxcls.errors import InputError
from jaxcls.pickles import Global, RefusedError, kind_of

REMEDY = "download it again from https://www.cs.toronto.edu/~kriz/cifar.html"
_MOST_BYTES = 1 << 28  # CIFAR-100's training file is the largest, with 155 million.


def load_all(place: pathlib.Path, folder: str, wanted: set[str]) -> dict[str, dict]:
    """Loads the `wanted` files by name, from folder `place` or `folder` of tar `place`.

    Raises `InputError` like `load`, and if a file is missing.
    """
    files = {}
    try:
        if place.is_dir():
            for name in wanted:
                if (place / name).is_file():
                    with (place / name).open("rb") as file:
                        size = (place / name).stat().st_size
                        files[name] = load(file, size, f"{place}: {name}")
        else:
            with tarfile.open(place) as archive:
                for member in archive:
                    parent, _, name = member.name.rpartition("/")
                    inside = parent.split("/")[-1] == folder
                    if name in wanted and inside and member.isreg():
                        with archive.extractfile(member) or io.BytesIO() as packed:
                            files[name] = load(packed, member.size, f"{place}: {name}")
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"{place} cannot be read ({error}); {REMEDY}") from None
    for name in sorted(wanted - set(files)):
        raise InputError(f"{place} lacks {name}; {REMEDY}")
    return files


def load(file: IO[bytes], size: int, where: str) -> dict:
    """Loads a dict from a pickle of plain values and uint8 arrays.

    size: bytes of the file. where: its name in errors. Raises `InputError` for any other
    pickle, and calls no function that a pickle names.
    """
    try:
        if size > _MOST_BYTES:
            raise RefusedError(f"{size:,} bytes, over the limit of {_MOST_BYTES:,}")
        content = pickles.load(io.BytesIO(file.read()), _NAMES, _build, python2=bytes)
    except RefusedError as error:
        reason = str(error) if str(error).isprintable() else ascii(str(error))
        raise InputError(f"{where} is no pickle of CIFAR ({reason}); {REMEDY}") from None
    if type(content) is not dict:
        raise InputError(
            f"{where} is a pickled {kind_of(content)}, and must be a dict; {REMEDY}"
        )
    return content


def class_names(meta: dict, key: str, where: str) -> tuple[str, ...]:
    """Returns the list of names under `key`; raises `InputError` if there is none."""
    names = _entry(meta, key)
    try:
        decoded = [n.decode() if isinstance(n, bytes) else n for n in names]
    except (TypeError, UnicodeDecodeError):
        decoded = []
    if not decoded or not all(isinstance(name, str) for name in decoded):
        raise InputError(f"{where} lists no {key}; {REMEDY}")
    return tuple(decoded)


def labels(batch: dict, key: str, classes: int, where: str) -> np.ndarray:
    """Returns the labels under `key`, [N] int32 in 0..classes-1; raises `InputError`."""
    values = _entry(batch, key)
    if not isinstance(values, list) or {type(value) for value in values} != {int}:
        raise InputError(f"{where} lists no {key}; {REMEDY}")
    for label in values:
        if not 0 <= label < classes:
            raise InputError(
                f"{where} has label {label}, outside 0..{classes - 1}; {REMEDY}"
            )
    return np.array(values, np.int32)


def images(batch: dict, count: int, where: str) -> np.ndarray:
    """Returns the images of a batch, [count, 32, 32, 3] uint8 RGB; raises `InputError`."""
    data = _entry(batch, "data")
    values = data.values if isinstance(data, _Array) else np.zeros(0, np.uint8)
    if values.shape != (count, 3072):
        raise InputError(
            f"{where} has data of shape {values.shape} for {count} labels, and must have"
            f" {(count, 3072)}; {REMEDY}"
        )
    return values.reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)


def _entry(content: dict, key: str) -> Any:
    """Returns the entry under a key of Python 2 (bytes) or Python 3 (str), or None."""
    return content.get(key.encode(), content.get(key))


class _Array:
    """Stands for an array in a pickle; `_build` sets the values from its state."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: np.ndarray = np.zeros(0, np.uint8)


class _Uint8:
    """Stands for numpy's dtype of uint8; its state is ignored."""

    __slots__ = ()


def _build(value: Any, state: Any) -> None:
    """Sets an array from its state: (version, shape, dtype, is by column, bytes)."""
    if type(value) is _Uint8:
        return
    if type(value) is not _Array or type(state) is not tuple or len(state) != 5:
        raise RefusedError(f"it gives state to a {kind_of(value)}")
    _, shape, kind, by_column, data = state
    if type(kind) is not _Uint8:
        raise RefusedError("an array that is not uint8")
    if type(shape) is not tuple or not 0 < len(shape) <= _MOST_DIMENSIONS:
        raise RefusedError("an array without a shape")
    if any(type(n) is not int or not 0 < n <= _MOST_BYTES for n in shape):
        raise RefusedError("an array whose shape is of other than whole numbers")
    if type(data) is not bytes or len(data) != math.prod(shape):
        size = len(data) if type(data) is bytes else 0
        raise RefusedError(f"{size} bytes for an array of {shape}")
    flat = np.frombuffer(data, np.uint8)
    value.values = flat.reshape(shape, order="F" if by_column is True else "C")


def _array(*arguments: Any) -> _Array:
    return _Array()


def _dtype(code: Any, *arguments: Any) -> _Uint8:
    if type(code) not in (bytes, str) or code not in (b"u1", "u1"):
        name = repr(code[:20]) if type(code) in (bytes, str) else f"a {kind_of(code)}"
        raise RefusedError(f"an array of {name}, which is not uint8")
    return _Uint8()


def _encode(text: Any, encoding: Any) -> bytes:
    """Returns bytes; Python 3 pickles bytes for Python 2 as a call of this function."""
    if type(encoding) not in (bytes, str) or encoding not in (b"latin1", "latin1"):
        raise RefusedError("bytes in another encoding than latin1")
    if type(text) is not str:
        raise RefusedError(f"bytes of a {kind_of(text)}")
    return text.encode("latin1")


_MOST_DIMENSIONS = 4
_NAMES = pickles.Names(
    {
        Global("numpy.core.multiarray", "_reconstruct"): _array,
        Global("numpy._core.multiarray", "_reconstruct"): _array,
        Global("numpy", "dtype"): _dtype,
        Global("_codecs", "encode"): _encode,
    },
    frozenset([Global("numpy", "ndarray")]),
)
