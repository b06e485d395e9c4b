"""On-device augmentation, mixing and normalisation: pure JAX, inside the step."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from jaxcls.augment import crops, policies, single
from jaxcls.augment.mixing import MIXES, Mix
from jaxcls.augment.normalizing import NORMALIZATIONS, Normalization
from jaxcls.augment.rows import Augmentation, Rows, chain, on_each_device, row_keys
from jaxcls.config import calls

AUGMENTATIONS: Mapping[str, Callable[..., Augmentation]] = MappingProxyType(
    {
        "alternating_flip": crops.alternating_flip,
        "autoaugment": policies.autoaugment,
        "autocontrast": single.autocontrast,
        "blur": single.blur,
        "color_jitter": single.color_jitter,
        "cutout": crops.cutout,
        "equalize": single.equalize,
        "flip": crops.flip,
        "flip_vertical": crops.flip_vertical,
        "greyscale": single.greyscale,
        "invert": single.invert,
        "posterize": single.posterize,
        "randaugment": policies.randaugment,
        "random_crop": crops.random_crop,
        "random_erasing": crops.random_erasing,
        "rotate": single.rotate,
        "sharpness": single.sharpness,
        "shear": single.shear,
        "solarize": single.solarize,
        "three_augment": policies.three_augment,
        "translate": single.translate,
        "trivialaugment": policies.trivialaugment,
    }
)

__all__ = [
    "AUGMENTATIONS",
    "MIXES",
    "NORMALIZATIONS",
    "Augmentation",
    "Mix",
    "Normalization",
    "Rows",
    "apply",
    "chain",
    "on_each_device",
    "row_keys",
]


def apply(text: str, key: jax.Array, images: jax.Array) -> jax.Array:
    """Returns images with the augmentations of a text, uint8 [B, H, W, C]; a pure function.

    Each row has a key of its own, so it depends on no other row. In a run the keys are
    those of `seed` and the step, and `share` grows; here the run is at its start, and every
    row is in its first epoch.

    Args:
        text: As in the config key `augment`: "random_crop(4) | flip | randaugment(2, 10)".
        key: Of `jax.random.key`.
        images: uint8 [B, H, W, C].

    Raises `InputError` for an unknown name, or an option that it does not take.

    Examples:
        >>> images = jnp.arange(2 * 32 * 32 * 3, dtype=jnp.uint8).reshape(2, 32, 32, 3)
        >>> apply("flip | randaugment(2, 10)", jax.random.key(0), images).shape
        (2, 32, 32, 3)
    """
    number = jnp.arange(len(images), dtype=jnp.int32)
    start = jnp.float32(0.0)
    rows = Rows(row_keys(key, len(images)), key, number, jnp.zeros_like(number), start)
    return chain(calls.build(text, AUGMENTATIONS, "text"))(rows, images)
