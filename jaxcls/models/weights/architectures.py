"""Which architectures elsewhere are which model here, where names and shapes cannot tell.

Several models of timm have the tensors of another, and compute something else with them.
"""

import dataclasses
import functools
import inspect
import operator
import re
from collections.abc import Callable, Mapping
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
# The options that tell two forms apart, as timm's names without tf_ have them, and with it.
PYTORCH = {"padding": "symmetric", "norm_epsilon": 1e-5}
_TENSORFLOW = {"padding": "same", "norm_epsilon": 1e-3}
_BOTH = {
    **{f"efficientnet_b{i}": f"efficientnet_b{i}" for i in range(5)},
    **{f"efficientnet_lite{i}": f"efficientnet_lite{i}" for i in range(5)},
    **{f"efficientnet_v2_{size}": f"efficientnetv2_{size}" for size in "sm"},
    **{f"mobilenet_v3_{size}": f"mobilenetv3_{size}_100" for size in ("large", "small")},
}
# By the architecture's name in timm, or KERAS.
FORMS = {
    **{theirs: Form(ours, PYTORCH) for ours, theirs in _BOTH.items()},
    **{f"tf_{theirs}": Form(ours, _TENSORFLOW) for ours, theirs in _BOTH.items()},
    "mobilenetv2_100": Form("mobilenet_v2", PYTORCH),
    KERAS: Form("mobilenet_v2", _TENSORFLOW),
}
_SIZES = {"ti": "tiny", "s": "small", "b": "base", "l": "large"}
_QUICK = "(gelu='quick')"
# Image towers: by the name in timm, less a size such as _224, our model.
TOWERS = {
    **{f"vit_{_SIZES[x]}_patch14_dinov2": f"dinov2_{x}_14" for x in "sbl"},
    **{f"vit_{_SIZES[x]}_patch14_reg4_dinov2": f"dinov2_{x}_14_reg4" for x in "sbl"},
    **{
        f"vit_{_SIZES[x]}_patch16_dinov3": f"dinov3_{x}_16(pool='norm_patch_mean')"
        for x in "sb"
    },
    **{
        f"vit_{_SIZES[x]}_patch{patch}_clip{form}": f"clip_{x}_{patch}{option}"
        for x, patch in (("b", 32), ("b", 16), ("l", 14))
        for form, option in (("", ""), ("_quickgelu", _QUICK))
    },
    "vit_base_patch16_siglip": "siglip_b_16",
}
_SIZE = re.compile(r"_\d{3}$")
# Models of timm with the very tensors of one of ours, and other logits for them.
OTHERS: dict[str, tuple[str, ...]] = {
    "efficientnet_b0": ("efficientnet_blur_b0",),
    "resnet18": ("resnetblur18",),
    "resnet50": ("resnetblur50", "resnetaa50"),
}
# A ViT of transformers, whose tensors do not tell the heads, nor a tower's activation.
_HEADS = re.compile(r"transformers_.*\(.*\bnum_attention_heads=(\d+)\)")
_ACT = re.compile(r"transformers_.*\(hidden_act=(\w+).*\)")
_ACTS_THERE = {"gelu": "exact", "gelu_pytorch_tanh": "tanh", "quick_gelu": "quick"}
# timm's CLIPs that learned with QuickGELU, though their architecture is without.
_NATIVELY_QUICK = re.compile(
    r"\w+\.openai|\w+\.metaclip_(2pt5b|400m)|vit_base_patch32_\w+\.laion400m_e32"
    r"|vit_large_\w+\.dfn2b"
)
# Options that are of training alone.
OF_TRAINING = {
    *("dropout", "drop_path", "drop_path_mode", "drop_path_rescale"),
    *("weight_init", "zero_init", "decay_blocks"),
}
# Further fields of modules of which logits do not depend, or tensors tell.
_TOLD = {
    *("num_classes", "dtype", "name", "parent", "head_init", "layer_scale", "position"),
    *("conv_mlp", "window"),
}
# Options that no tensor shows, and that timm's model of ours may lack.
_UNSEEN = {"gelu", "blur", "norm_epsilon"}
# Arguments of timm's models that no logits depend on, or that tensors show.
_HARMLESS = {
    *("img_size", "num_classes", "in_chans", "init_values", "ls_init_value"),
    *("depth", "embed_dim", "patch_size", "class_token", "no_embed_class", "fc_norm"),
    *("reg_tokens", "num_reg_tokens", "pre_norm", "qkv_bias", "use_fc_norm"),
    *("depths", "dims", "conv_mlp", "use_grn", "window_size"),
}
# Names of timm's with the network of our ViTs and Mixers, of any tensors.
_VITS_THERE = re.compile(
    r"(?!.*(?:gelu|siglip))(?:vit|deit3?|flexivit)_(tiny|small|base|large)(?:_\w+)?"
)
_MIXERS_THERE = re.compile(r"(mixer_[sb]\d+)_\w+")
_SWINS_THERE = re.compile(r"swin_(tiny|small|base)_patch4_window\d+_\d+")
# Models with the same name in timm.
_SAME = re.compile(
    r"resnet(18|34|50|101|152)|resnext(50_32x4d|101_32x8d)|wide_resnet(50|101)_2"
    r"|vgg(11|13|16|19)(_bn)?|convnext_(tiny|small|base|large)"
    r"|convnextv2_(atto|femto|pico|nano|tiny|base)"
)
_SWIN_SIZES = {"t": "tiny", "s": "small", "b": "base"}


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
    found, heads = _HEADS.fullmatch(architecture), getattr(module, "heads", None)
    if found and heads and found[1] != str(heads):
        raise InputError(
            f"is of a network with {found[1]} heads, and model.name={text} has {heads};"
            f" give its option heads={found[1]}"
        )
    found, gelu = _ACT.fullmatch(architecture), getattr(module, "gelu", None)
    if found and gelu and _ACTS_THERE.get(found[1]) != gelu:
        known = _ACTS_THERE.get(found[1])
        remedy = f"give its option gelu={known!r}" if known else "no model here has it"
        raise InputError(
            f"is of a network with hidden_act={found[1]!r}, and model.name={text} has"
            f" gelu={gelu!r}; {remedy}"
        )
    tower = TOWERS.get(_SIZE.sub("", architecture), "")
    if tower.partition("(")[0] == name:
        return _of_tower(architecture, tower, module, as_they_are)
    form = _form(architecture)
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
    if not _is_same(architecture, text):
        return f"the weights say {architecture}, not {text}: compare the logits"
    return ""


