"""Our models as timm's: an architecture, and the arguments that make it ours."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxcls.config import calls
from jaxcls.errors import InputError
from jaxcls.models.weights import architectures

# Models with the same name in timm.
_SAME = re.compile(
    r"resnet(18|34|50|101|152)|resnext(50_32x4d|101_32x8d)|wide_resnet(50|101)_2"
    r"|vgg(11|13|16|19)(_bn)?|convnext_(tiny|small|base|large)"
)
_SIZES = {"ti": "tiny", "s": "small", "b": "base", "l": "large"}
# Options that are of training alone.
_OF_TRAINING = {
    *("dropout", "drop_path", "drop_path_mode", "drop_path_rescale"),
    *("weight_init", "zero_init"),
}


class Counterpart(NamedTuple):
    """A model of timm: its architecture, and the arguments beside the classes."""

    architecture: str
    args: dict[str, Any]


def counterpart(name: str, image_shape: tuple[int, int, int]) -> Counterpart:
    """Returns timm's model that equals ours on images of a shape.

    name: ours, with options, as in a config. image_shape: (H, W, C).

    Raises `InputError` if no architecture of timm is known to equal it.
    """
    call = calls.parse(name, "model.name", "resnet50")[0]
    height, width, channels = image_shape
    options = {k: v for k, v in call.kwargs.items() if k not in _OF_TRAINING}
    args: dict[str, Any] = {"in_chans": channels} if channels != 3 else {}
    architecture, known = _named(call.name, options)
    if re.match("vit|mixer", call.name) and (height, width) != (224, 224):
        args["img_size"] = [height, width]
    try:
        for option, value in options.items():
            args |= known[option](value)
    except KeyError:
        architecture = ""
    pools_apart = call.name.startswith("vgg") and (height, width) != (224, 224)
    if not architecture or call.args or pools_apart:
        at = f" at {width}x{height} pixels" if pools_apart else ""
        raise InputError(
            f"--format=hub needs a model that timm has, and no architecture of timm's is"
            f" known to equal model.name={name}{at}; try --format=safetensors"
        )
    return Counterpart(architecture, args)


Translation = Mapping[str, Callable[[Any], dict[str, Any]]]


def _named(name: str, options: Mapping[str, Any]) -> tuple[str, Translation]:
    """Returns timm's name of a model of ours, "" for none, and what its options are."""
    if _SAME.fullmatch(name):
        return name, _CONVNEXT if name.startswith("convnext") else {}
    told = {k: options.get(k, value) for k, value in architectures.PYTORCH.items()}
    for architecture, form in architectures.FORMS.items():
        if architecture != architectures.KERAS and form == (name, told):
            return architecture, dict.fromkeys(told, lambda _: {})
    if found := re.fullmatch(r"vit_(ti_16|[sbl]_(16|32))", name):
        size, patch = found[1].split("_")
        return f"vit_{_SIZES[size]}_patch{patch}_224", _VIT
    if found := re.fullmatch(r"mixer_([sb])_(16|32)", name):
        return f"mixer_{found[1]}{found[2]}_224", {}
    return "", {}


_POOLS: dict[str, dict[str, Any]] = {
    "token": {},
    "mean": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "patch_mean": {"global_pool": "avg"},
}
_CONVNEXT: Translation = {"layer_scale": lambda value: {"ls_init_value": value}}
_VIT: Translation = {
    "depth": lambda value: {"depth": value},
    "gelu": lambda value: {"act_layer": "gelu_tanh"} if value == "tanh" else {},
    "heads": lambda value: {"num_heads": value},
    "layer_scale": lambda value: {"init_values": value} if value else {},
    "patch": lambda value: {"patch_size": value},
    "pool": lambda value: _POOLS[value],
    "position": lambda _: {},  # Both are tensors.
    "token_position": lambda value: {"no_embed_class": not value},
    "width": lambda value: {"embed_dim": value},
}
