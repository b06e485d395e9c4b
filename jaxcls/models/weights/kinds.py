"""What a file of weights is, by its bytes; and for others the way to one that is read."""

import contextlib
import pathlib
import re
import zipfile
from collections.abc import Sequence

from jaxcls.errors import InputError
from jaxcls.models.weights.torchfiles import MAGIC

SAFETENSORS, TORCH, NUMPY, KERAS = "safetensors", "torch", "numpy", "keras"
# The weights in a .keras file.
KERAS_MEMBER = "model.weights.h5"
_ENOUGH = 512  # Bytes from which a file is known.
_TABLE = bytes.fromhex("57fb808b247547db")  # Ends TensorFlow's tables of variables.
_PARTS = re.compile(r".*(\.data-\d+-of-\d+|\.index|\.meta)|checkpoint|.*saved_model\.pb")
_SAFE = "safetensors.numpy.save_file({}, 'weights.safetensors')"
_ONNX = _SAFE.format(
    "{{x.name: onnx.numpy_helper.to_array(x) for x in onnx.load({0!r}).graph.initializer}}"
)
_FLAX = (
    "numpy.savez('weights.npz', **flax.traverse_util.flatten_dict("
    "flax.serialization.msgpack_restore(pathlib.Path({0!r}).read_bytes()), sep='/'))"
)
_SCRIPT = "torch.save(torch.jit.load({0!r}).state_dict(), 'weights.pth')"
_PROGRAM = "torch.save(torch.export.load({0!r}).state_dict, 'weights.pth')"
_PICKLE = _SAFE.format("pickle.loads(pathlib.Path({0!r}).read_bytes())")
_OTHERS = "give the weights as .pth, .safetensors or a Keras file, of the model's authors"


def kind_of(file: pathlib.Path, shown: str) -> str:
    """Returns SAFETENSORS, TORCH, NUMPY or KERAS, by a file's content, not its suffix.

    Raises `InputError` for a file of another kind: what it is, and a line of Python that
    makes of it a file that is read. shown: names the file in the message.
    """
    if file.suffix == ".safetensors":
        return SAFETENSORS
    with file.open("rb") as opened:
        head = opened.read(_ENOUGH)
        size = opened.seek(0, 2)
        opened.seek(max(0, size - len(_TABLE)))
        tail = opened.read()
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return SAFETENSORS
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return KERAS
    if head.startswith(b"PK\3\4"):
        return _of_archive(file, shown)
    what, remedy = "", _OTHERS
    if tail == _TABLE or _PARTS.fullmatch(file.name):
        what = "a part of a TensorFlow checkpoint"
    elif head[4:8] == b"TFL3":
        what = "a TensorFlow Lite model"
    elif file.suffix == ".onnx" or (head[:1] == b"\x08" and head[2:3] == b"\x12"):
        what, remedy = "an ONNX model", _python(_ONNX, file)
    elif (
        file.suffix == ".msgpack"
        or 0x80 < (head or b"\0")[0] < 0x90
        or head.startswith(b"\xde")
    ):
        what, remedy = "Flax's msgpack", _python(_FLAX, file)
    elif head.startswith(b"\x93NUMPY"):
        what = "a single NumPy array"
    elif head[257:262] == b"ustar":
        what, remedy = "a tar archive", "unpack it, and give the file in it"
    elif head.startswith(b"\x1f\x8b"):
        what, remedy = "a gzip file", "unpack it with gunzip"
    elif head.startswith(b"version https://git-lfs"):
        what, remedy = "a pointer of Git LFS, not the weights", "get them with git lfs pull"
    elif re.match(rb"\s*<(!doctype|html|\?xml)", head, re.IGNORECASE):
        what, remedy = "a web page", "download the file itself"
    elif head.startswith(b"\x80") and not _is_torch(head):
        remedy = f"of arrays, where you trust it: {_PICKLE.format(file.name)}"
        what = "a plain pickle, of which nothing is run"
    elif not head:
        what, remedy = "empty", "download it again"
    elif not head.startswith(b"\x80"):
        what = "of another kind than .safetensors, .pth, .npz and Keras's .h5"
    if what:
        raise InputError(f"{shown} is {what}; {remedy}")
    return TORCH


def _of_archive(file: pathlib.Path, shown: str) -> str:
    """Returns the kind of a zip archive by its members."""
    names: Sequence[str] = ()
    # A damaged archive, or one of an unknown compression, counts as one of torch's, whose
    # reader says what is wrong.
    with contextlib.suppress(zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        names = zipfile.ZipFile(file).namelist()
    parts = {name.partition("/")[2] for name in names}
    if "constants.pkl" in parts and any(part.startswith("code/") for part in parts):
        raise InputError(f"{shown} is a TorchScript archive; {_python(_SCRIPT, file)}")
    if {"archive_format", "serialized_exported_program.json"} & (parts | set(names)):
        raise InputError(f"{shown} is a program of torch.export; {_python(_PROGRAM, file)}")
    if KERAS_MEMBER in names:
        return KERAS
    if names and all(name.endswith(".npy") for name in names):
        return NUMPY
    if names and "data.pkl" not in parts:
        listed = ", ".join(names)[:80]
        listed = listed if listed.isprintable() else ascii(listed)
        raise InputError(f"{shown} is a zip archive of other files ({listed}); {_OTHERS}")
    return TORCH


def _is_torch(head: bytes) -> bool:
    """Returns whether a pickle begins as torch's files before 1.6, or is cut short."""
    return MAGIC.to_bytes(10, "little") in head[:32] or len(head) < 32


def _python(line: str, file: pathlib.Path) -> str:
    return f"in Python: {line.format(file.name)}"
