"""Operations on levels: each level of an image becomes another, for some by statistics.

Images are uint8 [B, H, W, C]; an amount is [B]. The arithmetic gives whole levels on any
machine: it uses integers, or quotients that are far enough from the next integer. An
operation is arithmetic on every pixel, not a table of 256 entries: TPUs gather slowly.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcls.augment.colors import blend, each, grey

# Pixels in a chunk of a histogram or a table's look-up. A chunk needs one-hots of 16 or 32
# times its size.
_CHUNK = 4096


def brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies levels by `factor`, as `ImageEnhance.Brightness`; 0 gives black."""
    levels = images.astype(jnp.int32)
    return blend(jnp.zeros_like(levels), levels, each(factor)).astype(jnp.uint8)


def contrast(images: jax.Array, factor: jax.Array, *, legacy: bool = False) -> jax.Array:
    """Moves levels away from the mean grey by `factor`, as `ImageEnhance.Contrast`.

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
    return blend(each(mean), images.astype(jnp.int32), each(factor)).astype(jnp.uint8)


def posterize(images: jax.Array, bits: jax.Array) -> jax.Array:
    """Keeps the highest `bits` of each level, 0 to 8, as `ImageOps.posterize`."""
    shift = 8 - jnp.clip(bits, 0, 8).astype(jnp.int32)
    return images & each((255 << shift) & 255).astype(jnp.uint8)


def solarize(images: jax.Array, threshold: jax.Array, *, legacy: bool = False) -> jax.Array:
    """Inverts levels from `threshold` on, as `ImageOps.solarize`.

    legacy: use the threshold modulo 256, as TensorFlow's RandAugment with its uint8: 256
    inverts every level.
    """
    threshold = threshold % 256 if legacy else threshold
    return jnp.where(images < each(threshold), images, 255 - images)


def solarize_add(images: jax.Array, added: jax.Array) -> jax.Array:
    """Adds `added`, as integers, to levels below 128; the sum is at most 255."""
    more = jnp.minimum(images.astype(jnp.int32) + each(added.astype(jnp.int32)), 255)
    return jnp.where(images < 128, more.astype(jnp.uint8), images)


def autocontrast(images: jax.Array) -> jax.Array:
    """Stretches each channel's levels to 0..255, as `ImageOps.autocontrast`.

    Pillow's rounding can differ by one level. A channel with a single level stays.
    """
    levels = images.astype(jnp.float32)
    low, high = (f(levels, (1, 2), keepdims=True) for f in (jnp.min, jnp.max))
    # A half, so that an exact quotient is as far from the next integer as any other.
    stretched = jnp.floor(((levels - low) * 255 + 0.5) / jnp.maximum(high - low, 1))
    return jnp.where(high > low, stretched.astype(jnp.uint8), images)


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
    same = jnp.arange(256, dtype=jnp.int32)
    return look_up(images, jnp.where(step > 0, jnp.clip(level, 0, 255), same))


def histogram(images: jax.Array) -> jax.Array:
    """Counts the pixels of each level, int32 [B, C, 256].

    The counts are a product of two one-hot matrices, for the high and the low four bits:
    256 multiply-adds a pixel on matrix units. A scatter would wait for its writes, and 256
    comparisons a pixel would run on slower units.
    """

    def count(total: jax.Array, chunk: jax.Array) -> tuple[jax.Array, None]:
        high, low = _nibbles(chunk)
        # A sum of at most 4096 ones is exact in float32.
        sums = jnp.einsum("bcki,bckj->bcij", high, low, preferred_element_type=jnp.float32)
        return total + sums.astype(jnp.int32), None

    rows, _, _, channels = images.shape
    none = jnp.zeros((rows, channels, 16, 16), jnp.int32)
    total, _ = jax.lax.scan(count, none, _chunks(images))
    return total.reshape(rows, channels, 256)


def look_up(images: jax.Array, tables: jax.Array) -> jax.Array:
    """Replaces each level by its entry, 0 to 255, in `tables`, int32 [B, C, 256].

    It is a product with a one-hot matrix of the low four bits, and a choice by the high.
    """
    rows, height, width, channels = images.shape
    # bfloat16 holds the integers up to 256.
    entries = tables.reshape(rows, channels, 16, 16).astype(jnp.bfloat16)

    def found(_: None, chunk: jax.Array) -> tuple[None, jax.Array]:
        high, low = _nibbles(chunk)
        product = jnp.einsum(
            "bckj,bcij->bcki", low, entries, preferred_element_type=jnp.float32
        )
        return None, (high * product).sum(-1).astype(jnp.uint8)

    _, chunks = jax.lax.scan(found, None, _chunks(images))
    flat = chunks.transpose(1, 0, 3, 2).reshape(rows, -1, channels)
    return flat[:, : height * width].reshape(images.shape)


def _nibbles(levels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns one-hots of the high and of the low four bits, each bfloat16 [..., 16]."""
    high, low = (
        jax.nn.one_hot(n, 16, dtype=jnp.bfloat16) for n in (levels >> 4, levels & 15)
    )
    return high, low


def _chunks(images: jax.Array) -> jax.Array:
    """Returns the levels as int16 [chunks, B, C, pixels of a chunk], padded with 256.

    The high bits of 256 are 16, which is no nibble, so padding is never counted.
    """
    rows, height, width, channels = images.shape
    size = min(_CHUNK, height * width)
    levels = images.astype(jnp.int16).reshape(rows, height * width, channels)
    padding = ((0, 0), (0, -height * width % size), (0, 0))
    levels = jnp.pad(levels, padding, constant_values=256)
    return levels.reshape(rows, -1, size, channels).transpose(1, 0, 3, 2)


# (images, amount) -> images, for operations on each pixel; one without an amount ignores
# it. "equalize" is not here: it costs as much as all of them.
POINTWISE: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "brightness": brightness,
    "contrast": contrast,
    "posterize": posterize,
    "solarize": solarize,
    "solarize_add": solarize_add,
    "autocontrast": lambda images, amount: autocontrast(images),
    "invert": lambda images, amount: 255 - images,
}
