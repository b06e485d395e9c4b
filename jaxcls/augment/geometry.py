"""Affine maps of images, one matrix a row: of the nearest pixel, or bicubic.

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

    Coordinates have 16 fractional bits, as in Pillow. Images have at most 4096 x 4096
    pixels. Entries that scale or shear are clipped to -2..2.
    """
    _, height, width, channels = images.shape
    x = jnp.arange(width, dtype=jnp.int32).reshape(1, width)
    y = jnp.arange(height, dtype=jnp.int32).reshape(height, 1)

    def one(given: tuple[jax.Array, jax.Array]) -> jax.Array:
        image, fixed = given
        across, down = (
            (fixed[i, 0] * x + fixed[i, 1] * y + fixed[i, 2]) >> 16 for i in (0, 1)
        )
        inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
        # Outside the image the gather reads pixel 0, so every index is in bounds.
        where = jnp.where(inside, down * width + across, 0).reshape(-1)
        flat = image.reshape(-1, channels).T
        found = flat.at[:, where].get(mode="promise_in_bounds").T.reshape(image.shape)
        return jnp.where(inside[..., None], found, fill.reshape(1, 1, channels))

    # Image by image, and channels first: a TPU's gather of pixels from a whole batch passes
    # six times as much memory.
    return jax.lax.map(one, (images, _fixed(matrices)))


def affine_bicubic(images: jax.Array, matrices: jax.Array, fill: jax.Array) -> jax.Array:
    """Does what `affine` does, with Pillow's bicubic interpolation: 16 taps a pixel."""
    _, height, width, channels = images.shape
    x = (jnp.arange(width) + 0.5).reshape(1, width)
    y = (jnp.arange(height) + 0.5).reshape(height, 1)
    taps = jnp.arange(-1, 3)

    def one(given: tuple[jax.Array, jax.Array]) -> jax.Array:
        image, of = given
        across, down = (of[i, 0] * x + of[i, 1] * y + of[i, 2] for i in (0, 1))
        inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
        flat, total = image.reshape(-1, channels).T, jnp.float32(0)
        left, top = jnp.floor(across - 0.5), jnp.floor(down - 0.5)
        of_x, of_y = _bicubic(across - 0.5 - left), _bicubic(down - 0.5 - top)
        for j in range(4):
            row = jnp.clip(top.astype(int) + taps[j], 0, height - 1) * width
            line = jnp.float32(0)
            for i in range(4):
                where = row + jnp.clip(left.astype(int) + taps[i], 0, width - 1)
                found = flat.at[:, where].get(mode="promise_in_bounds")
                line += of_x[i][None] * found
            total += of_y[j][None] * line
        mixed = jnp.moveaxis(_levels(total), 0, -1)
        return jnp.where(inside[..., None], mixed, fill.reshape(1, 1, channels))

    return jax.lax.map(one, (images, matrices.astype(jnp.float32)))


def slide(images: jax.Array, matrices: jax.Array, axis: int, fill: jax.Array) -> jax.Array:
    """Does what `affine` does, for matrices that move whole lines along one axis.

    axis: 1 moves columns up or down, 2 moves rows to a side. It needs no gather: a line
    moves by the bits of its distance, one power of two after the other.
    """
    fixed, size, lines = _fixed(matrices), images.shape[axis], images.shape[3 - axis]
    line = jnp.arange(lines, dtype=jnp.int32)[None]
    distances = (
        fixed[:, 2 - axis, axis - 1, None] * line + fixed[:, 2 - axis, 2, None]
    ) >> 16
    distances = jnp.expand_dims(distances, (axis, 3))
    place = _places(size, axis) + distances
    found = _rolled(images, distances, axis)
    inside = (place >= 0) & (place < size)
    return jnp.where(inside, found, fill.reshape(1, 1, 1, -1))


