"""Image files of users -> JPEG or PNG that `decode` reads right, or a reason why not.

`pixels` decodes a file directly, where the repaired bytes are not needed.
"""

import contextlib
import io
import math
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from jaxcls.data.decode import MAX_PIXELS, Decode, DecodeError, frame_of

# Larger ones are cleaned one at a time: a copy or three of each is in memory.
_LARGE_PIXELS, _LARGE = 16_000_000, threading.Lock()
_ORIENTATION = 0x0112  # The EXIF tag; 1 is upright.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # Of uint8 [H, W, 3].
    1: lambda p: p,
    2: lambda p: cv2.flip(p, 1),
    3: lambda p: cv2.rotate(p, cv2.ROTATE_180),
    4: lambda p: cv2.flip(p, 0),
    5: lambda p: cv2.transpose(p),
    6: lambda p: cv2.rotate(p, cv2.ROTATE_90_CLOCKWISE),
    7: lambda p: cv2.transpose(cv2.rotate(p, cv2.ROTATE_180)),
    8: lambda p: cv2.rotate(p, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
_PNG_DEPTH = 24  # Where a PNG says how many bits a sample has.
_PNG_END = b"IEND\xaeB`\x82"
# Brands of an ISO media file that hold HEVC, which Pillow does not read.
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class Shrink(NamedTuple):
    """Re-encode larger images: `short` side in pixels, JPEG `quality` 1..100."""

    short: int
    quality: int = 95


class Cleaned(NamedTuple):
    """An encoded JPEG or PNG, upright, grey or RGB, and its size in pixels."""

    data: bytes
    height: int
    width: int


def clean(data: bytes, shrink: Shrink | None = None, compression: int = 6) -> Cleaned:
    """Repair an encoded file for `decode`; a plain JPEG or PNG is returned unchanged.

    Applies the EXIF rotation, composites alpha on white, and makes CMYK, palette and
    16-bit images RGB; the result of a repair is a PNG. Every pixel is decoded, so a
    truncated file is found; damage that still decodes is not.

    Args:
      data: the file.
      shrink: how to re-encode a larger image; None keeps its size.
      compression: level of a new PNG, 0 (none, fastest) to 9.

    Raises `DecodeError` unless the file is one still image of at most MAX_PIXELS.
    Pillow may warn meanwhile: see `quiet`.
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
                    # The profile may have described CMYK.
                    made.save(out, "PNG", icc_profile=None, compress_level=compression)
                data, size = out.getvalue(), made.size
    except DecodeError:
        raise
    except Exception as error:  # Pillow raises many kinds for bad files.
        reason = str(error).split(" <")[0]  # The rest is the address of an object.
        raise DecodeError(f"not a readable image ({reason})") from None
    return Cleaned(data, size[1], size[0])


def pixels(data: bytes, decode: Decode) -> np.ndarray:
    """An encoded file -> uint8 [H, W, C]: the pixels that `decode` gives of `clean(data)`.

    Most JPEGs are decoded only once. Raises `DecodeError` as `clean` does.
    """
    frame = frame_of(data)
    orientation = _orientation(data) if frame else 0
    # Grey of a rotated JPEG is computed from RGB, not taken from its luma plane.
    if frame and (orientation == 1 or (orientation and decode.channels == 3)):
        # Where libjpeg would repair something, `clean` decides.
        with _one_at_a_time(frame.width, frame.height), contextlib.suppress(ValueError):
            return _UPRIGHT[orientation](decode.jpeg(data))
    cleaned = clean(data, compression=0)
    with _one_at_a_time(cleaned.width, cleaned.height):
        return decode.rows(cleaned.data, frame_of(cleaned.data), MAX_PIXELS)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings in all threads while files are cleaned; faults are raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _orientation(data: bytes) -> int:
    """The EXIF orientation of a JPEG, 1 to 8; 0 where `clean` has to decide."""
    # Pillow raises many kinds for bad files.
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:
        orientation = image.getexif().get(_ORIENTATION, 1)
        if image.format in ("JPEG", "MPO") and orientation in _UPRIGHT:
            return int(orientation)
    return 0


def _check_header(image: Image.Image) -> None:
    """Raise `DecodeError` for an image that its header rules out."""
    if image.format == "EPS":  # Pillow would hand it to Ghostscript, a program.
        raise DecodeError("PostScript, a drawing; convert it to PNG first")
    if image.width * image.height > MAX_PIXELS:
        raise DecodeError(
            f"{image.width}x{image.height} pixels, over the limit of {MAX_PIXELS}"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # A phone's JPEG with a second view.
        raise DecodeError(f"animated, {frames} frames; one still is needed")


def _check_chunks(data: bytes) -> None:
    """Raise for a PNG that is truncated or has a wrong checksum: `load` checks neither."""
    if _PNG_END not in data:
        raise DecodeError("not a readable image (truncated PNG file)")
    with Image.open(io.BytesIO(data)) as image:
        image.verify()


def _check_jpeg(data: bytes, mode: str) -> None:
    """Raise for a JPEG with missing data: Pillow lets libjpeg fill it in silently."""
    try:
        simplejpeg.decode_jpeg(data, "GRAY" if mode == "L" else "RGB", strict=True)
    except ValueError as error:
        # Extra bytes change no pixel; files of many cameras have some.
        if "extraneous bytes" not in str(error):
            raise


@contextlib.contextmanager
def _one_at_a_time(width: int, height: int) -> Iterator[None]:
    """Hold a lock while a large image is cleaned: one at a time over all threads."""
    with _LARGE if width * height > _LARGE_PIXELS else contextlib.nullcontext():
        yield


def _to_rgb(image: Image.Image) -> Image.Image:
    """Upright, 8-bit, RGB or grey."""
    known = image.format in ("PNG", "PPM")  # Of 16 bits a sample, though "I" has 32.
    if image.mode == "F" or (image.mode == "I" and not known):
        raise DecodeError("32 bits a sample, of no known range; convert it to 8 bits")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip, not scale.
        wide = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.rint(wide / 257).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "L" else image.convert("RGB")


def _shrunk(image: Image.Image, short: int) -> Image.Image:
    """A copy whose shorter side is `short`, by Pillow's antialiased bicubic filter."""
    ratio = short / min(image.size)
    width, height = (max(short, math.floor(side * ratio + 0.5)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
