"""Affine maps of images with nearest-pixel sampling, one matrix a row.

A matrix, float32 [2, 3], maps a point (x, y, 1) of the result to a point of the image,
as Pillow's `Image.transform`. The origin is the top left corner, and the centre of the
first pixel is (0.5, 0.5).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Up to these entries, int32 holds 16 fractional bits for 4096 x 4096 pixels.
_LARGEST = (2.0, 2.0, 8192.0)


def affine(images: jax.Array, matrices: jax.Array, fill: jax.Array) -> jax.Array:
    """Maps images, uint8 [B, H, W, C], by `matrices` [B, 2, 3]; `fill` [C] is outside.

    It is one gather. Coordinates have 16 fractional bits, as in Pillow. Images have at most
    4096 x 4096 pixels. Entries that scale or shear are clipped to -2..2.
    """
    rows, height, width, channels = images.shape
    largest = jnp.array(_LARGEST).reshape(1, 1, 3)
    matrices = matrices.astype(jnp.float32)
    half = 0.5 * (matrices[:, :, 0] + matrices[:, :, 1]) + matrices[:, :, 2]
    parts = jnp.stack([matrices[:, :, 0], matrices[:, :, 1], half], axis=-1)
    fixed = jnp.clip(parts, -largest, largest)
    fixed = jnp.floor(fixed * 65536 + 0.5).astype(jnp.int32)[..., None, None]
    x = jnp.arange(width, dtype=jnp.int32).reshape(1, 1, width)
    y = jnp.arange(height, dtype=jnp.int32).reshape(1, height, 1)
    across = (fixed[:, 0, 0] * x + fixed[:, 0, 1] * y + fixed[:, 0, 2]) >> 16
    down = (fixed[:, 1, 0] * x + fixed[:, 1, 1] * y + fixed[:, 1, 2]) >> 16
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
    # Outside the image the gather reads pixel 0, so every index is in bounds.
    where = jnp.where(inside, down * width + across, 0).reshape(rows, height * width)
    flat = images.reshape(rows, height * width, channels)
    seen = jax.vmap(lambda image, index: image.at[index].get(mode="promise_in_bounds"))
    found = seen(flat, where).reshape(images.shape)
    return jnp.where(inside[..., None], found, fill.reshape(1, 1, 1, channels))


def identity(rows: int) -> jax.Array:
    """Returns identity matrices [B, 2, 3]."""
    return jnp.broadcast_to(jnp.eye(2, 3).reshape(1, 2, 3), (rows, 2, 3))


def rotate(degrees: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Returns matrices that rotate images of `size` (height, width) counterclockwise.

    The centre of the rotation is the centre of the image.
    """
    radians = degrees * (math.pi / 180)
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    y, x = size[0] / 2, size[1] / 2
    return _matrix(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def shear(
    across: jax.Array, down: jax.Array, middle: tuple[float, float] = (0.0, 0.0)
) -> jax.Array:
    """Returns matrices that read at (x + across * y, y + down * x), relative to `middle`.

    `across` and `down` are tangents. `middle` (y, x) does not move. With the default middle
    and one of the two tangents 0, this is AutoAugment's shear_x or shear_y.
    """
    y, x = middle
    return _matrix(1.0, across, -across * y, down, 1.0, -down * x)


def translate(right: jax.Array, down: jax.Array) -> jax.Array:
    """Returns matrices that move images by `right` and `down` pixels, whole or not."""
    return _matrix(1.0, 0.0, -right, 0.0, 1.0, -down)


# (amount [B], (height, width)) -> matrices. An amount is a tangent, pixels to the right or
# down, or degrees counterclockwise.
MOVES: dict[str, Callable[[jax.Array, tuple[int, int]], jax.Array]] = {
    "shear_x": lambda amount, size: shear(amount, jnp.zeros_like(amount)),
    "shear_y": lambda amount, size: shear(jnp.zeros_like(amount), amount),
    "translate_x": lambda amount, size: translate(amount, jnp.zeros_like(amount)),
    "translate_y": lambda amount, size: translate(jnp.zeros_like(amount), amount),
    "rotate": rotate,
}


def _matrix(*entries: jax.Array | float) -> jax.Array:
    """Stacks six entries, each [B] or a number, to [B, 2, 3]."""
    same = jnp.broadcast_arrays(*(jnp.asarray(each, jnp.float32) for each in entries))
    return jnp.stack(same, axis=-1).reshape(-1, 2, 3)
