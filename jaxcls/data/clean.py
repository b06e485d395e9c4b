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
from PIL import Image, ImageOps

from jaxcls.data.decode import MAX_PIXELS, Decode, DecodeError, frame_of

# Larger images are cleaned one at a time, because each has up to three copies in memory.
_LARGE_PIXELS, _LARGE = 16_000_000, threading.Lock()
_ORIENTATION = 0x0112  # The EXIF tag; 1 is upright.
_PNG_DEPTH = 24  # The offset of the bit depth in a PNG.
_PNG_END = b"IEND\xaeB`\x82"
# ISO media brands for HEVC, which Pillow does not read.
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class Shrink(NamedTuple):
    """How to re-encode a larger image: `short` side in pixels, JPEG `quality` 1..100."""

    short: int
    quality: int = 95


class Cleaned(NamedTuple):
    """An encoded JPEG or PNG, upright, grey or RGB, and its size in pixels."""

    data: bytes
    height: int
    width: int


def clean(data: bytes, shrink: Shrink | None = None, compression: int = 6) -> Cleaned:
    """Repairs an encoded file for `decode`; returns a plain JPEG or PNG unchanged.

    Applies EXIF rotation, composites alpha on white, converts CMYK and palette images to
    RGB, and scales 16-bit images to 8 bits. A repaired file is a PNG; a shrunk file is a
    JPEG. Every pixel is decoded, so a truncated file is found. Damage that still decodes is
    not found.

    Args:
      data: the encoded file.
      shrink: how to re-encode a larger image; None keeps the size.
      compression: level of a new PNG, 0 (none, fastest) to 9.

    Raises `DecodeError` unless the file is one still image of at most MAX_PIXELS. Pillow
    may warn meanwhile: see `quiet`.
    """
    if not data:
        raise DecodeError("empty, 0 bytes")
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC:
        raise DecodeError(
            "HEIC; convert it to JPEG first, e.g. with: heif-convert IN OUT.jpg"
        )
    try:
        with Image.open(io.BytesIO(data)) as image, _one_at_a_time(*image.size):
            _check_header(image)
            image.load()
            plain = image.format in ("JPEG", "MPO", "PNG") and image.mode in ("RGB", "L")
            if image.format == "PNG":
                _check_chunks(data)
                plain = plain and data[_PNG_DEPTH] <= 8
            elif plain:
                _check_jpeg(data, image.mode)
            upright = image.getexif().get(_ORIENTATION, 1) == 1
            large = shrink is not None and min(image.size) > shrink.short
            size = image.size
            if not plain or not upright or "transparency" in image.info or large:
                made, out = _to_rgb(image), io.BytesIO()
                if shrink and large:
                    made = _shrunk(made, shrink.short)
                    made.save(out, "JPEG", quality=shrink.quality)
                else:
                    # The old profile may describe CMYK.
                    made.save(out, "PNG", icc_profile=None, compress_level=compression)
                data, size = out.getvalue(), made.size
    except DecodeError:
        raise
    except Exception as error:  # Pillow raises many exception types for bad files.
        reason = str(error).split(" <")[0]  # The rest is the address of an object.
        raise DecodeError(f"not a readable image ({reason})") from None
    return Cleaned(data, size[1], size[0])


def pixels(data: bytes, decode: Decode) -> np.ndarray:
    """Returns the pixels that `decode` gives for `clean(data)`, uint8 [H, W, C].

    Most JPEGs are decoded only once. Raises `DecodeError` as `clean` does.
    """
    frame = frame_of(data)
    if frame:
        # If Pillow or libjpeg finds a fault, `clean` decides. They raise many types.
        with _one_at_a_time(frame.width, frame.height), contextlib.suppress(Exception):
            with Image.open(io.BytesIO(data)) as header:
                orientation = header.getexif().get(_ORIENTATION, 1)
            if orientation == 1:
                return decode.jpeg(data)
            # `clean` stores a rotated JPEG as RGB, so its grey is not the luma plane.
            if orientation in range(2, 9) and decode.channels == 3:
                image = Image.fromarray(decode.jpeg(data))
                image.getexif()[_ORIENTATION] = orientation
                return np.asarray(ImageOps.exif_transpose(image))
    cleaned = clean(data, compression=0)
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
    _check_header(image)
    out = io.BytesIO()
    try:
        _to_rgb(image).save(out, "PNG", icc_profile=None, compress_level=0)
    except (OSError, SyntaxError) as error:  # Pillow reads a file at the first use.
        raise DecodeError(f"not a readable image ({error})") from None
    return decode.rows(out.getvalue(), None, MAX_PIXELS)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses warnings in all threads while files are cleaned, but no errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_header(image: Image.Image) -> None:
    """Raises `DecodeError` for a drawing, too many pixels or an animation."""
    if image.format == "EPS":  # Pillow would run Ghostscript on it.
        raise DecodeError("PostScript, a drawing; convert it to PNG first")
    if image.width * image.height > MAX_PIXELS:
        raise DecodeError(
            f"{image.width}x{image.height} pixels, over the limit of {MAX_PIXELS}"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: a phone's JPEG with a second view.
        raise DecodeError(f"animated, {frames} frames; one still is needed")


def _check_chunks(data: bytes) -> None:
    """Raises for a truncated PNG or a wrong checksum, because `load` checks neither."""
    if _PNG_END not in data:
        raise DecodeError("not a readable image (truncated PNG file)")
    with Image.open(io.BytesIO(data)) as image:
        image.verify()


def _check_jpeg(data: bytes, mode: str) -> None:
    """Raises for a JPEG with missing data, which libjpeg in Pillow fills in silently."""
    try:
        simplejpeg.decode_jpeg(data, "GRAY" if mode == "L" else "RGB", strict=True)
    except ValueError as error:
        # Many cameras write extra bytes, which change no pixel.
        if "extraneous bytes" not in str(error):
            raise


def _one_at_a_time(width: int, height: int) -> AbstractContextManager[object]:
    """Returns a lock for a large image, so all threads together clean one at a time."""
    return _LARGE if width * height > _LARGE_PIXELS else contextlib.nullcontext()


def _to_rgb(image: Image.Image) -> Image.Image:
    """Makes an image upright, 8-bit, and RGB or grey; refuses 32-bit samples."""
    known = image.format in ("PNG", "PPM")  # Pillow reads their 16 bits as "I".
    if image.mode == "F" or (image.mode == "I" and not known):
        raise DecodeError("32 bits a sample, of no known range; convert it to 8 bits")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow would clip 16-bit grey, not scale it.
        wide = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.rint(wide / 257).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "L" else image.convert("RGB")


def _shrunk(image: Image.Image, short: int) -> Image.Image:
    """Resizes the shorter side to `short` with Pillow's antialiased bicubic filter."""
    ratio = short / min(image.size)
    width, height = (max(short, math.floor(side * ratio + 0.5)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
