"""Operations on levels: a table of 256 entries for each row and channel.

A table is int32 [B, C, 256], or [B, 1, 256] if the channels share it. `look_up` applies
it. The arithmetic uses integers, so no compiler's rounding changes a level.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcls.augment.colors import blend, grey

# Pixels in a chunk of a histogram. A chunk needs two one-hots of 16 times its size.
_CHUNK = 4096


def look_up(images: jax.Array, tables: jax.Array) -> jax.Array:
    """Replaces each level of images, uint8 [B, H, W, C], by its table entry.

    tables: [B, C, 256] or [B, 1, 256].
    """
    rows, height, width, channels = images.shape
    tables = jnp.broadcast_to(tables, (rows, channels, 256)).astype(jnp.uint8)
    first = 256 * jnp.arange(channels, dtype=jnp.int32).reshape(1, 1, 1, channels)
    where = (images.astype(jnp.int32) + first).reshape(rows, height * width * channels)
    # Without the barrier XLA recomputes an entry for each pixel that looks it up.
    flat = jax.lax.optimization_barrier(tables.reshape(rows, channels * 256))
    found = jnp.take_along_axis(flat, where, axis=1, mode="promise_in_bounds")
    return found.reshape(images.shape)


def identity(rows: int) -> jax.Array:
    """Returns identity tables [B, 1, 256]."""
    return jnp.broadcast_to(_levels(), (rows, 1, 256))


def brightness(factor: jax.Array) -> jax.Array:
    """Multiplies levels by `factor` [B], as `ImageEnhance.Brightness`; 0 gives black."""
    return blend(jnp.zeros_like(_levels()), _levels(), _each(factor))


def contrast(images: jax.Array, factor: jax.Array, *, legacy: bool = False) -> jax.Array:
    """Moves levels away from the mean grey by `factor` [B], as `ImageEnhance.Contrast`.

    legacy: use the number of pixels // 256 (196 for 224 x 224), at most 255, in place of
    the mean grey. This is an error in TensorFlow's RandAugment. Many trainers in JAX share
    it, and their published numbers depend on it.
    """
    pixels = images.shape[1] * images.shape[2]
    if legacy:
        mean = jnp.full(images.shape[:1], min(pixels // 256, 255), jnp.int32)
    else:
        # Rounds half up. 255 * 2 * pixels fits 32 bits up to 2900 x 2900 pixels.
        total = grey(images).astype(jnp.uint32).sum((1, 2))
        mean = ((2 * total + pixels) // (2 * pixels)).astype(jnp.int32)
    return blend(_each(mean), _levels(), _each(factor))


def posterize(bits: jax.Array) -> jax.Array:
    """Keeps the highest `bits` [B] of each level, 0 to 8, as `ImageOps.posterize`."""
    shift = 8 - jnp.clip(bits, 0, 8).astype(jnp.int32)
    return _levels() & _each((255 << shift) & 255)


def solarize(threshold: jax.Array) -> jax.Array:
    """Inverts levels from `threshold` [B] on, as `ImageOps.solarize`."""
    return jnp.where(_levels() < _each(threshold), _levels(), 255 - _levels())


def solarize_add(added: jax.Array) -> jax.Array:
    """Adds `added` [B], as integers, to levels below 128; the sum is at most 255."""
    more = jnp.minimum(_levels() + _each(added.astype(jnp.int32)), 255)
    return jnp.where(_levels() < 128, more, _levels())


def autocontrast(images: jax.Array) -> jax.Array:
    """Stretches each channel's levels to 0..255, as `ImageOps.autocontrast`.

    Pillow's rounding can differ by one level. A channel with a single level stays.
    """
    low = images.min((1, 2)).astype(jnp.int32)[:, :, None]
    high = images.max((1, 2)).astype(jnp.int32)[:, :, None]
    stretched = (_levels() - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip(stretched, 0, 255), _levels())


def equalize(images: jax.Array) -> jax.Array:
    """Equalises the histogram of each channel, as `ImageOps.equalize`.

    The integers are Pillow's. A channel stays if fewer than 255 of its pixels are below its
    highest level.
    """
    counts = histogram(images)
    below = jnp.cumsum(counts, axis=-1) - counts
    highest = images.max((1, 2)).astype(jnp.int32)[:, :, None]
    # Pillow's step counts the pixels below the channel's highest level.
    step = jnp.take_along_axis(below, highest, axis=-1) // 255
    level = (below + step // 2) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.clip(level, 0, 255), _levels())


def histogram(images: jax.Array) -> jax.Array:
    """Counts the pixels of each level, int32 [B, C, 256].

    The counts are a product of two one-hot matrices, for the high and the low four bits:
    256 multiply-adds a pixel on matrix units. A scatter would wait for its writes, and 256
    comparisons a pixel would run on slower units. Chunks keep the one-hot matrices small.
    """
    rows, height, width, channels = images.shape
    chunks = -(-height * width // _CHUNK)
    size = min(_CHUNK, height * width)
    pixels = images.reshape(rows, height * width, channels).transpose(0, 2, 1)
    # The high bits of 256 are 16, which is no nibble, so padding is never counted.
    padding = ((0, 0), (0, 0), (0, chunks * size - height * width))
    pixels = jnp.pad(pixels.astype(jnp.int16), padding, constant_values=256)
    nibble = jnp.arange(16, dtype=jnp.int16).reshape(1, 1, 16, 1)

    def count(total: jax.Array, chunk: jax.Array) -> tuple[jax.Array, None]:
        some = jax.lax.dynamic_slice_in_dim(pixels, chunk * size, size, 2)[:, :, None]
        high = (some >> 4 == nibble).astype(jnp.bfloat16)
        low = (some & 15 == nibble).astype(jnp.bfloat16)
        # A sum of at most 4096 ones is exact in float32.
        sums = jnp.einsum("bcik,bcjk->bcij", high, low, preferred_element_type=jnp.float32)
        return total + sums.astype(jnp.int32), None

    none = jnp.zeros((rows, channels, 16, 16), jnp.int32)
    total, _ = jax.lax.scan(count, none, jnp.arange(chunks))
    return total.reshape(rows, channels, 256)


# (images, amount [B]) -> tables; an operation without an amount ignores it.
TABLES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "brightness": lambda images, factor: brightness(factor),
    "contrast": contrast,
    "posterize": lambda images, bits: posterize(bits),
    "solarize": lambda images, threshold: solarize(threshold),
    "solarize_add": lambda images, added: solarize_add(added),
    "autocontrast": lambda images, amount: autocontrast(images),
    "equalize": lambda images, amount: equalize(images),
    "invert": lambda images, amount: 255 - identity(len(images)),
}


def _levels() -> jax.Array:
    return jnp.arange(256, dtype=jnp.int32).reshape(1, 1, 256)


def _each(value: jax.Array) -> jax.Array:
    """Reshapes [B] to [B, 1, 1]."""
    return value[:, None, None]
