"""A run is made longer if a run of the larger length would have the same bits so far."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls import atomic
from jaxcls.config import loading as configs
from jaxcls.experiment import Experiment
from jaxcls.experiment.plan import Plan
from jaxcls.experiment.programs import Programs
from jaxcls.experiment.recipe import Recipe
from jaxcls.runs import checkpoint, records
from jaxcls.runs.workdir import Workdir


class _OfLength(NamedTuple):
    """What of a run may follow from its length.

    rates: The rate of each step so far. stages: The steps so far at which a stage of the
    data begins. step: The train step without its schedule, as text.
    """

    plan: Plan
    rates: np.ndarray
    stages: list[int]
    step: str


def reason_against(exp: Experiment, folder: Workdir, before: str, ended: int | None) -> str:
    """Returns why the run of a folder is no part of the longer `exp`; "" if it is.

    before: The length of the folder's run, which differs in nothing else.
    ended: The step at which it has ended, or None.
    """
    done = checkpoint.reached(folder.checkpoints)
    old, new = (_of_length(exp, x, done) for x in (before, exp.config.length))
    end, optim = old.plan.steps, exp.config.optim
    if new.plan.steps <= end:
        return f"it has {end} steps, and this one {new.plan.steps}"
    if ended not in (None, end):
        return f"early stopping ended it at step {ended}"
    if old.plan.every != new.plan.every:
        return "a percentage in eval.every, checkpoint.every or log.every is of the length"
    if (other := old.rates != new.rates).any():
        step = int(other.argmax())
        return (
            f"optim.schedule={optim.schedule!r} would have had the rate"
            f" {new.rates[step]:.6g} in place of {old.rates[step]:.6g} at step {step}"
        )
    if (old.stages, old.step) != (new.stages, new.step):
        return (
            "data.train_ops, augment, mix, optim.wrapper or a percentage follows the share"
            " of the run that is done"
        )
    if done == end and old.plan.due(end) != new.plan.due(end):
        return (
            f"it was evaluated, recorded and saved at its last step, {end}, where a longer"
            " run by eval.every and checkpoint.every is not"
        )
    return ""


def reopen(folder: Workdir) -> None:
    """Drops the final record of a run, atomically."""
    kept = [each for each in records.read(folder.metrics) if each["kind"] != "final"]
    atomic.write(folder.metrics, "".join(json.dumps(each) + "\n" for each in kept))


def _of_length(exp: Experiment, length: str, done: int) -> _OfLength:
    config = configs.from_flat({**configs.flat(exp.config), "length": length})
    recipe = Recipe(config, exp.data, exp.plugins)
    schedule, steps = recipe.schedule, np.arange(max(done, 1), dtype=np.int32)
    rates = np.asarray(jax.jit(jax.vmap(schedule))(steps))
    # Tracing leaves out what is not used: the text is without the length unless a function
    # of the step follows it.
    recipe.schedule = lambda step: jnp.zeros((), jnp.float32)
    text = Programs(recipe, lambda: exp.teacher, None).lowered_train_step.as_text()
    begins = [round(share * recipe.plan.steps) for share, _ in exp.data.train_stages]
    return _OfLength(recipe.plan, rates, [step for step in begins if step < done], text)
