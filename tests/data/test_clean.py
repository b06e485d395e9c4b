"""People's files of every kind -> bytes that are read right, against Pillow and NumPy."""

import io
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, ImageOps, features

from jaxcls.data import decode
from jaxcls.data.clean import Cleaned, Shrink, clean, pixels, quiet
from tests.images import NOISE, encode, far, photographs, pillow


def turned(orientation):
    """The EXIF of a picture that lies so."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def decoded(cleaned, channels=3):
    """What the trainer sees, of the size that was promised."""
    pixels = decode.decode(channels)(cleaned.data, None)
    assert pixels.shape == (cleaned.height, cleaned.width, channels)
    as_tfds_reads = cv2.imdecode(np.frombuffer(cleaned.data, np.uint8), -1)
    assert as_tfds_reads.dtype == np.uint8
    assert as_tfds_reads.shape in (pixels.shape[:2], (*pixels.shape[:2], 3))
    return pixels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_an_image_is_turned_upright(orientation, form):
    options = {"lossless": True} if form == "WEBP" else {}
    given = encode(NOISE, form, exif=turned(orientation), **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(given)))
    cleaned = clean(given)
    assert (cleaned.width, cleaned.height) == upright.size
    assert far(decoded(cleaned), np.asarray(upright)) <= (form == "JPEG")
    assert Image.open(io.BytesIO(cleaned.data)).getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_plain_file_comes_back_as_it_is(form, mode):
    data = encode(NOISE, form, mode)
    assert clean(data).data is data
    assert clean(data) == Cleaned(data, 24, 36)
    assert clean(data, Shrink(24)).data is data


@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_is_laid_on_white(channels):
    alpha = np.arange(24 * 36).reshape(24, 36, 1) % 256
    colours, share = NOISE[:, :, :channels], alpha / 255
    data = encode(np.concatenate([colours, alpha.astype(np.uint8)], -1))
    expected = colours * share + 255 * (1 - share)
    assert np.abs(decoded(clean(data), channels) - expected).max() <= 1


@pytest.mark.parametrize(("mode", "clear"), [("L", 7), ("RGB", (7, 7, 7))])
def test_a_colour_that_stands_for_clear_is_white(mode, clear):
    grey = Image.fromarray(np.array([[7, 8], [9, 7]], np.uint8))
    data = encode(grey, "PNG", mode, transparency=clear)
    assert decoded(clean(data), 1)[:, :, 0].tolist() == [[255, 8], [9, 255]]


def test_a_palette_keeps_its_colours_and_its_transparency_is_white():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    red, green, blue, white = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]
    for form in ("PNG", "GIF"):
        data = encode(image, form, transparency=2)
        assert decoded(clean(data)).tolist() == [[red, green], [white, green]]
    assert decoded(clean(encode(image))).tolist() == [[red, green], [blue, green]]


def test_cmyk_becomes_rgb():
    flat = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    data = encode(flat, "TIFF")
    assert far(decoded(clean(data)), pillow(data)) == 0
    cyan = decoded(clean(encode(flat, "JPEG", quality=100)))
    assert np.abs(cyan - np.array([0, 255, 255])).max() <= 3


def test_a_colour_profile_is_not_kept_where_the_colours_are_new():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encode(Image.new("CMYK", (8, 8)), "JPEG", icc_profile=profile)
    assert "icc_profile" not in Image.open(io.BytesIO(clean(data).data)).info


WIDE = np.array([[0, 257, 128, 129], [1000, 32767, 65535, 65406]], np.uint16)
NARROW = [[0, 1, 0, 1], [4, 127, 255, 254]]  # Over 257, rounded.


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_grey_are_scaled_to_eight(form):
    assert decoded(clean(encode(WIDE, form)), 1)[:, :, 0].tolist() == NARROW


def test_sixteen_bits_of_colour_are_scaled_to_eight():
    colours = np.stack([WIDE, WIDE[::-1], WIDE], -1)
    expected = np.stack([NARROW, NARROW[::-1], NARROW], -1)
    for form in (".png", ".tiff"):
        _, data = cv2.imencode(form, colours[:, :, ::-1])
        assert far(decoded(clean(data.tobytes())), expected) <= 1


@pytest.mark.parametrize("form", ["BMP", "TIFF", "GIF", "PPM", "WEBP", "MPO"])
def test_another_format_becomes_its_pixels(form):
    # A phone's MPO is a JPEG with a second view.
    views = {"save_all": True, "append_images": [Image.new("RGB", (36, 24))]}
    data = encode(NOISE, form, **(views if form == "MPO" else {}))
    assert far(decoded(clean(data)), pillow(data)) <= 2 * (form == "MPO")


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "GIF"])
def test_one_bit_is_black_and_white(form):
    image = Image.fromarray(NOISE[:, :, 0]).convert("1")
    expected = np.asarray(image)[:, :, None] * np.uint8(255)
    assert far(decoded(clean(encode(image, form)), 1), expected) == 0


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width, height, rows=b"", colours=2):
    """A PNG by hand, of any size that it may state."""
    header = struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


PNG = encode(NOISE)
AT_CHECKSUM = PNG.index(b"IEND") - 8  # Of the pixels.
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty, 0 bytes"),
        (b"a line of text", "not a readable image"),
        (b"\xff\xd8\xff\xe0", "not a readable image"),
        (encode(NOISE, "JPEG")[:-400], "truncated"),
        (encode(NOISE, "JPEG")[:-2], "truncated"),
        (PNG[:500], "truncated"),
        (PNG[:-3], "truncated PNG file"),
        (PNG[:AT_CHECKSUM] + b"none" + PNG[AT_CHECKSUM + 4 :], "bad header checksum"),
        (encode(NOISE, "WEBP")[:-20], "not a readable image"),
        (encode(NOISE, "GIF")[:-300], "truncated"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0", "HEIC; convert it to JPEG first"),
        (png(10_001, 10_000), "10001x10000 pixels, over the limit of 100000000"),
        (png(60_000, 60_000), "60000x60000 pixels, over the limit of 100000000"),
        (png(10_000, 10_000), "truncated"),
        (encode(np.zeros((2, 2), np.int32), "TIFF"), "32 bits a sample"),
        (POSTSCRIPT, "PostScript, a drawing; convert it to PNG first"),
    ],
)
def test_a_file_that_is_no_image_is_named(data, said):
    with pytest.raises(decode.DecodeError) as refused:
        clean(data)
    assert said in str(refused.value)
    assert "0x7f" not in str(refused.value)  # No address of an object.


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_is_refused(form):
    frames = [Image.fromarray(NOISE[::-1]), Image.fromarray(NOISE)]
    data = encode(NOISE, form, save_all=True, append_images=frames)
    with pytest.raises(decode.DecodeError, match=r"^animated, 3 frames"):
        clean(data)


def damaged(whole, number, random):
    """A file cut short, every second time, and with up to four other bytes."""
    data = bytearray(whole[: len(whole) - random.integers(40) * (number % 2)])
    for place in random.integers(
        0, len(data) if number % 3 else min(len(data), 300), number % 5
    ):
        data[place] = random.integers(256)
    return bytes(data)


def outcome(function):
    """The pixels that a call gives, or the text of its refusal."""
    try:
        return function()
    except decode.DecodeError as error:
        return str(error)


@pytest.mark.parametrize(
    "form", ["JPEG", "PNG", "GIF", "WEBP", *(["AVIF"] if features.check("avif") else [])]
)
def test_what_is_let_through_can_be_decoded_whatever_the_damage(form):
    whole = encode(NOISE, form, **({} if form == "GIF" else {"exif": turned(6)}))
    random, reader, outcomes = np.random.default_rng(0), decode.decode(3), set()
    with quiet():  # Pillow warns of bad EXIF, and reads on.
        for number in range(300):
            data = damaged(whole, number, random)
            expected = outcome(lambda data=data: decoded(clean(data)))
            found = outcome(lambda data=data: pixels(data, reader))
            np.testing.assert_array_equal(found, expected)
            outcomes.add(type(found))
    assert outcomes == {str, np.ndarray}


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize(
    ("size", "expected"), [((427, 640), (64, 96)), ((640, 300), (137, 64))]
)
def test_shrink_resizes_like_pillow_and_states_its_size(mode, size, expected):
    image = Image.fromarray(photographs()[0]).resize(size[::-1]).convert(mode)
    cleaned = clean(encode(image), Shrink(64, 90))
    assert (cleaned.height, cleaned.width) == expected
    small = image.convert("L" if mode == "L" else "RGB").resize(expected[::-1], 3)
    as_jpeg = pillow(encode(small, "JPEG", quality=90))
    assert far(decoded(cleaned), as_jpeg) <= 2
    assert Image.open(io.BytesIO(cleaned.data)).mode == ("L" if mode == "L" else "RGB")


def test_a_jpeg_whose_missing_end_libjpeg_would_fill_in_is_refused():
    whole = encode(photographs()[0][:200, :300], "JPEG", quality=90)
    cut = whole[: len(whole) // 2] + b"\xff\xd9"
    assert pillow(cut).shape == (200, 300, 3)
    with pytest.raises(decode.DecodeError, match=r"not a readable image .*premature end"):
        clean(cut)


def test_superfluous_bytes_in_a_jpeg_cost_nothing_and_are_let_be():
    data = encode(NOISE, "JPEG")
    data = data[:-2] + b"\x01\x02\x03" + data[-2:]
    assert clean(data).data is data


def test_large_images_take_turns(monkeypatch):
    from jaxcls.data import clean as module

    monkeypatch.setattr(module, "_LARGE_PIXELS", 100)
    data, inside, most = encode(NOISE, "BMP"), [], []
    whole = module._to_rgb

    def counting(image):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return whole(image)

    monkeypatch.setattr(module, "_to_rgb", counting)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(clean, [data] * 6))) == 6
    assert max(most) == 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "MPO"])
def test_pixels_are_those_of_the_clean_file(form, channels):
    with quiet():
        for mode in ("RGB", "L", "CMYK") if form == "JPEG" else ("RGB", "L"):
            for orientation in range(10):
                exif = {"exif": turned(orientation)}
                options = exif if form not in ("BMP", "GIF") else {}
                if form == "JPEG":
                    options |= {"progressive": orientation == 9, "subsampling": 2}
                data = encode(NOISE, form, mode, **options)
                reader = decode.decode(channels)
                np.testing.assert_array_equal(
                    pixels(data, reader), reader(clean(data).data, None)
                )


def test_a_plain_jpeg_and_a_turned_one_are_decoded_once(monkeypatch):
    files = [encode(NOISE, "JPEG"), encode(NOISE, "JPEG", exif=turned(6))]
    whole, counted = decode.simplejpeg.decode_jpeg, []

    def counting(*arguments, **options):
        counted.append(1)
        return whole(*arguments, **options)

    monkeypatch.setattr(decode.simplejpeg, "decode_jpeg", counting)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # Pillow decodes none.
    for data in files:
        pixels(data, decode.decode(3))
    assert len(counted) == 2
