"""Common corruptions of images at five strengths (Hendrycks and Dietterich, ICLR 2019).

arXiv:1903.12261. The authors publish amounts for images of 224 and of 32 pixels. This
module differs from theirs:

- An image takes the amounts of 32 pixels if its shorter side is below 85 pixels, and else
  the amounts of 224: the nearer size by ratio.
- Levels are rounded, not truncated. Images are not stored as JPEG afterwards.
- Beyond the edge, an image repeats its nearest pixel. A zoom is about the centre.
- Glass, snow, frost, fog and elastic are missing. So is saturate: its strengths have no
  order, and a grey image has no saturation.
"""

import io
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image

from jaxcls.config.plugins import NONE, Plugins
from jaxcls.data.decode import Random
from jaxcls.errors import InputError, lookup

STRENGTHS = 5
# Seeds the random numbers: equal for every run, so that runs are comparable.
SEED = 0
# The shorter side, in pixels, from which an image takes the amounts of 224 pixels: the
# geometric mean of 32 and 224.
LARGE = 85
# (levels float32 [H, W, C] of 0..1, amount, rng) -> levels, clipped later.
Levels = Callable[[np.ndarray, Any, Generator], np.ndarray]


class Corruption(NamedTuple):
    """A corruption.

    kind: its family. function: (levels float32 [H, W, C] of 0..1, amount, rng) -> levels;
    it draws from rng alone. small, large: amounts at strengths 1..5, by size.
    """

    kind: str
    function: Levels
    small: Sequence[Any]
    large: Sequence[Any]

    def __call__(self, image: np.ndarray, strength: int, rng: Generator) -> np.ndarray:
        """Returns the corrupted image, uint8 [H, W, C], at a strength of 1..5."""
        amounts = self.large if min(image.shape[:2]) >= LARGE else self.small
        levels = image.astype(np.float32) / 255
        found = self.function(levels, amounts[strength - 1], rng)
        return np.rint(found.clip(0, 1) * 255).astype(np.uint8).reshape(image.shape)


def gaussian_noise(levels: np.ndarray, deviation: float, rng: Generator) -> np.ndarray:
    """Adds normal noise."""
    return levels + deviation * rng.standard_normal(levels.shape, np.float32)


def shot_noise(levels: np.ndarray, photons: float, rng: Generator) -> np.ndarray:
    """Applies Poisson noise of `photons` photons at the level 1."""
    return (rng.poisson(levels * photons) / photons).astype(np.float32)


def impulse_noise(levels: np.ndarray, share: float, rng: Generator) -> np.ndarray:
    """Sets a share of the levels to 0 or 1, each equally often."""
    drawn = rng.random(levels.shape, np.float32)
    salted = np.where(drawn < share / 2, np.float32(0), levels)
    return np.where(drawn >= 1 - share / 2, np.float32(1), salted)


def speckle_noise(levels: np.ndarray, deviation: float, rng: Generator) -> np.ndarray:
    """Adds normal noise in proportion to the level."""
    noise = rng.standard_normal(levels.shape, np.float32)
    return levels + levels * (deviation * noise)


def gaussian_blur(levels: np.ndarray, sigma: float, rng: Generator) -> np.ndarray:
    """Blurs by a Gaussian of `sigma` pixels, truncated at four sigma."""
    side = 2 * int(4 * sigma + 0.5) + 1
    return cv2.GaussianBlur(levels, (side, side), sigma, borderType=cv2.BORDER_REPLICATE)


def defocus_blur(
    levels: np.ndarray, disk: tuple[float, float], rng: Generator
) -> np.ndarray:
    """Averages over a disk of (radius, sigma of its soft edge)."""
    radius, sigma = disk
    soft = 3 if radius <= 8 else 5
    reach = math.ceil(radius) + soft // 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = (x**2 + y**2 <= radius**2).astype(np.float32)
    kernel = cv2.GaussianBlur(
        kernel / kernel.sum(), (soft, soft), sigma, borderType=cv2.BORDER_CONSTANT
    )
    return _filtered(levels, kernel)


def motion_blur(levels: np.ndarray, trail: tuple[int, float], rng: Generator) -> np.ndarray:
    """Blurs along a one-sided trail, at most 45 degrees from horizontal.

    ImageMagick does the same. trail: (half of its length, sigma of its weights, which
    decrease from the pixel on).
    """
    radius, sigma = trail
    angle = math.radians(rng.uniform(-45, 45))
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    kernel = np.zeros((4 * radius + 1, 4 * radius + 1), np.float32)
    rows = np.rint(steps * math.sin(angle)).astype(int) + 2 * radius
    columns = np.rint(steps * math.cos(angle)).astype(int) + 2 * radius
    np.add.at(kernel, (rows, columns), weights / weights.sum())
    return _filtered(levels, kernel)


