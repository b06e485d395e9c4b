"""The rules for a config's values that hold for any data and any devices."""

import math
import operator
import re
from collections.abc import Mapping
from typing import Any

from jaxcls.config import durations
from jaxcls.config.knobs import KNOBS
from jaxcls.errors import InputError

Values = Mapping[str, Any]

# Numbers by what they must be. Besides, all but the seeds are at least 0.
_RANGES = {
    "at least 1": "batch_size checkpoint.keep data.prefetch data.repeats ema.every"
    " mesh.fsdp model.batch_norm_groups optim.accumulate",
    "above 0": "optim.lr optim.head_lr optim.layer_decay optim.plateau_factor data.fraction"
    " distill.temperature",
    "at most 1": "distill.weight optim.warmup_from optim.plateau_factor optim.layer_decay"
    " data.fraction",
    "below 1": "loss.smoothing ema.decay",
    # A batch of more takes minutes to find out that no memory holds it.
    "at most 1048576": "batch_size eval.batch_size",
    "below 1001": "data.prefetch nonfinite.rewinds",
    "at least -1": "seeds.init seeds.order seeds.augment seeds.dropout data.split_seed",
}
_IS = {
    "at least": operator.ge,
    "above": operator.gt,
    "at most": operator.le,
    "below": operator.lt,
}
_ONE_OF = {
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.remat": ("", "blocks", "elementwise"),
    "data.resident": ("auto", "on", "off"),
    "compile.loop": ("auto", "on", "off"),
    "compile.convolution": ("auto", "eigen", "ynnpack"),
    "nonfinite.policy": ("stop", "skip", "rewind"),
    "init.head": ("keep", "fresh", "auto", "match"),
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
    "probe.cache": "probe.penalties",
}
# What the settings are that have no part in a probe; data.train_ops are data.eval_ops.
PROBE: Values = {
    "length": "1 steps",
    "augment": "",
    "mix": "",
    "ema.decay": 0.0,
    "loss.name": "softmax",
    "loss.smoothing": 0.0,
    "loss.class_weights": "",
    "data.balance": False,
    "optim.freeze": "^(?!head/)",
    "optim.lora": "",
    "optim.warmup": "0 steps",
    "optim.cooldown": "0 steps",
    "distill.run": "",
}


def check(values: Values) -> None:
    """Checks the rules that need nothing but {key: value} of every knob.

    Raises `InputError` for the first value that breaks a rule.
    """
    for key, knob in KNOBS.items():
        value, kind = values[key], type(knob.default)
        _require(
            values, key, kind is not float or math.isfinite(value), "is not a finite number"
        )
        _require(values, key, kind is not int or value < 2**32, "must be below 2**32")
        is_free = kind not in (int, float) or key in _RANGES["at least -1"].split()
        _require(values, key, is_free or value >= 0, "must not be negative")
    for rule, keys in _RANGES.items():
        sign, bound = rule.rsplit(maxsplit=1)
        for key in keys.split():
            _require(values, key, _IS[sign](values[key], int(bound)), f"must be {rule}")
    for key, allowed in _ONE_OF.items():
        _require(values, key, values[key] in allowed, f"must be one of {allowed}")
    for key in (*_DURATIONS, *_DURATIONS_FROM_ZERO):
        number, unit = durations.parse(values[key], key)
        is_long = number > 0 or key in _DURATIONS_FROM_ZERO
        _require(values, key, is_long, "must be above 0")
        is_known = key != "length" or unit != "percent"
        _require(values, key, is_known, "must be in epochs, steps or examples")
    for key in _PATTERNS:
        try:
            re.compile(values[key])
        except (re.error, OverflowError, RecursionError) as error:
            _require(
                values,
                key,
                False,
                f"is not a regular expression, such as 'kernel$' ({error})",
            )
    if values["probe.penalties"]:
        penalties(str(values["probe.penalties"]))
    _check_divides(values)
    _check_patience(values)


def penalties(text: str) -> tuple[float, ...]:
    """Returns the numbers of probe.penalties, "1e-3, 1e-5"; raises `InputError`."""
    try:
        found = tuple(float(each) for each in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 <= each < math.inf for each in found):
        raise InputError(
            f"probe.penalties={text!r} must be numbers from 0 on with commas between, such"
            " as '1e-2, 1e-4, 1e-6'"
        )
    return found


def check_alone(values: Values) -> None:
    """Raises `InputError` if a key is set that has no effect without another key."""
    for key, other in _NEEDS.items():
        value, needed = values[key], values[other]
        if value != KNOBS[key].default and needed in ("", 0, "0 steps"):
            raise InputError(
                f"{key}={value!r} does nothing where {other}={needed!r}; set {other} too,"
                f" or leave {key} at {KNOBS[key].default!r}"
            )


def _check_divides(values: Values) -> None:
    """Raises `InputError` unless BatchNorm groups and microbatches divide the batch."""
    for key in ("model.batch_norm_groups", "optim.accumulate"):
        size, parts = values["batch_size"], values[key]
        if size % parts:
            near = next(k for k in range(min(parts, size), 0, -1) if size % k == 0)
            raise InputError(
                f"{key}={parts} does not divide batch_size={size}; try {key}={near}"
            )


def _check_patience(values: Values) -> None:
    """Raises `InputError` for patience without evaluations, or too short of the two."""
    keys = "early_stop.patience", "optim.plateau_patience"
    stop, plateau = (values[key] for key in keys)
    for key in keys:
        if values[key] and not values["data.eval"]:
            raise InputError(
                f"{key}={values[key]} needs evaluations and data.eval is ''; try"
                " data.eval='train[90%:]' and data.train='train[:90%]'"
            )
    if stop and plateau and stop <= plateau:
        raise InputError(
            f"early_stop.patience={stop} ends the run before the rate is reduced after"
            f" optim.plateau_patience={plateau}; try early_stop.patience={3 * plateau}"
        )


def _require(values: Values, key: str, true: bool, rule: str) -> None:
    if not true:
        default = KNOBS[key].default
        raise InputError(f"{key}={values[key]!r} {rule}; the default is {default!r}")
