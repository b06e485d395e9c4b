"""Augmentation policies, which draw operations for each image: entries of AUGMENTATIONS.

Each policy has a pure `draw_...`, which returns the drawn operations and applies none.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.augment import colors, layer, levels
from jaxcls.augment.checks import (
    check_amount,
    check_levels,
    check_share,
    check_sigma,
)
from jaxcls.augment.fills import Fill, check_fill, fill_color
from jaxcls.augment.layer import NUMBERS, Drawn
from jaxcls.augment.rows import Amount, Augmentation, Rows, at, fold
from jaxcls.augment.spaces import (
    AUTOAUGMENT,
    RANDAUGMENT,
    SUBPOLICIES,
    TRIVIALAUGMENT,
    Space,
)


def randaugment(
    layers: int = 2,
    magnitude: Amount = 10.0,
    space: str = "torchvision",
    noise: float = 0.0,
    probability: float = 1.0,
    fill: Fill | None = None,
    legacy_contrast: bool = False,
) -> Augmentation:
    """Applies `layers` drawn operations in order, all of one magnitude.

    Cubuk et al., arXiv:1909.13719. Implementations differ in their operations and in the
    meaning of a magnitude. `space` selects an implementation:

    - "torchvision": the paper's 14 operations, magnitudes 0 to 30 (its 31 bins). 30 is the
      full strength: 30 degrees, 150/331 of the width or height, factors of 1 +- 0.9.
    - "google": 16 operations, with invert, solarize_add and cutout; magnitudes 0 to 30. 10
      is the full strength. big_vision, scenic and TensorFlow's models use it. Their
      published numbers need ``legacy_contrast=True``: contrast about the pixel count / 256.
    - "timm": 15 operations with inc1, magnitudes 0 to 10. rand-m7-mstd0.5-inc1 is
      ``randaugment(2, 7, "timm", noise=0.5, probability=0.5)``.
    - "timm_inc0": the same without inc1.

    The other options:

    - magnitude: a number, or a pair that is interpolated linearly over the run.
    - noise: the deviation of normal noise on the magnitude; the sum is clipped to the range
      of the space.
    - probability: the probability that a layer is applied to an image.
    - fill: one level or one a channel, for pixels outside the image; None: the space's.

    Every space samples the nearest pixel; timm itself is bilinear or bicubic. Raises
    `ValueError` for an option out of range.
    """
    if layers < 1:
        raise ValueError(f"layers={layers} must be at least 1, such as 2")
    if space not in RANDAUGMENT:
        raise ValueError(f"space={space!r} must be one of {', '.join(RANDAUGMENT)}")
    chosen = RANDAUGMENT[space]
    check_amount("magnitude", magnitude, chosen.cap, "9")
    if noise < 0:
        raise ValueError(f"noise={noise} must be at least 0, such as 0.5")
    check_share("probability", probability)
    background = chosen.fill if fill is None else fill
    check_fill(background)

    def apply(rows: Rows, images: jax.Array) -> jax.Array:
        mean = at(magnitude, rows.share)
        color = fill_color(background, images.shape[-1])
        size = images.shape[1:3]
        drawn = [
            draw_randaugment(fold(rows, i).key, chosen, mean, size, noise, probability)
            for i in range(layers)
        ]
        return layer.apply_each(
            images,
            drawn,
            tuple(chosen.ranges),
            fill=color,
            legacy_contrast=legacy_contrast,
        )

    return apply


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
    number = _pick(luck.which, len(space.ranges))
    drawn = _amounts(space, number, share, luck, size)
    return _leave(drawn, luck.applied < probability)


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
    number = _pick(luck.which, len(TRIVIALAUGMENT.ranges))
    share = _pick(luck.level, 31) / TRIVIALAUGMENT.unit
    return _amounts(TRIVIALAUGMENT, number, share, luck, size)


def autoaugment(policy: str = "imagenet", fill: Fill = AUTOAUGMENT.fill) -> Augmentation:
    """Applies one of 25 learnt sub-policies, drawn for each image, of two operations each.

    Cubuk et al., arXiv:1805.09501. `policy` is "imagenet" or "cifar10". It defines the
    probability and magnitude of each operation; the sign is drawn. Translations are at most
    150/331 of the image's width or height, as in torchvision. fill: one level or one a
    channel, for pixels outside the image. Raises `ValueError` for another policy or a level
    out of range.
    """
    if policy not in SUBPOLICIES:
        raise ValueError(f"policy={policy!r} must be one of {', '.join(SUBPOLICIES)}")
    check_fill(fill)

    def apply(rows: Rows, images: jax.Array) -> jax.Array:
        color = fill_color(fill, images.shape[-1])
        drawn = draw_autoaugment(rows.key, policy, images.shape[1:3])
        return layer.apply_each(images, drawn, tuple(AUTOAUGMENT.ranges), fill=color)

    return apply


def draw_autoaugment(
    keys: jax.Array, policy: str, size: tuple[int, ...]
) -> tuple[Drawn, Drawn]:
    """Draws the two operations of AutoAugment for images of `size` (height, width).

    keys: [B].
    """
    table = jnp.asarray(_subpolicies(policy))
    both = table[_pick(_luck(keys).which, len(table))]

    def draw(i: int) -> Drawn:
        folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, i)
        luck = _luck(folded)
        number, probability, magnitude = both[:, i, 0], both[:, i, 1], both[:, i, 2]
        share = magnitude / AUTOAUGMENT.unit
        drawn = _amounts(AUTOAUGMENT, number.astype(jnp.int32), share, luck, size)
        return _leave(drawn, luck.applied < probability)

    return draw(0), draw(1)


def three_augment(
    threshold: int = 128, sigma: tuple[float, float] = (0.1, 2.0)
) -> Augmentation:
    """Applies greyscale, solarize or Gaussian blur, each equally likely.

    DeiT-III, Touvron et al., arXiv:2204.07118. Its colour jitter is a separate augmentation
    after this one, ``color_jitter(0.3, 0.3, 0.3)``. threshold: the first level that
    solarize inverts. sigma: the range of the blur's deviation, pixels. Raises `ValueError`
    for an option out of range.
    """
    check_levels("threshold", threshold, 256)
    check_sigma(sigma)

    def apply(rows: Rows, images: jax.Array) -> jax.Array:
        which, deviation = draw_three_augment(rows.key, sigma)
        tables = jnp.where(
            (which == 1)[:, None, None],
            levels.solarize(jnp.full(which.shape, threshold, jnp.float32)),
            levels.identity(len(which)),
        )
        images = levels.look_up(images, tables)
        images = colors.saturation(images, jnp.where(which == 0, 0.0, 1.0))
        return colors.blur(
            images, jnp.where(which == 2, deviation, 0.0), colors.reach(sigma[1])
        )

    return apply


def draw_three_augment(
    keys: jax.Array, sigma: tuple[float, float]
) -> tuple[jax.Array, jax.Array]:
    """Returns ([B] 0 for grey, 1 for solarize, 2 for blur; [B] the blur's deviation)."""
    luck = _luck(keys)
    return _pick(luck.which, 3), sigma[0] + luck.level * (sigma[1] - sigma[0])


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


def _amounts(
    space: Space,
    which: jax.Array,
    share: jax.Array,
    luck: _Luck,
    size: tuple[int, ...],
) -> Drawn:
    """Returns the operations of the space at the indices `which`, with their amounts."""
    height, width = size
    numbers = jnp.array([NUMBERS[name] for name in space.ranges], jnp.int32)
    amounts = [
        amount_of(share, luck.sign, (height, width)) for amount_of in space.ranges.values()
    ]
    amount = jnp.select([which == i for i in range(len(amounts))], amounts)
    return Drawn(numbers[which], amount, luck.place)


def _leave(drawn: Drawn, applied: jax.Array) -> Drawn:
    """Replaces the operation of rows that are not applied by "identity"."""
    number = jnp.where(applied, drawn.operation, NUMBERS["identity"])
    return drawn._replace(operation=number)


def _subpolicies(policy: str) -> np.ndarray:
    """Returns float32 [25, 2, 3]: index in AUTOAUGMENT.ranges, probability, magnitude."""
    places = {name: i for i, name in enumerate(AUTOAUGMENT.ranges)}

    def step(text: str) -> tuple[float, float, float]:
        name, probability, magnitude = text.split()
        return places[name], float(probability), float(magnitude)

    pairs = SUBPOLICIES[policy].replace("|", "\n").strip().split("\n")
    return np.array([[step(one) for one in pair.split(",")] for pair in pairs], np.float32)
