"""Convolutions, with faster equivalents for CPU.

XLA's CPU convolutions reach nearly the speed of matrix products for square kernels on
many channels. Three other kinds do not: depthwise, 1 x 1, and non-overlapping patches.
With the equivalents a training step takes 0.35 of the time for ConvNeXt-T and 0.61 for
ResNet-50 (`python -m benchmarks.step`, one core).
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Two arrays: what a backward pass keeps, or gradients.
Pair = tuple[jax.Array, jax.Array]
Pads = Sequence[tuple[int, int]]
# (images [B, H, W, C], kernel [h, w, C / groups, F]) -> [B, H', W', F].
Convolve = Callable[[jax.Array, jax.Array], jax.Array]
_IS_PLAIN = contextvars.ContextVar("is_plain", default=False)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Makes models that are traced within the context use plain convolutions everywhere.

    Converters need this: they support convolutions, but no choice between platforms. A
    function that was jitted outside the context keeps its trace.
    """
    before = _IS_PLAIN.set(True)
    try:
        yield
    finally:
        _IS_PLAIN.reset(before)


def convolve(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Pads,
    **rest: Any,
) -> jax.Array:
    """Computes `lax.conv_general_dilated` of images [B, H, W, C], for `flax.linen.Conv`.

    The platform of the lowering selects the program, so an export for another machine gets
    that machine's program. On CPU this is the equivalent of `on_cpu`, if there is one.
    """

    def windowed(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(images, kernel, strides, padding, **rest)

    dilations = (rest.get(f"{side}_dilation") or () for side in ("lhs", "rhs"))
    if _IS_PLAIN.get() or any(each != 1 for side in dilations for each in side):
        return windowed(images, kernel)
    groups = rest["feature_group_count"]
    better = on_cpu(images.shape, kernel.shape, tuple(strides), padding, groups)
    if better is None:
        return windowed(images, kernel)
    return lax.platform_dependent(images, kernel, cpu=better, default=windowed)


def on_cpu(
    images: Sequence[int],
    kernel: Sequence[int],
    strides: tuple[int, ...],
    padding: str | Pads,
    groups: int,
) -> Convolve | None:
    """Returns a faster equivalent on CPU for a convolution of these shapes, or None."""
    window = tuple(kernel[:2])
    pads = (
        lax.padtype_to_pads(images[1:3], window, strides, padding)
        if isinstance(padding, str)
        else padding
    )
    is_bare = all(side == (0, 0) for side in map(tuple, pads))
    if groups == images[-1] == kernel[-1]:
        sides = tuple((low, high) for low, high in pads)
        return lambda images, kernel: _by_channel(images, kernel, strides, sides)
    if groups == 1 and is_bare and window == (1, 1):
        return functools.partial(_by_position, strides=strides)
    covers = not any(n % side for n, side in zip(images[1:3], window, strict=True))
    if groups == 1 and is_bare and window == strides and covers:
        return _by_patch
    return None


def _by_position(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, ...]
) -> jax.Array:
    """Computes a convolution with a 1 x 1 kernel as a product of matrices."""
    return _product(images[:, :: strides[0], :: strides[1]], kernel[0, 0])


