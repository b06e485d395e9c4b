"""Repairs users' image files: any format -> JPEG or PNG that `decode` reads correctly.

A file that cannot be repaired raises `DecodeError` with the reason. `pixels` decodes a file
directly, for callers that do not need the repaired bytes.
"""

import contextlib
import io
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from jaxcls.data.decode import Decode, frame_of
from jaxcls.data.stills import (
    MAX_PIXELS,
    DecodeError,
    check_header,
    explained,
    load,
    opened,
    silent,
    to_rgb,
    turn_of,
)

# Larger images are cleaned one at a time, because each has up to three copies in memory.
_LARGE_PIXELS, _LARGE = 16_000_000, threading.Lock()
# What simplejpeg's errors say of a JPEG that lacks no pixel; OpenCV decodes it.
_HARMLESS = "extraneous bytes", "bad ICC marker", "subsampling level"
_PNG_DEPTH = 24  # The offset of the bit depth in a PNG.
_BAND = 256  # Rows that are hashed at once.


class Shrink(NamedTuple):
    """How to re-encode a larger image: `short` side in pixels, JPEG `quality` 1..100."""

    short: int
    quality: int = 95


class Cleaned(NamedTuple):
    """An encoded JPEG or PNG, upright, grey or RGB, and its size in pixels.

    change: why it is not the file itself: a key of CHANGES, or "". pixels: a hash of its
    RGB pixels, which holds in this process only; 0 if it was not asked for.
    """

    data: bytes
    height: int
    width: int
    change: str = ""
    pixels: int = 0


# Cleaned.change -> what was done.
CHANGES = {
    "turned": "turned upright, as PNG",
    "converted": "of another form, as PNG",
    "halved": f"over {MAX_PIXELS:,} pixels, halved, as PNG",
    "shrunk": "shrunk, as JPEG",
}


def clean(
    data: bytes,
    shrink: Shrink | None = None,
    compression: int = 6,
    hashed: bool = True,
) -> Cleaned:
    """Repairs an encoded file for `decode`; returns a plain JPEG or PNG unchanged.

    Of a plain file, only headers are changed that a decoder warns of: see `silent`. Applies
    EXIF rotation, composites alpha on white, converts CMYK and palette images to RGB, and
    scales 16-bit images to 8 bits. Halves a JPEG of over MAX_PIXELS. A repaired file is a
    PNG; a shrunk file is a JPEG. Every pixel is decoded, so a truncated file is found.
    Damage that still decodes is not found.

    Args:
      data: the encoded file.
      shrink: how to re-encode a larger image; None keeps the size.
      compression: level of a new PNG, 0 (none, fastest) to 9.
      hashed: whether to hash the pixels.

    Raises `DecodeError` unless the file is one still image of a size as of
    `stills.check_size`. Pillow may warn meanwhile: see `quiet`.
    """
    data = silent(data)
    with explained(), opened(data) as image, _one_at_a_time(*image.size):
        load(image, data)
        made, seen = image, None
        plain = image.format in ("JPEG", "MPO", "PNG") and image.mode in ("RGB", "L")
        if image.format == "PNG":
            plain = plain and data[_PNG_DEPTH] <= 8 and "transparency" not in image.info
        elif plain:
            seen = _as_decoded(data, image)
            plain = seen is not None
        changes = (
            ("shrunk", shrink is not None and min(image.size) > shrink.short),
            ("halved", _is_halved(image)),
            ("turned", turn_of(image) is not None),
            ("converted", not plain),
        )
        change = next((name for name, holds in changes if holds), "")
        if change:
            made, seen, out = to_rgb(image), None, io.BytesIO()
            if shrink and change == "shrunk":
                made = _shrunk(made, shrink.short)
                made.save(out, "JPEG", quality=shrink.quality)
            else:
                if made is not image:
                    image.close()  # Frees its pixels.
                # The old profile may describe CMYK.
                made.save(out, "PNG", icc_profile=None, compress_level=compression)
            data = out.getvalue()
        width, height = made.size
        hashed_pixels = _hash_of(made if seen is None else seen, width) if hashed else 0
    return Cleaned(data, height, width, change, hashed_pixels)


