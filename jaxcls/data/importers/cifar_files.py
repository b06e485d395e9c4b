"""Reads the pickled files of CIFAR; nothing in them can run."""

import io
from typing import Any, Literal

import numpy as np

from jaxcls import pickles
from jaxcls.errors import InputError
from jaxcls.pickles import Global, RefusedError, kind_of

REMEDY = "download it again from https://www.cs.toronto.edu/~kriz/cifar.html"


def load(data: bytes, where: str) -> dict:
    """Loads a dict from a pickle of plain values and uint8 arrays.

    where: the file's name in errors. Raises `InputError` for any other pickle, and calls no
    function that a pickle names.
    """
    try:
        content = pickles.load(io.BytesIO(data), _NAMES, _build)
    except RefusedError as error:
        reason = str(error) if str(error).isprintable() else ascii(str(error))
        raise InputError(f"{where} is no pickle of CIFAR ({reason}); {REMEDY}") from None
    if type(content) is not dict:
        raise InputError(
            f"{where} is a pickled {kind_of(content)}, and must be a dict; {REMEDY}"
        )
    return content


def class_names(meta: dict, where: str, key: str) -> tuple[str, ...]:
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
    match getattr(_entry(batch, "data"), "state", None):
        case (_, (rows, 3072), _Uint8(), is_by_column, bytes() | str() as data) if (
            rows == count and len(data) == count * 3072
        ):
            if isinstance(data, str):  # Of Python 2.
                data = data.encode("latin-1", "replace")
            order: Literal["F", "C"] = "F" if is_by_column is True else "C"
            pixels = np.frombuffer(data, np.uint8).reshape(count, 3072, order=order)
            return pixels.reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
    raise InputError(
        f"{where} has no uint8 data of shape {(count, 3072)} for its {count} labels;"
        f" {REMEDY}"
    )


def _entry(content: dict, key: str) -> Any:
    """Returns the entry under a key of Python 2 (bytes) or Python 3 (str), or None."""
    return content.get(key.encode(), content.get(key))


class _Array:
    """Stands for an array in a pickle; `images` checks its state.

    state: (version, shape, dtype, is by column, bytes), as numpy pickles it.
    """

    state: Any = None


class _Uint8:
    """Stands for numpy's dtype of uint8; its state is ignored."""


def _build(value: Any, state: Any) -> None:
    if type(value) is _Array:
        value.state = state
    elif type(value) is not _Uint8:
        raise RefusedError(f"it gives state to a {kind_of(value)}")


def _array(*arguments: Any) -> _Array:
    return _Array()


def _dtype(code: Any, *arguments: Any) -> _Uint8:
    if type(code) not in (bytes, str) or code not in (b"u1", "u1"):
        raise RefusedError("it holds an array that is not uint8")
    return _Uint8()


def _encode(text: Any, encoding: Any) -> bytes:
    """Returns bytes; Python 3 pickles bytes for Python 2 as a call of this function."""
    is_text = type(text) is str and type(encoding) in (bytes, str)
    if not is_text or encoding not in (b"latin1", "latin1"):
        raise RefusedError("it holds bytes in another encoding than latin1")
    return text.encode("latin1")


_NAMES: pickles.Names = {
    Global("numpy.core.multiarray", "_reconstruct"): _array,
    Global("numpy._core.multiarray", "_reconstruct"): _array,
    Global("numpy", "dtype"): _dtype,
    Global("_codecs", "encode"): _encode,
    Global("numpy", "ndarray"): None,
}
