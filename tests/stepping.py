"""Optimizers and batches for tests of the pure step."""

import jax
import numpy as np
import optax

from jaxcls.data.batch import Batch
from jaxcls.learning import param_groups
from jaxcls.learning.optimizers import OPTIMIZERS, decay_scales, decay_weights
from jaxcls.learning.param_groups import WHOLE


class AllWhole(dict):
    """Parts in which every parameter trains alike."""

    def __missing__(self, path):
        return WHOLE


def direction(name, decay=0.0, pattern="kernel$", **options):
    """An optimizer at a rate of 1, with a weight decay on what the pattern matches."""
    scales = decay_scales(pattern, {})
    return OPTIMIZERS[name](decay=decay_weights(decay, scales), **options)


def at_rate():
    """Updates times ``lr``, an argument of `update`."""

    def update(updates, state, params=None, *, lr, **extra):
        return jax.tree.map(lambda u: lr * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def optimizer_of(name, decay=0.0, pattern="kernel$", trains=None, **options):
    """The whole chain of a step, without clipping."""
    found = AllWhole() if trains is None else trains
    made = direction(name, decay, pattern, **options)
    if trains:
        made = param_groups.train_only(made, trains)
    return param_groups.until_stop(param_groups.at_rate(made, lambda: found), lambda: found)


def with_columns(image, label):
    """A batch of image and label with the index and epoch of a run's start."""
    rows = np.arange(len(label), dtype=np.int32)
    return Batch(image, label, rows, np.zeros_like(rows))
