"""Arrays by name in NumPy's .npz files and in Keras's HDF5 files, read as plain data."""

import io
import json
import pathlib
import re
import zipfile
from typing import IO, Any

import ml_dtypes
import numpy as np

from jaxcls.errors import InputError, first_line
from jaxcls.models.weights.kinds import KERAS_MEMBER

# A small file must not fill the memory: the most bytes in multiples of the file's.
_MOST_UNPACKED = 20
# The most bytes of a model's config that are read.
_LONGEST = 1 << 20
# The variables of a Keras 3 layer in their order, by its class.
_VARIABLES = {
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "conv2d": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel", "bias"),
}


def of_npz(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a .npz file; raises `InputError` for a damaged one or objects.

    bfloat16, which NumPy writes as two plain bytes, comes back as such.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            total = sum(each.file_size for each in members)
            if total > _MOST_UNPACKED * file.stat().st_size:
                raise ValueError(f"it unpacks to {total:,} bytes")
            return {
                each.filename.removesuffix(".npy"): _array(archive.read(each))
                for each in members
            }
    except Exception as error:  # Damaged archives raise almost any error.
        raise InputError(
            f"{file} cannot be read as .npz ({_line(error)}); download it again, or write"
            " it with numpy.savez, of arrays of numbers"
        ) from None


def _array(data: bytes) -> np.ndarray:
    """Returns the array of a .npy file."""
    opened = io.BytesIO(data)
    version = np.lib.format.read_magic(opened)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, is_fortran, dtype = read(opened)
    dtype = np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else dtype
    if dtype.kind not in "biuf" and dtype != ml_dtypes.bfloat16:
        raise ValueError(f"an array is of {dtype}, and must be of numbers")
    flat = np.frombuffer(data, dtype, offset=opened.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C")


def of_keras(file: pathlib.Path) -> tuple[dict[str, np.ndarray], str]:
    """Returns the arrays of a Keras file, and its model's name, "" if unknown.

    The arrays are by "layer/variable", as "Conv1/kernel".

    It reads .h5, .weights.h5 and .keras. Keras 3 names the layers of the last two by their
    classes: "conv2d_1/kernel". Raises `InputError` for a damaged file, and where h5py is
    absent.
    """
    try:
        import h5py
    except ImportError:
        raise InputError(
            f"{file} is a Keras file, and h5py reads it; install it with"
            " pip install 'jaxcls[keras]'"
        ) from None
    try:
        opened: IO[bytes] | pathlib.Path = file
        told: str | bytes = ""
        size = file.stat().st_size
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                member = archive.getinfo(KERAS_MEMBER)
                if member.file_size > _MOST_UNPACKED * size:
                    raise ValueError(f"it unpacks to {member.file_size:,} bytes")
                opened = io.BytesIO(archive.read(member))
                told = archive.open("config.json").read(_LONGEST)
        with h5py.File(opened, "r") as stored:
            found = _datasets(h5py, stored, _MOST_UNPACKED * size)
            return found, _model(stored.attrs.get("model_config", told))
    except Exception as error:  # Damaged files raise almost any error.
        raise InputError(
            f"{file} cannot be read as a Keras file ({_line(error)}); download it again, or"
            " write it with Keras: model.save_weights('model.weights.h5')"
        ) from None


def _datasets(h5py: Any, stored: Any, most: int) -> dict[str, np.ndarray]:
    """Returns the arrays of the layers of an open HDF5 file, of at most `most` bytes."""
    found: dict[str, np.ndarray] = {}
    left = most

    def visit(path: str, item: Any) -> None:
        nonlocal left
        if not isinstance(item, h5py.Dataset) or "optimizer" in path.split("/")[0]:
            return
        if item.external or item.is_virtual:
            raise ValueError(f"{path} lies in another file")
        if item.dtype.kind != "f":
            return
        left -= item.nbytes
        if left < 0:
            raise ValueError(f"its arrays have over {most:,} bytes")
        name = _name(path)
        if name in found:
            raise ValueError(f"it has {name} twice")
        found[name] = np.asarray(item[()])

    stored.visititems(visit)
    return found


def _model(config: Any) -> str:
    """Returns the name of a model in its config as JSON, or ""."""
    try:
        name = json.loads(config)["config"]["name"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    return name if isinstance(name, str) and name.isprintable() else ""


def _name(path: str) -> str:
    """Returns "layer/variable" of the path of a dataset."""
    *groups, leaf = path.removesuffix(":0").split("/")
    if groups[-1:] == ["vars"] and leaf.isdecimal():  # Keras 3.
        layer = groups[-2] if len(groups) > 1 else ""
        variables = _VARIABLES.get(re.sub(r"_\d+$", "", layer), ())
        index = int(leaf[:3])
        return f"{layer}/{variables[index] if index < len(variables) else leaf}"
    return f"{groups[-1] if groups else ''}/{leaf}"


def _line(error: Exception) -> str:
    """Returns the first line of an error, which may quote the file."""
    reason = first_line(error)
    return reason if reason.isprintable() else ascii(reason)
