"""The spaces of policies: their operations, and the amounts of each magnitude.

A `Space` is one published implementation, and its numbers define it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcls.augment.colors import Fill

# (magnitude as a share of the largest [B], sign -1 or 1 [B], (height, width)) -> amount.
Range = Callable[[jax.Array, jax.Array, tuple[int, ...]], jax.Array]


class Space(NamedTuple):
    """Equally likely operations, each with a function from magnitude to amount.

    ranges: by operation of `layer.OPERATIONS`. unit: the magnitude of share 1. cap: the
    largest magnitude. fill: one level or one a channel, for pixels outside the image.
    """

    ranges: dict[str, Range]
    unit: float
    cap: float
    fill: Fill


def signed(largest: float) -> Range:
    """Returns amounts from 0 to `largest`, of either sign."""
    return lambda share, sign, size: sign * share * largest


def of_side(axis: int, largest: float) -> Range:
    """Returns pixels from 0 to `largest` heights (axis 0) or widths (1), of either sign."""
    return lambda share, sign, size: sign * share * (largest * size[axis])


def whole_pixels(moved: Range) -> Range:
    """Truncates amounts towards 0."""
    return lambda share, sign, size: sign * _floor(sign * moved(share, sign, size))


def about_one(largest: float, least: float = 0.0) -> Range:
    """Returns factors 1 + sign * share * largest, but not below `least`."""
    return lambda share, sign, size: jnp.maximum(1 + sign * share * largest, least)


def line(first: float, last: float) -> Range:
    """Interpolates from `first` at magnitude 0 to `last` at the unit, without a sign."""
    return lambda share, sign, size: first + (last - first) * share


def whole(first: int, last: int) -> Range:
    """As `line`, in whole steps; an incomplete step does not count."""
    step = 1 if last > first else -1
    steps = abs(last - first)
    return lambda share, sign, size: first + step * _floor(share * steps)


def bits(lost: int) -> Range:
    """Returns the number of bits that stay: 8, less up to `lost`, rounded."""
    return lambda share, sign, size: 8 - jnp.round(share * lost)


def none(share: jax.Array, sign: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Returns 0: the operation has no amount."""
    return jnp.zeros_like(share)


def _floor(amount: jax.Array) -> jax.Array:
    """Rounds down, with a tolerance for float32's rounding errors."""
    return jnp.floor(amount + 1e-4)


_SHEARS = ("shear_x", "shear_y")
_SHIFTS = ("translate_x", "translate_y")
_FACTORS = ("brightness", "color", "contrast", "sharpness")
_FIXED: dict[str, Range] = {"autocontrast": none, "equalize": none}

# The operations of AutoAugment's paper that its successors kept.
_PAPER: dict[str, Range] = {
    **dict.fromkeys(_SHEARS, signed(0.3)),
    "translate_x": whole_pixels(of_side(1, 150 / 331)),
    "translate_y": whole_pixels(of_side(0, 150 / 331)),
    "rotate": signed(30),
    **dict.fromkeys(_FACTORS, about_one(0.9)),
    "posterize": bits(4),
    "solarize": line(255, 0),
    **_FIXED,
}
# What timm and Google's libraries added to it and changed.
_MORE: dict[str, Range] = {
    **_FIXED,
    "invert": none,
    "rotate": signed(30),
    **dict.fromkeys(_SHEARS, signed(0.3)),
    "solarize_add": whole(0, 110),
}

# AutoAugment's magnitudes are 0 to 9.
AUTOAUGMENT = Space({**_PAPER, "invert": none}, unit=9, cap=9, fill=0)

# Magnitudes 0 to 30, each equally likely.
_WIDE: dict[str, Range] = {
    **dict.fromkeys(_SHEARS, signed(0.99)),
    **dict.fromkeys(_SHIFTS, whole_pixels(signed(32))),
    "rotate": signed(135),
    **dict.fromkeys(_FACTORS, about_one(0.99)),
    "posterize": bits(6),
}
TRIVIALAUGMENT = Space({"identity": none, **_PAPER, **_WIDE}, unit=30, cap=30, fill=0)

