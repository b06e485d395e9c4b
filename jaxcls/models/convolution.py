"""Convolutions, computed on CPU as what XLA is fast at there.

XLA's own are near the speed of products of matrices for square kernels on many channels.
Three other kinds are rewritten, for one core at 3 to 13 times the speed forward and
backward together: `python -m benchmarks.convolution`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Pads = Sequence[tuple[int, int]]
# (images [B, H, W, C], kernel [h, w, C / groups, F]) -> [B, H', W', F].
Convolve = Callable[[jax.Array, jax.Array], jax.Array]


def convolve(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Pads,
    **rest: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` of images [B, H, W, C], for `flax.linen.Conv`.

    Which program it is is decided for the platform that it is lowered for, so one made
    for another machine is that machine's: on CPU, where `on_cpu` has a better one, that.
    """

    def plain(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(images, kernel, strides, padding, **rest)

    groups = rest["feature_group_count"]
    better = on_cpu(images.shape, kernel.shape, tuple(strides), padding, groups)
    if better is None:
        return plain(images, kernel)
    return lax.platform_dependent(images, kernel, cpu=better, default=plain)


def on_cpu(
    images: Sequence[int],
    kernel: Sequence[int],
    strides: tuple[int, ...],
    padding: str | Pads,
    groups: int,
) -> Convolve | None:
    """What a CPU does sooner than a convolution of these shapes; None: nothing."""
    window = tuple(kernel[:2])
    pads = (
        lax.padtype_to_pads(images[1:3], window, strides, padding)
        if isinstance(padding, str)
        else padding
    )
    is_bare = all(side == (0, 0) for side in map(tuple, pads))
    if groups == images[-1] == kernel[-1]:
        return functools.partial(_by_channel, strides=strides, pads=pads)
    if groups == 1 and is_bare and window == (1, 1):
        return functools.partial(_by_position, strides=strides)
    covers = not any(n % side for n, side in zip(images[1:3], window, strict=True))
    if groups == 1 and is_bare and window == strides and covers:
        return _by_patch
    return None


def _by_position(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, ...]
) -> jax.Array:
    """A kernel of 1 x 1: a product of matrices."""
    return _product(images[:, :: strides[0], :: strides[1]], kernel[0, 0])


def _by_patch(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """Patches that neither overlap nor leave gaps: a product of matrices."""
    batch, height, width, channels = images.shape
    h, w, _, features = kernel.shape
    cut = images.reshape(batch, height // h, h, width // w, w, channels)
    patches = cut.swapaxes(2, 3).reshape(batch, height // h, width // w, -1)
    return _product(patches, kernel.reshape(-1, features))


@jax.custom_vjp
def _product(positions: jax.Array, kernel: jax.Array) -> jax.Array:
    """positions [B, H, W, C], kernel [C, F] -> [B, H, W, F]."""
    return lax.dot_general(positions, kernel, (((3,), (0,)), ((), ())))


def _product_forward(
    positions: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(positions, kernel), (positions, kernel)


def _product_backward(
    kept: tuple[jax.Array, jax.Array], grads: jax.Array
) -> tuple[jax.Array, jax.Array]:
    positions, kernel = kept
    # JAX's own rule gives the kernel's gradient transposed, and XLA then turns what came
    # before: a step of ResNet-50 took 1.22 times as long.
    flat = positions.reshape(-1, kernel.shape[0]), grads.reshape(-1, kernel.shape[1])
    return lax.dot_general(grads, kernel, (((3,), (1,)), ((), ()))), flat[0].T @ flat[1]


_product.defvjp(_product_forward, _product_backward)


def _by_channel(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, ...], pads: Pads
) -> jax.Array:
    """A kernel for each channel: a sum of shifted images, in float32."""
    wide = jnp.pad(images.astype(jnp.float32), ((0, 0), *pads, (0, 0)))
    spans = [
        (size - side) // stride * stride + 1
        for size, side, stride in zip(
            wide.shape[1:3], kernel.shape[:2], strides, strict=True
        )
    ]
    total = jnp.zeros((), jnp.float32)
    for i, j in np.ndindex(*kernel.shape[:2]):
        rows = slice(i, i + spans[0], strides[0])
        columns = slice(j, j + spans[1], strides[1])
        total = total + wide[:, rows, columns] * kernel[i : i + 1, j : j + 1]
    return total.astype(images.dtype)
