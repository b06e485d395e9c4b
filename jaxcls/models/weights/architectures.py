"""Which architectures elsewhere are which model here, where names and shapes cannot tell.

Several models of timm have the tensors of another, and compute something else with them.
"""

import dataclasses
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxcls.config import calls
from jaxcls.errors import InputError
from jaxcls.models.table import MODELS

OURS = "jaxcls."  # The prefix of what files tell of our own models.


class Form(NamedTuple):
    """A model here. options: those on which no tensor depends, and their values."""

    name: str
    options: Mapping[str, Any] = MappingProxyType({})


KERAS = "Keras's MobileNetV2"
# The defaults of the options that tell two forms apart.
PYTORCH = {"padding": "symmetric", "norm_epsilon": 1e-5}
_TENSORFLOW = {"padding": "same", "norm_epsilon": 1e-3}
# By the architecture's name in timm, or KERAS.
FORMS = {
    "efficientnet_b0": Form("efficientnet_b0", PYTORCH),
    "tf_efficientnet_b0": Form("efficientnet_b0", _TENSORFLOW),
    **{f"efficientnet_lite{i}": Form(f"efficientnet_lite{i}", PYTORCH) for i in range(5)},
    **{
        f"tf_efficientnet_lite{i}": Form(f"efficientnet_lite{i}", _TENSORFLOW)
        for i in range(5)
    },
    "mobilenetv2_100": Form("mobilenet_v2", PYTORCH),
    KERAS: Form("mobilenet_v2", _TENSORFLOW),
}
# Models of timm with the very tensors of one of ours, and other logits for them.
OTHERS: dict[str, tuple[str, ...]] = {
    "efficientnet_b0": ("efficientnet_blur_b0",),
    "resnet18": ("resnetblur18",),
    "resnet50": ("resnetblur50", "resnetaa50"),
}
# timm's names of the ViTs and Mixers here; all others have one name.
_VITS = {"tiny": "ti", "small": "s", "base": "b", "large": "l"}
_SAME = re.compile(
    r"(vit|deit3?|flexivit)_(tiny|small|base|large)(_patch.*)?|mixer_([sb])(\d+)_.*"
)


# Options that change no logits of trained weights.
OF_TRAINING = {
    *("dropout", "drop_path", "drop_path_mode", "drop_path_rescale", "layer_scale"),
    *("weight_init", "zero_init", "head_init", "position"),
}


def check(
    architecture: str | None, text: str, module: Any, *, as_they_are: bool = True
) -> str:
    """Returns a note on the architecture that weights tell, for a model that they fit.

    architecture: as in `Weights`. text: the model with its options, as in a config.
    as_they_are: whether all arrays are taken; else a model of jaxcls may be changed by
    intent. Raises `InputError` if it is another model than `module`, though its tensors
    fit.
    """
    name = text.partition("(")[0]
    if architecture == "":
        return ""
    if architecture and architecture.startswith(OURS):
        there = architecture.removeprefix(OURS)
        apart = _apart(there, module)
        if apart and as_they_are:
            told = _told(apart, module)
            raise InputError(f"is of a model with {told}; give model.name={_quoted(there)}")
        return of_ours(there, text, module)
    if architecture is None:
        return _unknown(name, module)
    form = FORMS.get(architecture)
    if form and form.name == name:
        apart = {k: v for k, v in form.options.items() if getattr(module, k, v) != v}
        if apart:
            told = ", ".join(f"{option}={value!r}" for option, value in apart.items())
            raise InputError(f"is of {architecture}, which has {told}; give {_text(form)}")
        return ""
    if architecture in OTHERS.get(name, ()):
        raise InputError(
            f"is of {architecture}, whose tensors fit {name} and mean another network; give"
            f" weights of {name}"
        )
    if form or not _is_same(architecture, name):
        return f"its config.json says {architecture}, not {name}: compare the logits"
    return ""


def of_ours(there: str, text: str, module: Any) -> str:
    """Returns a note on a model of ours whose arrays fit `module`; "" if it is the same.

    there, text: the model of the arrays and that of `module`, as in a config.
    """
    apart = _apart(there, module)
    if apart is None and there != text:
        return f"the weights are of model.name={there[:200]}: compare the logits"
    return f"the weights are of a model with {_told(apart, module)}" if apart else ""


def _told(apart: Mapping[str, Any], module: Any) -> str:
    """Returns the options of other weights beside those of `module`, in words."""
    return ", ".join(f"{k}={v!r} (here {getattr(module, k)!r})" for k, v in apart.items())


def _apart(there: str, module: Any) -> dict[str, Any] | None:
    """Returns the options of a model that no tensor shows, where `module` has others.

    None: the model is of a plug-in or of another kind, and cannot be compared.
    """
    try:
        found = calls.build_one(there, MODELS, "model.name", num_classes=1, dtype=None)
    except InputError:
        return None
    if type(found) is not type(module):
        return None
    left = {*OF_TRAINING, "num_classes", "dtype", "name", "parent"}
    values = {f.name: getattr(found, f.name) for f in dataclasses.fields(module)}
    return {
        name: value
        for name, value in values.items()
        if name not in left
        and isinstance(value, str | int | float)
        and value != getattr(module, name)
    }


def _quoted(text: str) -> str:
    """Returns a model's text as a shell takes it."""
    return text if text.isidentifier() else f'"{text}"'


def _is_same(architecture: str, name: str) -> bool:
    """Returns whether timm's name of an architecture is that of a model here."""
    found = _SAME.fullmatch(architecture)
    if architecture == name or architecture.startswith("transformers_"):
        return True  # Their names tell the model.
    if not found:
        return False
    if found[2]:
        return name.startswith(f"vit_{_VITS[found[2]]}_")
    return name == f"mixer_{found[4]}_{found[5]}"


def _unknown(name: str, module: Any) -> str:
    """Returns what else would fit, for weights that do not tell their architecture."""
    others = [
        f"timm's {architecture}, which is {_text(form)}"
        for architecture, form in FORMS.items()
        if form.name == name
        and any(getattr(module, k, v) != v for k, v in form.options.items())
        and architecture != KERAS
    ]
    others += [f"timm's {each}, which is none of ours" for each in OTHERS.get(name, ())]
    return f"the tensors also fit {', and '.join(others)}" if others else ""


def _text(form: Form) -> str:
    """Returns a model with its options, as in a config."""
    if form.options == PYTORCH:
        return f"model.name={form.name}"
    told = ", ".join(f"{option}={value!r}" for option, value in form.options.items())
    return f'model.name="{form.name}({told})"'
