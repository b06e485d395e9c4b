"""Operations on colours and on neighbouring pixels, an amount for each row.

Images are uint8 [B, H, W, C] with C of 1 or 3. What needs colour leaves images of one
channel as they are, as Pillow does with mode "L".
"""

import math

import jax
import jax.numpy as jnp

from jaxcls.errors import InputError

# ITU-R BT.601 in 16 bits after the point, as Pillow has it.
_RED, _GREEN, _BLUE = 19595, 38470, 7471


def grey(images: jax.Array) -> jax.Array:
    """Luminance, int32 [B, H, W], as Pillow converts to "L"; of one channel, itself."""
    levels = images.astype(jnp.int32)
    if images.shape[-1] == 1:
        return levels[..., 0]
    if images.shape[-1] != 3:
        raise InputError(
            f"the images have {images.shape[-1]} channels; augmentations of colour"
            " need 1 or 3, such as decode(3)"
        )
    weighted = levels[..., 0] * _RED + levels[..., 1] * _GREEN + levels[..., 2] * _BLUE
    return (weighted + 0x8000) >> 16


def blend(start: jax.Array, end: jax.Array, factor: jax.Array) -> jax.Array:
    """``start + factor * (end - start)``, int32 levels 0..255, cut off below the point.

    As `Image.blend`, in 16 bits after the point: one level off where `factor` is not a
    multiple of 1/65536, seldom. Factors beyond 64 count as 64.
    """
    fixed = jnp.round(jnp.clip(factor.astype(jnp.float32), -64, 64) * 65536)
    # 256: a 256th of a level, so that 0.9 of 10 is 9 though 0.9 is not quite 0.9.
    mixed = start * 65536 + fixed.astype(jnp.int32) * (end - start) + 256
    return jnp.clip(mixed >> 16, 0, 255)


def saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Away from grey by `factor` [B]: 0 is grey, as `ImageEnhance.Color`."""
    if images.shape[-1] == 1:
        return images
    levels = images.astype(jnp.int32)
    return blend(grey(images)[..., None], levels, _each(factor)).astype(jnp.uint8)


def sharpness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Away from the smoothed image by `factor` [B], as `ImageEnhance.Sharpness`.

    Smoothed: the mean of 3 x 3 pixels with a weight of 5 in the middle; the pixels of
    the border are as they were.
    """
    if min(images.shape[1:3]) < 3:
        return images
    levels = images.astype(jnp.int32)
    height, width = images.shape[1:3]
    total = 4 * levels[:, 1:-1, 1:-1]
    for y in range(3):
        for x in range(3):
            total += levels[:, y : height - 2 + y, x : width - 2 + x]
    inner = blend((total + 6) // 13, levels[:, 1:-1, 1:-1], _each(factor))
    return images.at[:, 1:-1, 1:-1].set(inner.astype(jnp.uint8))


def hue(images: jax.Array, turns: jax.Array) -> jax.Array:
    """Hues further round the colour circle by `turns` [B] of it; 0.5 is the opposite.

    HSV's hue in real numbers, rounded once. Pillow's own HSV has 256 hues and
    saturations, and differs from this by several levels.
    """
    if images.shape[-1] == 1:
        return images
    levels = images.astype(jnp.float32)
    red, green, blue = levels[..., 0], levels[..., 1], levels[..., 2]
    value, least = levels.max(-1), levels.min(-1)
    chroma = value - least
    some = jnp.maximum(chroma, 1)
    # In sixths of the circle from red.
    angle = jnp.where(
        value == red,
        (green - blue) / some,
        jnp.where(value == green, 2 + (blue - red) / some, 4 + (red - green) / some),
    )
    angle = angle + 6 * turns.astype(jnp.float32)[:, None, None]
    offsets = jnp.array([5, 3, 1], jnp.float32).reshape(1, 1, 1, 3)
    place = (angle[..., None] + offsets) % 6
    lost = jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
    turned = value[..., None] - chroma[..., None] * lost
    return jnp.round(turned).astype(jnp.uint8)


def blur(images: jax.Array, sigma: jax.Array, radius: int) -> jax.Array:
    """Convolved with a Gaussian of deviation `sigma` [B] pixels; 0 leaves the image.

    `radius`: how many pixels to each side are weighed, see `reach`. Beyond the border
    lies its nearest pixel. A true Gaussian, rounded once; Pillow's `GaussianBlur` is
    three box filters in its stead.
    """
    offsets = jnp.arange(-radius, radius + 1, dtype=jnp.float32).reshape(1, -1)
    # Below a hundredth of a pixel no neighbour weighs anything.
    weights = jnp.exp(-0.5 * (offsets / jnp.maximum(sigma, 0.01)[:, None]) ** 2)
    weights = weights / weights.sum(1, keepdims=True)
    levels = images.astype(jnp.float32)
    for axis in (1, 2):
        size = images.shape[axis]
        sides = [(0, 0)] * 4
        sides[axis] = (radius, radius)
        wide = jnp.pad(levels, sides, mode="edge")
        levels = jnp.zeros_like(levels)
        for i in range(2 * radius + 1):
            part = jax.lax.slice_in_dim(wide, i, i + size, axis=axis)
            levels = levels + _each(weights[:, i]) * part
    return jnp.round(levels).astype(jnp.uint8)


def reach(sigma: float) -> int:
    """The radius that is plenty for this deviation, pixels."""
    return max(1, math.ceil(4 * sigma))


def _each(value: jax.Array) -> jax.Array:
    """[B] -> [B, 1, 1, 1]."""
    return value[:, None, None, None]
