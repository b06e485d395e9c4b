"""Repairs users' image files: any format -> JPEG or PNG that `decode` reads correctly.

A file that cannot be repaired raises `DecodeError` with the reason. `pixels` decodes a file
directly, for callers that do not need the repaired bytes.
"""

import contextlib
import io
import math
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from jaxcls.data.decode import MAX_PIXELS, Decode, DecodeError, frame_of, is_harmless

# Larger images are cleaned one at a time, because each has up to three copies in memory.
_LARGE_PIXELS, _LARGE = 16_000_000, threading.Lock()
# What Pillow opens: formats whose header states the pixels that are decoded. An ICNS, say,
# holds files of any size.
FORMATS = (
    *("BMP", "DIB", "GIF", "JPEG", "PPM", "PNG", "AVIF", "DDS", "EPS", "FITS", "ICO", "IM"),
    *("JPEG2000", "MSP", "PCX", "PIXAR", "PSD", "QOI", "SGI", "SPIDER", "SUN"),
    *("TGA", "TIFF", "WEBP", "XBM", "XPM"),
)
# A JPEG decodes at most this number of scans of MAX_PIXELS, or more of fewer pixels. A
# CMYK image of libjpeg's own progression has 18.
_MAX_SCANS = 20
_MARKER = re.compile(rb"\xff[^\0\x01\xd0-\xd8\xff]", re.DOTALL)
# Pillow's limits are 1 MiB of text, which the edits of a photograph exceed.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 1 << 26
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH = 24  # The offset of the bit depth in a PNG.
_PNG_END = b"IEND\xaeB`\x82"


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
    data = _silent(data)
    with explained(), opened(data) as image, _one_at_a_time(*image.size):
        if data[:2] == b"\xff\xd8":
            _check_scans(data, image.width * image.height)
        image.load()
        plain = image.format in ("JPEG", "MPO", "PNG") and image.mode in ("RGB", "L")
        if image.format == "PNG":
            _check_chunks(data)
            plain = plain and data[_PNG_DEPTH] <= 8
        elif plain:
            plain = _is_read_alike(data, image)
        large = shrink is not None and min(image.size) > shrink.short
        size = image.size
        turned = turn_of(image) is not None
        if not plain or turned or "transparency" in image.info or large:
            made, out = to_rgb(image), io.BytesIO()
            if shrink and large:
                made = _shrunk(made, shrink.short)
                made.save(out, "JPEG", quality=shrink.quality)
            else:
                # The old profile may describe CMYK.
                made.save(out, "PNG", icc_profile=None, compress_level=compression)
            data, size = out.getvalue(), made.size
    return Cleaned(data, size[1], size[0])


