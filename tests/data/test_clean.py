"""People's files of every kind -> bytes that are read right, against Pillow and NumPy."""

import io
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, ImageOps, features

from jaxcls.data import decode, stills
from jaxcls.data.clean import Cleaned, Shrink, clean, pixels, pixels_of, quiet
from tests.images import (
    NOISE,
    before_pixels,
    chunk,
    encode,
    far,
    photographs,
    pillow,
    sampled,
    segment,
    upright,
)


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
    assert clean(data, hashed=False) == Cleaned(data, 24, 36)
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


def png(width, height, rows=b"", colours=2):
    """A PNG by hand, of any size that it may state."""
    header = struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def icon(*images):
    """An ICO by hand, whose directory states 16x16."""
    entries, start = b"", 6 + 16 * len(images)
    for data in images:
        entries += struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(data), start)
        start += len(data)
    return struct.pack("<HHH", 0, 1, len(images)) + entries + b"".join(images)


def many_scans(count, side):
    """A progressive JPEG that states `side`, and whose last scan is there `count` times."""
    data = encode(NOISE, "JPEG", progressive=True)
    at = data.index(b"\xff\xc2") + 5
    data = data[:at] + side.to_bytes(2) * 2 + data[at + 4 : -2]
    return data + count * data[data.rindex(b"\xff\xda") :] + b"\xff\xd9"


PNG = encode(NOISE)
JPEG = encode(NOISE, "JPEG")
HUGE = png(38_000, 38_000)
BITMAP = struct.pack("<IiiHHIIiiII", 40, 38_000, 76_000, 1, 32, 0, 0, 0, 0, 0, 0)
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
        (encode(NOISE, "JPEG", "L")[:-1], "Premature end"),
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
        (icon(HUGE), "38000x38000 pixels, over the limit of 100000000"),
        (icon(PNG, HUGE), "38000x38000 pixels, over the limit of 100000000"),
        (icon(BITMAP), "38000x38000 pixels, over the limit of 100000000"),
        (icon(), "not a readable image"),
        (
            b"icns" + struct.pack(">I4sI", 16 + len(HUGE), b"ic07", 8 + len(HUGE)) + HUGE,
            "cannot identify image file",
        ),
        (many_scans(300, 10_000), "310 scans of 100000000 pixels, over the limit of 20"),
        (many_scans(300, 3_000), "310 scans of 9000000 pixels, over the limit of 222"),
        (POSTSCRIPT, "PostScript, a drawing; convert it to PNG first"),
    ],
)
def test_a_file_that_is_no_image_is_named(data, said):
    with pytest.raises(decode.DecodeError) as refused:
        clean(data)
    assert said in str(refused.value)
    assert "0x7f" not in str(refused.value)  # No address of an object.


@pytest.mark.parametrize(
    ("form", "said"),
    [
        *((form, "animated, 3 frames") for form in ("GIF", "WEBP", "PNG")),
        ("TIFF", "3 pages"),
    ],
)
def test_an_animation_and_a_file_of_pages_are_refused(form, said):
    frames = [Image.fromarray(NOISE[::-1]), Image.fromarray(NOISE)]
    data = encode(NOISE, form, save_all=True, append_images=frames)
    with pytest.raises(decode.DecodeError, match=f"^{said}; one still"):
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
    whole = module.to_rgb

    def counting(image):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return whole(image)

    monkeypatch.setattr(module, "to_rgb", counting)
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


AT_SCAN = JPEG.index(b"\xff\xda")
AFTER_SCAN = AT_SCAN + 2 + int.from_bytes(JPEG[AT_SCAN + 2 : AT_SCAN + 4])
WARNED = {
    "a scan from 0 to 0": JPEG[: AFTER_SCAN - 2] + b"\0" + JPEG[AFTER_SCAN - 1 :],
    "approximated bits": JPEG[: AFTER_SCAN - 1] + b"\x11" + JPEG[AFTER_SCAN:],
    "JFIF 0.1": JPEG.replace(b"JFIF\0\1\1", b"JFIF\0\0\1", 1),
    "JFIF 0.0": JPEG.replace(b"JFIF\0\1\1", b"JFIF\0\0\0", 1),
    "JFIF 66.1": JPEG.replace(b"JFIF\0\1", b"JFIF\0B", 1),
    "Adobe's transform 5": segment(JPEG, 0xEE, b"Adobe\0\x64\0\0\0\0\5"),
    "bytes before the end": JPEG[:-2] + b"\1\2\3" + JPEG[-2:],
}
EXIF = {"exif": turned(6)}
SAMPLED = [
    [(4, 2), (1, 1), (1, 1)],
    [(4, 1), (2, 1), (1, 1)],
    [(3, 1), (1, 1), (1, 1)],
    [(2, 2), (2, 1), (1, 2)],
    [(1, 1), (2, 1), (1, 1)],
    [(2, 1), (1, 1), (2, 1)],
]