def zoom_blur(levels: np.ndarray, zooms: tuple[float, float], rng: Generator) -> np.ndarray:
    """Averages over zooms from 1 on. zooms: (the last zoom, the increment).

    The image itself counts twice.
    """
    last, step = zooms
    height, width = levels.shape[:2]
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    total, count = levels.copy(), 1
    for k in range(round((last - 1) / step) + 1):
        scale = 1 / (1 + k * step)
        inverse = np.column_stack([np.eye(2) * scale, middle * (1 - scale)])
        zoomed = cv2.warpAffine(
            levels,
            inverse,
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        total, count = total + zoomed.reshape(levels.shape), count + 1
    return total / count


def brightness(levels: np.ndarray, amount: float, rng: Generator) -> np.ndarray:
    """Raises HSV's value, the largest level of a pixel; keeps hue and saturation."""
    value = levels.max(-1, keepdims=True)
    raised = np.minimum(value + np.float32(amount), 1)
    scale = np.divide(raised, value, out=np.zeros_like(value), where=value > 0)
    return np.where(value > 0, levels * scale, raised)


def contrast(levels: np.ndarray, share: float, rng: Generator) -> np.ndarray:
    """Keeps a share of each channel's difference from its mean."""
    means = levels.mean((0, 1), keepdims=True)
    return (levels - means) * np.float32(share) + means


def pixelate(levels: np.ndarray, share: float, rng: Generator) -> np.ndarray:
    """Keeps a share of the rows and columns: resizes down and up by Pillow's box filter."""
    height, width = levels.shape[:2]
    size = max(1, int(width * share)), max(1, int(height * share))
    picture = _picture(levels).resize(size, Image.Resampling.BOX)
    return _levels(picture.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(levels: np.ndarray, quality: int, rng: Generator) -> np.ndarray:
    """Encodes and decodes as a JPEG of `quality`, by Pillow."""
    file = io.BytesIO()
    _picture(levels).save(file, "JPEG", quality=quality)
    with Image.open(file) as picture:
        return _levels(picture)


# By family: each corruption's amounts at strengths 1..5, for small and for large images.
AMOUNTS: dict[str, dict[Levels, tuple[Sequence[Any], Sequence[Any]]]] = {
    "noise": {
        gaussian_noise: ((0.04, 0.06, 0.08, 0.09, 0.1), (0.08, 0.12, 0.18, 0.26, 0.38)),
        shot_noise: ((500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
        impulse_noise: ((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
        speckle_noise: ((0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6)),
    },
    "blur": {
        gaussian_blur: ((0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6)),
        defocus_blur: (
            ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
            ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ),
        motion_blur: (
            ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
            ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        ),
        zoom_blur: (
            ((1.06, 0.01), (1.1, 0.01), (1.15, 0.01), (1.2, 0.01), (1.25, 0.01)),
            ((1.1, 0.01), (1.15, 0.01), (1.2, 0.02), (1.24, 0.02), (1.3, 0.03)),
        ),
    },
    "light and detail": {
        brightness: ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
        contrast: ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
        pixelate: ((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
        jpeg_compression: ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    },
}
CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(
    {
        function.__name__: Corruption(kind, function, small, large)
        for kind, amounts in AMOUNTS.items()
        for function, (small, large) in amounts.items()
    }
)


def named(text: str, key: str, plugins: Plugins = NONE) -> dict[str, Corruption]:
    """Returns the corruptions of ``"all"`` or ``"contrast, pixelate"``, by name.

    plugins: what is looked up beside `CORRUPTIONS`. An empty text names none. Raises
    `InputError`, which names `key`, for an unknown or repeated name, or one that a plug-in
    gives to something else.
    """
    table = plugins.added_to("CORRUPTIONS", CORRUPTIONS)
    for name, each in table.items():
        if not isinstance(each, Corruption):
            raise InputError(
                f"plugins: {name!r} of CORRUPTIONS must be a jaxcls.evaluation.corruptions."
                "Corruption(kind, function, small, large)"
            )
    if text.strip() == "all":
        return table
    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        lookup({**table, "all": None}, name, key)
        if name == "all" or names.count(name) > 1:
            raise InputError(f"{key}={text!r} must name each once; try {key}=all")
    return {name: table[name] for name in names}


def at_every_strength(
    name: str, corruption: Corruption
) -> Callable[[np.ndarray, Random], np.ndarray]:
    """Returns a host op: uint8 [H, W, C] -> uint8 [5, H, W, C], at strengths 1..5.

    name: of the corruption; it chooses the random numbers. The op draws one number from the
    example's rng. So other examples and other corruptions do not change it.
    """
    stream = zlib.crc32(name.encode()) * 8

    def op(image: np.ndarray, rng: Random) -> np.ndarray:
        drawn = int(rng.random() * 2**53)
        found = []
        for strength in range(1, STRENGTHS + 1):
            drawing = Generator(np.random.Philox(key=[drawn, stream + strength]))
            found.append(corruption(image, strength, drawing))
        return np.stack(found)

    return op


def _filtered(levels: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return cv2.filter2D(levels, -1, kernel, borderType=cv2.BORDER_REPLICATE)


def _picture(levels: np.ndarray) -> Image.Image:
    pixels = np.rint(levels * 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _levels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, np.float32) / 255
