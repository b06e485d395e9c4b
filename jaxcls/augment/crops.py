"""Flips, crops and filled boxes."""

import jax
import jax.numpy as jnp

from jaxcls.augment.colors import Fill, check_fill, fill_color
from jaxcls.augment.rows import Augmentation, Rows
from jaxcls.config.calls import check_range, check_rising
from jaxcls.errors import InputError, lookup

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
    check_range("[0, 1]", 0.5, probability=probability)
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
    arXiv:2404.00498). Raises `ValueError` for a negative padding, and `InputError` for
    another mode or unless the padding is below the image's height and width.
    """
    check_range("[0, inf)", 4, padding=padding)
    pads = {"zero": "constant", "reflect": "reflect"}
    pad_mode = lookup(pads, mode, "mode of random_crop")
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
        padded = jnp.pad(images, sides, mode=pad_mode)
        return jax.vmap(cut)(padded, jax.vmap(place)(rows.key))

    return apply


def cutout(size: int, probability: float = 1.0, fill: Fill = 128) -> Augmentation:
    """Fills a square of `size` x `size` pixels, centred anywhere, clipped at the border.

    DeVries and Taylor, arXiv:1708.04552. The paper fills with 0 after normalisation. Before
    normalisation this is the mean colour of the data, so set `fill` to (125, 123, 114) for
    CIFAR-10 and (124, 116, 104) for ImageNet; both are exact to half a grey level. Raises
    `ValueError` for an option out of range.
    """
    check_range("[1, inf)", 16, size=size)
    check_range("[0, 1]", 0.5, probability=probability)
    check_fill(fill)

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        drawn, shape = jax.random.uniform(key, (3,)), image.shape[:2]
        start = (drawn[1:] * jnp.array(shape)).astype(int) - size // 2
        inside = box(start, start + size, shape) & (drawn[0] < probability)
        return jnp.where(inside[:, :, None], fill_color(fill, image.shape[-1]), image)

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
    check_range("[0, 1]", 0.5, probability=probability)
    check_rising("[0, 1]", (0.02, 0.33), area=area)
    check_rising("(0, inf)", (0.3, 3.3), ratio=ratio)
    if not isinstance(fill, str):
        check_fill(fill)
    elif fill != "noise":
        raise ValueError(f"fill={fill!r} must be a colour or 'noise', such as 128")

    def paint(key: jax.Array, image: jax.Array) -> jax.Array:
        if isinstance(fill, str):
            return _noise(key, image)
        return fill_color(fill, image.shape[-1])

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


def _noise(key: jax.Array, image: jax.Array) -> jax.Array:
    """Draws every pixel and channel uniformly from 0..255."""
    # A random word gives four bytes. One draw a byte would cost four times as much.
    words = jax.random.bits(key, (-(-image.size // 4),), jnp.uint32)
    levels = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)
    return levels[: image.size].reshape(image.shape)