def _of_tower(architecture: str, tower: str, module: Any, as_they_are: bool) -> str:
    """Returns "" for weights of a tower of the same form; raises `InputError` for others.

    The pool matters only for a head that is taken.
    """
    apart = _apart(tower, module) or {}
    unseen = {"gelu", "heads", "norm_epsilon", *(["pool"] if as_they_are else [])}
    if apart := {name: apart[name] for name in apart.keys() & unseen}:
        raise InputError(
            f"is of {architecture}, with {_told(apart, module)}; give"
            f" model.name={_quoted(tower)}"
        )
    return ""


def native(architecture: str, tag: str) -> str:
    """Returns timm's architecture with the activation with which a tag learned."""
    is_clip = TOWERS.get(_SIZE.sub("", architecture), "").startswith("clip")
    if is_clip and _NATIVELY_QUICK.fullmatch(f"{architecture}.{tag}"):
        return architecture.replace("_clip_", "_clip_quickgelu_")
    return architecture


def ours_of(architecture: str | None) -> str:
    """Returns "model.name=..." for an architecture of timm that `check` knows, else ""."""
    if tower := TOWERS.get(_SIZE.sub("", architecture or "")):
        return f"model.name={_quoted(tower)}"
    form = FORMS.get(architecture or "")
    return _text(form) if form else ""


