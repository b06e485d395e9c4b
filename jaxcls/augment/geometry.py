"""Affine maps of images, a matrix for each row, by the nearest pixel.

A matrix float32 [2, 3] takes a place in the result to its place in the image, (x, y, 1)
with the origin in the top left corner and the middle of the first pixel at (0.5, 0.5),
as Pillow's `Image.transform`.
"""

import math

import jax
import jax.numpy as jnp

# The largest entries of a matrix: 32 bits hold 16 after the point on 4096 x 4096 pixels.
_LARGEST = (2.0, 2.0, 8192.0)


def affine(images: jax.Array, matrices: jax.Array, fill: jax.Array) -> jax.Array:
    """uint8 [B, H, W, C] seen through `matrices` [B, 2, 3]; `fill` uint8 [C] elsewhere.

    One gather. Coordinates have 16 bits after the point, as in Pillow. For images of up
    to 4096 pixels a side; entries that scale or shear beyond 2 count as 2.
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
    # Outside, the first pixel is read and not used.
    where = jnp.where(inside, down * width + across, 0).reshape(rows, height * width)
    flat = images.reshape(rows, height * width, channels)
    seen = jax.vmap(lambda image, index: image.at[index].get(mode="promise_in_bounds"))
    found = seen(flat, where).reshape(images.shape)
    return jnp.where(inside[..., None], found, fill.reshape(1, 1, 1, channels))


def identity(rows: int) -> jax.Array:
    """[B, 2, 3] that changes nothing."""
    return jnp.broadcast_to(jnp.eye(2, 3).reshape(1, 2, 3), (rows, 2, 3))


def rotate(degrees: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Counterclockwise about the middle of images of `size` (height, width)."""
    radians = degrees * (math.pi / 180)
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    y, x = size[0] / 2, size[1] / 2
    return _matrix(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def shear(
    across: jax.Array, down: jax.Array, middle: tuple[float, float] = (0.0, 0.0)
) -> jax.Array:
    """Read `across` times y further right and `down` times x further down (tangents).

    `middle` (y, x) stays where it is. With the top left corner, the default, and one of
    the two it is AutoAugment's shear_x or shear_y.
    """
    y, x = middle
    return _matrix(1.0, across, -across * y, down, 1.0, -down * x)


def translate(right: jax.Array, down: jax.Array) -> jax.Array:
    """What is seen moves by so many pixels, whole or not."""
    return _matrix(1.0, 0.0, -right, 0.0, 1.0, -down)


def _matrix(*entries: jax.Array | float) -> jax.Array:
    """Six entries, each [B] or a number, -> [B, 2, 3]."""
    same = jnp.broadcast_arrays(*(jnp.asarray(each, jnp.float32) for each in entries))
    return jnp.stack(same, axis=-1).reshape(-1, 2, 3)