# The 16 operations of TensorFlow's models for TPU, which big_vision, scenic and others
# copied. Factors go from 0.1 to 1.9. Posterize and solarize weaken as the magnitude rises,
# and at 10 solarize changes nothing; there its threshold wraps (`legacy_solarize`).
_GOOGLE: dict[str, Range] = {
    **_MORE,
    "posterize": whole(0, 4),
    "solarize": whole(0, 256),
    **dict.fromkeys(_FACTORS, line(0.1, 1.9)),
    **dict.fromkeys(_SHIFTS, signed(100)),
    "cutout": whole(0, 40),
}
# timm's 15 operations with "inc1": every strength grows with the magnitude.
_TIMM: dict[str, Range] = {
    **_MORE,
    "translate_x": of_side(1, 0.45),
    "translate_y": of_side(0, 0.45),
    "posterize": whole(4, 0),
    "solarize": whole(256, 0),
    **dict.fromkeys(_FACTORS, about_one(0.9, least=0.1)),
}
RANDAUGMENT: dict[str, Space] = {
    # The paper's 14 operations with 31 magnitudes, as in torchvision.
    "torchvision": Space({"identity": none, **_PAPER}, unit=30, cap=30, fill=0),
    "google": Space(_GOOGLE, unit=10, cap=30, fill=128),
    "timm": Space(_TIMM, unit=10, cap=10, fill=(124, 116, 104)),
}

# Pairs of (operation, probability, magnitude), from the papers' tables of sub-policies
# (arXiv:1805.09501, appendix); operations without an amount have magnitude 0 here.
SUBPOLICIES = {
    "imagenet": """
posterize 0.4 8, rotate 0.6 9        | solarize 0.6 5, autocontrast 0.6 0
equalize 0.8 0, equalize 0.6 0       | posterize 0.6 7, posterize 0.6 6
equalize 0.4 0, solarize 0.2 4       | equalize 0.4 0, rotate 0.8 8
solarize 0.6 3, equalize 0.6 0       | posterize 0.8 5, equalize 1.0 0
rotate 0.2 3, solarize 0.6 8         | equalize 0.6 0, posterize 0.4 6
rotate 0.8 8, color 0.4 0            | rotate 0.4 9, equalize 0.6 0
equalize 0.0 0, equalize 0.8 0       | invert 0.6 0, equalize 1.0 0
color 0.6 4, contrast 1.0 8          | rotate 0.8 8, color 1.0 2
color 0.8 8, solarize 0.8 7          | sharpness 0.4 7, invert 0.6 0
shear_x 0.6 5, equalize 1.0 0        | color 0.4 0, equalize 0.6 0
equalize 0.4 0, solarize 0.2 4       | solarize 0.6 5, autocontrast 0.6 0
invert 0.6 0, equalize 1.0 0         | color 0.6 4, contrast 1.0 8
equalize 0.8 0, equalize 0.6 0
""",
    "cifar10": """
invert 0.1 0, contrast 0.2 6         | rotate 0.7 2, translate_x 0.3 9
sharpness 0.8 1, sharpness 0.9 3     | shear_y 0.5 8, translate_y 0.7 9
autocontrast 0.5 0, equalize 0.9 0   | shear_y 0.2 7, posterize 0.3 7
color 0.4 3, brightness 0.6 7        | sharpness 0.3 9, brightness 0.7 9
equalize 0.6 0, equalize 0.5 0       | contrast 0.6 7, sharpness 0.6 5
color 0.7 7, translate_x 0.5 8       | equalize 0.3 0, autocontrast 0.4 0
translate_y 0.4 3, sharpness 0.2 6   | brightness 0.9 6, color 0.2 8
solarize 0.5 2, invert 0.0 0         | equalize 0.2 0, autocontrast 0.6 0
equalize 0.2 0, equalize 0.6 0       | color 0.9 9, equalize 0.6 0
autocontrast 0.8 0, solarize 0.2 8   | brightness 0.1 3, color 0.7 0
solarize 0.4 5, autocontrast 0.9 0   | translate_y 0.9 9, translate_y 0.7 9
autocontrast 0.9 0, solarize 0.8 3   | equalize 0.8 0, invert 0.1 0
translate_y 0.7 9, autocontrast 0.9 0
""",
}
