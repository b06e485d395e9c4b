"""One drawn operation a row: the layer of RandAugment and similar policies.

Every row goes through all operations on single pixels, which cost little, and keeps the
result of its own. The costly ones, of neighbours, histograms and geometry, run on the rows
that drew them: a vmapped `switch` would compute every operation for every row.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcls.augment import colors, geometry, levels

# The amount of "cutout" is half the side of the square in pixels, that of "color" and
# "sharpness" a factor, and that of "rotate" degrees counterclockwise.
OPERATIONS: tuple[str, ...] = ("identity", "cutout", "color", "sharpness", "rotate")
OPERATIONS += ("equalize", *levels.POINTWISE, *geometry.SLIDES[1], *geometry.SLIDES[2])
# The most rows of a turn of a costly operation: a program lists them.
_MOST = 32
NUMBERS = {name: number for number, name in enumerate(OPERATIONS)}

# Of each way to read between pixels: the maps of rotations, and of moves of whole lines.
INTERPOLATIONS: dict[str, tuple[Callable[..., jax.Array], Callable[..., jax.Array]]] = {
    "nearest": (geometry.affine, geometry.slide),
    "bicubic": (geometry.affine_bicubic, geometry.slide_bicubic),
}


class Drawn(NamedTuple):
    """The drawn operation of each row in one layer.

    operation [B] int32: a number of `NUMBERS`. amount [B] float32: see `OPERATIONS`.
    place [B, 2] float32: (y, x) of a cutout's centre, as shares of height and width.
    """

    operation: jax.Array
    amount: jax.Array
    place: jax.Array


# (images, what their rows drew) -> images.
Costly = Callable[[jax.Array, Drawn], jax.Array]


def apply(
    images: jax.Array,
    drawn: Drawn,
    among: Sequence[str],
    *,
    fill: jax.Array,
    legacy_contrast: bool = False,
    legacy_solarize: bool = False,
    interpolation: str = "nearest",
) -> jax.Array:
    """Applies to each row of images, uint8 [B, H, W, C], its drawn operation.

    among: the names of all operations that may be drawn; steps that none of them needs are
    left out. fill: uint8 [C], the colour of geometry and cutout. legacy_contrast,
    legacy_solarize: see `levels`. interpolation: a name of `INTERPOLATIONS`, for geometry.
    """
    turn, shift = INTERPOLATIONS[interpolation]
    by_pixel: dict[str, Callable[..., jax.Array]] = {
        **levels.POINTWISE,
        "contrast": functools.partial(levels.contrast, legacy=legacy_contrast),
        "solarize": functools.partial(levels.solarize, legacy=legacy_solarize),
        "color": colors.saturation,
    }
    # A row has one operation, so that any order is correct, and each reads the same images.
    found = images
    for name in (name for name in by_pixel if name in among):
        chosen = colors.each(drawn.operation == NUMBERS[name])
        found = jnp.where(chosen, by_pixel[name](images, drawn.amount), found)
    costly: dict[tuple[str, ...], Costly] = {
        ("sharpness",): lambda some, of: colors.sharpness(some, of.amount),
        ("equalize",): lambda some, of: levels.equalize(some),
        ("rotate",): functools.partial(_rotated, turn=turn, fill=fill),
    }
    for axis, moves in geometry.SLIDES.items():
        costly[tuple(moves)] = functools.partial(_slid, shift=shift, axis=axis, fill=fill)
    for names, function in costly.items():
        found = _on_rows(function, found, drawn, [n for n in names if n in among], among)
    return _cutout(found, drawn, fill) if "cutout" in among else found


def _rotated(
    images: jax.Array, drawn: Drawn, turn: Callable[..., jax.Array], fill: jax.Array
) -> jax.Array:
    _, height, width, _ = images.shape
    moves = geometry.rotate(drawn.amount, (height, width))
    return turn(images, moves, fill)


def _slid(
    images: jax.Array,
    drawn: Drawn,
    shift: Callable[..., jax.Array],
    axis: int,
    fill: jax.Array,
) -> jax.Array:
    """Moves lines along an axis by the distances of each row's operation."""
    of_axis = geometry.SLIDES[axis].items()
    moves = jnp.select(
        [(drawn.operation == NUMBERS[name])[:, None, None] for name, _ in of_axis],
        [matrices(drawn.amount) for _, matrices in of_axis],
    )
    return shift(images, moves, axis, fill)


def _on_rows(
    function: Costly,
    images: jax.Array,
    drawn: Drawn,
    names: Sequence[str],
    among: Sequence[str],
) -> jax.Array:
    """Replaces the images whose operation is one of `names`, some rows at a time.

    The operations of `among` are about as likely as each other: the rows of a batch mostly
    fit into one or two turns.
    """
    if not names:
        return images
    rows = len(images)
    # One rotation a turn: of several, TPUs copy all indices and pixels to wide layouts.
    most = 1 if "rotate" in names else _MOST
    size = min(rows, most, math.ceil(1.25 * rows * len(names) / len(among)))
    chosen = jnp.isin(drawn.operation, jnp.array([NUMBERS[name] for name in names]))
    order = jnp.pad(jnp.argsort(~chosen, stable=True), (0, -rows % size))
    count = chosen.sum()

    def turn(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        start, found = state
        at = jax.lax.dynamic_slice_in_dim(order, start, size)
        # A turn that has fewer rows does the first again.
        at = jnp.where(start + jnp.arange(size) < count, at, order[0])
        # Row by row: TPUs gather and scatter whole images at ten times the traffic.
        some = jnp.stack([_row(images, at[i]) for i in range(size)])
        for i, image in enumerate(function(some, jax.tree.map(lambda x: x[at], drawn))):
            found = jax.lax.dynamic_update_index_in_dim(found, image, at[i], 0)
        return start + size, found

    state = (jnp.int32(0), images)
    return jax.lax.while_loop(lambda state: state[0] < count, turn, state)[1]


def _row(array: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(array, i, 0, keepdims=False)


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
