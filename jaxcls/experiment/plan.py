"""config -> Plan: the numbers of a run.

This module computes steps, rate and periods once, from the config and the number of
training examples.
"""

import functools
from fractions import Fraction
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxcls.config import durations
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
    """

    examples: int
    steps: int
    evaluates: bool
    every: dict[str, Fraction]
    lr: float
    warmup: int
    cooldown: int
    head_first: int

    def due(self, step: int) -> Due:
        """Returns the duties after `step` updates; all of them are due after the last.

        A record is due at each evaluation, too, so that short runs have some.
        """
        last = step == self.steps
        record, evaluation, save = (
            last or durations.is_due(step, self.every[name])
            for name in ("log", "eval", "checkpoint")
        )
        evaluation = evaluation and self.evaluates
        return Due(record or evaluation, evaluation, save)


def make(config: ConfigDict, examples: int) -> Plan:
    """Returns the plan of a run on `examples` training examples.

    Raises `InputError` for a bad duration.
    """
    optim, size = config.optim, config.batch_size
    in_steps = functools.partial(durations.to_steps, examples=examples, batch_size=size)
    steps = durations.step_of(1, in_steps(config.length, "length", total=0))
    if not 1 <= steps < 2**31:
        raise InputError(
            f"length={config.length!r} is {steps} steps of batch_size={size}; give a length"
            " from 1 step to 2**31 - 1"
        )
    parts = {}
    for name in ("warmup", "cooldown", "head_first"):
        found = in_steps(optim[name], f"optim.{name}", total=steps)
        parts[name] = durations.step_of(1, found)
        if parts[name] >= steps:
            raise InputError(
                f"optim.{name}={optim[name]!r} is {parts[name]} steps and the whole run has"
                f" {steps}; try '10 percent'"
            )
    if parts["warmup"] + parts["cooldown"] > steps:
        raise InputError(
            f"optim.warmup and optim.cooldown are {parts['warmup']} and {parts['cooldown']}"
            f" steps and the whole run has {steps}; try '5 percent' and '20 percent'"
        )
    return Plan(
        examples=examples,
        steps=steps,
        evaluates=bool(config.data.eval),
        every={
            name: in_steps(config[name].every, f"{name}.every", total=steps)
            for name in ("eval", "checkpoint", "log")
        },
        lr=optim.lr * size / optim.lr_per if optim.lr_per else optim.lr,
        **parts,
    )
