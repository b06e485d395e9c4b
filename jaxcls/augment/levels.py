"""Operations on grey levels: a table of 256 entries for each row and channel.

A table is int32 [B, C, 256], or [B, 1, 256] where channels share it; `look_up` applies
it. All arithmetic is in integers, so that no compiler's rounding changes a level.
"""

import jax
import jax.numpy as jnp

from jaxcls.augment.colors import blend, grey

# Pixels that are counted at a time: what is held of them is 16 times as much, twice.
_CHUNK = 4096


def look_up(images: jax.Array, tables: jax.Array) -> jax.Array:
    """uint8 [B, H, W, C] with each level replaced by its entry in [B, C or 1, 256]."""
    rows, height, width, channels = images.shape
    tables = jnp.broadcast_to(tables, (rows, channels, 256)).astype(jnp.uint8)
    first = 256 * jnp.arange(channels, dtype=jnp.int32).reshape(1, 1, 1, channels)
    where = (images.astype(jnp.int32) + first).reshape(rows, height * width * channels)
    # Behind a barrier, or XLA computes an entry anew for each pixel that looks it up.
    flat = jax.lax.optimization_barrier(tables.reshape(rows, channels * 256))
    found = jnp.take_along_axis(flat, where, axis=1, mode="promise_in_bounds")
    return found.reshape(images.shape)


def identity(rows: int) -> jax.Array:
    """Every level itself, [B, 1, 256]."""
    return jnp.broadcast_to(_levels(), (rows, 1, 256))


def brightness(factor: jax.Array) -> jax.Array:
    """Times `factor` [B]: 0 is black, 1 the image, as `ImageEnhance.Brightness`."""
    return blend(jnp.zeros_like(_levels()), _levels(), _each(factor))


def contrast(images: jax.Array, factor: jax.Array, *, legacy: bool = False) -> jax.Array:
    """Away from the mean grey by `factor` [B], as `ImageEnhance.Contrast`.

    legacy: from the number of pixels / 256 instead (196 for 224 x 224), at most 255: an
    error in the RandAugment of TensorFlow that many trainers in JAX share, and that
    their published numbers were made with.
    """
    pixels = images.shape[1] * images.shape[2]
    if legacy:
        mean = jnp.full(images.shape[:1], min(pixels // 256, 255), jnp.int32)
    else:
        # Rounded half up. 255 * 2 * pixels fits 32 bits up to 2900 x 2900 pixels.
        total = grey(images).astype(jnp.uint32).sum((1, 2))
        mean = ((2 * total + pixels) // (2 * pixels)).astype(jnp.int32)
    return blend(_each(mean), _levels(), _each(factor))


def posterize(bits: jax.Array) -> jax.Array:
    """The highest `bits` [B] of each level, 0 to 8, as `ImageOps.posterize`."""
    shift = 8 - jnp.clip(bits, 0, 8).astype(jnp.int32)
    return _levels() & _each((255 << shift) & 255)


def solarize(threshold: jax.Array) -> jax.Array:
    """Levels from `threshold` [B] on inverted, as `ImageOps.solarize`."""
    return jnp.where(_levels() < _each(threshold), _levels(), 255 - _levels())


def solarize_add(added: jax.Array) -> jax.Array:
    """`added` [B], whole levels, to those below 128, at most 255."""
    more = jnp.minimum(_levels() + _each(added.astype(jnp.int32)), 255)
    return jnp.where(_levels() < 128, more, _levels())


def invert(rows: int) -> jax.Array:
    """Black to white, [B, 1, 256]."""
    return 255 - identity(rows)


def autocontrast(images: jax.Array) -> jax.Array:
    """Each channel's darkest level to 0 and its lightest to 255.

    As `ImageOps.autocontrast`, whose rounding can be one level off. A channel of one
    level stays.
    """
    low = images.min((1, 2)).astype(jnp.int32)[:, :, None]
    high = images.max((1, 2)).astype(jnp.int32)[:, :, None]
    stretched = (_levels() - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip(stretched, 0, 255), _levels())


def equalize(images: jax.Array) -> jax.Array:
    """Each channel's levels to equal frequency, as `ImageOps.equalize`.

    The same integers as Pillow's: a channel whose pixels, less those of its highest
    level, are fewer than 255 stays.
    """
    counts = histogram(images)
    below = jnp.cumsum(counts, axis=-1) - counts
    highest = images.max((1, 2)).astype(jnp.int32)[:, :, None]
    # Pixels below the highest level there is: what is below it in the sums.
    step = jnp.take_along_axis(below, highest, axis=-1) // 255
    level = (below + step // 2) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.clip(level, 0, 255), _levels())


def histogram(images: jax.Array) -> jax.Array:
    """How many pixels have each level, int32 [B, C, 256].

    A product of two one-hot matrices, of the high and the low four bits: 256 multiply-
    adds a pixel on matrix units, where a scatter would wait for its own writes and 256
    comparisons a pixel are as many on slower units. Chunks keep the one-hots small.
    """
    rows, height, width, channels = images.shape
    chunks = -(-height * width // _CHUNK)
    size = min(_CHUNK, height * width)
    pixels = images.reshape(rows, height * width, channels).transpose(0, 2, 1)
    # 256 has no high four bits among 0..15: padding is counted nowhere.
    padding = ((0, 0), (0, 0), (0, chunks * size - height * width))
    pixels = jnp.pad(pixels.astype(jnp.int16), padding, constant_values=256)
    nibble = jnp.arange(16, dtype=jnp.int16).reshape(1, 1, 16, 1)

    def count(total: jax.Array, chunk: jax.Array) -> tuple[jax.Array, None]:
        some = jax.lax.dynamic_slice_in_dim(pixels, chunk * size, size, 2)[:, :, None]
        high = (some >> 4 == nibble).astype(jnp.bfloat16)
        low = (some & 15 == nibble).astype(jnp.bfloat16)
        # Sums of at most 4096 ones: exact in float32.
        sums = jnp.einsum("bcik,bcjk->bcij", high, low, preferred_element_type=jnp.float32)
        return total + sums.astype(jnp.int32), None

    none = jnp.zeros((rows, channels, 16, 16), jnp.int32)
    total, _ = jax.lax.scan(count, none, jnp.arange(chunks))
    return total.reshape(rows, channels, 256)


def _levels() -> jax.Array:
    return jnp.arange(256, dtype=jnp.int32).reshape(1, 1, 256)


def _each(value: jax.Array) -> jax.Array:
    """[B] -> [B, 1, 1]."""
    return value[:, None, None]