def pixels(data: bytes, decode: Decode) -> np.ndarray:
    """Returns the pixels that `decode` gives for `clean(data)`, uint8 [H, W, C].

    Most JPEGs are decoded only once. Raises `DecodeError` as `clean` does.
    """
    data = _silent(data)
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


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Raises `DecodeError` with the reason for any error of the block."""
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:  # Pillow raises many exception types for bad files.
        reason = str(error).split(" <")[0]  # The rest is the address of an object.
        raise DecodeError(f"not a readable image ({reason})") from None


def opened(data: bytes) -> Image.Image:
    """Opens a file with Pillow, which decodes no pixels yet unless it is an icon.

    Raises `DecodeError` as `check_header` does, and for a file that Pillow cannot read.
    """
    if not data:
        raise DecodeError("empty, 0 bytes")
    # ISO media brands for HEVC, which Pillow does not read.
    heic = b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"
    if data[4:8] == b"ftyp" and data[8:12] in heic:
        raise DecodeError(
            "HEIC; convert it to JPEG first, e.g. with: heif-convert IN OUT.jpg"
        )
    if data[:4] == b"\0\0\1\0":  # An icon; Pillow decodes an image of it at once.
        for place in range(18, 18 + 16 * int.from_bytes(data[4:6], "little"), 16):
            start = int.from_bytes(data[place : place + 4], "little")
            if data[start : start + 4] == b"\x89PNG":
                sides = data[start + 16 : start + 24]
                width, height = int.from_bytes(sides[:4]), int.from_bytes(sides[4:])
            else:  # A bitmap and its mask; a negative height counts from the top.
                sides = data[start + 4 : start + 12]
                width = int.from_bytes(sides[:4], "little")
                height = abs(int.from_bytes(sides[4:], "little", signed=True)) // 2
            check_size(width, height)
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    check_header(image)
    return image


def check_size(width: int, height: int) -> None:
    """Raises `DecodeError` for too many pixels."""
    if width * height > MAX_PIXELS:
        raise DecodeError(f"{width}x{height} pixels, over the limit of {MAX_PIXELS}")


def check_header(image: Image.Image) -> None:
    """Raises `DecodeError` for a drawing, too many pixels or several images."""
    if image.format == "EPS":  # Pillow would run Ghostscript on it.
        raise DecodeError("PostScript, a drawing; convert it to PNG first")
    check_size(*image.size)
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "MPO":  # MPO: a phone's JPEG with a second view.
        found = f"{count} pages" if image.format == "TIFF" else f"animated, {count} frames"
        raise DecodeError(f"{found}; one still is needed")


def _silent(data: bytes) -> bytes:
    """Returns a file without the headers of which libjpeg or libpng only warns.

    They change no pixel. OpenCV prints a line for them at each decoding, and simplejpeg
    says nothing of damage after them.
    """
    return _silent_jpeg(data) if data[:2] == b"\xff\xd8" else _silent_png(data)


def _silent_png(data: bytes) -> bytes:
    """Returns a PNG without its colour profile, which no decoder here applies."""
    at = len(_PNG_START)
    if not data.startswith(_PNG_START):
        return data
    while (kind := data[at + 4 : at + 8]) not in (b"iCCP", b"IDAT", b""):
        at += 12 + int.from_bytes(data[at : at + 4])
    end = at + 12 + int.from_bytes(data[at : at + 4])
    return data[:at] + data[end:] if kind == b"iCCP" else data


def _silent_jpeg(data: bytes) -> bytes:
    """Returns a JPEG with what libjpeg assumes in place of headers that it warns of."""
    changed, colours, adobe = dict[int, int](), 0, 0
    for kind, start, end in _segments(data):
        content = data[start:end]
        if kind == 0xE0 and content[:5] == b"JFIF\0" and len(content) >= 14:
            changed[start + 5] = 1  # The revision.
        elif kind == 0xEE and content[:5] == b"Adobe" and len(content) >= 12:
            adobe = start + 11
        elif kind in (0xC0, 0xC1) and len(content) >= 6:
            colours = content[5]
        elif kind == 0xDA:
            if colours and end <= len(data):  # A sequential scan has all coefficients.
                changed |= zip(range(end - 3, end), (0, 63, 0), strict=True)
            break
    if colours == 3 and adobe and data[adobe] not in (0, 1):
        changed[adobe] = 1  # YCbCr.
    if all(data[place] == value for place, value in changed.items()):
        return data
    mended = bytearray(data)
    for place, value in changed.items():
        mended[place] = value
    return bytes(mended)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, start, end) of the content of each segment of a JPEG."""
    at = 2
    while (found := _MARKER.search(data, at)) and found[0] != b"\xff\xd9":
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
        yield found[0][1], found.end() + 2, at


def _check_scans(data: bytes, pixels: int) -> None:
    """Raises `DecodeError` for a JPEG of so many scans that it takes minutes to decode."""
    scans = sum(kind == 0xDA for kind, _, _ in _segments(data))
    if scans * pixels > _MAX_SCANS * MAX_PIXELS:
        most = _MAX_SCANS * MAX_PIXELS // pixels
        raise DecodeError(
            f"{scans} scans of {pixels} pixels, over the limit of {most}; write it anew,"
            " e.g. with: jpegtran -progressive IN > OUT.jpg"
        )


def _check_chunks(data: bytes) -> None:
    """Raises for a truncated PNG or a wrong checksum, because `load` checks neither."""
    if _PNG_END not in data:
        raise DecodeError("not a readable image (truncated PNG file)")
    with Image.open(io.BytesIO(data)) as image:
        image.verify()


def _is_read_alike(data: bytes, image: Image.Image) -> bool:
    """Returns whether `decode` gives the pixels of an image that Pillow read from a JPEG.

    Raises `ValueError` for missing data, which libjpeg in Pillow fills in silently.
    """
    decode, pixels = Decode(len(image.getbands())), np.asarray(image)
    try:
        decode.jpeg(data)
    except ValueError as error:
        if not is_harmless(error):
            raise
        with contextlib.suppress(DecodeError):
            return np.array_equal(decode.opencv(data).reshape(pixels.shape), pixels)
        return False
    return True


def _one_at_a_time(width: int, height: int) -> AbstractContextManager[object]:
    """Returns a lock for a large image, so all threads together clean one at a time."""
    return _LARGE if width * height > _LARGE_PIXELS else contextlib.nullcontext()


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Returns how an image is turned upright by its EXIF, or None if it lies so."""
    turns = Image.Transpose
    turn = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }
    return turn.get(image.getexif().get(0x0112, 1))


def to_rgb(image: Image.Image) -> Image.Image:
    """Makes an image upright, 8-bit, and RGB or grey; refuses 32-bit samples."""
    known = image.format in ("PNG", "PPM")  # Pillow reads their 16 bits as "I".
    if image.mode == "F" or (image.mode == "I" and not known):
        raise DecodeError("32 bits a sample, of no known range; convert it to 8 bits")
    # Pillow inverts a TIFF of this tag at 8 bits only.
    is_negative = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(262) == 0
    turn = turn_of(image)
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I"):  # Pillow would clip 16-bit grey, not scale it.
        wide = np.asarray(image).astype(np.float64)
        narrow = np.rint(wide / 257).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(255 - narrow if is_negative else narrow)
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
