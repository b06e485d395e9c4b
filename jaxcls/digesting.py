"""A digest of every array of a state, without gathering it anywhere."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.optimizers import path_name


def combine(digests: dict[str, str]) -> str:
    """One digest, 16 hex digits, of the digests of all arrays."""
    text = "".join(f"{path}={value}\n" for path, value in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_tree(tree: Any) -> dict[str, str]:
    """Path of each array of a tree -> 16 hex digits of its bits, whatever its sharding."""
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
    words = np.asarray(_hash_all(list(leaves)))
    return {
        path_name(path): f"{high:08x}{low:08x}"
        for path, (high, low) in zip(paths, words.tolist(), strict=True)
    }


@jax.jit
def _hash_all(leaves: list[jax.Array]) -> jax.Array:
    """Leaves -> uint32 [N, 2]: two sums, mod 2**32, of every element's mixed bits."""
    return jnp.stack(
        [jnp.stack([_hash(x, 0x9E3779B9), _hash(x, 0x85EBCA77)]) for x in leaves]
    )


def _hash(x: jax.Array, salt: int) -> jax.Array:
    """A sum over the elements, so no order of adding matters; keyed by position."""
    if x.dtype == bool:
        bits = x.astype(jnp.uint32)
    else:
        width = x.dtype.itemsize * 8
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}")).astype(jnp.uint32)
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        position = position * size + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    # The finaliser of MurmurHash3 over bits and position.
    mixed = bits ^ ((position + 1) * jnp.uint32(salt))
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)
