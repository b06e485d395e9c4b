"""Experiments that a test has end between two steps, or take steps that are not finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls import experiment


class Crash(Exception):
    """Stands for a process that dies between two steps."""


class Dying(experiment.Experiment):
    """Before the batch of step `at` the process dies; a `stop` is asked instead."""

    at = 10**9
    stop = None

    def train_batches(self, start=0):
        for step, batch in enumerate(super().train_batches(start), start):
            if step == self.at and not self.stop:
                raise Crash
            if step == self.at and not self.stop.requested:
                self.stop.ask()
            yield batch


MADE: dict[str, Dying] = {}  # What is compiled once serves every test.


def dying(config, at=10**9):
    """The experiment of a config, which dies before the batch of step `at`."""
    exp = MADE.setdefault(config.to_json(), Dying(config, None))
    exp.at = at
    return exp


class Poisoned(Dying):
    """The updates of the steps `nan` are not finite."""

    nan: tuple[int, ...] = ()

    @functools.cached_property
    def recipe(self):
        made = experiment.Experiment.recipe.func(self)
        schedule, number = made.schedule, jax.ShapeDtypeStruct((), jnp.float32)

        def factor(step):  # Asked at run time, so that one compilation serves all tests.
            return np.float32(np.nan if int(step) in self.nan else 1.0)

        made.schedule = lambda step: (
            schedule(step) * jax.pure_callback(factor, number, step)
        )
        return made
