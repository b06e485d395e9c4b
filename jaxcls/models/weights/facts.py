"""Metadata of weights: preprocessing and class names."""

import functools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxcls.errors import InputError, first_line, printable
from jaxcls.models.weights import architectures
from jaxcls.models.weights.architectures import OURS

# timm draws an interpolation for "random" in training, and is bilinear in evaluation.
INTERPOLATIONS = {"bilinear": "bilinear", "bicubic": "bicubic", "random": "bilinear"}
CROP_MODES = ("center", "squash", "border")


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
    """Preprocessing and class names of weights; None and () if unknown.

    architecture: as in `Weights`.
    """

    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    architecture: str | None = None


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
        told, names, model = (
            json.loads(metadata.get(f"{OURS}{key}", "null"))
            for key in ("preprocessing", "class_names", "model")
        )
        found = None if told is None else _checked(file, Preprocessing(**told))
        is_ours = any(key.startswith(OURS) for key in metadata)
        text = "" if model is None else printable(f"{OURS}{model}")
        return Facts(found, _names(file, names), text if is_ours else None)
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
    config = read_json(file, strict)
    if file is None or not isinstance(config.get("architecture"), str):
        return Facts()
    architecture = _architecture(config)
    nested = config.get("pretrained_cfg")
    told = nested if isinstance(nested, dict) else config
    names = config.get("label_names", told.get("label_names", told.get("labels")))
    if not {"input_size", "mean", "std", "crop_pct", "interpolation"} & told.keys():
        return Facts(None, _names(file, names), architecture)
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
    return Facts(found, _names(file, names), architecture)


def read_json(file: pathlib.Path | None, strict: bool) -> dict[str, Any]:
    """Returns the object of a JSON file, or {} for an absent or other file.

    Raises `InputError` with `strict` for a file that is not JSON.
    """
    if file is None or not file.is_file():
        return {}
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if not strict:
            return {}
        raise InputError(
            f"{file} cannot be read ({first_line(error)}); remove it, and start again"
        ) from None
    return config if isinstance(config, dict) else {}


def _architecture(config: Mapping[str, Any]) -> str:
    """Returns the architecture of a config.json of timm, with what its arguments change."""
    given = config.get("model_args")
    arguments = given if isinstance(given, dict) else {}
    nested = config.get("pretrained_cfg")
    tag = nested.get("tag") if isinstance(nested, dict) else ""
    architecture = architectures.native(config["architecture"], str(tag))
    return printable(architectures.in_words(architecture, arguments))[:200]


# What transformers' models are like here; the same tensors would else mean another network.
_FORMS: dict[str, dict[str, Any]] = {
    "vit": {"hidden_act": "gelu"},
    "deit": {"hidden_act": "gelu"},
    "dinov2": {"hidden_act": "gelu"},
    "dinov2_with_registers": {"hidden_act": "gelu"},
    "dinov3_vit": {"hidden_act": "gelu", "rope_theta": 100},
    "convnext": {"hidden_act": "gelu"},
    "resnet": {
        "hidden_act": "relu",
        "downsample_in_bottleneck": False,
        "downsample_in_first_stage": False,
    },
}


# The activations of towers, if their config does not tell.
_ACTS = {"clip": "quick_gelu", "siglip": "gelu_pytorch_tanh"}


def is_of_transformers(config: Mapping[str, Any]) -> bool:
    """Returns whether a config.json is of transformers, and not of timm."""
    return isinstance(config.get("model_type"), str) and "architecture" not in config


def of_transformers(
    file: pathlib.Path, config: Mapping[str, Any], preprocessor: pathlib.Path | None
) -> Facts:
    """Returns the facts in config.json and preprocessor_config.json of transformers.

    Names such as "LABEL_0" are none. Raises `InputError` for a model that is another than
    ours with the same tensors, and for values out of range.
    """
    tower = str(config["model_type"]).removesuffix("_vision_model")
    if isinstance(part := config.get("vision_config"), dict):
        config = {**config, **part, "model_type": config["model_type"]}
    for key, value in _FORMS.get(config["model_type"], {}).items():
        told = config.get(key, value)
        _require(file, key, told, told == value, f"be {value!r}, as of our models")
    eps = config.get("layer_norm_eps", 1e-6)
    is_near = type(eps) in (int, float) and abs(eps - 1e-6) <= 1e-5  # Ours is 1e-6.
    _require(file, "layer_norm_eps", eps, is_near, "be at most 1e-5, as of our models")
    labels = config.get("id2label")
    names: list[str] | None = None
    if isinstance(labels, dict) and all(str(i) in labels for i in range(len(labels))):
        names = [labels[str(i)] for i in range(len(labels))]
        names = None if names and names[0] == "LABEL_0" else names
    found = None
    if preprocessor is not None:
        found = _of_preprocessor(preprocessor, read_json(preprocessor, strict=False))
    heads, kind = config.get("num_attention_heads"), config["model_type"][:100]
    told = [f"num_attention_heads={heads}"] if type(heads) is int else []
    if tower in _ACTS:
        told.insert(0, f"hidden_act={str(config.get('hidden_act', _ACTS[tower]))[:100]}")
    said = f"({', '.join(told)})" if told else ""
    return Facts(found, _names(file, names), printable(f"transformers_{kind}{said}"))


def _of_preprocessor(file: pathlib.Path, told: Mapping[str, Any]) -> Preprocessing | None:
    """Returns the preprocessing of a preprocessor_config.json; None if it is none here."""
    kind = told.get("image_processor_type", told.get("feature_extractor_type"))
    by_edge = str(kind).startswith(("ConvNext", "Bit"))
    size, is_short = _side(told.get("size"), by_edge)
    is_cropped = bool(told.get("do_center_crop")) and "crop_size" in told
    crop_size = _side(told["crop_size"], False)[0] if is_cropped else size
    filters = {"2": "bilinear", "3": "bicubic"}
    interpolation = filters.get(str(told.get("resample", 2)), "")
    factor = told.get("rescale_factor", 1 / 255)
    is_plain = _are_finite([factor]) and abs(factor * 255 - 1) < 1e-3
    if not size or not crop_size or not interpolation or not is_plain:
        return None
    if told.get("do_resize") is False or crop_size > size:
        return None
    mean: Any = told.get("image_mean")
    std: Any = told.get("image_std")
    if told.get("do_normalize") is False:
        mean, std = [0.0] * 3, [1.0] * 3
    crop, mode = crop_size / size, "center" if is_short else "squash"
    if str(kind).startswith("ConvNext"):
        # From 384 pixels on it resizes without a crop.
        crop = told.get("crop_pct", 224 / 256) if size < 384 else 1.0
        mode = "center" if size < 384 else "squash"
    elif math.floor(crop_size / crop) < size:  # By rounding.
        crop = math.nextafter(crop, 0)
    return _checked(file, Preprocessing(mean, std, crop_size, crop, interpolation, mode))


def _side(value: Any, by_edge: bool) -> tuple[int, bool]:
    """Returns (pixels of a side, whether of the shorter edge); (0, False) if no square."""
    if isinstance(value, dict):
        is_short = "shortest_edge" in value
        height = value.get("shortest_edge", value.get("height"))
        value, by_edge = height if is_short or height == value.get("width") else 0, is_short
    is_side = type(value) is int and 0 < value < 1 << 16
    return (value, by_edge) if is_side else (0, False)


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
