"""The fill colour of pixels that lie outside the image or are painted over."""

import jax
import jax.numpy as jnp

from jaxcls.augment import colors
from jaxcls.errors import InputError

# One level of 0..255 for all channels, or one level a channel.
Fill = int | tuple[int, ...]


def check_fill(fill: Fill) -> None:
    """Raises `ValueError` if there is no level, or a level is outside 0..255."""
    levels = _levels(fill)
    if not levels or not all(0 <= level <= 255 for level in levels):
        raise ValueError(f"fill={fill} must be of 0..255, such as 128 or (124, 116, 104)")


def fill_color(fill: Fill, channels: int) -> jax.Array:
    """Returns the fill colour for images of `channels` channels, uint8 [C].

    One level fills every channel. Three levels become their grey for one-channel images.
    Raises `InputError` for any other number of levels.
    """
    levels = _levels(fill)
    color = jnp.asarray(levels, jnp.uint8)
    if len(levels) == 3 and channels == 1:
        return colors.grey(color.reshape(1, 1, 1, 3)).reshape(1).astype(jnp.uint8)
    if len(levels) not in (1, channels):
        raise InputError(
            f"fill={fill} has {len(levels)} levels and the images have {channels}"
            f" channels; try {levels[0]}, one level for all"
        )
    return jnp.broadcast_to(color, (channels,))


def _levels(fill: Fill) -> tuple[int, ...]:
    return (fill,) if isinstance(fill, int) else tuple(fill)
