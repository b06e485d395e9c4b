"""On-device augmentation, normalisation and mixing: pure JAX, inside the step."""

from collections.abc import Callable

from jaxcls.augment.crops import (
    alternating_flip,
    cutout,
    flip,
    flip_vertical,
    random_crop,
    random_erasing,
)
from jaxcls.augment.mixing import MIXES, Mix
from jaxcls.augment.normalizing import NORMALIZATIONS, Normalization
from jaxcls.augment.rows import Amount, Augmentation, Rows, at, chain, fold, row_keys

AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {
    "alternating_flip": alternating_flip,
    "cutout": cutout,
    "flip": flip,
    "flip_vertical": flip_vertical,
    "random_crop": random_crop,
    "random_erasing": random_erasing,
}

__all__ = [
    "AUGMENTATIONS",
    "MIXES",
    "NORMALIZATIONS",
    "Amount",
    "Augmentation",
    "Mix",
    "Normalization",
    "Rows",
    "at",
    "chain",
    "fold",
    "row_keys",
]
