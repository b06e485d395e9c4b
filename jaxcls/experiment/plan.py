"""config -> Plan: the numbers of a run.

This module computes steps, rate and periods once, from the config and the number of
training examples.
"""

from fractions import Fraction
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxcls.config import calls, durations
from jaxcls.config import loading as configs
from jaxcls.errors import InputError


class Due(NamedTuple):
    """The duties after a step: a training record, an evaluation of data.eval, a save."""

    record: bool
    evaluation: bool
    save: bool


class Plan(NamedTuple):
    """The length of a run, its peak rate, and the steps of its events.

    examples: The training examples of one epoch.
    steps: The updates of the whole run.
    evaluates: Whether there is a data.eval to evaluate.
    every: The exact steps between two evaluations ("eval"), checkpoints ("checkpoint") and
        records ("log").
    lr: The peak learning rate.
    warmup, cooldown: The steps of the linear start and end.
    head_first: The steps in which the head trains alone.
    stops: The step at which matching parameters freeze, by expression of
        optim.freeze_after.
    """

    examples: int
    steps: int
    evaluates: bool
    every: dict[str, Fraction]
    lr: float
    warmup: int
    cooldown: int
    head_first: int
    stops: dict[str, int]

    def due(self, step: int) -> Due:
        """Returns the duties after `step` updates; all of them are due after the last."""
        last = step == self.steps
        record, evaluation, save = (
            last or durations.is_due(step, self.every[name])
            for name in ("log", "eval", "checkpoint")
        )
        return Due(record, evaluation and self.evaluates, save)


def make(config: ConfigDict, examples: int) -> Plan:
    """Returns the plan of a run on `examples` training examples.

    Raises `InputError` for a bad duration.
    """
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
        evaluates=bool(config.data.eval),
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
    """Returns the exact steps of a duration's text; raises `InputError` naming `key`."""
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
    """Returns the steps of a duration; raises `InputError` unless the run is longer."""
    text = configs.flat(config)[key]
    found = durations.step_of(1, in_steps(config, examples, text, key, steps))
    if found >= steps:
        raise InputError(
            f"{key}={text!r} is {found} steps and the whole run has {steps}; try"
            " '10 percent'"
        )
    return found
