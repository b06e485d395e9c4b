"""The preprocessing of evaluations in words, as a run's ops say it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxcls.config import calls
from jaxcls.data.decode import HOST_OPS

_FILTERS = {
    "bilinear": "bilinear, antialiased",
    "bicubic": "bicubic, antialiased",
    "linear": "bilinear, not antialiased",
    "cubic": "bicubic, not antialiased",
    "area": "mean of an area",
}
_ROUNDINGS = {
    "round": "longer side rounded, as big_vision",
    "truncate": "longer side truncated, as torchvision and timm",
}
# Of each op, its words from its options; "" says nothing.
_WORDS: Mapping[str, Callable[[dict[str, Any]], str]] = {
    "decode": lambda of: "" if of["channels"] == 3 else f"{of['channels']} channel(s)",
    "resize": lambda of: f"resized to {_by(of['size'])} ({_FILTERS[of['filter']]})",
    "resize_short": lambda of: (
        f"short side to {of['size']} ({_FILTERS[of['filter']]},"
        f" {_ROUNDINGS[of['rounding']]})"
    ),
    "resize_long": lambda of: (
        f"resized to fit {_by(of['size'])} ({_FILTERS[of['filter']]})"
    ),
    "pad": lambda of: f"padded to {_by(of['size'])} with {of['fill']}",
    "letterbox": lambda of: (
        f"all of it in {_by(of['size'])} ({_FILTERS[of['filter']]}), padded with"
        f" {of['fill']}"
    ),
    "center_crop": lambda of: f"center crop {_by(of['size'])}",
}


def preprocessing(config: ConfigDict) -> str:
    """Returns how evaluations and predictions prepare an image, in one line.

    Such as "short side to 256 (bilinear, antialiased, longer side truncated, as torchvision
    and timm), center crop 224, normalized by imagenet". An op of a plug-in is as written.
    """
    words = []
    for call in calls.parse(config.data.eval_ops, "data.eval_ops"):
        if call.name in _WORDS:
            bound = inspect.signature(HOST_OPS[call.name]).bind(*call.args, **call.kwargs)
            bound.apply_defaults()
            words.append(_WORDS[call.name](bound.arguments))
        else:
            options = [
                *map(repr, call.args),
                *(f"{k}={v!r}" for k, v in call.kwargs.items()),
            ]
            words.append(f"{call.name}({', '.join(options)})")
    return ", ".join([*filter(None, words), f"normalized by {config.normalize}"])


def _by(size: int | tuple[int, int]) -> str:
    return "x".join(map(str, size)) if isinstance(size, tuple | list) else str(size)
