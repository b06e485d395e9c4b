"""Encoded pictures for tests, cut from scikit-learn's two photographs."""

import functools
import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

NOISE = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)


def encode(pixels, form="PNG", mode=None, **options):
    """The file of an array or an image."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, form, **options)
    return file.getvalue()


def pillow(data, mode="RGB"):
    """The pixels of a file, by Pillow."""
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


def far(a, b):
    """The largest difference of two images in grey levels."""
    assert a.shape == b.shape
    return np.abs(a.astype(int) - b.astype(int)).max()


@functools.cache
def photographs():
    return load_sample_images().images


def pixels(number, height=20, width=24):
    """A part of a photograph, another one for each number."""
    image = photographs()[number % 2]
    top, left = 7 * number % 400, 13 * number % 600
    return image[top : top + height, left : left + width]


def picture(number, form="JPEG", **size):
    """`pixels` as a file."""
    return encode(np.ascontiguousarray(pixels(number, **size)), form)


def write(root, files):
    """Write {path: bytes} below a folder; a path may be bytes."""
    for name, data in files.items():
        path = root / (
            name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root
