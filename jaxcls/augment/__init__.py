"""On-device augmentation, mixing and normalisation: pure JAX, inside the step."""

from collections.abc import Callable

from jaxcls.augment import crops, policies, single
from jaxcls.augment.mixing import MIXES, Mix
from jaxcls.augment.normalizing import NORMALIZATIONS, Normalization
from jaxcls.augment.rows import Augmentation, Rows, chain, on_each_device, row_keys

AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {
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

__all__ = [
    "AUGMENTATIONS",
    "MIXES",
    "NORMALIZATIONS",
    "Augmentation",
    "Mix",
    "Normalization",
    "Rows",
    "chain",
    "on_each_device",
    "row_keys",
]
