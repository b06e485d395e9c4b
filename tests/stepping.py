"""Optimizers, batches and whole steps of small models, for tests of the pure step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcls.augment import NORMALIZATIONS, chain
from jaxcls.data.batch import Batch
from jaxcls.learning import gradients, losses, metrics, optimizers, step
from jaxcls.learning.optimizers import OPTIMIZERS, decay_scales, decay_weights
from jaxcls.learning.param_groups import WHOLE

B, SIDE, K = 8, 2, 3
STEPS = 10


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
        made = optimizers.train_only(made, trains)
    return optimizers.at_rate(made, lambda: found)


def with_columns(image, label):
    """A batch of image and label with the index and epoch of a run's start."""
    rows = np.arange(len(label), dtype=np.int32)
    return Batch(image, label, rows, np.zeros_like(rows))


def batches(rng, count=6):
    """Random batches of B images of SIDE by SIDE pixels, of K classes."""
    shape = (B, SIDE, SIDE, 1)
    return [
        with_columns(
            rng.integers(0, 256, shape).astype(np.uint8),
            rng.integers(0, K, B).astype(np.int32),
        )
        for _ in range(count)
    ]


def made(
    variables,
    apply,
    optimizer=None,
    *,
    trains=None,
    ema=0.0,
    higher=True,
    plateau=False,
    penalty=None,
    lr=0.5,
    **changes,
):
    """(state at step 0, jitted train_step(state, batch)) of a model of `batches`.

    ema: a decay, or a whole `step.Average`. changes: of `step.inputs` or `step.train_step`.
    """
    optimizer = optimizer or optimizer_of("sgd", momentum=0.0)
    inputs = {
        "num_classes": K,
        "smoothing": 0.0,
        "augment": chain([]),
        "normalize": NORMALIZATIONS["unit"](),
        "mix": None,
        "steps": STEPS,
    }
    inputs |= {name: changes.pop(name) for name in inputs if name in changes}
    objective = functools.partial(
        gradients.objective,
        apply=apply,
        loss=losses.softmax(),
        trains=AllWhole() if trains is None else trains,
        penalty=penalty,
    )
    parts = {
        "optimizer": optimizer,
        "schedule": lambda count: jnp.float32(lr),
        "gradient": gradients.whole(objective),
        "inputs": functools.partial(step.inputs, **inputs),
        "metrics": [metrics.top1()],
        "steps": STEPS,
        "average": step.Average(ema) if isinstance(ema, float) and ema else ema or None,
        "has_penalty": penalty is not None,
    }
    state = step.init(
        jax.random.key(0),
        {"augment": jax.random.key(1), "dropout": jax.random.key(2)},
        {},
        model=step.Model(lambda key, images: jax.tree.map(jnp.asarray, variables), apply),
        optimizer=optimizer,
        image_shape=(SIDE, SIDE, 1),
        ema=bool(ema),
        higher=higher,
        plateau=plateau,
    )
    train_step = functools.partial(step.train_step, **parts | changes)
    return state, jax.jit(lambda state, batch: train_step(state, batch, {}))
