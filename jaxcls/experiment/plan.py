"""config -> Plan: the numbers that a run comes to.

Steps, rate and what is due when are computed here, once, from the config and the number of
training examples.
"""

from fractions import Fraction
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxcls.config import calls, durations
from jaxcls.config import loading as configs
from jaxcls.errors import InputError


class Plan(NamedTuple):
    """How long a run is, its peak rate, and the steps at which something changes.

    examples: of one epoch. steps: updates of the whole run. every: steps, exactly, between
    evaluations ("eval"), "checkpoint"s and "log" records. lr: the peak learning rate.
    warmup, cooldown: steps of the linear start and end. head_first: steps in which the
    head trains alone. stops: the step at which what each expression of optim.freeze_after
    matches freezes.
    """

    examples: int
    steps: int
    every: dict[str, Fraction]
    lr: float
    warmup: int
    cooldown: int
    head_first: int
    stops: dict[str, int]


def make(config: ConfigDict, examples: int) -> Plan:
    """The plan of a run on so many training examples; raises `InputError` for a bad one."""
    optim, key = config.optim, "optim.freeze_after"
    steps = _length(config, examples)
    warmup, cooldown, head_first = (
        _part_of_run(config, examples, name, steps)
        for name in ("optim.warmup", "optim.cooldown", "optim.head_first")
    )
    if warmup + cooldown > steps:
        raise InputError(
            f"optim.warmup and optim.cooldown are {warmup} and {cooldown} steps"
            f" and the whole run has {steps}; try '5 percent' and '20 percent'"
        )
    every = {
        name: in_steps(config, examples, config[name].every, f"{name}.every", steps)
        for name in ("eval", "checkpoint", "log")
    }
    stops = calls.table(optim.freeze_after, key, example="{'^stem/': '3 epochs'}")
    return Plan(
        examples=examples,
        steps=steps,
        every=every,
        lr=optim.lr * config.batch_size / optim.lr_per if optim.lr_per else optim.lr,
        warmup=warmup,
        cooldown=cooldown,
        head_first=head_first,
        stops={
            pattern: durations.step_of(1, in_steps(config, examples, text, key, steps))
            for pattern, text in stops.items()
        },
    )


def in_steps(
    config: ConfigDict, examples: int, text: str, key: str, total: int | None = None
) -> Fraction:
    """A duration's text in steps; raises `InputError` naming `key`."""
    size = config.batch_size
    return durations.to_steps(text, key, examples=examples, batch_size=size, total=total)


def _length(config: ConfigDict, examples: int) -> int:
    steps = durations.step_of(1, in_steps(config, examples, config.length, "length"))
    if steps >= 2**31:
        raise InputError(f"length={config.length!r} is {steps:.1e} steps, over 2**31")
    if steps < 1:
        raise InputError(
            f"length={config.length!r} is less than one batch of"
            f" batch_size={config.batch_size}; train longer or take less"
        )
    return steps


def _part_of_run(config: ConfigDict, examples: int, key: str, steps: int) -> int:
    """The steps of a duration that must be shorter than the run."""
    text = configs.flat(config)[key]
    found = durations.step_of(1, in_steps(config, examples, text, key, steps))
    if found >= steps:
        raise InputError(
            f"{key}={text!r} is {found} steps and the whole run has {steps}; try"
            " '10 percent'"
        )
    return found
