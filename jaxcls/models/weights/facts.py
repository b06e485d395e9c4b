"""Metadata of weights: preprocessing and class names."""

import functools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxcls.errors import InputError, first_line

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


def crop_of(size: int, side: int) -> float:
    """Returns the crop of a size out of an edge of `side` pixels.

    Libraries take ``floor(size / crop)`` for the edge, so it is no larger than gives it.
    """
    crop = size / side
    while math.floor(size / crop) < side:
        crop = math.nextafter(crop, 0)
    return crop


def of_metadata(file: pathlib.Path, metadata: Mapping[str, str]) -> Facts:
    """Returns the facts that `files.write` stored in a safetensors file, if any.

    Raises `InputError` for damaged facts.
    """
    try:
        told, names = (
            json.loads(metadata.get(f"{OURS}{key}", "null"))
            for key in ("preprocessing", "class_names")
        )
        found = None if told is None else _checked(file, Preprocessing(**told))
        return Facts(found, _names(file, names))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{file} has metadata of jaxcls that is damaged ({first_line(error)}); download"
            " it again, or write it again"
        ) from None


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
    told = _TIMM | {name: value for name, value in told.items() if value is not None}
    shape = told["input_size"]
    is_square = (
        isinstance(shape, list)
        and len(shape) == 3
        and all(type(side) is int and side > 0 for side in shape)
        and shape[1] == shape[2]
    )
    rule = "be [channels, height, width] of a square, as [3, 224, 224]"
    _require(file, "input_size", shape, is_square, rule)
    crop, method, mode = (told[x] for x in ("crop_pct", "interpolation", "crop_mode"))
    told_here = Preprocessing(told["mean"], told["std"], shape[1], crop, method, mode)
    found = _checked(file, told_here)
    rule = f"have {shape[0]} values, as input_size"
    _require(file, "mean", told["mean"], len(found.mean) == shape[0], rule)
    return Facts(found, _names(file, names))


# The values that timm takes for absent keys.
_TIMM: dict[str, Any] = {
    "input_size": [3, 224, 224],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "crop_mode": "center",
}


def _checked(file: pathlib.Path, found: Preprocessing) -> Preprocessing:
    """Converts a preprocessing from JSON; raises `InputError` for a bad value."""
    mean, std, size, crop, interpolation, mode = found
    need = functools.partial(_require, file)
    need("mean", mean, _are_finite(mean), "be a list of finite numbers")
    need("std", std, _are_finite(std), "be a list of finite numbers")
    need("std", std, len(std) == len(mean), f"have {len(mean)} values, as mean")
    need("std", std, min(std) > 0, "be above 0, as [0.229, 0.224, 0.225]")
    need("size", size, type(size) is int and size > 0, "be pixels, as 224")
    need("crop", crop, _are_finite([crop]) and 0 < crop <= 1, "be in (0, 1], as 0.875")
    for name, value, known in (
        ("interpolation", interpolation, list(INTERPOLATIONS)),
        ("crop_mode", mode, list(CROP_MODES)),
    ):
        need(name, value, value in known, f"be one of {', '.join(known)}")
    means, deviations = tuple(map(float, mean)), tuple(map(float, std))
    method = INTERPOLATIONS[interpolation]
    return Preprocessing(means, deviations, size, float(crop), method, mode)


def _are_finite(values: Any) -> bool:
    """Returns whether values are a list of at least one finite number."""
    return (
        isinstance(values, list)
        and bool(values)
        and all(type(x) in (int, float) and abs(x) < 1e30 for x in values)
    )


def _names(file: pathlib.Path, names: Any) -> tuple[str, ...]:
    """Returns class names, or () for None; raises `InputError` for anything but a list."""
    are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    _require(file, "label_names", names, names is None or are_names, "be a list of names")
    return tuple(names or ())


def _require(file: pathlib.Path, name: str, value: object, holds: bool, rule: str) -> None:
    """Raises `InputError` for a value for which its rule does not hold."""
    if not holds:
        shown = str(value)[:80]
        raise InputError(f"{file}: {name} is {shown!r}, and must {rule}; correct it")
