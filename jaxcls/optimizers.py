"""Optimizers and learning-rate schedules.

An optimizer here is optax's own with a learning rate of 1; the step scales its updates
by ``schedule(step)``. The rate is thus a function of `State.step` alone: there is no
second counter to drift from it, and what is logged is what was used.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[jax.Array], jax.Array]
Mask = Callable[[Any], Any]


def sgd(
    weight_decay: float, mask: Mask, momentum: float = 0.9, nesterov: bool = True
) -> optax.GradientTransformation:
    """SGD with momentum; decay is coupled: added to the gradient, as PyTorch does."""
    decay = optax.add_decayed_weights(weight_decay, mask)
    trace = momentum or None
    return optax.chain(
        decay, optax.sgd(1.0, momentum=trace, nesterov=bool(trace and nesterov))
    )


def adam(
    weight_decay: float, mask: Mask, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, arXiv:1412.6980); decay is coupled, as PyTorch's is."""
    decay = optax.add_decayed_weights(weight_decay, mask)
    return optax.chain(decay, optax.adam(1.0, b1=b1, b2=b2, eps=eps))


def adamw(
    weight_decay: float, mask: Mask, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101); decay is decoupled, times lr."""
    return optax.adamw(1.0, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=mask)


def decay_mask(pattern: str) -> Mask:
    """Which params decay: those whose path, such as ``head/kernel``, has the pattern."""
    search = re.compile(pattern).search

    def mask(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: bool(search(path_name(path))), params
        )

    return mask


def path_name(path: Any) -> str:
    """A jax key path as ``stage1/block2/conv1/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def clip(
    optimizer: optax.GradientTransformation, max_norm: float
) -> optax.GradientTransformation:
    """`optimizer` over gradients of a global norm of at most `max_norm`; 0: as it is."""
    if not max_norm:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(max_norm), optimizer)


def constant(peak: float, steps: int) -> Schedule:
    """The peak throughout."""
    return lambda step: jnp.full((), peak, jnp.float32)


def cosine(peak: float, steps: int, end: float = 0.0) -> Schedule:
    """Half a cosine from the peak to ``end * peak`` (Loshchilov, arXiv:1608.03983)."""

    def rate(step: jax.Array) -> jax.Array:
        share = jnp.clip(step / max(steps, 1), 0.0, 1.0)
        return peak * (end + (1.0 - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * share)))

    return rate


def warm_up(schedule: Schedule, peak: float, warmup: int) -> Schedule:
    """Linear from 0 at step 0 to `peak` at step `warmup`, then `schedule`."""
    if not warmup:
        return schedule

    def rate(step: jax.Array) -> jax.Array:
        rising = peak * step / warmup
        return jnp.where(step < warmup, rising, schedule(jnp.maximum(step - warmup, 0)))

    return rate


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": adam,
    "adamw": adamw,
    "sgd": sgd,
}

# Each takes (peak, steps) besides its own options.
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
}
