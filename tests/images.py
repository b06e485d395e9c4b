"""Encoded pictures for tests, cut from scikit-learn's two photographs."""

import functools
import io
import zlib

import numpy as np
from PIL import Image, ImageOps
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


def upright(data):
    """The pixels of a file by Pillow: turned by its EXIF, and alpha on white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


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


def segment(data, marker, content):
    """A JPEG with a segment before its others."""
    head = bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2)
    return data[:2] + head + content + data[2:]


def chunk(kind, content):
    """A chunk of a PNG."""
    body = kind + content
    return len(content).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)


def before_pixels(data, *chunks):
    """A PNG with chunks before its pixels."""
    at = data.index(b"IDAT") - 4
    return data[:at] + b"".join(chunks) + data[at:]


def sampled(factors, height=48, width=80):
    """A JPEG of flat blocks, of any sampling factors [(horizontal, vertical)] * 3."""
    random = np.random.default_rng(0)
    across, down = (8 * max(each) for each in zip(*factors, strict=True))
    blocks = -(-height // down) * -(-width // across)
    bits, last = [], [0, 0, 0]
    for _ in range(blocks):
        for component, (h, v) in enumerate(factors):
            for level in random.integers(-60, 60, h * v).tolist():
                difference, last[component] = level - last[component], level
                size = abs(difference).bit_length()
                value = difference if difference > 0 else difference + (1 << size) - 1
                bits.append(f"{size:04b}" + (f"{value:0{size}b}" if size else "") + "0")
    stream = "".join(bits)
    stream += "1" * (-len(stream) % 8)
    scan = int(stream, 2).to_bytes(len(stream) // 8).replace(b"\xff", b"\xff\0")
    each = [bytes([i + 1, 16 * h + v, 0]) for i, (h, v) in enumerate(factors)]
    sides = height.to_bytes(2) + width.to_bytes(2)
    header = b"\xff\xd8"
    for marker, content in (
        (0xDB, b"\0" + bytes([8] * 64)),
        (0xC0, b"\x08" + sides + b"\3" + b"".join(each)),
        (0xC4, b"\0" + bytes([0, 0, 0, 12] + 12 * [0]) + bytes(range(12))),
        (0xC4, b"\x10" + bytes([1] + 15 * [0]) + b"\0"),
        (0xDA, b"\3\1\0\2\0\3\0" + b"\0\x3f\0"),
    ):
        header += bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content
    return header + scan + b"\xff\xd9"
