"""Train steps as a loop over images on the device; pure, as `step` is."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcls.data.batch import Batch
from jaxcls.learning.step import State, TrainStep, Tree

# The most steps of a loop; more than some tens gain nothing.
MOST = 64
Arrays = dict[str, jax.Array]


def train_loop(
    state: State,
    columns: Batch,
    count: jax.Array,
    data: Batch,
    teacher: Tree,
    *,
    train_step: TrainStep,
    take: Callable[[Batch, jax.Array], Batch],
) -> tuple[State, Arrays]:
    """Runs `train_step` on the first `count` of MOST batches: (state, metrics [MOST]).

    take: (data, index [B]) -> a batch with image and label.
    columns: Index and epoch of each batch, [MOST, B].
    metrics: The metrics of each step; entries from `count` on mean nothing.

    `count` is an argument of the program, so the number of steps a call changes no bits.
    """

    def at(i: jax.Array | int, state: State) -> tuple[State, Arrays]:
        batch = jax.tree.map(lambda column: column[i], columns)
        taken = take(data, batch.index)
        batch = batch._replace(image=taken.image, label=taken.label)
        return train_step(state, batch, teacher)

    def once(i: jax.Array, carry: tuple[State, Arrays]) -> tuple[State, Arrays]:
        state, scores = at(i, carry[0])
        return state, {name: x.at[i].set(scores[name]) for name, x in carry[1].items()}

    _, like = jax.eval_shape(at, 0, state)
    empty = {name: jnp.zeros(MOST, x.dtype) for name, x in like.items()}
    return jax.lax.fori_loop(0, count, once, (state, empty))
