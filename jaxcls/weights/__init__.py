"""Weights that others made: files of safetensors and of torch, here or on a hub."""

import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxcls.errors import InputError, did_you_mean, first_line
from jaxcls.weights import hub, tensorfiles, torchfiles

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
ON_HUB = ("model.safetensors", "pytorch_model.bin")

# "random" is what timm draws in training; where it draws nothing it takes bilinear.
INTERPOLATIONS = {"bilinear": "bilinear", "bicubic": "bicubic", "random": "bilinear"}
CROP_MODES = ("center", "squash", "border")

_OURS = "jaxcls."  # Before the keys of ours in the metadata of a safetensors file.


class Preprocessing(NamedTuple):
    """What images weights were made for.

    mean, std: of pixels in 0..1, one a channel. size: pixels a side.
    crop: share of the side that the central crop keeps, in (0, 1].
    interpolation: "bilinear" or "bicubic".
    crop_mode: "center": the short side is resized to size / crop, then the centre is cut
    out; "squash": both sides are resized so; "border": the long side is, and the short one
    is padded with the mean.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    crop: float
    interpolation: str
    crop_mode: str = "center"


class Weights(NamedTuple):
    """What a file of weights holds.

    tensors: as they lie in the file, by the names there; floating ones as float32.
    preprocessing: None where nothing tells. class_names: () where nothing tells.
    fingerprint: ``"sha256:<64 hex digits>"`` of the bytes of the file.
    """

    tensors: dict[str, np.ndarray]
    preprocessing: Preprocessing | None
    class_names: tuple[str, ...]
    fingerprint: str


class _Facts(NamedTuple):
    """What is told of weights beside their tensors."""

    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()


def is_hub(place: str) -> bool:
    """Whether a place is a repository on the hub, as ``"hf:ORG/NAME"``, and no file."""
    return place.startswith(hub.PREFIX)


def read(place: str, key: str) -> Weights:
    """The weights at a file or ``"hf:ORG/NAME[@revision]"``; `key` is the config's name.

    Raises `InputError`, naming `key` or the file, for a place where nothing is, a file
    that is damaged or of another kind, and a hub that does not give it.
    """
    file, config, strict = _find(place, key)
    try:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(file, key, error) from None
    ours = _Facts()
    if file.suffix == ".safetensors":
        tensors = tensorfiles.load(file)
        ours = _metadata(file)
    else:
        tensors = torchfiles.load(file)
    beside = _of_config(config, strict)
    return Weights(
        {name: _as_float32(values) for name, values in tensors.items()},
        ours.preprocessing or beside.preprocessing,
        ours.class_names or beside.class_names,
        f"sha256:{digest}",
    )


def preprocessing(place: str, key: str) -> Preprocessing | None:
    """What `read` tells of preprocessing, without its tensors; None where nothing tells.

    Of a hub only config.json is fetched, not what a file of weights tells of itself.
    Raises `InputError` like `read`.
    """
    if is_hub(place):
        config = hub.fetch(hub.parse(place, key), "config.json")
        return _of_config(config, True).preprocessing
    file, config, strict = _find(place, key)
    ours = _metadata(file) if file.suffix == ".safetensors" else _Facts()
    return ours.preprocessing or _of_config(config, strict).preprocessing


def write(
    path: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    preprocessing: Preprocessing | None,
    class_names: Sequence[str],
) -> None:
    """Write one .safetensors file, whole or not at all: the same bytes for the same input.

    `read` gives all of it back. Raises `InputError` where `path` exists or cannot be
    written, and `KeyError` for a dtype that such files do not have.
    """
    metadata = {"format": "pt"}
    if preprocessing is not None:
        metadata[f"{_OURS}preprocessing"] = json.dumps(preprocessing._asdict())
    if class_names:
        metadata[f"{_OURS}class_names"] = json.dumps(list(class_names))
    tensorfiles.write(path, tensors, metadata)


def _find(place: str, key: str) -> tuple[pathlib.Path, pathlib.Path | None, bool]:
    """(file of weights, its config.json or None, whether that must be read)."""
    if not is_hub(place):
        file = _local(place, key)
        return file, file.with_name("config.json"), False
    repository = hub.parse(place, key)
    for name in ON_HUB:
        file_or_none = hub.fetch(repository, name)
        if file_or_none is not None:
            # The folder is called as its commit: the config is that of these weights.
            commit = repository._replace(revision=file_or_none.parent.name)
            return file_or_none, hub.fetch(commit, "config.json"), True
    raise InputError(
        f"{key}={place} holds neither {' nor '.join(ON_HUB)}; give a repository of an image"
        " classifier, such as hf:timm/resnet50.a1_in1k"
    )


def _local(place: str, key: str) -> pathlib.Path:
    """A file of weights that is there, and of a kind that is read."""
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
    except (OSError, RuntimeError, ValueError) as error:  # Of names that no file can have.
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


def _metadata(file: pathlib.Path) -> _Facts:
    """What `write` noted in a safetensors file, or nothing; raises `InputError`."""
    metadata = tensorfiles.metadata(file)
    found: Preprocessing | None = None
    names: tuple[str, ...] = ()
    try:
        if f"{_OURS}preprocessing" in metadata:
            told = json.loads(metadata[f"{_OURS}preprocessing"])
            found = _checked(file, Preprocessing(**told))
        if f"{_OURS}class_names" in metadata:
            names = _names(file, json.loads(metadata[f"{_OURS}class_names"]))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{file} has metadata of jaxcls that is damaged ({first_line(error)}); download"
            " it again, or write it again"
        ) from None
    return _Facts(found, names)


def _as_float32(values: np.ndarray) -> np.ndarray:
    is_floating = values.dtype.kind == "f" or values.dtype == ml_dtypes.bfloat16
    return values.astype(np.float32, copy=False) if is_floating else values


def _of_config(file: pathlib.Path | None, strict: bool) -> _Facts:
    """What a config.json of timm tells, or nothing where it is absent or of another kind.

    strict: one that is no JSON is refused, rather than taken for another kind.
    """
    if file is None or not file.is_file():
        return _Facts()
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if not strict:
            return _Facts()
        raise InputError(
            f"{file} cannot be read ({first_line(error)}); remove it, and start again"
        ) from None
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        return _Facts()
    nested = config.get("pretrained_cfg")
    told = nested if isinstance(nested, dict) else config
    names = config.get("label_names", told.get("label_names", told.get("labels")))
    if not {"input_size", "mean", "std", "crop_pct", "interpolation"} & told.keys():
        return _Facts(None, _names(file, names))
    shape = _given(told, "input_size", [3, 224, 224])
    if (
        not isinstance(shape, list)
        or len(shape) != 3
        or any(type(n) is not int or n < 1 for n in shape)
    ):
        raise _nonsense(file, "input_size", shape, "be [channels, height, width]")
    if shape[1] != shape[2]:
        raise _nonsense(file, "input_size", shape, "be square, as [3, 224, 224]")
    # What is not told is what timm takes then.
    found = Preprocessing(
        _given(told, "mean", [0.485, 0.456, 0.406]),
        _given(told, "std", [0.229, 0.224, 0.225]),
        shape[1],
        _given(told, "crop_pct", 0.875),
        _given(told, "interpolation", "bicubic"),
        _given(told, "crop_mode", "center"),
    )
    checked = _checked(file, found)
    if len(checked.mean) != shape[0]:
        raise _nonsense(file, "mean", found.mean, f"have {shape[0]} values, as input_size")
    return _Facts(checked, _names(file, names))


def _given(told: dict[str, Any], name: str, otherwise: Any) -> Any:
    value = told.get(name)
    return otherwise if value is None else value


def _checked(file: pathlib.Path, found: Preprocessing) -> Preprocessing:
    """A preprocessing from JSON, in its types; raises `InputError` for nonsense."""
    for name, values in (("mean", found.mean), ("std", found.std)):
        if (
            not isinstance(values, list)
            or not values
            or not all(_is_finite(value) for value in values)
        ):
            raise _nonsense(file, name, values, "be a list of finite numbers")
    if len(found.std) != len(found.mean):
        raise _nonsense(file, "std", found.std, f"have {len(found.mean)} values, as mean")
    if min(found.std) <= 0:
        raise _nonsense(file, "std", found.std, "be above 0, as [0.229, 0.224, 0.225]")
    if type(found.size) is not int or found.size < 1:
        raise _nonsense(file, "size", found.size, "be pixels, as 224")
    if not _is_finite(found.crop) or not 0 < found.crop <= 1:
        raise _nonsense(file, "crop", found.crop, "be in (0, 1], as 0.875")
    if found.interpolation not in list(INTERPOLATIONS):
        rule = f"be one of {', '.join(INTERPOLATIONS)}"
        raise _nonsense(file, "interpolation", found.interpolation, rule)
    if found.crop_mode not in CROP_MODES:
        rule = f"be one of {', '.join(CROP_MODES)}"
        raise _nonsense(file, "crop_mode", found.crop_mode, rule)
    return Preprocessing(
        tuple(float(value) for value in found.mean),
        tuple(float(value) for value in found.std),
        found.size,
        float(found.crop),
        INTERPOLATIONS[found.interpolation],
        found.crop_mode,
    )


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30 and math.isfinite(value)


def _names(file: pathlib.Path, names: Any) -> tuple[str, ...]:
    """A list of class names, or none; raises `InputError` for anything else."""
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _nonsense(file, "label_names", names, "be a list of names")
    return tuple(names)


def _nonsense(file: pathlib.Path, name: str, value: Any, rule: str) -> InputError:
    return InputError(f"{file}: {name} is {str(value)[:80]!r}, and must {rule}; correct it")
