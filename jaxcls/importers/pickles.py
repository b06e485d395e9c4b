"""The pickled files of CIFAR, read so that nothing in them can run."""

import io
import math
import pathlib
import pickle
import tarfile
import zlib
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from jaxcls.errors import InputError

REMEDY = "download it again from https://www.cs.toronto.edu/~kriz/cifar.html"


def load_all(place: pathlib.Path, folder: str, wanted: set[str]) -> dict[str, dict]:
    """The `wanted` files in folder `place`, or in `folder` of tar `place`, by name.

    Raises `InputError` like `load`, and where one is missing.
    """
    files = {}
    try:
        if place.is_dir():
            for name in wanted:
                if (place / name).is_file():
                    with (place / name).open("rb") as file:
                        files[name] = load(file, f"{place}: {name}")
        else:
            with tarfile.open(place) as archive:
                for member in archive:
                    parent, _, name = member.name.rpartition("/")
                    inside = parent.split("/")[-1] == folder
                    if name in wanted and inside and member.isreg():
                        with archive.extractfile(member) or io.BytesIO() as packed:
                            files[name] = load(packed, f"{place}: {name}")
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"{place} cannot be read ({error}); {REMEDY}") from None
    for name in sorted(wanted - set(files)):
        raise InputError(f"{place} lacks {name}; {REMEDY}")
    return files


def load(file: IO[bytes], where: str) -> dict:
    """The dict in a pickle of plain values and uint8 arrays; `where` is for errors.

    Raises `InputError` for anything else, without calling what the pickle names.
    """
    try:
        content = _Unpickler(file, encoding="bytes").load()
    except Exception as error:  # Damaged pickles raise almost every kind.
        reason = str(error)[:200] or type(error).__name__
        reason = reason if reason.isprintable() else ascii(reason)  # As the pickle says.
        raise InputError(f"{where} is no pickle of CIFAR ({reason}); {REMEDY}") from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise InputError(f"{where} is a pickled {kind}, and must be a dict; {REMEDY}")
    return content


def class_names(meta: dict, key: str, where: str) -> tuple[str, ...]:
    """The list of names under `key`; raises `InputError` where there is none."""
    names = _entry(meta, key)
    try:
        decoded = [n.decode() if isinstance(n, bytes) else n for n in names]
    except (TypeError, UnicodeDecodeError):
        decoded = []
    if not decoded or not all(isinstance(name, str) for name in decoded):
        raise InputError(f"{where} lists no {key}; {REMEDY}")
    return tuple(decoded)


def labels(batch: dict, key: str, classes: int, where: str) -> np.ndarray:
    """The labels under `key`, [N] int32 in 0..classes-1; raises `InputError`."""
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
    """The `count` images of a batch, [count, 32, 32, 3] uint8 RGB; raises `InputError`."""
    data = _entry(batch, "data")
    values = data.values if isinstance(data, _Array) else np.zeros(0, np.uint8)
    if values.shape != (count, 3072):
        raise InputError(
            f"{where} has data of shape {values.shape} for {count} labels, and must have"
            f" {(count, 3072)}; {REMEDY}"
        )
    return values.reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)


def _entry(content: dict, key: str) -> Any:
    """An entry whose key Python 2 wrote (bytes) or Python 3 (str), or None."""
    return content.get(key.encode(), content.get(key))


class _Array:
    """Stands for an array in a pickle: numpy would trust the state it is given."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: np.ndarray = np.zeros(0, np.uint8)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, by_column, data = state
        if not isinstance(kind, _Uint8):
            raise pickle.UnpicklingError("an array that is not uint8")
        if len(data) != math.prod(shape) or min(shape) < 1:
            raise pickle.UnpicklingError(f"{len(data)} bytes for an array of {shape}")
        flat = np.frombuffer(data, np.uint8)
        self.values = flat.reshape(shape, order="F" if by_column else "C")


class _Uint8:
    """Stands for numpy's dtype of uint8, whose state says nothing more."""

    __slots__ = ()

    def __setstate__(self, state: tuple) -> None:
        pass


def _array(*arguments: Any) -> _Array:
    return _Array()


def _dtype(code: bytes | str, *arguments: Any) -> _Uint8:
    if code not in (b"u1", "u1"):
        raise pickle.UnpicklingError(f"an array of {code!r}, which is not uint8")
    return _Uint8()


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes for Python 2."""
    if encoding not in (b"latin1", "latin1"):
        raise pickle.UnpicklingError(f"bytes in {encoding!r}, which is not latin1")
    return text.encode("latin1")


def _ndarray() -> None:
    """Stands for the class that `_reconstruct` is given."""


# Functions only, none of them numpy's: a pickle may call each of them, as it pleases.
ALLOWED: dict[tuple[str, str], Callable] = {
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is refused")
        return ALLOWED[module, name]
