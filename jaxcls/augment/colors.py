"""Operations on colours and on neighbouring pixels, with one amount a row.

Images are uint8 [B, H, W, C], and C is 1 or 3. Operations on colour leave one-channel
images unchanged, as Pillow does in mode "L".
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.config.calls import check_range
from jaxcls.errors import InputError

# ITU-R BT.601 with 16 fractional bits, as in Pillow.
_RED, _GREEN, _BLUE = 19595, 38470, 7471

# The colour of pixels that lie outside the image or are painted over: one level of 0..255
# for all channels, or one level a channel.
Fill = int | tuple[int, ...]


def grey(images: jax.Array) -> jax.Array:
    """Returns the luminance, int32 [B, H, W], as Pillow's conversion to "L" does.

    The luminance of one-channel images is their channel. Raises `InputError` unless C is 1
    or 3.
    """
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


def check_fill(fill: Fill) -> None:
    """Raises `ValueError` if there is no level, or a level is outside 0..255."""
    check_range("[0, 255]", "128 or (124, 116, 104)", fill=fill)


def fill_color(fill: Fill, channels: int) -> jax.Array:
    """Returns the fill colour for images of `channels` channels, uint8 [C].

    One level fills every channel. Three levels become their grey for one-channel images.
    Raises `InputError` for any other number of levels.
    """
    color = np.atleast_1d(np.asarray(fill, np.uint8))
    if color.size == 3 and channels == 1:
        return grey(jnp.asarray(color).reshape(1, 1, 1, 3)).reshape(1).astype(jnp.uint8)
    if color.size not in (1, channels):
        raise InputError(
            f"fill={fill} has {color.size} levels and the images have {channels}"
            f" channels; try {color[0]}, one level for all"
        )
    return jnp.broadcast_to(jnp.asarray(color), (channels,))


def blend(start: jax.Array, end: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns ``start + factor * (end - start)``, int32, floored and clipped to 0..255.

    The arithmetic has 16 fractional bits. The result is rarely one level off
    `Image.blend`, and only if `factor` is no multiple of 1/65536. Factors are clipped to
    -64..64.
    """
    fixed = jnp.round(jnp.clip(factor.astype(jnp.float32), -64, 64) * 65536)
    # Adds 1/256 of a level: float32 has no exact 0.9, and 0.9 * 10 must give 9.
    mixed = start * 65536 + fixed.astype(jnp.int32) * (end - start) + 256
    return jnp.clip(mixed >> 16, 0, 255)


def saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Moves colours from grey by `factor` [B], as `ImageEnhance.Color`; 0 gives grey."""
    if images.shape[-1] == 1:
        return images
    levels = images.astype(jnp.int32)
    return blend(grey(images)[..., None], levels, each(factor)).astype(jnp.uint8)


def sharpness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Moves pixels from the smoothed image by `factor` [B], as `ImageEnhance.Sharpness`.

    The smoothed image is the mean of 3 x 3 pixels, with weight 5 in the middle. The pixels
    of the border do not change, nor do images below 3 pixels.
    """
    if min(images.shape[1:3]) < 3:
        return images
    levels = images.astype(jnp.int32)
    height, width = images.shape[1:3]
    total = 4 * levels[:, 1:-1, 1:-1]
    for y in range(3):
        for x in range(3):
            total += levels[:, y : height - 2 + y, x : width - 2 + x]
    inner = blend((total + 6) // 13, levels[:, 1:-1, 1:-1], each(factor))
    return images.at[:, 1:-1, 1:-1].set(inner.astype(jnp.uint8))


def hue(images: jax.Array, turns: jax.Array) -> jax.Array:
    """Rotates hues by `turns` [B] of the colour circle; 0.5 gives the opposite hue.

    The hue of HSV is computed in float32, and the result is rounded once. Pillow's HSV has
    256 hues and saturations, so its results differ by several levels.
    """
    if images.shape[-1] == 1:
        return images
    levels = images.astype(jnp.float32)
    red, green, blue = levels[..., 0], levels[..., 1], levels[..., 2]
    value, least = levels.max(-1), levels.min(-1)
    chroma = value - least
    some = jnp.maximum(chroma, 1)
    # The angle from red, in sixths of the circle.
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
    """Convolves with a Gaussian of deviation `sigma` [B] pixels; 0 leaves the image.

    `radius` is the kernel's radius in pixels, see `reach`. The border is padded with the
    nearest pixel. The result is rounded once. Pillow's `GaussianBlur` approximates the
    Gaussian by three box filters.
    """
    offsets = jnp.arange(-radius, radius + 1, dtype=jnp.float32).reshape(1, -1)
    # Avoids a division by 0. Below 0.01 pixels every neighbour's weight is 0 anyway.
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
            levels = levels + each(weights[:, i]) * part
    return jnp.round(levels).astype(jnp.uint8)


def reach(sigma: float) -> int:
    """Returns a kernel radius in pixels for the deviation `sigma`: 4 sigma, at least 1."""
    return max(1, math.ceil(4 * sigma))


def each(value: jax.Array) -> jax.Array:
    """Reshapes a value a row, [B], to [B, 1, 1, 1]."""
    return value[:, None, None, None]
