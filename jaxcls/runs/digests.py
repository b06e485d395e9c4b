"""A digest of every array of a state, without gathering it anywhere."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.learning.optimizers import path_name

Pair = tuple[jax.Array, jax.Array]


def combine(digests: dict[str, str]) -> str:
    """One digest, 16 hex digits, of the digests of all arrays."""
    text = "".join(f"{path}={value}\n" for path, value in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_tree(tree: Any) -> dict[str, str]:
    """Path of each array of a tree -> 16 hex digits of its bits, whatever its sharding."""
    # A program for each shape, not one for the tree: arrays that are alike are many, and
    # XLA compiles each of a program's anew. One after the other: of several on several CPU
    # devices, each may keep threads that another waits for, until XLA aborts.
    digests = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        high, low = jax.device_get(_hash(x))
        digests[path_name(path)] = f"{high:08x}{low:08x}"
    return digests


@jax.jit
def _hash(x: jax.Array) -> jax.Array:
    """uint32 [2]: two sums, mod 2**32, of every element's bits, mixed with its position.

    No order of adding matters.
    """
    if x.dtype == bool:
        bits = x.astype(jnp.uint32)
    else:
        width = x.dtype.itemsize * 8
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}")).astype(jnp.uint32)
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        position = position * size + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    # Both in one reduction: XLA makes one loop of it that writes nothing, where it gives
    # each sum alone two arrays as large as x (on a CPU, 17 times as slow).
    mixed = (_mixed(bits, position, 0x9E3779B9), _mixed(bits, position, 0x85EBCA77))
    zero = np.uint32(0)
    return jnp.stack(jax.lax.reduce(mixed, (zero, zero), _add, tuple(range(x.ndim))))


def _mixed(bits: jax.Array, position: jax.Array, salt: int) -> jax.Array:
    """The finaliser of MurmurHash3 over bits and position."""
    mixed = bits ^ ((position + 1) * jnp.uint32(salt))
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> 16)


def _add(a: Pair, b: Pair) -> Pair:
    return a[0] + b[0], a[1] + b[1]