def check_read(data, expected=None):
    """`prepare`, `predict` and the Python door see exactly the pixels of Pillow."""
    expected = upright(data) if expected is None else expected
    with quiet():
        assert far(decoded(clean(data)), expected) == 0
        assert far(pixels(data, decode.decode(3)), expected) == 0
        image = Image.open(io.BytesIO(data))
        assert far(pixels_of(image, decode.decode(3)), expected) == 0


@pytest.mark.parametrize("kind", WARNED)
def test_a_jpeg_of_which_libjpeg_only_warns_is_read(kind, capfd):
    data = WARNED[kind]
    assert data != JPEG
    check_read(data)
    assert len(clean(data).data) == len(data)
    if "JFIF" in kind:
        decoded(clean(data))
        assert "JFIF" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", WARNED)
def test_a_warning_hides_no_missing_end(kind):
    data = WARNED[kind]
    with pytest.raises(decode.DecodeError, match=r"truncated|remature end"):
        pixels(data[: len(data) * 3 // 4], decode.decode(3))
    with pytest.raises(decode.DecodeError, match=r"truncated|remature end"):
        clean(data[: len(data) * 3 // 4])
    with pytest.raises(decode.DecodeError, match=r"not a readable image .*premature end"):
        clean(data[: len(data) * 3 // 4] + b"\xff\xd9")


@pytest.mark.parametrize("factors", SAMPLED)
def test_a_jpeg_of_any_sampling_is_read(factors):
    data = sampled(factors)
    check_read(data)
    assert clean(data).data is data
    turned_data = segment(data, 0xE1, b"Exif\0\0" + turned(6).tobytes()[6:])
    check_read(turned_data)
    with pytest.raises(decode.DecodeError, match="truncated"):
        clean(data[:-30])


# (tag, type, count, value) that Pillow reads, and cannot write.
UNWRITABLE = {
    "a fraction over 0": ((0x11A, 10, 1, 50), struct.pack("<ii", -1, 0)),
    "a negative width": ((0x100, 9, 1, -5 & 0xFFFFFFFF), b""),
    "a unit of text": ((0x128, 2, 4, int.from_bytes(b"cm\0\0", "little")), b""),
    "a unit that is a fraction": ((0x128, 5, 1, 50), struct.pack("<II", 1, 3)),
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kind", UNWRITABLE)
def test_an_image_is_turned_whatever_else_its_exif_says(kind, form):
    entry, more = UNWRITABLE[kind]
    entries = sorted([(0x112, 3, 1, 6), entry, (0x213, 3, 1, 1)])
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    exif = head + b"".join(struct.pack("<HHII", *each) for each in entries) + bytes(4)
    options = {"lossless": True} if form == "WEBP" else {}
    data = encode(NOISE, form, exif=exif + more, **options)
    check_read(data, np.rot90(pillow(data), -1))
    assert not Image.open(io.BytesIO(clean(data).data)).getexif()


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_means_nothing_costs_nothing(orientation, form):
    data = encode(NOISE, form, exif=turned(orientation))
    assert clean(data).data is data
    check_read(data)


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("profile", [PROFILE, PROFILE[:200], b"a" * 2_000_000])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_png_is_decoded_in_silence_whatever_its_colour_profile(mode, profile, capfd):
    plain = encode(NOISE, "PNG", mode)
    data = before_pixels(plain, chunk(b"iCCP", b"icc\0\0" + zlib.compress(profile)))
    assert clean(data).data == plain
    check_read(data, upright(plain))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"a" * 2_000_000)),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"a" * 2_000_000),
        (b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 30_000_000)),
        (b"tEXt", b"Comment\0" + b"a" * 2_000_000),
    ],
)
def test_a_png_of_much_text_is_read(kind, text):
    check_read(before_pixels(PNG, chunk(kind, text)), NOISE)


@pytest.mark.parametrize("mode", ["1", "L", "I;16"])
def test_a_tiff_in_which_white_is_zero_is_no_negative(mode):
    image = Image.fromarray(WIDE if mode == "I;16" else NOISE[:, :, 0])
    data = encode(image, "TIFF", None if mode == "I;16" else mode)
    kept, inverted = (struct.pack("<HHII", 262, 3, 1, white) for white in (1, 0))
    assert data.count(kept) == 1
    check_read(data.replace(kept, inverted), 255 - decoded(clean(data)))


def test_an_icon_of_a_usual_size_is_read():
    for form in ("png", "bmp"):
        data = encode(Image.fromarray(NOISE[:24, :24]), "ICO", bitmap_format=form)
        check_read(data)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_usual_progression_is_within_the_limit_of_scans_at_any_size(mode):
    data = encode(NOISE, "JPEG", mode, progressive=True, exif=turned(1))
    stills.check_scans(data + 30 * b"\xff\xda", decode.MAX_PIXELS)
    check_read(data)


def test_bytes_among_the_pixels_hide_no_missing_end():
    data = encode(NOISE, "JPEG", restart_marker_blocks=1)
    at = data.index(b"\xff\xd1")
    data = data[:at] + b"\1\2\3" + data[at:]
    check_read(data)
    for read in (clean, lambda data: pixels(data, decode.decode(3))):
        with pytest.raises(decode.DecodeError, match="truncated"):
            read(data[:-40])


@pytest.fixture
def low_limits(monkeypatch):
    """A JPEG is halved from 2,001 pixels, and refused from 5,121."""
    for module in (stills, decode):
        monkeypatch.setattr(module, "MAX_PIXELS", 2_000)
    monkeypatch.setattr(stills, "MAX_HALVED", 5_120)


LARGE = photographs()[0][200:261, 300:383]  # 5,063 pixels, of odd sides.


def halved(data, mode=cv2.IMREAD_REDUCED_COLOR_2):
    """A JPEG at half its sides by OpenCV, which turns it by its EXIF."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), mode)[:, :, ::-1]


@pytest.mark.parametrize("orientation", [1, 6, 7])
@pytest.mark.parametrize("sampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_over_the_limit_is_halved(low_limits, mode, sampling, orientation):
    options = {"subsampling": sampling, "exif": turned(orientation), "quality": 90}
    data = encode(LARGE, "JPEG", mode, **options)
    expected = halved(data)
    assert expected.shape == ((31, 42, 3) if orientation == 1 else (42, 31, 3))
    with quiet():
        cleaned = clean(data)
        assert cleaned.change == "halved"
        assert far(decoded(cleaned), expected) == 0
        assert far(pixels(data, decode.decode(3)), expected) == 0
    assert clean(data, Shrink(16)).change == "shrunk"
    assert (clean(data, Shrink(31)).width == 31) == (orientation > 1)


def test_a_phones_second_view_and_cmyk_are_halved_too(low_limits):
    views = {"save_all": True, "append_images": [Image.new("RGB", (36, 24))]}
    data = encode(LARGE, "MPO", **views)
    assert far(decoded(clean(data)), halved(data)) == 0
    data = encode(LARGE, "JPEG", "CMYK")
    image = Image.open(io.BytesIO(data))
    image.draft(None, (41, 30))
    assert far(decoded(clean(data)), np.asarray(image.convert("RGB"))) == 0


def test_at_the_limit_a_jpeg_is_what_it_was(low_limits):
    data = encode(LARGE[:40, :50], "JPEG")
    assert clean(data).data is data
    check_read(data)


@pytest.mark.parametrize(
    "data",
    [
        encode(LARGE, "JPEG", progressive=True),
        encode(LARGE, "PNG"),
        encode(LARGE, "WEBP"),
        encode(np.zeros((40, 129), np.uint8), "JPEG"),
        sampled([(1, 1)] * 3, 40, 80).replace(b"\xff\xda\0\x0c\3", b"\xff\xda\0\x0c\1"),
    ],
    ids=["progressive", "PNG", "WebP", "5,160 pixels", "a scan of one component"],
)
def test_what_cannot_be_halved_in_little_memory_is_refused(low_limits, data, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # Before a pixel is decoded.
    for read in (clean, lambda data: pixels(data, decode.decode(3))):
        with pytest.raises(
            decode.DecodeError, match=r"over the limit of 2000, or 5120 for"
        ):
            read(data)


def test_an_opened_picture_over_the_limit_is_refused_with_the_way_that_works(low_limits):
    image = Image.open(io.BytesIO(encode(LARGE, "JPEG")))
    said = "^83x61 pixels, over the limit of 2000, or 5120 for the file of a JPEG"
    with pytest.raises(decode.DecodeError, match=said):
        pixels_of(image, decode.decode(3))
    assert image.size == (83, 61)


def test_an_interlaced_png_is_let_be():
    # All of Adam7's passes but the first are empty.
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 1))
    pixel = chunk(b"IDAT", zlib.compress(b"\0abc"))
    data = b"\x89PNG\r\n\x1a\n" + header + pixel + chunk(b"IEND", b"")
    assert clean(data).data is data
    check_read(data, np.array([[[97, 98, 99]]], np.uint8))


def test_the_missing_end_of_a_halved_jpeg_is_seen(low_limits):
    data = encode(LARGE, "JPEG", quality=90)
    for cut in (data[:-200], data[:-200] + b"\xff\xd9"):
        for read in (clean, lambda data: pixels(data, decode.decode(3))):
            with pytest.raises(decode.DecodeError, match=r"truncated|remature end"):
                read(cut)


def flat(width, height):
    """A grey JPEG of any size: in these tables, a block without a change is 5 bits of 0."""
    data = sampled([(2, 2), (1, 1), (1, 1)], 16, 16)
    at = data.index(b"\xff\xc0") + 5
    start = data.index(b"\xff\xda") + 14
    blocks = -(-width // 16) * -(-height // 16) * 6
    sides = height.to_bytes(2) + width.to_bytes(2)
    scan = bytes(-(-5 * blocks // 8))
    return data[:at] + sides + data[at + 4 : start] + scan + b"\xff\xd9"


PEAK = """
import sys
from jaxcls.data.clean import Shrink, clean, pixels
from jaxcls.data.decode import Decode
from jaxcls.data.stills import DecodeError

data, how = sys.stdin.buffer.read(), sys.argv[1]
def memory(kind):
    return int(open("/proc/self/status").read().split(kind)[1].split()[0])

before = memory("VmRSS:")
try:
    if how == "pixels":
        height, width, _ = pixels(data, Decode(3)).shape
    else:
        _, height, width, _, _ = clean(data, Shrink(512) if how == "shrink" else None)
except DecodeError:
    height = width = 0
print(width, height, memory("VmHWM:") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is in /proc")
@pytest.mark.parametrize(
    ("given", "size", "most"),
    [
        ((12_000, 9_000), (4_500, 6_000), 350_000),
        ((16_320, 12_240), (6_120, 8_160), 550_000),
        ((21_000, 12_000), (6_000, 10_500), 700_000),
        ((30_000, 20_000), (0, 0), 20_000),
    ],
)
def test_a_phones_photograph_takes_bounded_memory(given, size, most):
    data = segment(flat(*given), 0xE1, b"Exif\0\0" + turned(6).tobytes()[6:])
    for how in ("shrink", "clean", "pixels"):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, how], input=data, capture_output=True, check=True
        )
        width, height, kilobytes = map(int, done.stdout.split())
        if how == "shrink" and width:
            assert (min(width, height), width < height) == (512, True)
        else:
            assert (width, height) == size
        assert kilobytes < most


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF"])
def test_a_line_is_no_image(form):
    reader = decode.decode(3)
    for shape in ((1, 101), (101, 1), (3, 301)):
        data = encode(np.zeros(shape, np.uint8), form)
        said = f"^{shape[1]}x{shape[0]} pixels, over 100 times as long as wide; crop it"
        with Image.open(io.BytesIO(data)) as image:
            for read in (
                lambda data=data: clean(data),
                lambda data=data: clean(data, Shrink(256)),
                lambda data=data: pixels(data, reader),
                lambda image=image: pixels_of(image, reader),
                lambda shape=shape: pixels_of(np.zeros(shape, np.uint8), reader),
            ):
                with pytest.raises(decode.DecodeError, match=said):
                    read()
    for shape in ((1, 100), (100, 1), (1, 1)):
        data = encode(np.zeros(shape, np.uint8), form)
        assert pixels(data, reader).shape == (*shape, 3)


