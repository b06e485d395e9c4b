"""The rows of a batch, as the step makes them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.augment import AUGMENTATIONS, Rows, chain, row_keys
from jaxcls.config import calls

KEY = jax.random.key(7)


def rows(count, key=KEY, run=0, example=None, epoch=0, share=0.0):
    """The `Rows` of a batch of `count`, examples 0, 1, 2... unless told otherwise."""
    numbers = np.arange(count) if example is None else example
    return Rows(
        key=row_keys(key, count),
        run=jax.random.key(run),
        example=jnp.asarray(numbers, jnp.int32),
        epoch=jnp.broadcast_to(jnp.asarray(epoch, jnp.int32), (count,)),
        share=jnp.float32(share),
    )


@functools.cache
def jitted(text):
    """The augmentations of a config's text, compiled once a text."""
    return jax.jit(chain(calls.build(text, AUGMENTATIONS, "augment")))


def augmented(text, images, **told):
    """The images after the augmentations, as a NumPy array; `told`: of their `rows`."""
    return np.asarray(jitted(text)(rows(len(images), **told), jnp.asarray(images)))
