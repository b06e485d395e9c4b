"""Augmentation policies, which draw operations for each image: entries of AUGMENTATIONS.

Each policy has a pure `draw_...`, which returns the drawn operations and applies none.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.augment import colors, layer
from jaxcls.augment.colors import Fill, check_fill, fill_color
from jaxcls.augment.layer import NUMBERS, Drawn
from jaxcls.augment.rows import Amount, Augmentation, Rows, at, fold
from jaxcls.augment.spaces import (
    AUTOAUGMENT,
    RANDAUGMENT,
    SUBPOLICIES,
    TRIVIALAUGMENT,
    Space,
)
from jaxcls.config.calls import check_range, check_rising
from jaxcls.errors import lookup


def randaugment(
    layers: int = 2,
    magnitude: Amount = 10.0,
    space: str = "torchvision",
    noise: float = 0.0,
    probability: float = 1.0,
    fill: Fill | None = None,
    legacy_contrast: bool = False,
    legacy_solarize: bool = False,
    interpolation: str = "nearest",
) -> Augmentation:
    """Applies `layers` drawn operations in order, all of one magnitude.

    Cubuk et al., arXiv:1909.13719. Implementations differ in their operations and in the
    meaning of a magnitude. `space` selects an implementation:

    - "torchvision": the paper's 14 operations, magnitudes 0 to 30 (its 31 bins). 30 is the
      full strength: 30 degrees, 150/331 of the width or height, factors of 1 +- 0.9.
    - "google": 16 operations, with invert, solarize_add and cutout; magnitudes 0 to 30. 10
      is the full strength. big_vision, scenic and TensorFlow's models use it. Their
      published numbers need ``legacy_contrast=True``: contrast about the pixel count / 256;
      and ``legacy_solarize=True``: its threshold is modulo 256, so that at 10 solarize
      inverts every level, and at 15 those from 128 on.
    - "timm": 15 operations with inc1, magnitudes 0 to 10. rand-m7-mstd0.5-inc1 is
      ``randaugment(2, 7, "timm", noise=0.5, probability=0.5)``.

    The other options:

    - magnitude: a number, or a pair that is interpolated linearly over the run.
    - noise: the deviation of normal noise on the magnitude; the sum is clipped to the range
      of the space.
    - probability: the probability that a layer is applied to an image.
    - fill: one level or one a channel, for pixels outside the image; None: the space's.
    - interpolation: how rotations, shears and translations read between pixels: "nearest",
      or "bicubic" with Pillow's pixels, as recipes that train with timm's
      ``--train-interpolation bicubic`` have. On a CPU, the layers of the "timm" line
      above then take 1.6 times as long.

    Raises `ValueError` for an option out of range.
    """
    check_range("[1, inf)", 2, layers=layers)
    lookup(layer.INTERPOLATIONS, interpolation, "interpolation of randaugment")
    chosen = lookup(RANDAUGMENT, space, "space of randaugment")
    check_range(f"[0, {chosen.cap}]", 9, magnitude=magnitude)
    check_range("[0, inf)", 0.5, noise=noise)
    check_range("[0, 1]", 0.5, probability=probability)

    def draw(rows: Rows, size: tuple[int, ...]) -> list[Drawn]:
        mean = at(magnitude, rows.share)
        keys = [fold(rows, i).key for i in range(layers)]
        return [draw_randaugment(k, chosen, mean, size, noise, probability) for k in keys]

    background = chosen.fill if fill is None else fill
    options = {"legacy_contrast": legacy_contrast, "legacy_solarize": legacy_solarize}
    return _policy(chosen, draw, background, interpolation=interpolation, **options)


def draw_randaugment(
    keys: jax.Array,
    space: Space,
    magnitude: jax.Array,
    size: tuple[int, ...],
    noise: float = 0.0,
    probability: float = 1.0,
) -> Drawn:
    """Draws one layer of RandAugment for images of `size` (height, width).

    keys: [B]. magnitude: []. noise, probability: see `randaugment`.
    """
    luck = _luck(keys)
    level = jnp.broadcast_to(magnitude, luck.which.shape)
    if noise:
        level = level + noise * luck.normal
    share = jnp.clip(level, 0.0, space.cap) / space.unit
    which = _pick(luck.which, len(space.ranges))
    return _drawn(space, which, share, luck, size, probability)


def trivialaugment(fill: Fill = TRIVIALAUGMENT.fill) -> Augmentation:
    """Applies one operation, of a magnitude drawn from 31 (TrivialAugmentWide).

    Müller and Hutter, arXiv:2103.10158, the wide space. Its limits are shear 0.99, 32
    pixels, 135 degrees, factors of 1 +- 0.99 and 2 bits. fill: one level or one a channel,
    for pixels outside the image. Raises `ValueError` for a level out of range.
    """
    check_fill(fill)

    def apply(rows: Rows, images: jax.Array) -> jax.Array:
        color = fill_color(fill, images.shape[-1])
        drawn = draw_trivialaugment(rows.key, images.shape[1:3])
        return layer.apply(images, drawn, tuple(TRIVIALAUGMENT.ranges), fill=color)

    return apply


def draw_trivialaugment(keys: jax.Array, size: tuple[int, ...]) -> Drawn:
    """Draws one operation of TrivialAugmentWide for images of `size` (height, width).

    keys: [B].
    """
    luck = _luck(keys)
    which = _pick(luck.which, len(TRIVIALAUGMENT.ranges))
    share = _pick(luck.level, 31) / TRIVIALAUGMENT.unit
    return _drawn(TRIVIALAUGMENT, which, share, luck, size)


def autoaugment(policy: str = "imagenet", fill: Fill = AUTOAUGMENT.fill) -> Augmentation:
    """Applies one of 25 learnt sub-policies, drawn for each image, of two operations each.

    Cubuk et al., arXiv:1805.09501. `policy` is "imagenet" or "cifar10". It defines the
    probability and magnitude of each operation; the sign is drawn. Translations are at most
    150/331 of the image's width or height, as in torchvision. fill: one level or one a
    channel, for pixels outside the image. Raises `ValueError` for another policy or a level
    out of range.
    """
    pairs = lookup(SUBPOLICIES, policy, "policy of autoaugment")
    return _policy(AUTOAUGMENT, functools.partial(draw_autoaugment, pairs), fill)


def draw_autoaugment(pairs: str, rows: Rows, size: tuple[int, ...]) -> list[Drawn]:
    """Draws the two operations of AutoAugment for images of `size` (height, width).

    pairs: a value of `SUBPOLICIES`.
    """
    table = jnp.asarray(_table(pairs))
    both = table[_pick(_luck(rows.key).which, len(table))]

    def draw(i: int) -> Drawn:
        luck = _luck(fold(rows, i).key)
        which, probability, magnitude = both[:, i].T
        share = magnitude / AUTOAUGMENT.unit
        which = which.astype(jnp.int32)
        return _drawn(AUTOAUGMENT, which, share, luck, size, probability)

    return [draw(0), draw(1)]


def three_augment(
    threshold: int = 128, sigma: tuple[float, float] = (0.1, 2.0)
) -> Augmentation:
    """Applies greyscale, solarize or Gaussian blur, each equally likely.

    DeiT-III, Touvron et al., arXiv:2204.07118. Its colour jitter is a separate augmentation
    after this one, ``color_jitter(0.3, 0.3, 0.3)``. threshold: the first level that
    solarize inverts. sigma: the range of the blur's deviation, pixels. Raises `ValueError`
    for an option out of range.
    """
    check_range("[0, 256]", 128, threshold=threshold)
    check_rising("[0, 16]", (0.1, 2.0), sigma=sigma)
    # An operation of the layer with its amount, for each number that is drawn.
    numbers = [NUMBERS[name] for name in ("color", "solarize", "identity")]

    def apply(rows: Rows, images: jax.Array) -> jax.Array:
        luck = _luck(rows.key)
        which = _pick(luck.which, 3)
        number, amount = jnp.array(numbers)[which], jnp.array([0.0, threshold, 0.0])[which]
        color = jnp.zeros(images.shape[-1:], jnp.uint8)
        drawn, among = Drawn(number, amount, luck.place), ("color", "solarize")
        images = layer.apply(images, drawn, among, fill=color)
        deviation = sigma[0] + luck.level * (sigma[1] - sigma[0])
        deviation = jnp.where(which == 2, deviation, 0.0)
        return colors.blur(images, deviation, colors.reach(sigma[1]))

    return apply


class _Luck(NamedTuple):
    """Draws of each row, [B]: uniform in 0..1, a sign, a standard normal; place [B, 2]."""

    which: jax.Array
    applied: jax.Array
    level: jax.Array
    sign: jax.Array
    normal: jax.Array
    place: jax.Array


def _luck(keys: jax.Array) -> _Luck:
    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, second = jax.random.split(key)
        return jax.random.uniform(first, (6,)), jax.random.normal(second)

    uniform, normal = jax.vmap(one)(keys)
    sign = jnp.where(uniform[:, 3] < 0.5, -1.0, 1.0)
    return _Luck(uniform[:, 0], uniform[:, 1], uniform[:, 2], sign, normal, uniform[:, 4:])


def _pick(uniform: jax.Array, count: int) -> jax.Array:
    """Maps a uniform draw from [0, 1) to an int32 from 0 to count - 1."""
    return jnp.minimum((uniform * count).astype(jnp.int32), count - 1)


def _drawn(
    space: Space,
    which: jax.Array,
    share: jax.Array,
    luck: _Luck,
    size: tuple[int, ...],
    probability: jax.Array | float = 1.0,
) -> Drawn:
    """Returns the space's operations at the indices `which`, or "identity" by chance."""
    numbers = jnp.array([NUMBERS[name] for name in space.ranges], jnp.int32)
    amounts = [of(share, luck.sign, size) for of in space.ranges.values()]
    amount = jnp.select([which == i for i in range(len(amounts))], amounts)
    number = jnp.where(luck.applied < probability, numbers[which], NUMBERS["identity"])
    return Drawn(number, amount, luck.place)


def _policy(
    space: Space,
    draw: Callable[[Rows, tuple[int, ...]], list[Drawn]],
    fill: Fill,
    **options: Any,
) -> Augmentation:
    """Applies the layers of `draw`, a function of the rows and of (height, width)."""
    check_fill(fill)

    def apply(rows: Rows, images: jax.Array) -> jax.Array:
        layers, among = draw(rows, images.shape[1:3]), tuple(space.ranges)
        color = fill_color(fill, images.shape[-1])
        return layer.apply_each(images, layers, among, fill=color, **options)

    return apply


def _table(pairs: str) -> np.ndarray:
    """Returns float32 [25, 2, 3]: index in AUTOAUGMENT.ranges, probability, magnitude."""
    places = {name: i for i, name in enumerate(AUTOAUGMENT.ranges)}

    def step(text: str) -> tuple[float, float, float]:
        name, probability, magnitude = text.split()
        return places[name], float(probability), float(magnitude)

    lines = pairs.replace("|", "\n").strip().split("\n")
    return np.array([[step(one) for one in line.split(",")] for line in lines], np.float32)
