"""Files of weights, of safetensors and of torch, local or on a Hugging Face hub."""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxcls.errors import InputError, did_you_mean
from jaxcls.models.weights import facts, hub, tensorfiles, torchfiles
from jaxcls.models.weights.facts import Facts, Preprocessing

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
ON_HUB = ("model.safetensors", "pytorch_model.bin")


class Weights(NamedTuple):
    """The content of a file of weights.

    tensors: by the names in the file, in its layout; floating ones as float32.
    preprocessing: None if unknown. class_names: () if unknown.
    fingerprint: ``"sha256:<64 hex digits>"`` of the bytes of the file.
    """

    tensors: dict[str, np.ndarray]
    preprocessing: Preprocessing | None
    class_names: tuple[str, ...]
    fingerprint: str


def is_hub(place: str) -> bool:
    """Returns whether a place names a repository on the hub, ``"hf:ORG/NAME"``."""
    return place.startswith(hub.PREFIX)


def read(place: str, key: str) -> Weights:
    """Reads the weights of a file or of ``"hf:ORG/NAME[@revision]"``.

    key: the name of the config's key, for messages. Raises `InputError`, which names `key`
    or the file, for an absent, damaged or unsupported file, and for a hub that fails.
    """
    file, config, strict = _find(place, key)
    try:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(file, key, error) from None
    ours = Facts()
    if file.suffix == ".safetensors":
        tensors = tensorfiles.load(file)
        ours = facts.of_metadata(file)
    else:
        tensors = torchfiles.load(file)
    beside = facts.of_config(config, strict)
    return Weights(
        {name: _as_float32(values) for name, values in tensors.items()},
        ours.preprocessing or beside.preprocessing,
        ours.class_names or beside.class_names,
        f"sha256:{digest}",
    )


def preprocessing(place: str, key: str) -> Preprocessing | None:
    """Returns the preprocessing that `read` finds, without its tensors; None if unknown.

    From a hub it fetches only config.json, and so ignores the metadata of the hub's files
    of weights. Raises `InputError` like `read`.
    """
    if is_hub(place):
        config = hub.fetch(hub.parse(place, key), "config.json")
        return facts.of_config(config, True).preprocessing
    file, config, strict = _find(place, key)
    ours = facts.of_metadata(file) if file.suffix == ".safetensors" else Facts()
    return ours.preprocessing or facts.of_config(config, strict).preprocessing


def write(
    path: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    preprocessing: Preprocessing | None,
    class_names: Sequence[str],
) -> None:
    """Writes a .safetensors file, whole or not at all: the same bytes for the same input.

    `read` returns everything again. Raises `InputError` if `path` exists or cannot be
    written, and `KeyError` for a dtype that such files do not have.
    """
    metadata = {"format": "pt"}
    if preprocessing is not None:
        metadata[f"{facts.OURS}preprocessing"] = json.dumps(preprocessing._asdict())
    if class_names:
        metadata[f"{facts.OURS}class_names"] = json.dumps(list(class_names))
    tensorfiles.write(path, tensors, metadata)


def _find(place: str, key: str) -> tuple[pathlib.Path, pathlib.Path | None, bool]:
    """Returns (file of weights, its config.json or None, whether that must be JSON)."""
    if not is_hub(place):
        file = _local(place, key)
        return file, file.with_name("config.json"), False
    repository = hub.parse(place, key)
    for name in ON_HUB:
        file_or_none = hub.fetch(repository, name)
        if file_or_none is not None:
            # The folder's name is the commit. It gives the config of the same commit.
            commit = repository._replace(revision=file_or_none.parent.name)
            return file_or_none, hub.fetch(commit, "config.json"), True
    raise InputError(
        f"{key}={place} holds neither {' nor '.join(ON_HUB)}; give a repository of an image"
        " classifier, such as hf:timm/resnet50.a1_in1k"
    )


def _local(place: str, key: str) -> pathlib.Path:
    """Returns an existing local file with a known suffix, or raises `InputError`."""
    kinds = ", ".join(SUFFIXES)
    if "://" in place:
        raise InputError(
            f"{key}={place} is a URL, and must be a file or hf:ORG/NAME; download it, and"
            " give the file"
        )
    try:
        file = pathlib.Path(place).expanduser()
        if file.is_dir():
            inside = sorted(f.name for f in file.iterdir() if f.suffix in SUFFIXES)
            raise InputError(
                f"{key}={place} is a folder, and must be a file of weights ({kinds}); in"
                f" it: {', '.join(inside)[:200] or 'none'}"
            )
        if not file.exists():
            folder = file.parent
            names = [f.name for f in folder.iterdir()] if folder.is_dir() else []
            raise InputError(
                f"{key}={place}: there is no such file{did_you_mean(file.name, names)};"
                f" give a file of weights ({kinds}), or hf:ORG/NAME"
            )
    except (OSError, RuntimeError, ValueError) as error:  # Raised for impossible names.
        raise _unreadable(place, key, error) from None
    if file.suffix not in SUFFIXES:
        raise InputError(
            f"{key}={place} is no file of weights by its name; it must end in one of"
            f" {kinds}"
        )
    return file


def _unreadable(place: object, key: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or error
    return InputError(
        f"{key}={place} cannot be read ({reason}); give one that you may read"
    )


def _as_float32(values: np.ndarray) -> np.ndarray:
    is_floating = values.dtype.kind == "f" or values.dtype == ml_dtypes.bfloat16
    return values.astype(np.float32, copy=False) if is_floating else values
