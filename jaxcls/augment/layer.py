"""One drawn operation a row: the layer of RandAugment and similar policies.

Every row goes through the same steps: a sharpness blend, a colour blend, a table of
levels, an affine gather and a cutout. A step that is not the row's operation gets
parameters that change nothing. Only tables of 256 entries are computed for all
operations; a vmapped `switch` would compute every operation for every row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcls.augment import colors, geometry, levels

# The meaning of each operation's amount; "" if it has no amount.
OPERATIONS = {
    "identity": "",
    "shear_x": "tangent",
    "shear_y": "tangent",
    "translate_x": "pixels to the right",
    "translate_y": "pixels down",
    "rotate": "degrees counterclockwise",
    "cutout": "half the side of the square, pixels",
    "brightness": "factor",
    "contrast": "factor",
    "posterize": "bits that stay",
    "solarize": "first level to be inverted",
    "solarize_add": "levels added to those below 128",
    "autocontrast": "",
    "equalize": "",
    "invert": "",
    "color": "factor",
    "sharpness": "factor",
}
NUMBERS = {name: number for number, name in enumerate(OPERATIONS)}
_MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_LEVELS = (
    *("brightness", "contrast", "posterize", "solarize", "solarize_add"),
    *("autocontrast", "equalize", "invert"),
)


class Drawn(NamedTuple):
    """The drawn operation of each row in one layer.

    operation [B] int32: a number of `NUMBERS`. amount [B] float32: see `OPERATIONS`.
    place [B, 2] float32: (y, x) of a cutout's centre, as shares of height and width.
    """

    operation: jax.Array
    amount: jax.Array
    place: jax.Array


def apply(
    images: jax.Array,
    drawn: Drawn,
    among: Sequence[str],
    *,
    fill: jax.Array,
    legacy_contrast: bool = False,
) -> jax.Array:
    """Applies to each row of images, uint8 [B, H, W, C], its drawn operation.

    among: the names of all operations that may be drawn; steps that none of them needs are
    left out. fill: uint8 [C], the colour of geometry and cutout. legacy_contrast: see
    `levels.contrast`.
    """
    # A row has one operation, so any order is correct. With the statistics for the tables
    # first and the gather last, nothing is computed twice.
    tables = _tables(images, drawn, among, legacy_contrast)
    if "sharpness" in among:
        images = colors.sharpness(images, _factor(drawn, "sharpness"))
    if "color" in among:
        images = colors.saturation(images, _factor(drawn, "color"))
    if tables is not None:
        images = levels.look_up(images, tables)
    if any(name in among for name in _MOVES):
        size = (images.shape[1], images.shape[2])
        images = geometry.affine(images, _matrices(drawn, among, size), fill)
    return _cutout(images, drawn, fill) if "cutout" in among else images


def apply_each(
    images: jax.Array,
    layers: Sequence[Drawn],
    among: Sequence[str],
    *,
    fill: jax.Array,
    legacy_contrast: bool = False,
) -> jax.Array:
    """Applies the layers in order, as a scan of `apply`.

    The scan compiles `apply` once for all layers. It also keeps each layer's images in
    memory; otherwise the sums over pixels in the next layer would recompute them.
    """

    def step(images: jax.Array, drawn: Drawn) -> tuple[jax.Array, None]:
        done = apply(images, drawn, among, fill=fill, legacy_contrast=legacy_contrast)
        return done, None

    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *layers)
    return jax.lax.scan(step, images, stacked)[0]


def _factor(drawn: Drawn, name: str) -> jax.Array:
    """Returns the amounts, [B], of rows with this operation, and 1 for the others."""
    return jnp.where(drawn.operation == NUMBERS[name], drawn.amount, 1.0)


def _matrices(drawn: Drawn, among: Sequence[str], size: tuple[int, int]) -> jax.Array:
    amount, nothing = drawn.amount, jnp.zeros_like(drawn.amount)
    made = {
        "shear_x": lambda: geometry.shear(amount, nothing),
        "shear_y": lambda: geometry.shear(nothing, amount),
        "translate_x": lambda: geometry.translate(amount, nothing),
        "translate_y": lambda: geometry.translate(nothing, amount),
        "rotate": lambda: geometry.rotate(amount, size),
    }
    matrices = geometry.identity(len(amount))
    for name in (name for name in _MOVES if name in among):
        own = (drawn.operation == NUMBERS[name])[:, None, None]
        matrices = jnp.where(own, made[name](), matrices)
    return matrices


def _tables(
    images: jax.Array, drawn: Drawn, among: Sequence[str], legacy_contrast: bool
) -> jax.Array | None:
    """Returns the rows' tables [B, C, 256], or None if no operation of `among` has one."""
    if not any(name in among for name in _LEVELS):
        return None
    rows, _, _, channels = images.shape
    amount = drawn.amount
    made = {
        "brightness": lambda: levels.brightness(amount),
        "contrast": lambda: levels.contrast(images, amount, legacy=legacy_contrast),
        "posterize": lambda: levels.posterize(amount),
        "solarize": lambda: levels.solarize(amount),
        "solarize_add": lambda: levels.solarize_add(amount),
        "autocontrast": lambda: levels.autocontrast(images),
        "equalize": lambda: levels.equalize(images),
        "invert": lambda: levels.invert(rows),
    }
    tables = jnp.broadcast_to(levels.identity(rows), (rows, channels, 256))
    for name in (name for name in _LEVELS if name in among):
        own = (drawn.operation == NUMBERS[name])[:, None, None]
        tables = jnp.where(own, made[name](), tables)
    return tables


def _cutout(images: jax.Array, drawn: Drawn, fill: jax.Array) -> jax.Array:
    """Fills the square about `place`, clipped at the border."""
    _, height, width, channels = images.shape
    half = jnp.where(drawn.operation == NUMBERS["cutout"], drawn.amount, 0.0)[:, None]
    middle = drawn.place * jnp.array([height, width], jnp.float32).reshape(1, 2)
    middle, half = jnp.floor(middle), jnp.floor(half)

    def within(axis: int, size: int) -> jax.Array:
        from_middle = jnp.arange(size).reshape(1, size) - middle[:, axis, None]
        return (from_middle >= -half) & (from_middle < half)

    cut = within(0, height)[:, :, None] & within(1, width)[:, None, :]
    return jnp.where(cut[..., None], fill.reshape(1, 1, 1, channels), images)
