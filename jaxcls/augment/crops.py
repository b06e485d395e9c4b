"""Flips, crops and filled boxes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcls.augment.checks import check_share
from jaxcls.augment.fills import Fill, check_fill, fill_color
from jaxcls.augment.rows import Augmentation, Rows
from jaxcls.errors import InputError

# The number of box candidates. The first that fits into the image is used.
_TRIES = 10


def box(start: jax.Array, stop: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns bool [H, W]: True from (row, column) `start` to before `stop`, clipped."""
    y, x = jnp.arange(shape[0])[:, None], jnp.arange(shape[1])[None, :]
    return (start[0] <= y) & (y < stop[0]) & (start[1] <= x) & (x < stop[1])


def flip(probability: float = 0.5) -> Augmentation:
    """Flips left to right, with a probability."""
    return _flip(2, probability)


def flip_vertical(probability: float = 0.5) -> Augmentation:
    """Flips upside down, with a probability."""
    return _flip(1, probability)


def _flip(axis: int, probability: float) -> Augmentation:
    check_share("probability", probability)
    chance = float(probability)

    def apply(rows: Rows, images: jax.Array) -> jax.Array:
        flipped = jax.vmap(lambda key: jax.random.bernoulli(key, chance))(rows.key)
        return jnp.where(flipped[:, None, None, None], jnp.flip(images, axis), images)

    return apply


def alternating_flip() -> Augmentation:
    """Flips left to right at random in an example's first epoch, then every other epoch.

    Two consecutive epochs thus show an example in both orientations (Jordan,
    arXiv:2404.00498, section 3.6). Copies of an example within one epoch, from data.balance
    or data.repeats, have the same orientation.
    """

    def apply(rows: Rows, images: jax.Array) -> jax.Array:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rows.run, rows.example)
        first = jax.vmap(jax.random.bernoulli)(keys)
        flipped = first ^ (rows.epoch % 2 == 1)
        return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)

    return apply


def random_crop(padding: int, mode: str = "zero") -> Augmentation:
    """Pads every border by `padding` pixels and crops to the old size at a random place.

    `mode` is "zero" (He et al., arXiv:1512.03385, section 4.2) or "reflect" (Jordan,
    arXiv:2404.00498). Raises `ValueError` for another mode or a negative padding, and
    `InputError` unless the padding is below the image's height and width.
    """
    if padding < 0 or mode not in ("zero", "reflect"):
        raise ValueError(
            f"padding={padding} must be at least 0, such as 4, and mode={mode!r} 'zero' or"
            " 'reflect'"
        )
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))

    def place(key: jax.Array) -> jax.Array:
        return jax.random.randint(key, (2,), 0, 2 * padding + 1)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        height, width = image.shape[0] - 2 * padding, image.shape[1] - 2 * padding
        start = (corner[0], corner[1], 0)
        return jax.lax.dynamic_slice(image, start, (height, width, image.shape[2]))

    def apply(rows: Rows, images: jax.Array) -> jax.Array:
        side = min(images.shape[1:3])
        if padding >= side:
            raise InputError(
                f"random_crop: padding={padding} must be below the {side} pixels of an"
                f" image's side; try {side // 8}"
            )
        padded = jnp.pad(images, sides, mode="constant" if mode == "zero" else mode)
        return jax.vmap(cut)(padded, jax.vmap(place)(rows.key))

    return apply


def cutout(size: int, probability: float = 1.0, fill: Fill = 128) -> Augmentation:
    """Fills a square of `size` x `size` pixels, centred anywhere, clipped at the border.

    DeVries and Taylor, arXiv:1708.04552. The paper fills with 0 after normalisation. Before
    normalisation this is the mean colour of the data, so set `fill` to (125, 123, 114) for
    CIFAR-10 and (124, 116, 104) for ImageNet; both are exact to half a grey level. Raises
    `ValueError` for an option out of range.
    """
    if size < 1:
        raise ValueError(f"size={size} must be at least 1 pixel, such as 16")
    check_share("probability", probability)
    paint = _paint(fill)

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        drawn, shape = jax.random.uniform(key, (3,)), image.shape[:2]
        start = (drawn[1:] * jnp.array(shape)).astype(int) - size // 2
        inside = box(start, start + size, shape) & (drawn[0] < probability)
        return jnp.where(inside[:, :, None], paint(key, image), image)

    return lambda rows, images: jax.vmap(one)(rows.key, images)


def random_erasing(
    probability: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 3.3),
    fill: str | Fill = "noise",
) -> Augmentation:
    """Fills a random box within the image, with a probability.

    Zhong et al., arXiv:1708.04896. The first of ten candidates that fits is filled; if none
    fits, the image stays. Raises `ValueError` for an option out of range.

    - area: the box's share of the image's area, drawn uniformly from this range.
    - ratio: height by width; its logarithm is drawn uniformly from this range.
    - fill: "noise" or a colour. "noise" draws every pixel and channel uniformly from
      0..255, as in the paper. timm's "pixel" mode fills with normal noise after
      normalisation, which uint8 cannot hold. Where others fill with 0 after normalisation,
      give the mean colour, such as (124, 116, 104) for ImageNet.
    """
    check_share("probability", probability)
    if not 0 <= area[0] <= area[1] <= 1:
        raise ValueError(f"area={area} must be two rising shares, such as (0.02, 0.33)")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio={ratio} must be above 0 and rising, such as (0.3, 3.3)")
    if isinstance(fill, str) and fill != "noise":
        raise ValueError(f"fill={fill!r} must be a colour or 'noise', such as 128")
    paint = _noise if isinstance(fill, str) else _paint(fill)

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        box_key, fill_key = jax.random.split(key)
        drawn = jax.random.uniform(box_key, (3 + 2 * _TRIES,))
        areas, ratios = drawn[3:].reshape(2, _TRIES)
        areas = area[0] + (area[1] - area[0]) * areas
        ratios = ratio[0] * (ratio[1] / ratio[0]) ** ratios
        inside = _first_that_fits(drawn[1:3], areas, ratios, image.shape[:2])
        inside &= drawn[0] < probability
        return jnp.where(inside[:, :, None], paint(fill_key, image), image)

    return lambda rows, images: jax.vmap(one)(rows.key, images)


def _first_that_fits(
    place: jax.Array, areas: jax.Array, ratios: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """Returns bool [H, W]: the box of the first candidate that fits, empty if none fits.

    areas [N] are shares of the image's area, ratios [N] are height by width. place [2],
    from 0 to 1, selects the position within the image.
    """
    pixels, limits = areas * (shape[0] * shape[1]), jnp.array(shape)
    sides = jnp.sqrt(jnp.stack([pixels * ratios, pixels / ratios], -1))
    sides = jnp.round(sides).astype(int)
    fits = (sides < limits[None]).all(-1)
    size = sides[jnp.argmax(fits)]
    start = (place * (limits - size + 1)).astype(int)
    return box(start, start + size, shape) & fits.any()


Paint = Callable[[jax.Array, jax.Array], jax.Array]


def _paint(fill: Fill) -> Paint:
    """Returns (key, image [H, W, C]) -> the colour, which broadcasts to the image."""
    check_fill(fill)
    return lambda key, image: fill_color(fill, image.shape[-1]).astype(image.dtype)


def _noise(key: jax.Array, image: jax.Array) -> jax.Array:
    """Draws every pixel and channel uniformly from 0..255."""
    # A random word gives four bytes. One draw a byte would cost four times as much.
    words = jax.random.bits(key, (-(-image.size // 4),), jnp.uint32)
    levels = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)
    return levels[: image.size].reshape(image.shape)