def pixels(data: bytes, decode: Decode) -> np.ndarray:
    """Returns the pixels that `decode` gives for `clean(data)`, uint8 [H, W, C].

    Most JPEGs are decoded only once. Raises `DecodeError` as `clean` does.
    """
    data = silent(data)
    frame = frame_of(data)
    if frame:
        # If Pillow or libjpeg finds a fault, `clean` decides. They raise many types.
        with _one_at_a_time(frame.width, frame.height), contextlib.suppress(Exception):
            with opened(data) as header:
                turn = turn_of(header)
            if turn is None:
                return decode.jpeg(data)
            # `clean` stores a rotated JPEG as RGB, so its grey is not the luma plane.
            if decode.channels == 3:
                return np.asarray(Image.fromarray(decode.jpeg(data)).transpose(turn))
    cleaned = clean(data, compression=0, hashed=False)
    with _one_at_a_time(cleaned.width, cleaned.height):
        return decode.rows(cleaned.data, frame_of(cleaned.data), MAX_PIXELS)


def pixels_of(image: Image.Image | np.ndarray, decode: Decode) -> np.ndarray:
    """Returns the pixels that `decode` gives for the file of an image, uint8 [H, W, C].

    Args:
        image: An image of Pillow, which its EXIF turns, or an array of upright pixels,
            uint8 [H, W] or [H, W, 1] of grey, or [H, W, 3] of RGB.

    Raises `DecodeError` for another array, and as `clean` does.
    """
    if isinstance(image, np.ndarray):
        is_image = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3))
        if image.dtype != np.uint8 or not is_image or not image.size:
            raise DecodeError(
                f"an array of {image.dtype}{list(image.shape)}; give uint8 [H, W, 3] or"
                " [H, W], several as [n, H, W, C]; np.uint8(np.round(255 * array)) is so of"
                " values from 0 to 1"
            )
        flat = image[..., 0] if image.shape[2:] == (1,) else image
        image = Image.fromarray(np.ascontiguousarray(flat))
    if not isinstance(image, Image.Image):
        raise DecodeError(
            f"{type(image).__name__} is no image; give a path, an image of Pillow or an"
            " array of uint8"
        )
    check_header(image)
    out = io.BytesIO()
    try:
        to_rgb(image).save(out, "PNG", icc_profile=None, compress_level=0)
    except (OSError, SyntaxError) as error:  # Pillow reads a file at the first use.
        raise DecodeError(f"not a readable image ({error})") from None
    return decode.rows(out.getvalue(), None, MAX_PIXELS)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses warnings in all threads while files are cleaned, but no errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _as_decoded(data: bytes, image: Image.Image) -> np.ndarray | None:
    """Returns the pixels that `decode` gives for a JPEG that Pillow read as `image`.

    Returns None if they differ from those of `image`. Raises `ValueError` for missing data,
    which libjpeg in Pillow fills in silently.
    """
    decode = Decode(len(image.getbands()))
    try:
        if not _is_halved(image):
            return decode.jpeg(data)
        simplejpeg.decode_jpeg(data, "GRAY", min_factor=8)  # At an eighth of the size.
    except ValueError as error:
        if not any(kind in str(error) for kind in _HARMLESS):
            raise
    if not _is_halved(image):
        with contextlib.suppress(DecodeError):
            seen = decode.opencv(data)
            if np.array_equal(seen, np.asarray(image).reshape(seen.shape)):
                return seen
    return None


def _is_halved(image: Image.Image) -> bool:
    """Returns whether the sides of an image that is `opened` are half its file's."""
    # Pillow's `draft` sets it; that of a PNG may be (1,).
    return getattr(image, "decoderconfig", ())[:1] == (2,)


def _hash_of(pixels: np.ndarray | Image.Image, width: int) -> int:
    """Returns Python's hash, the fastest here, of the RGB pixels of a grey or RGB image.

    pixels: uint8 [H, W, 1 or 3] or Pillow's; taken in bands, as a copy of all is large.
    """

    def band(top: int) -> bytes:
        if isinstance(pixels, np.ndarray):
            rows = pixels[top : top + _BAND]
        else:
            end = min(top + _BAND, pixels.height)
            rows = np.asarray(pixels.crop((0, top, width, end)))
        is_grey = rows.size == len(rows) * width
        return rows.repeat(3).tobytes() if is_grey else rows.tobytes()

    height = len(pixels) if isinstance(pixels, np.ndarray) else pixels.height
    return hash((width, *(hash(band(top)) for top in range(0, height, _BAND))))


def _one_at_a_time(width: int, height: int) -> AbstractContextManager[object]:
    """Returns a lock for a large image, so all threads together clean one at a time."""
    return _LARGE if width * height > _LARGE_PIXELS else contextlib.nullcontext()


def _shrunk(image: Image.Image, short: int) -> Image.Image:
    """Resizes the shorter side to `short` with Pillow's antialiased bicubic filter."""
    ratio = short / min(image.size)
    width, height = (max(short, math.floor(side * ratio + 0.5)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