def _form(architecture: str) -> Form | None:
    """Returns the form of a name of timm's with arguments, as of `in_words`, or None."""
    if architecture in FORMS or "(" not in architecture:
        return FORMS.get(architecture)
    try:
        call = calls.parse(architecture, "architecture")[0]
        name, options = FORMS[call.name]
        told = [_ARGUMENTS[argument](value) for argument, value in call.kwargs.items()]
    except (InputError, LookupError, TypeError):
        return None
    return Form(name, functools.reduce(operator.or_, told, dict(options)))


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
    left = OF_TRAINING | _TOLD
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


def _is_same(architecture: str, text: str) -> bool:
    """Returns whether a model of timm, with its arguments, is that of a text here."""
    call = calls.parse(text, "model.name")[0]
    ours, args, lacking = of_timm(call.name, call.kwargs)
    base = architecture.partition("(")[0]
    if architecture.startswith("transformers_"):
        return True  # Their names tell the model.
    if lacking & _UNSEEN or architecture != in_words(base, args):
        return False
    if vit := _VITS_THERE.fullmatch(base):
        return ours.startswith(f"vit_{vit[1]}_")
    if swin := _SWINS_THERE.fullmatch(base):
        return ours.startswith(f"swin_{swin[1]}_")
    mixer = _MIXERS_THERE.fullmatch(base)
    return _SIZE.sub("", base) == _SIZE.sub("", ours) or (
        mixer is not None and ours == f"{mixer[1]}_224"
    )


def in_words(architecture: str, args: Mapping[str, Any]) -> str:
    """Returns a name of timm with those of its arguments that no tensor shows."""
    # A table of relative positions has a column a head.
    shown = _HARMLESS | ({"num_heads"} if architecture.startswith("swin") else set())
    told = [
        f"{name}={value!r}"
        for name, value in sorted(args.items())
        if not (name in shown or name.startswith("drop") or name.endswith("drop_rate"))
        and (name, value) != ("global_pool", _pool_of(architecture))
    ]
    return f"{architecture}({', '.join(told)})" if told else architecture


def _pool_of(architecture: str) -> str:
    """Returns the pool of a model of timm without arguments."""
    if re.fullmatch(r"vit_.*_siglip_\d+", architecture):
        return "map"
    is_vit = architecture.startswith(("vit", "deit", "flexivit"))
    return "token" if is_vit and not architecture.endswith("_dinov3") else "avg"


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
    usual = _defaults(form.name)
    told = ", ".join(f"{k}={v!r}" for k, v in form.options.items() if usual.get(k) != v)
    return f'model.name="{form.name}({told})"' if told else f"model.name={form.name}"


def _defaults(name: str) -> dict[str, Any]:
    """Returns the defaults of a model's options that tell two forms apart."""
    has_forms = any(form.name == name for form in FORMS.values())
    known = inspect.signature(MODELS[name]).parameters if has_forms else {}
    return {option: known[option].default for option in PYTORCH if option in known}


class Timm(NamedTuple):
    """A model of timm's. lacking: the options of ours of which timm has none, by name."""

    architecture: str
    args: dict[str, Any]
    lacking: set[str]


def of_timm(name: str, options: Mapping[str, Any]) -> Timm:
    """Returns timm's model of 224 pixels for a model here; "" if it has none."""
    computing = {k: v for k, v in options.items() if k not in OF_TRAINING}
    computing = _defaults(name) | computing
    architecture, known = _named(name, computing)
    # timm pools DINOv3 by the mean, its authors by the class token.
    args = {"global_pool": "token"} if architecture.endswith("_dinov3") else {}
    lacking = set()
    for option, value in computing.items():
        made = known[option](value) if option in known else None
        if made is None:
            lacking.add(option)
        args |= made or {}
    return Timm(architecture, args, lacking)


# By the options of ours, what timm takes for a value; None: timm has no such thing.
Translation = Mapping[str, Callable[[Any], dict[str, Any] | None]]


