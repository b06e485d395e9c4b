"""People's files -> what decode reads right, against Pillow and arithmetic."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from jaxcls import decode
from jaxcls.clean import Shrink, clean, quiet
from tests.images import NOISE, encode, far, pillow


def cleaned(data):
    """The bytes, whose size must be what is said of it."""
    found = clean(data)
    assert Image.open(io.BytesIO(found.data)).size == (found.width, found.height)
    return found.data


def decoded(data, channels=3):
    return decode.decode(channels)(data, None)


STORED = {  # How an upright image lies in a file of each EXIF orientation.
    1: lambda u: u,
    2: lambda u: u[:, ::-1],
    3: lambda u: u[::-1, ::-1],
    4: lambda u: u[::-1],
    5: lambda u: u.transpose(1, 0, 2),
    6: lambda u: np.rot90(u),
    7: lambda u: np.rot90(u, 2).transpose(1, 0, 2),
    8: lambda u: np.rot90(u, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_clean_turns_an_image_upright(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](NOISE))
    options = {"lossless": True} if form == "WEBP" else {}
    data = cleaned(encode(stored, form, exif=exif, **options))
    assert far(decoded(data), NOISE) == 0
    assert Image.open(io.BytesIO(data)).getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_clean_gives_a_plain_file_back_as_it_is(form, mode):
    data = encode(NOISE, form, mode)
    assert clean(data).data is data


def test_clean_lays_alpha_on_white():
    alpha = np.arange(24 * 36).reshape(24, 36, 1) % 256
    data = encode(np.concatenate([NOISE, alpha.astype(np.uint8)], -1), "PNG")
    share = alpha / 255
    expected = NOISE * share + 255 * (1 - share)
    assert np.abs(decoded(cleaned(data)) - expected).max() <= 1


def test_clean_keeps_the_colours_of_a_palette_and_lays_its_transparency_on_white():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    data = cleaned(encode(image, "PNG", transparency=2))
    red, green, white = [255, 0, 0], [0, 255, 0], [255, 255, 255]
    assert decoded(data).tolist() == [[red, green], [white, green]]


def test_clean_makes_cmyk_rgb():
    flat = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert far(decoded(cleaned(encode(flat, "TIFF"))), pillow(encode(flat, "TIFF"))) == 0
    cyan = decoded(cleaned(encode(flat, "JPEG", quality=100)))
    assert np.abs(cyan - np.array([0, 255, 255])).max() <= 3


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_clean_scales_sixteen_bits_to_eight(form):
    wide = np.array([[0, 257, 128, 129], [1000, 32767, 65535, 65406]], np.uint16)
    data = cleaned(encode(wide, form))
    assert decoded(data, 1)[:, :, 0].tolist() == [[0, 1, 0, 1], [4, 127, 255, 254]]


@pytest.mark.parametrize("form", ["BMP", "TIFF", "GIF", "PPM"])
def test_clean_reads_other_lossless_formats(form):
    few = (NOISE // 128 * 255).astype(np.uint8)
    assert far(decoded(cleaned(encode(few, form))), few) == 0


def test_clean_takes_the_photograph_of_a_phones_jpeg_with_two_views():
    options = {"save_all": True, "append_images": [Image.new("RGB", (36, 24))]}
    data = encode(NOISE, "MPO", **options)
    assert far(decoded(cleaned(data)), pillow(data)) <= 2


def header_of(width, height):
    """A PNG that says it has this size, and holds no pixel."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty, 0 bytes"),
        (b"a line of text", "not a readable image"),
        (encode(NOISE, "JPEG")[:-400], "truncated"),
        (encode(NOISE, "PNG")[:500], "truncated"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC; convert it to JPEG first"),
        (header_of(10_001, 10_000), "10001x10000 pixels, over the limit of 100000000"),
        (header_of(60_000, 60_000), "60000x60000 pixels, over the limit of 100000000"),
        (header_of(10_000, 10_000), "truncated"),
    ],
)
def test_clean_says_why_a_file_is_no_image(data, said):
    with pytest.raises(decode.DecodeError) as refused:
        cleaned(data)
    assert said in str(refused.value)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_clean_refuses_an_animation(form):
    frames = [Image.fromarray(NOISE[::-1]), Image.fromarray(NOISE)]
    data = encode(NOISE, form, save_all=True, append_images=frames)
    with pytest.raises(decode.DecodeError, match=r"^animated, 3 frames"):
        cleaned(data)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of bad EXIF, and reads on.
@pytest.mark.parametrize(
    "form", ["JPEG", "PNG", "GIF", "WEBP", *(["AVIF"] if features.check("avif") else [])]
)
def test_clean_meets_no_damage_that_it_cannot_name(form):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encode(NOISE, form, exif=exif) if form != "GIF" else encode(NOISE, form)
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(200):
        data = bytearray(whole)
        for place in random.integers(0, min(len(data), 300), 4):
            data[place] = random.integers(256)
        try:
            outcomes.add(type(clean(bytes(data))))
        except decode.DecodeError:
            outcomes.add(decode.DecodeError)
    assert decode.DecodeError in outcomes


@pytest.mark.parametrize(("size", "short", "expected"), [
    ((400, 300), 100, (133, 100)),
    ((300, 400), 100, (100, 133)),
    ((101, 1000), 100, (100, 990)),
    ((400, 400), 399, (399, 399)),
])  # fmt: skip
def test_shrinking_keeps_the_proportions_and_resizes_as_pillow_does(size, short, expected):
    image = Image.fromarray(NOISE).resize(size)
    found = clean(encode(image, "PNG"), Shrink(short, 100))
    assert (found.width, found.height) == expected
    theirs = io.BytesIO()
    image.resize(expected, Image.Resampling.BICUBIC).save(theirs, "JPEG", quality=100)
    assert far(pillow(found.data), pillow(theirs.getvalue())) == 0


def test_what_is_small_enough_is_not_shrunk():
    data = encode(NOISE, "JPEG")
    assert clean(data, Shrink(24)).data is data
    assert clean(data, Shrink(300)).data is data


def test_a_turned_photograph_is_shrunk_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(NOISE).resize((300, 100)), "JPEG", exif=exif)
    found = clean(data, Shrink(50))
    assert (found.width, found.height) == (50, 150)
    assert Image.open(io.BytesIO(found.data)).getexif().get(0x0112, 1) == 1


def test_a_better_quality_is_a_larger_file():
    data = encode(NOISE, "PNG")
    sizes = [len(clean(data, Shrink(20, quality)).data) for quality in (50, 80, 95)]
    assert sizes == sorted(set(sizes))


def test_quiet_silences_what_pillow_warns_of_a_palette():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    with quiet():
        clean(encode(image, "PNG", transparency=b"\x00\xff\x80"))
