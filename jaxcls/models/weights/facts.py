"""Metadata of weights: preprocessing and class names."""

import json
import math
import pathlib
from typing import Any, NamedTuple

from jaxcls.errors import InputError, first_line
from jaxcls.models.weights import tensorfiles

# timm draws an interpolation for "random" in training, and is bilinear in evaluation.
INTERPOLATIONS = {"bilinear": "bilinear", "bicubic": "bicubic", "random": "bilinear"}
CROP_MODES = ("center", "squash", "border")

OURS = "jaxcls."  # The prefix of our keys in the metadata of a safetensors file.


class Preprocessing(NamedTuple):
    """The preprocessing of images that weights expect.

    mean, std: of pixels in 0..1, one a channel. size: height and width in pixels. crop: the
    share of the height and width that the central crop keeps, in (0, 1]. interpolation:
    "bilinear" or "bicubic". crop_mode: "center" resizes the short edge to size / crop, then
    crops the centre. "squash" resizes both edges to size / crop. "border" resizes the long
    edge to size / crop, and pads the short one with the mean.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    crop: float
    interpolation: str
    crop_mode: str = "center"


class Facts(NamedTuple):
    """Preprocessing and class names of weights; None and () if unknown."""

    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()


def of_metadata(file: pathlib.Path) -> Facts:
    """Returns the facts that `files.write` stored in a safetensors file, if any.

    Raises `InputError` for damaged facts.
    """
    metadata = tensorfiles.metadata(file)
    found: Preprocessing | None = None
    names: tuple[str, ...] = ()
    try:
        if f"{OURS}preprocessing" in metadata:
            told = json.loads(metadata[f"{OURS}preprocessing"])
            found = _checked(file, Preprocessing(**told))
        if f"{OURS}class_names" in metadata:
            names = _names(file, json.loads(metadata[f"{OURS}class_names"]))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{file} has metadata of jaxcls that is damaged ({first_line(error)}); download"
            " it again, or write it again"
        ) from None
    return Facts(found, names)


def of_config(file: pathlib.Path | None, strict: bool) -> Facts:
    """Returns the facts in a config.json of timm, or none for an absent or other file.

    Raises `InputError` for values out of range, and with `strict` for a file that is not
    JSON.
    """
    if file is None or not file.is_file():
        return Facts()
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if not strict:
            return Facts()
        raise InputError(
            f"{file} cannot be read ({first_line(error)}); remove it, and start again"
        ) from None
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        return Facts()
    nested = config.get("pretrained_cfg")
    told = nested if isinstance(nested, dict) else config
    names = config.get("label_names", told.get("label_names", told.get("labels")))
    if not {"input_size", "mean", "std", "crop_pct", "interpolation"} & told.keys():
        return Facts(None, _names(file, names))
    shape = _given(told, "input_size", [3, 224, 224])
    if (
        not isinstance(shape, list)
        or len(shape) != 3
        or any(type(n) is not int or n < 1 for n in shape)
    ):
        raise _nonsense(file, "input_size", shape, "be [channels, height, width]")
    if shape[1] != shape[2]:
        raise _nonsense(file, "input_size", shape, "be square, as [3, 224, 224]")
    # timm's defaults stand in for absent keys.
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
    return Facts(checked, _names(file, names))


def _given(told: dict[str, Any], name: str, otherwise: Any) -> Any:
    value = told.get(name)
    return otherwise if value is None else value


def _checked(file: pathlib.Path, found: Preprocessing) -> Preprocessing:
    """Converts a preprocessing from JSON; raises `InputError` for a bad value."""
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
    """Returns class names, or () for None; raises `InputError` for anything but a list."""
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _nonsense(file, "label_names", names, "be a list of names")
    return tuple(names)


def _nonsense(file: pathlib.Path, name: str, value: Any, rule: str) -> InputError:
    return InputError(f"{file}: {name} is {str(value)[:80]!r}, and must {rule}; correct it")