def _named(name: str, options: Mapping[str, Any]) -> tuple[str, Translation]:
    """Returns timm's name of a model of ours, "" for none, and what its options are."""
    if _SAME.fullmatch(name):
        return name, _CONVNEXT if name.startswith("convnext") else {}
    forms = {k: form for k, form in FORMS.items() if k != KERAS and form.name == name}
    for architecture, form in forms.items():
        if form.options.items() <= options.items():
            return architecture, dict.fromkeys(form.options, lambda _: {})
    for architecture, form in forms.items():
        if form.options == PYTORCH:
            return architecture, _MOBILE
    is_quick = name.startswith("clip") and options.get("gelu") == "quick"
    tower = name + _QUICK if is_quick else name
    for architecture, ours in TOWERS.items():
        if ours == tower:
            size = "" if name.startswith("dino") else "_224"
            known = {**_VIT, "gelu": lambda _: {}} if is_quick else _VIT
            return architecture + size, known
        if name.startswith("dinov3") and ours.startswith(f"{name}("):
            return architecture, _DINOV3
    if found := re.fullmatch(r"vit_(ti_16|[sbl]_(16|32))", name):
        size, patch = found[1].split("_")
        return f"vit_{_SIZES[size]}_patch{patch}_224", _VIT
    if found := re.fullmatch(r"mixer_([sb])_(16|32)", name):
        return f"mixer_{found[1]}{found[2]}_224", {}
    if found := re.fullmatch(r"swin_([tsb])", name):
        return f"swin_{_SWIN_SIZES[found[1]]}_patch4_window7_224", _SWIN
    return "", {}


_POOLS: dict[str, dict[str, Any]] = {
    "token": {"class_token": True, "global_pool": "token"},
    "mean": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "patch_mean": {"class_token": True, "global_pool": "avg"},
    "norm_patch_mean": {"class_token": True, "global_pool": "avg", "fc_norm": False},
    "map": {"class_token": False, "global_pool": "map"},
}
_ACTS: dict[str, dict[str, Any]] = {
    "exact": {},
    "tanh": {"act_layer": "gelu_tanh"},
    "quick": {"act_layer": "quick_gelu"},
}
_CONVNEXT: Translation = {
    "conv_mlp": lambda value: {"conv_mlp": value},
    "grn": lambda value: {"use_grn": value},
    "layer_scale": lambda value: {"ls_init_value": value or None},
}
_SWIN: Translation = {
    "heads": lambda value: {"num_heads": list(value)},
    "stages": lambda value: {"depths": list(value)},
    "width": lambda value: {"embed_dim": value},
    "window": lambda value: {"window_size": value},
}
_MOBILE: Translation = {
    "norm_epsilon": lambda value: {"bn_eps": value},
    "padding": lambda value: {"pad_type": "same"} if value == "same" else {},
}
_PADDINGS = {"": "symmetric", "same": "same"}
# The inverse: options of ours for arguments of timm's.
_ARGUMENTS: Translation = {
    "bn_eps": lambda value: {"norm_epsilon": value},
    "pad_type": lambda value: {"padding": _PADDINGS[value]},
}
_VIT: Translation = {
    "depth": lambda value: {"depth": value},
    "gelu": lambda value: _ACTS[value],
    "heads": lambda value: {"num_heads": value},
    "layer_scale": lambda value: {"init_values": value or None},
    "patch": lambda value: {"patch_size": value},
    "pool": lambda value: _POOLS[value],
    "position": lambda value: None if value == "rope" else {},  # Others are tensors.
    "pre_norm": lambda value: {"pre_norm": value},
    "qkv_bias": lambda value: {"qkv_bias": value},
    "reg_tokens": lambda value: {"reg_tokens": value},
    "token_position": lambda value: {"no_embed_class": not value},
    "width": lambda value: {"embed_dim": value},
}
_POOLS_OF_DINOV3: dict[str, dict[str, Any]] = {
    "token": {},
    "patch_mean": {"global_pool": "avg", "use_fc_norm": True},
    "norm_patch_mean": {"global_pool": "avg"},
}
_DINOV3: Translation = {
    **_VIT,
    "gelu": lambda value: {} if value == "exact" else None,
    "pool": _POOLS_OF_DINOV3.get,
    "position": lambda value: {} if value == "rope" else None,
    "pre_norm": lambda value: None if value else {},
    "qkv_bias": lambda value: None if value else {},
    "reg_tokens": lambda value: {"num_reg_tokens": value},
    "token_position": lambda _: {},
}
