"""The rules for a config's values that hold for any data and any devices."""

import math
import re
from collections.abc import Mapping
from typing import Any

from jaxcls.config import durations
from jaxcls.config.knobs import KNOBS, STREAMS
from jaxcls.errors import InputError

Values = Mapping[str, Any]

_FROM_ONE = (
    *("batch_size", "checkpoint.keep", "data.prefetch", "data.repeats", "ema.every"),
    *("mesh.fsdp", "model.batch_norm_groups", "optim.accumulate"),
)
_ABOVE_ZERO = (
    *("optim.lr", "optim.head_lr", "optim.layer_decay", "optim.plateau_factor"),
    *("data.fraction", "distill.temperature"),
)
_AT_MOST_ONE = (
    *("distill.weight", "optim.warmup_from", "optim.plateau_factor"),
    *("optim.layer_decay", "data.fraction"),
)
_BELOW_ONE = ("loss.smoothing", "ema.decay")
_AT_MOST_1000 = ("data.prefetch", "nonfinite.rewinds")
_ONE_OF = {
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.remat": ("", "blocks"),
    "data.resident": ("auto", "on", "off"),
    "compile.loop": ("auto", "on", "off"),
    "nonfinite.policy": ("stop", "skip", "rewind"),
    "init.head": ("keep", "fresh", "auto"),
    "model.matmul_precision": ("", "bfloat16", "tensorfloat32", "float32"),
}
_DURATIONS_FROM_ZERO = ("optim.warmup", "optim.cooldown", "optim.head_first")
_DURATIONS = ("length", "eval.every", "checkpoint.every", "log.every")
_PATTERNS = ("optim.decay_on", "optim.freeze", "init.skip")
# Keys that have no effect without another key.
_NEEDS = {
    "distill.weight": "distill.run",
    "distill.temperature": "distill.run",
    "ema.every": "ema.decay",
    "ema.warmup": "ema.decay",
    "init.head": "init.weights",
    "init.skip": "init.weights",
    "optim.warmup_from": "optim.warmup",
}


def check(values: Values) -> None:
    """Checks the rules that need nothing but {key: value} of every knob.

    Raises `InputError` for the first value that breaks a rule.
    """
    _check_numbers(values)
    _check_divides(values)
    _check_durations(values)
    _check_patterns(values)
    for key, allowed in _ONE_OF.items():
        _require(values, key, values[key] in allowed, f"must be one of {allowed}")
    _check_patience(values)


def check_alone(values: Values) -> None:
    """Raises `InputError` if a key is set that has no effect without another key."""
    for key, other in _NEEDS.items():
        value, needed = values[key], values[other]
        if value != KNOBS[key].default and needed in ("", 0, "0 steps"):
            raise InputError(
                f"{key}={value!r} does nothing where {other}={needed!r}; set {other} too,"
                f" or leave {key} at {KNOBS[key].default!r}"
            )


def _check_numbers(values: Values) -> None:
    """Raises `InputError` for a number out of its range."""
    for key, knob in KNOBS.items():
        value, kind = values[key], type(knob.default)
        if kind is float and not math.isfinite(value):
            raise InputError(f"{key}={value} is not a finite number; try {knob.default}")
        if kind in (int, float) and not key.startswith("seed"):
            _require(values, key, value >= 0, "must not be negative")
            _require(values, key, kind is float or value < 2**32, "must be below 2**32")
    for keys, holds, rule in (
        (_FROM_ONE, lambda x: x >= 1, "must be at least 1"),
        (_ABOVE_ZERO, lambda x: x > 0, "must be above 0"),
        (_AT_MOST_ONE, lambda x: x <= 1, "must be at most 1"),
        (_BELOW_ONE, lambda x: x < 1, "must be below 1"),
        (_AT_MOST_1000, lambda x: x <= 1000, "must be below 1001"),
    ):
        for key in keys:
            _require(values, key, holds(values[key]), rule)
    _require(values, "seed", 0 <= values["seed"] < 2**32, "must be from 0 to 2**32 - 1")
    for stream in STREAMS:
        key, rule = f"seeds.{stream}", "must be from 0 to 2**32 - 1, or -1 for that of seed"
        _require(values, key, -1 <= values[key] < 2**32, rule)


def _check_divides(values: Values) -> None:
    """Raises `InputError` unless BatchNorm groups and microbatches divide the batch."""
    for key in ("model.batch_norm_groups", "optim.accumulate"):
        size, parts = values["batch_size"], values[key]
        if size % parts:
            near = next(k for k in range(min(parts, size), 0, -1) if size % k == 0)
            raise InputError(
                f"{key}={parts} does not divide batch_size={size}; try {key}={near}"
            )


def _check_durations(values: Values) -> None:
    """Raises `InputError` for a malformed or too short duration."""
    for key in (*_DURATIONS, *_DURATIONS_FROM_ZERO):
        number, unit = durations.parse(values[key], key)
        if key in _DURATIONS and number <= 0:
            raise InputError(f"{key}={values[key]!r} must be above 0; try '1 epoch'")
        if key == "length" and unit == "percent":
            raise InputError(f"length={values[key]!r}: give epochs, steps or examples")


def _check_patterns(values: Values) -> None:
    """Raises `InputError` for an invalid regular expression."""
    for key in _PATTERNS:
        try:
            re.compile(values[key])
        except (re.error, OverflowError, RecursionError) as error:
            raise InputError(
                f"{key}={values[key]!r} is not a regular expression ({error});"
                " try 'kernel$'"
            ) from None


def _check_patience(values: Values) -> None:
    """Raises `InputError` for unusable patience.

    Patience needs evaluations. The patience of early stopping must exceed the patience of
    the plateau schedule.
    """
    keys = "early_stop.patience", "optim.plateau_patience"
    for key in keys:
        if values[key] and not values["data.eval"]:
            raise InputError(
                f"{key}={values[key]} needs evaluations and data.eval is ''; try"
                " data.eval='train[90%:]' and data.train='train[:90%]'"
            )
    stop, plateau = (values[key] for key in keys)
    if stop and plateau and stop <= plateau:
        raise InputError(
            f"early_stop.patience={stop} ends the run before the rate is reduced after"
            f" optim.plateau_patience={plateau}; try early_stop.patience={3 * plateau}"
        )


def _require(values: Values, key: str, true: bool, rule: str) -> None:
    if not true:
        default = KNOBS[key].default
        raise InputError(f"{key}={values[key]!r} {rule}; the default is {default!r}")
