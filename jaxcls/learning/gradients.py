"""The gradient of one step: whole batch, microbatches or sharpness-aware.

Each function returns a `Gradient`, so calls nest:
``sharpness_aware(accumulated(whole(objective), 4), 0.05)``.

`optax.MultiSteps` and `optax.contrib.sam` spread this work over several updates. Here one
update is one batch, so `State.step` counts batches and schedules need no correction.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcls.learning import losses
from jaxcls.learning.losses import Loss
from jaxcls.learning.param_groups import ParamGroups, hold

Tree = Any
Apply = Callable[[dict[str, Tree], jax.Array, bool, jax.Array | None], tuple[Any, Tree]]


class Examples(NamedTuple):
    """The inputs of the objective: images [B, H, W, C] and targets [B, K] float32.

    taught: The teacher's logits [B, K] for the same images; None without a teacher.
    """

    images: jax.Array
    targets: jax.Array
    taught: jax.Array | None


class Forward(NamedTuple):
    """The outputs of a forward pass.

    loss: The mean over the batch.
    penalty: The term that the params add to the objective.
    logits: [B, K].
    batch_stats: The running statistics after this batch.
    """

    loss: jax.Array
    penalty: jax.Array
    logits: jax.Array
    batch_stats: Tree


# (params, batch_stats, dropout key, examples) -> (objective, Forward).
Objective = Callable[[Tree, Tree, jax.Array, Examples], tuple[jax.Array, Forward]]
# The same arguments -> (Forward, gradient with respect to params).
Gradient = Callable[[Tree, Tree, jax.Array, Examples], tuple[Forward, Tree]]


class Distillation(NamedTuple):
    """The settings of distillation.

    teach: (the teacher's variables, images) -> its logits [B, K].
    weight: The teacher's weight in the loss; the labels get 1 - weight.
    temperature: The temperature of both softmaxes.
    """

    teach: Callable[[Tree, jax.Array], jax.Array]
    weight: float
    temperature: float


def objective(
    params: Tree,
    batch_stats: Tree,
    key: jax.Array,
    examples: Examples,
    *,
    apply: Apply,
    loss: Loss,
    trains: ParamGroups,
    distillation: Distillation | None = None,
    penalty: Callable[[Tree], jax.Array] | None = None,
) -> tuple[jax.Array, Forward]:
    """Returns the value that a step minimises, and the outputs of its forward pass.

    apply: The model's, see `jaxcls.learning.step.Model`.
    trains: The param groups; frozen parameters get no gradient.
    penalty: A term of the params, [] float32.
    """
    params = hold(params, trains)
    variables = {"params": params, "batch_stats": batch_stats}
    logits, batch_stats = apply(variables, examples.images, True, key)
    each = loss(logits, examples.targets)
    if distillation and examples.taught is not None:
        taught = losses.distill(logits, examples.taught, distillation.temperature)
        each = (1.0 - distillation.weight) * each + distillation.weight * taught
    value, extra = each.mean(), jnp.zeros((), jnp.float32)
    if penalty:
        extra = penalty(params)
    return value + extra, Forward(value, extra, logits, batch_stats)


def whole(objective: Objective) -> Gradient:
    """Returns the gradient of an objective over the whole batch at once."""
    value_and_grad = jax.value_and_grad(objective, has_aux=True)

    def gradient(*arguments: Any) -> tuple[Forward, Tree]:
        (_, found), grads = value_and_grad(*arguments)
        return found, grads

    return gradient


def accumulated(gradient: Gradient, microbatches: int) -> Gradient:
    """Returns the mean of `gradient` over microbatches, which run one after the other.

    Microbatch m is rows m, m + microbatches, and so on. Each device then holds rows of
    every microbatch; contiguous microbatches would need communication.

    The mean equals the gradient of the whole batch, to rounding, if a row's loss depends on
    that row alone. Dropout masks differ from the whole batch's. BatchNorm normalises by the
    statistics of each microbatch.
    """
    if microbatches == 1:
        return gradient

    def each(
        params: Tree, batch_stats: Tree, key: jax.Array, examples: Examples
    ) -> tuple[Forward, Tree]:
        split = jax.tree.map(
            lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), examples
        )

        def one(m: jax.Array, piece: Examples) -> tuple[tuple[Forward, Tree], jax.Array]:
            microbatch_key = jax.random.fold_in(key, m)
            found, grads = gradient(params, batch_stats, microbatch_key, piece)
            # Differences, so that unchanged statistics keep their bits.
            moved = jax.tree.map(jnp.subtract, found.batch_stats, batch_stats)
            rest = found._replace(logits=jnp.zeros(()), batch_stats=moved)
            return (rest, grads), found.logits

        def add(total: Any, piece: tuple[jax.Array, Examples]) -> tuple[Any, jax.Array]:
            new, logits = one(*piece)
            return jax.tree.map(jnp.add, total, new), logits

        numbers = jnp.arange(microbatches)
        first = jax.tree.map(lambda x: x[0], (numbers, split))
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, *first)[0]
        )
        total, logits = jax.lax.scan(add, zeros, (numbers, split))
        found, grads = jax.tree.map(lambda x: x / microbatches, total)
        rows = logits.swapaxes(0, 1).reshape(-1, logits.shape[-1])
        moved = jax.tree.map(
            lambda x, change: jnp.where(change == 0, x, x + change),
            batch_stats,
            found.batch_stats,
        )
        return found._replace(logits=rows, batch_stats=moved), grads

    return each


def sharpness_aware(gradient: Gradient, rho: float) -> Gradient:
    """Returns the gradient at the worst point within `rho` of the params (SAM).

    Foret et al., arXiv:2010.01412, over the global batch. Both gradients use the same
    examples and dropout masks; the first one gives the direction. Loss, logits and
    batch_stats come from the first. A rho of 0 returns `gradient` unchanged.
    """
    if not rho:
        return gradient

    def twice(params: Tree, *others: Any) -> tuple[Forward, Tree]:
        found, first = gradient(params, *others)
        reach = rho / (optax.tree.norm(first) + 1e-12)
        worst = jax.tree.map(lambda p, g: p + reach * g, params, first)
        return found, gradient(worst, *others)[1]

    return twice
