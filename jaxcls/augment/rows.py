"""The type of augmentations, their inputs, and chains of augmentations.

An augmentation is ``(rows, images [B, H, W, C] uint8) -> images``. Each example of the
*global* batch has a key, so its randomness does not depend on its neighbours or on the
number of devices.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


class Rows(NamedTuple):
    """The identity of each example in a batch, and the progress of the run.

    key [B]: each row's key for this step. run: one key for the whole run. example [B]
    int32: the example's number. epoch [B] int32: the epoch of this row. share [] float32:
    the fraction of the run that is done, 0..1.
    """

    key: jax.Array
    run: jax.Array
    example: jax.Array
    epoch: jax.Array
    share: jax.Array


Augmentation = Callable[[Rows, jax.Array], jax.Array]
# A number, or a pair that is interpolated linearly from the run's start to its end.
Amount = float | tuple[float, float]


def row_keys(key: jax.Array, rows: int) -> jax.Array:
    """Returns one key for each row of the global batch, [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))


def fold(rows: Rows, i: int) -> Rows:
    """Folds `i` into the rows' keys and into the key of the run."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rows.key, i)
    return rows._replace(key=keys, run=jax.random.fold_in(rows.run, i))


def chain(augmentations: Sequence[Augmentation]) -> Augmentation:
    """Applies augmentations in order; the i-th gets the rows folded with i."""

    def apply(rows: Rows, images: jax.Array) -> jax.Array:
        for i, augmentation in enumerate(augmentations):
            images = augmentation(fold(rows, i), images)
        return images

    return apply


def on_each_device(augmentation: Augmentation, sharding: NamedSharding) -> Augmentation:
    """Applies an augmentation to each device's rows alone; sharding: that of the rows.

    Rows do not depend on each other, so that the result is the same. XLA by itself would
    move images between devices, for an augmentation that works on some of them at a time.
    """
    rows: Any = sharding.spec
    everywhere: Any = PartitionSpec()
    return jax.shard_map(
        augmentation,
        mesh=sharding.mesh,
        in_specs=(Rows(rows, everywhere, rows, rows, everywhere), rows),
        out_specs=rows,
        check_vma=False,
    )


def at(amount: Amount, share: jax.Array) -> jax.Array:
    """Returns the amount, [] float32, at the fraction `share` of the run."""
    if isinstance(amount, int | float):
        return jnp.full((), amount, jnp.float32)
    first, last = amount
    return jnp.asarray(first + (last - first) * share, jnp.float32)
