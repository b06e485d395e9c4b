"""On-device augmentation, mixing and normalisation: pure JAX, inside the step."""

from collections.abc import Callable

from jaxcls.augment import policies, single
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
    "autoaugment": policies.autoaugment,
    "autocontrast": single.autocontrast,
    "blur": single.blur,
    "color_jitter": single.color_jitter,
    "cutout": cutout,
    "equalize": single.equalize,
    "flip": flip,
    "flip_vertical": flip_vertical,
    "greyscale": single.greyscale,
    "invert": single.invert,
    "posterize": single.posterize,
    "randaugment": policies.randaugment,
    "random_crop": random_crop,
    "random_erasing": random_erasing,
    "rotate": single.rotate,
    "sharpness": single.sharpness,
    "shear": single.shear,
    "solarize": single.solarize,
    "three_augment": policies.three_augment,
    "translate": single.translate,
    "trivialaugment": policies.trivialaugment,
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
