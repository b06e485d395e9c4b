"""Attention with several heads."""

import jax
import jax.numpy as jnp

from jaxcls.models import positions


def of_heads(
    x: jax.Array, heads: int, parts: int = 3, grid: tuple[int, int] | None = None
) -> list[jax.Array]:
    """Splits x [B, N, parts * D] into parts, each [B, N, heads, D / heads].

    By default they are query, key and value. grid: of the patches, by which query and key
    are rotated; see `positions.rope`.
    """
    batch, tokens, features = x.shape
    split = x.reshape(batch, tokens, parts * heads, features // (parts * heads))
    found = jnp.split(split, parts, axis=2)
    if grid:
        found[:2] = [positions.rotate(each, *grid) for each in found[:2]]
    return found


@jax.custom_vjp
def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """Returns softmax(query key^T / sqrt(D) + bias) value, for heads [B, H, N, D].

    bias: float32 [1, H, N, N]; None is 0.
    The softmax is float32, of products in the dtype of `query`. The gradient keeps its
    result in the dtype of `value`, which it multiplies: float32 scores, as JAX has them,
    are a third of the memory traffic of a bfloat16 step. It is XLA's on every machine:
    cuDNN's backward pass is deterministic only on some GPUs, and does not support float32.
    """
    return _attend_forward(query, key, value, bias)[0]


Kept = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None]


def _attend_forward(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, Kept]:
    scores = jnp.einsum("bhqd,bhkd->bhqk", query * _scale(query), key)
    scores = scores.astype(jnp.float32)
    if bias is not None:
        scores += bias
    shares = jax.nn.softmax(scores).astype(value.dtype)
    found = jnp.einsum("bhqk,bhkd->bhqd", shares, value)
    return found, (query, key, value, shares, bias)


def _attend_backward(
    kept: Kept, grads: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    query, key, value, shares, bias = kept
    of_shares = jnp.einsum("bhqd,bhkd->bhqk", grads, value).astype(jnp.float32)
    wide = shares.astype(jnp.float32)
    around = of_shares - (of_shares * wide).sum(-1, keepdims=True)
    of_scores = (wide * around).astype(query.dtype)
    return (
        jnp.einsum("bhqk,bhkd->bhqd", of_scores, key) * _scale(query),
        jnp.einsum("bhqk,bhqd->bhkd", of_scores, query * _scale(query)),
        jnp.einsum("bhqk,bhqd->bhkd", shares, grads),
        None if bias is None else (wide * around).sum(0, keepdims=True),
    )


def _scale(query: jax.Array) -> jax.Array:
    return jnp.asarray(query.shape[-1] ** -0.5, query.dtype)


attend.defvjp(_attend_forward, _attend_backward)
