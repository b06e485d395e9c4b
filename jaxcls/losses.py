"""Losses: ``(logits [B, K] float32, targets [B, K] float32) -> [B]``, one an example."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def softmax() -> Loss:
    """Cross-entropy of softmax(logits) against a distribution over the classes."""
    return optax.losses.softmax_cross_entropy


def smooth(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """labels [B] int32 -> targets [B, K] float32: ``smoothing / K`` spread over all.

    Szegedy et al., arXiv:1512.00567, section 7.
    """
    hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return hot * (1.0 - smoothing) + smoothing / num_classes


LOSSES: dict[str, Callable[..., Loss]] = {
    "softmax": softmax,
}
