"""One drawn operation a row: the layer of RandAugment and similar policies.

Every row goes through the same steps: a sharpness blend, a colour blend, a table of
levels, an affine gather and a cutout. A step that is not the row's operation gets
parameters that change nothing. Only tables of 256 entries are computed for all
operations; a vmapped `switch` would compute every operation for every row.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcls.augment import colors, geometry, levels

# The amount of "cutout" is half the side of the square in pixels, that of "color" and
# "sharpness" a factor.
OPERATIONS = ("identity", "cutout", "color", "sharpness", *geometry.MOVES, *levels.TABLES)
NUMBERS = {name: number for number, name in enumerate(OPERATIONS)}


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
    rows, height, width, channels = images.shape
    makes: dict[str, Callable[..., jax.Array]] = dict(levels.TABLES)
    makes["contrast"] = functools.partial(levels.contrast, legacy=legacy_contrast)
    tables = jnp.broadcast_to(levels.identity(rows), (rows, channels, 256))
    # A row has one operation, so any order is correct. With the statistics for the tables
    # first and the gather last, nothing is computed twice.
    tables = _of_operation(tables, makes, drawn, among, images, drawn.amount)
    if "sharpness" in among:
        images = colors.sharpness(images, _factor(drawn, "sharpness"))
    if "color" in among:
        images = colors.saturation(images, _factor(drawn, "color"))
    if makes.keys() & set(among):
        images = levels.look_up(images, tables)
    if geometry.MOVES.keys() & set(among):
        same, size = geometry.identity(rows), (height, width)
        moves = _of_operation(same, geometry.MOVES, drawn, among, drawn.amount, size)
        images = geometry.affine(images, moves, fill)
    return _cutout(images, drawn, fill) if "cutout" in among else images


def apply_each(
    images: jax.Array, layers: Sequence[Drawn], among: Sequence[str], **options: Any
) -> jax.Array:
    """Applies the layers in order, as a scan of `apply`.

    The scan compiles `apply` once for all layers. It also keeps each layer's images in
    memory; otherwise the sums over pixels in the next layer would recompute them.
    """

    def step(images: jax.Array, drawn: Drawn) -> tuple[jax.Array, None]:
        return apply(images, drawn, among, **options), None

    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *layers)
    return jax.lax.scan(step, images, stacked)[0]


def _factor(drawn: Drawn, name: str) -> jax.Array:
    """Returns the amounts, [B], of rows with this operation, and 1 for the others."""
    return jnp.where(drawn.operation == NUMBERS[name], drawn.amount, 1.0)


def _of_operation(
    unchanged: jax.Array,
    makes: Mapping[str, Callable[..., jax.Array]],
    drawn: Drawn,
    among: Sequence[str],
    *given: Any,
) -> jax.Array:
    """Returns `unchanged`, [B, ...], with what `makes` gives for a row's operation."""
    found = unchanged
    for name in (name for name in makes if name in among):
        chosen = (drawn.operation == NUMBERS[name])[:, None, None]
        found = jnp.where(chosen, makes[name](*given), found)
    return found


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