def slide_bicubic(
    images: jax.Array, matrices: jax.Array, axis: int, fill: jax.Array
) -> jax.Array:
    """Does what `slide` does, with Pillow's bicubic interpolation along the axis."""
    size, lines = images.shape[axis], images.shape[3 - axis]
    of = matrices.astype(jnp.float32)[:, 2 - axis]
    distances = of[:, axis - 1, None] * (jnp.arange(lines) + 0.5)[None] + of[:, 2, None]
    distances = jnp.expand_dims(distances, (axis, 3))
    whole = jnp.floor(distances)
    edges = [(2, 2) if each == axis else (0, 0) for each in range(4)]
    # Pixels at both ends repeat, and a line is as far as its first tap after the roll.
    rolled = _rolled(jnp.pad(images, edges, "edge"), whole.astype(jnp.int32), axis)
    mixed = jnp.float32(0)
    for i, weight in enumerate(_bicubic(distances - whole)):
        mixed += weight * jax.lax.slice_in_dim(rolled, 1 + i, 1 + i + size, axis=axis)
    place = _places(size, axis) + 0.5 + distances
    inside = (place >= 0) & (place < size)
    return jnp.where(inside, _levels(mixed), fill.reshape(1, 1, 1, -1))


def _places(size: int, axis: int) -> jax.Array:
    """Returns 0, 1, ... along an axis of images, int32, to broadcast against them."""
    shape = (1, size, 1, 1) if axis == 1 else (1, 1, size, 1)
    return jnp.arange(size, dtype=jnp.int32).reshape(shape)


def _rolled(images: jax.Array, distances: jax.Array, axis: int) -> jax.Array:
    """Rolls each line by its distance, a bit at a time: place p reads p + distance."""
    size = images.shape[axis]
    around, found = distances % size, images
    for bit in range((size - 1).bit_length()):
        moved = jnp.roll(found, -(1 << bit), axis)
        found = jnp.where((around >> bit) & 1 == 1, moved, found)
    return found


def _bicubic(t: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the weights of four pixels for a point `t` after the second.

    Keys' kernel with a = -1, as in Pillow's transforms; its resize has a = -0.5.
    """
    square, cube = t * t, t * t * t
    return (
        -t + 2 * square - cube,
        1 - 2 * square + cube,
        t + square - cube,
        -square + cube,
    )


def _levels(mixed: jax.Array) -> jax.Array:
    """Clips to 0..255 and truncates, as Pillow does."""
    # A thousandth more: a sum of whole levels must not fall below itself by its rounding.
    return jnp.clip(mixed + 1e-3, 0, 255).astype(jnp.uint8)


def _fixed(matrices: jax.Array) -> jax.Array:
    """Returns matrices for centres of pixels, int32 with 16 fractional bits."""
    largest = jnp.array(_LARGEST).reshape(1, 1, 3)
    matrices = matrices.astype(jnp.float32)
    half = 0.5 * (matrices[:, :, 0] + matrices[:, :, 1]) + matrices[:, :, 2]
    parts = jnp.stack([matrices[:, :, 0], matrices[:, :, 1], half], axis=-1)
    fixed = jnp.clip(parts, -largest, largest)
    return jnp.floor(fixed * 65536 + 0.5).astype(jnp.int32)


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


# {axis of `slide`: {operation: amount [B] -> matrices}}. An amount is a tangent, or pixels
# to the right or down.
SLIDES: dict[int, dict[str, Callable[[jax.Array], jax.Array]]] = {
    1: {
        "shear_y": lambda amount: shear(jnp.zeros_like(amount), amount),
        "translate_y": lambda amount: translate(jnp.zeros_like(amount), amount),
    },
    2: {
        "shear_x": lambda amount: shear(amount, jnp.zeros_like(amount)),
        "translate_x": lambda amount: translate(amount, jnp.zeros_like(amount)),
    },
}


def _matrix(*entries: jax.Array | float) -> jax.Array:
    """Stacks six entries, each [B] or a number, to [B, 2, 3]."""
    same = jnp.broadcast_arrays(*(jnp.asarray(each, jnp.float32) for each in entries))
    return jnp.stack(same, axis=-1).reshape(-1, 2, 3)
