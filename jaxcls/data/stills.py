"""Opens an image file with Pillow: one still, upright, of 8 bits, grey or RGB.

`clean` does so for `prepare` and `predict`. example.py of an export holds this text, so
that it reads the same pixels; the text therefore imports nothing of jaxcls.
"""

import contextlib
import io
import re
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin

# The largest image in pixels, as it is decoded; headers are checked against it.
MAX_PIXELS = 100_000_000
# The largest JPEG of one scan; above MAX_PIXELS its sides are halved as it is decoded.
# Phones make up to 201 megapixels.
MAX_HALVED = 256_000_000
MAX_RATIO = 100  # The longest image, in its width or height.
Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is the limit; Pillow would warn earlier.
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
_PNG_END = b"IEND\xaeB`\x82"


class DecodeError(ValueError):
    """Bytes are not an image; the text gives the reason."""


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

    A JPEG of MAX_PIXELS to MAX_HALVED is opened at half its sides, which libjpeg decodes
    from the lower coefficients. Raises `DecodeError` as `check_header` does, and for a file
    that Pillow cannot read.
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
                width, height = (
                    int.from_bytes(half, "big") for half in (sides[:4], sides[4:])
                )
            else:  # A bitmap and its mask; a negative height counts from the top.
                sides = data[start + 4 : start + 12]
                width = int.from_bytes(sides[:4], "little")
                height = abs(int.from_bytes(sides[4:], "little", signed=True)) // 2
            check_size(width, height)
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    # Of several scans, libjpeg holds all coefficients, 2 bytes each, at any scale.
    if MAX_PIXELS < width * height <= MAX_HALVED and _has_one_scan(data):
        image.draft(None, (width // 2, height // 2))
    check_header(image)
    return image


def _has_one_scan(data: bytes) -> bool:
    """Returns whether a JPEG's first scan has every component, of sequential codes."""
    colours = 0
    for kind, start, _ in _segments(data) if data[:2] == b"\xff\xd8" else ():
        if kind in (0xC0, 0xC1):
            colours = int.from_bytes(data[start + 5 : start + 6])
        elif kind == 0xDA:
            return colours == int.from_bytes(data[start : start + 1]) > 0
    return False


def check_size(width: int, height: int) -> None:
    """Raises `DecodeError` for too many pixels, or an image that is a line."""
    if width * height > MAX_PIXELS:
        raise DecodeError(
            f"{width}x{height} pixels, over the limit of {MAX_PIXELS}, or {MAX_HALVED} for"
            " the file of a JPEG of one scan; scale it, e.g. with:"
            " magick IN -resize 8000x8000 OUT.jpg"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise DecodeError(
            f"{width}x{height} pixels, over {MAX_RATIO} times as long as wide; crop it, or"
            " leave it out"
        )


def check_header(image: Image.Image) -> None:
    """Raises `DecodeError` for a drawing, a size as of `check_size` or several images."""
    if image.format == "EPS":  # Pillow would run Ghostscript on it.
        raise DecodeError("PostScript, a drawing; convert it to PNG first")
    check_size(*image.size)
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "MPO":  # MPO: a phone's JPEG with a second view.
        found = f"{count} pages" if image.format == "TIFF" else f"animated, {count} frames"
        raise DecodeError(f"{found}; one still is needed")


def silent(data: bytes) -> bytes:
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
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
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
    """Yields (marker, start, end) of the content of each segment of a JPEG.

    The last is (0xD9, ...), unless the end is missing.
    """
    at = 2
    while found := _MARKER.search(data, at):
        if found[0] == b"\xff\xd9":
            yield 0xD9, found.end(), found.end()
            return
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
        yield found[0][1], found.end() + 2, at


def check_scans(data: bytes, pixels: int) -> None:
    """Raises `DecodeError` for a JPEG of so many scans that it takes minutes to decode."""
    scans = sum(kind == 0xDA for kind, _, _ in _segments(data))
    if scans * pixels > _MAX_SCANS * MAX_PIXELS:
        most = _MAX_SCANS * MAX_PIXELS // pixels
        raise DecodeError(
            f"{scans} scans of {pixels} pixels, over the limit of {most}; write it anew,"
            " e.g. with: jpegtran -progressive IN > OUT.jpg"
        )


def load(image: Image.Image, data: bytes) -> None:
    """Decodes every pixel of an image that is `opened` from data.

    Raises `DecodeError` for a JPEG of too many scans or without its end, and for a PNG that
    is truncated or has a wrong checksum.
    """
    is_jpeg = data[:2] == b"\xff\xd8"
    if is_jpeg:
        check_scans(data, image.width * image.height)
    image.load()  # Pillow lets a missing byte pass, and all that is checked below.
    if is_jpeg and all(kind != 0xD9 for kind, _, _ in _segments(data)):
        raise DecodeError("not a readable image (Premature end of JPEG file)")
    if image.format == "PNG":
        if _PNG_END not in data:
            raise DecodeError("not a readable image (truncated PNG file)")
        with Image.open(io.BytesIO(data)) as again:
            again.verify()


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
    return image if image.mode in ("L", "RGB") else image.convert("RGB")
