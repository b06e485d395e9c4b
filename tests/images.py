"""Images as files, and how far two are from each other: for tests."""

import io

import numpy as np
from PIL import Image

NOISE = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)


def encode(pixels, form, mode=None, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, form, **options)
    return file.getvalue()


def pillow(data, mode="RGB"):
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


def far(a, b):
    """The largest difference of two images in grey levels."""
    assert a.shape == b.shape
    return np.abs(a.astype(int) - b.astype(int)).max()
