"""What Pillow makes of one image, for each operation of `jaxcls.augment.layer`."""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

ENHANCE = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "color": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}


def photographs(height, width, count=2, channels=3):
    """uint8 [count, height, width, channels], cut from two photographs."""
    both = load_sample_images().images
    cuts = []
    for i in range(count):
        top, left = 23 * i % (427 - height), 61 * i % (640 - width)
        cuts.append(both[i % 2][top : top + height, left : left + width])
    images = np.stack(cuts)
    if channels == 3:
        return images
    return np.stack([np.asarray(Image.fromarray(i).convert("L")) for i in images])[
        ..., None
    ]


def pillow(name, image, amount, fill=0, resample=Image.Resampling.NEAREST):
    """One image uint8 [H, W, C] after an operation, by Pillow."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    done = np.asarray(_picture(name, picture, float(amount), fill, resample))
    return done.reshape(image.shape)


def _picture(name, picture, amount, fill, resample):
    matrices = {
        "shear_x": (1, amount, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, amount, 1, 0),
        "translate_x": (1, 0, -amount, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, -amount),
    }
    color = fill if picture.mode == "L" else (fill,) * 3
    if name in matrices:
        return picture.transform(
            picture.size,
            Image.Transform.AFFINE,
            matrices[name],
            resample,
            fillcolor=color,
        )
    if name in ENHANCE:
        return ENHANCE[name](picture).enhance(amount)
    bands = len(picture.getbands())
    return {
        "identity": lambda: picture,
        "rotate": lambda: picture.rotate(amount, resample, fillcolor=color),
        # Pillow refuses 0 bits.
        "posterize": lambda: ImageOps.posterize(picture, max(int(amount), 1)).point(
            lambda level: level if amount >= 1 else 0
        ),
        "solarize": lambda: ImageOps.solarize(picture, amount),
        "solarize_add": lambda: picture.point(
            [min(255, i + int(amount)) if i < 128 else i for i in range(256)] * bands
        ),
        "autocontrast": lambda: ImageOps.autocontrast(picture),
        "equalize": lambda: ImageOps.equalize(picture),
        "invert": lambda: ImageOps.invert(picture),
    }[name]()
