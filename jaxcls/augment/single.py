"""Single operations with a probability: entries of AUGMENTATIONS.

A probability is the probability that an image changes. An `Amount` is a number, or a
pair that is interpolated linearly over the run. `fill` colours pixels outside the image:
one level, or one a channel. Every function raises `ValueError` for an option out of
range.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.augment import colors, geometry, layer, levels
from jaxcls.augment.colors import Fill, check_fill, fill_color
from jaxcls.augment.rows import Amount, Augmentation, Rows, at
from jaxcls.config.calls import check_range, check_rising


def color_jitter(
    brightness: Amount = 0.0,
    contrast: Amount = 0.0,
    saturation: Amount = 0.0,
    hue: Amount = 0.0,
    probability: float = 1.0,
) -> Augmentation:
    """Scales brightness, contrast and saturation by drawn factors, then rotates the hue.

    A factor is drawn from max(1 - amount, 0) to 1 + amount. The hue's rotation is drawn
    from -hue to hue, in turns of the colour circle; hue is at most 0.5. The order is fixed.
    torchvision draws the order, which would cost four times as much here, because every row
    goes through every step.
    """
    check_range(
        "[0, 60]", 0.4, brightness=brightness, contrast=contrast, saturation=saturation
    )
    check_range("[0, 0.5]", 0.1, hue=hue)
    check_range("[0, 1]", 0.5, probability=probability)

    def apply(rows: Rows, images: jax.Array) -> jax.Array:
        uniform = _uniform(rows, 5)
        chosen = uniform[:, 0] < probability

        def factor(amount: Amount, i: int) -> jax.Array:
            most = at(amount, rows.share)
            low = jnp.maximum(1 - most, 0.0)
            drawn = low + uniform[:, i] * (1 + most - low)
            return jnp.where(chosen, drawn, 1.0)

        if np.any(brightness):
            images = levels.brightness(images, factor(brightness, 1))
        if np.any(contrast):
            images = levels.contrast(images, factor(contrast, 2))
        if np.any(saturation):
            images = colors.saturation(images, factor(saturation, 3))
        if np.any(hue):
            turns = (2 * uniform[:, 4] - 1) * at(hue, rows.share)
            images = colors.hue(images, jnp.where(chosen, turns, 0.0))
        return images

    return apply


def greyscale(probability: float = 0.2) -> Augmentation:
    """Removes colours; one-channel images stay."""
    return _with_probability("color", 0.0, probability)


def blur(probability: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0)) -> Augmentation:
    """Blurs by a Gaussian; its deviation is drawn from `sigma`, at most 16 pixels."""
    check_range("[0, 1]", 0.5, probability=probability)
    check_rising("[0, 16]", (0.1, 2.0), sigma=sigma)

    def apply(rows: Rows, images: jax.Array) -> jax.Array:
        uniform = _uniform(rows, 2)
        deviation = sigma[0] + uniform[:, 1] * (sigma[1] - sigma[0])
        deviation = jnp.where(uniform[:, 0] < probability, deviation, 0.0)
        return colors.blur(images, deviation, colors.reach(sigma[1]))

    return apply


def solarize(probability: float = 0.2, threshold: int = 128) -> Augmentation:
    """Inverts levels from `threshold` on."""
    check_range("[0, 256]", 128, threshold=threshold)
    return _with_probability("solarize", float(threshold), probability)


def posterize(probability: float = 0.5, bits: int = 4) -> Augmentation:
    """Keeps the highest `bits` of each level, 1 to 8."""
    check_range("[1, 8]", 4, bits=bits)
    return _with_probability("posterize", float(bits), probability)


def equalize(probability: float = 0.5) -> Augmentation:
    """Equalises the histogram of each channel."""
    return _with_probability("equalize", 0.0, probability)


def autocontrast(probability: float = 0.5) -> Augmentation:
    """Stretches the levels of each channel to 0..255."""
    return _with_probability("autocontrast", 0.0, probability)


def invert(probability: float = 0.1) -> Augmentation:
    """Inverts all levels."""
    return _with_probability("invert", 0.0, probability)


def sharpness(probability: float = 0.5, factor: float = 2.0) -> Augmentation:
    """Sharpens with a factor above 1, and smooths with a factor below 1."""
    check_range("[0, 60]", 2.0, factor=factor)
    return _with_probability("sharpness", float(factor), probability)


def rotate(
    degrees: Amount = 15.0, probability: float = 1.0, fill: Fill = 0
) -> Augmentation:
    """Rotates about the centre by an angle drawn from -degrees to degrees."""
    check_range("[0, 180]", 15, degrees=degrees)

    def matrices(size: tuple[int, int], angle: jax.Array) -> jax.Array:
        return geometry.rotate(angle, size)

    return _moved(matrices, 1, degrees, probability, fill)


def shear(degrees: Amount = 10.0, probability: float = 1.0, fill: Fill = 0) -> Augmentation:
    """Shears about the centre, across and down, by angles from -degrees to degrees."""
    check_range("[0, 60]", 10, degrees=degrees)

    def matrices(size: tuple[int, int], *angles: jax.Array) -> jax.Array:
        across, down = jnp.tan(jnp.stack(angles) * (math.pi / 180))
        return geometry.shear(across, down, (size[0] / 2, size[1] / 2))

    return _moved(matrices, 2, degrees, probability, fill)


def translate(
    share: Amount = 0.1, probability: float = 1.0, fill: Fill = 0
) -> Augmentation:
    """Moves by whole pixels, drawn from -share to share of the height, and of the width."""
    check_range("[0, 1]", 0.1, share=share)

    def matrices(size: tuple[int, int], down: jax.Array, right: jax.Array) -> jax.Array:
        return geometry.translate(jnp.round(right * size[1]), jnp.round(down * size[0]))

    return _moved(matrices, 2, share, probability, fill)


def _moved(
    matrices: Callable[..., jax.Array],
    draws: int,
    most: Amount,
    probability: float,
    fill: Fill,
) -> Augmentation:
    """Moves images by matrices of their size and of `draws` draws from -most to most."""
    check_range("[0, 1]", 0.5, probability=probability)
    check_fill(fill)

    def apply(rows: Rows, images: jax.Array) -> jax.Array:
        uniform = _uniform(rows, draws + 1)
        drawn = jnp.where(uniform[:, :1] < probability, 2 * uniform[:, 1:] - 1, 0.0)
        moves = matrices(images.shape[1:3], *(drawn * at(most, rows.share)).T)
        return geometry.affine(images, moves, fill_color(fill, images.shape[-1]))

    return apply


def _with_probability(name: str, amount: float, probability: float) -> Augmentation:
    check_range("[0, 1]", 0.5, probability=probability)

    def apply(rows: Rows, images: jax.Array) -> jax.Array:
        chosen = _uniform(rows, 1)[:, 0] < probability
        drawn = layer.Drawn(
            jnp.where(chosen, layer.NUMBERS[name], layer.NUMBERS["identity"]),
            jnp.full(chosen.shape, amount, jnp.float32),
            jnp.zeros((len(chosen), 2)),
        )
        return layer.apply(images, drawn, (name,), fill=jnp.zeros((images.shape[-1],)))

    return apply


def _uniform(rows: Rows, count: int) -> jax.Array:
    """Draws [B, count] from 0..1, by each row's key."""
    return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(rows.key)