def _by_patch(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes a convolution over non-overlapping patches as a product of matrices."""
    batch, height, width, channels = images.shape
    h, w, _, features = kernel.shape
    cut = images.reshape(batch, height // h, h, width // w, w, channels)
    patches = cut.swapaxes(2, 3).reshape(batch, height // h, width // w, -1)
    return _product(patches, kernel.reshape(-1, features))


@jax.custom_vjp
def _product(positions: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies positions [B, H, W, C] by a kernel [C, F] to [B, H, W, F]."""
    return lax.dot_general(positions, kernel, (((3,), (0,)), ((), ())))


def _product_forward(positions: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Pair]:
    return _product(positions, kernel), (positions, kernel)


def _product_backward(kept: Pair, grads: jax.Array) -> Pair:
    positions, kernel = kept
    # JAX's rule gives a transposed gradient of the kernel, and XLA then transposes earlier
    # operations: a step of ResNet-50 took 1.22 times as long.
    flat = positions.reshape(-1, kernel.shape[0]), grads.reshape(-1, kernel.shape[1])
    return lax.dot_general(grads, kernel, (((3,), (1,)), ((), ()))), flat[0].T @ flat[1]


_product.defvjp(_product_forward, _product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _by_channel(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, ...], pads: Pads
) -> jax.Array:
    """Computes a depthwise convolution as a float32 sum of shifted images.

    kernel: [h, w, 1, C].
    """
    wide = _padded(images, pads)
    taps = [
        _shifted(wide, at, kernel.shape, strides) * kernel[at].reshape(1, 1, 1, -1)
        for at in np.ndindex(*kernel.shape[:2])
    ]
    return functools.reduce(jnp.add, taps).astype(images.dtype)


def _by_channel_forward(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, ...], pads: Pads
) -> tuple[jax.Array, Pair]:
    return _by_channel(images, kernel, strides, pads), (images, kernel)


def _by_channel_backward(
    strides: tuple[int, ...], pads: Pads, kept: Pair, grads: jax.Array
) -> Pair:
    images, kernel = kept
    wide, grads = _padded(images, pads), grads.astype(jnp.float32)
    height, width = kernel.shape[:2]

    def of_tap(at: jax.Array) -> jax.Array:
        start = (0, at // width, at % width, 0)
        size = [wide.shape[0], *_spans(wide.shape, kernel.shape, strides), wide.shape[3]]
        seen = lax.dynamic_slice(wide, start, size)[:, :: strides[0], :: strides[1]]
        return (seen * grads).sum((0, 1, 2))

    # A loop, because XLA does not vectorise unrolled sums, which took 7 times as long.
    of_kernel = lax.map(of_tap, jnp.arange(height * width)).reshape(kernel.shape)
    # Zeros stand for the positions that the stride skips. Indices turn the kernel, so it is
    # not copied.
    around = [(0, 0, 0)]
    for size, side, stride, (low, _), count in zip(
        images.shape[1:3], kernel.shape[:2], strides, pads, grads.shape[1:3], strict=True
    ):
        before, span = side - 1 - low, (count - 1) * stride + 1
        around.append((before, size + side - 1 - before - span, stride - 1))
    spaced = lax.pad(grads, jnp.float32(0), [*around, (0, 0, 0)])
    turned = [
        _shifted(spaced, at, kernel.shape, (1, 1))
        * kernel[height - 1 - at[0], width - 1 - at[1]].reshape(1, 1, 1, -1)
        for at in np.ndindex(height, width)
    ]
    of_images = functools.reduce(jnp.add, turned).astype(images.dtype)
    return of_images, of_kernel.astype(kernel.dtype)


_by_channel.defvjp(_by_channel_forward, _by_channel_backward)


def _padded(images: jax.Array, pads: Pads) -> jax.Array:
    return jnp.pad(images.astype(jnp.float32), ((0, 0), *pads, (0, 0)))


def _spans(
    images: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
) -> list[int]:
    """Returns the span, rows and columns, of one tap of a kernel in images [B, H, W, C]."""
    sizes = zip(images[1:3], kernel[:2], strides, strict=True)
    return [(size - side) // stride * stride + 1 for size, side, stride in sizes]


def _shifted(
    wide: jax.Array, at: tuple[int, ...], kernel: Sequence[int], strides: Sequence[int]
) -> jax.Array:
    """Returns the positions of wide [B, H, W, C] that the tap `at` (row, column) reads."""
    rows, columns = _spans(wide.shape, kernel, strides)
    batch, _, _, channels = wide.shape
    stop = (batch, at[0] + rows, at[1] + columns, channels)
    return lax.slice(wide, (0, *at, 0), stop, (1, *strides, 1))