def hashes(*files):
    with quiet():
        return {clean(data).pixels for data in files}


def test_the_same_pixels_have_one_hash_whatever_the_file():
    tall = photographs()[0][:300, :200]  # Of several bands.
    jpeg = encode(tall, "JPEG")
    seen = pillow(jpeg)
    assert len(hashes(
        jpeg,
        segment(jpeg, 0xFE, b"a comment"),
        encode(tall, "JPEG", exif=turned(1)),
        encode(seen, compress_level=1),
        encode(seen, compress_level=9),
        encode(seen, "BMP"),
        encode(seen, "WEBP", lossless=True),
        encode(seen, mode="RGBA"),
        encode(np.rot90(seen), exif=turned(6)),
    )) == 1  # fmt: skip
    grey = encode(tall, "JPEG", "L")
    values = pillow(grey, "L")
    as_rgb = np.stack([values] * 3, -1)
    assert len(hashes(grey, encode(values), encode(as_rgb), encode(values, "GIF"))) == 1


def test_other_pixels_have_other_hashes():
    files = [encode(NOISE.reshape(shape)) for shape in ((24, 36, 3), (36, 24, 3))]
    flat_ones = [encode(np.zeros(shape, np.uint8)) for shape in ((2, 6), (3, 4), (6, 2))]
    for place in ((0, 0, 0), (299, 199, 2), (256, 0, 1)):
        changed = photographs()[0][:300, :200].copy()
        changed[place] ^= 1
        files.append(encode(changed))
    files.append(encode(photographs()[0][:300, :200]))
    files += [encode(NOISE[::-1]), encode(NOISE[:, :, ::-1]), *flat_ones]
    assert len(hashes(*files)) == len(files)
