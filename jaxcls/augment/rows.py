"""What an augmentation is given, and augmentations one after the other.

An augmentation is ``(rows, images [B, H, W, C] uint8) -> images``: one key an example of
the *global* batch, so no example's randomness depends on its neighbours or on how many
devices there are.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Rows(NamedTuple):
    """What tells the examples of a batch apart, and where in the run they are.

    key [B]: each row's own key of this step. run: one key for the whole run. example [B]
    int32: the example's number. epoch [B] int32: of its showing. share
    [] float32: how much of the run is done, 0..1.
    """

    key: jax.Array
    run: jax.Array
    example: jax.Array
    epoch: jax.Array
    share: jax.Array


Augmentation = Callable[[Rows, jax.Array], jax.Array]
# A number, or the two that it goes between, linearly from the run's start to its end.
Amount = float | tuple[float, float]


def row_keys(key: jax.Array, rows: int) -> jax.Array:
    """One key for each row of the global batch, [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))


def fold(rows: Rows, i: int) -> Rows:
    """The same rows, their keys and that of the run folded with i."""
    own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rows.key, i)
    return rows._replace(key=own, run=jax.random.fold_in(rows.run, i))


def chain(augmentations: Sequence[Augmentation]) -> Augmentation:
    """One after the other; the i-th sees the rows folded with i."""

    def apply(rows: Rows, images: jax.Array) -> jax.Array:
        for i, augmentation in enumerate(augmentations):
            images = augmentation(fold(rows, i), images)
        return images

    return apply


def at(amount: Amount, share: jax.Array) -> jax.Array:
    """The amount, [] float32, when `share` of the run is done."""
    if isinstance(amount, int | float):
        return jnp.full((), amount, jnp.float32)
    first, last = amount
    return jnp.asarray(first + (last - first) * share, jnp.float32)
