"""Encoded images -> pixels, against Pillow, NumPy and arithmetic."""

import struct

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps
from scipy import stats

from jaxcls.data import batches, decode
from jaxcls.errors import InputError
from tests.images import NOISE, encode, far


def decoded(data, channels=3):
    return decode.decode(channels)(data, None)


def opencv(data, channels=3):
    mode = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    return pixels.reshape(*pixels.shape[:2], channels)


JPEGS = {
    **{
        kind: simplejpeg.encode_jpeg(NOISE, 90, "RGB", kind)
        for kind in ("444", "422", "420", "440", "411", "Gray")
    },
    "grey": encode(NOISE[:, :, 0], "JPEG"),
    "progressive": encode(NOISE, "JPEG", progressive=True),
    "restarts": encode(NOISE, "JPEG", restart_marker_blocks=1),
    "comment": encode(NOISE, "JPEG", comment=b"\xff\xc0" * 100, exif=Image.Exif()),
    "damaged": encode(NOISE, "JPEG")[:-200] + b"\xff\xd3" * 20 + b"\xff\xd9",
    "followed": encode(NOISE, "JPEG") + bytes(20),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", JPEGS)
def test_every_kind_of_jpeg_decodes_to_opencvs_pixels(kind, channels):
    assert far(decoded(JPEGS[kind], channels), opencv(JPEGS[kind], channels)) == 0


def test_cmyk_and_twelve_bits_are_left_to_opencv():
    cmyk = encode(Image.new("CMYK", (9, 7), (255, 0, 0, 0)), "JPEG")
    assert far(decoded(cmyk), opencv(cmyk)) == 0
    twelve = JPEGS["444"].replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc1\x00\x11\x0c")
    with pytest.raises(decode.DecodeError):
        decoded(twelve)


@pytest.mark.parametrize("lacks", [1, 2, 20, 300])
def test_a_jpeg_without_its_end_is_refused(lacks):
    data = encode(NOISE, "JPEG")[:-lacks]
    ops = [decode.decode(), decode.random_resized_crop(8, (0.1, 0.1))]
    for each in (ops, decode.fuse(ops)):
        with pytest.raises(decode.DecodeError, match=f"^{len(data)} bytes that are no"):
            batches.transform(each, data, batches.example_rng(0, 0))


def test_a_header_of_too_many_pixels_takes_no_memory():
    size, huge = struct.pack(">HH", 24, 36), struct.pack(">HH", 65_000, 65_000)
    with pytest.raises(decode.DecodeError, match="no complete JPEG"):
        decoded(JPEGS["444"].replace(b"\x08" + size, b"\x08" + huge))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [*JPEGS, "PNG"])
def test_a_crop_while_decoding_gives_the_pixels_of_a_crop_after_it(kind, channels, capfd):
    data = encode(NOISE, "PNG") if kind == "PNG" else JPEGS[kind]
    ops = [decode.decode(channels), decode.random_resized_crop((5, 7), (0.05, 1))]
    fused = decode.fuse(ops)
    assert len(fused) == 1
    for position in range(200):
        whole = batches.transform(ops, data, batches.example_rng(0, position))
        part = batches.transform(fused, data, batches.example_rng(0, position))
        assert far(whole, part) == 0
    assert kind == "damaged" or capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["444", "422", "420", "440", "411", "restarts"])
def test_decoding_stops_below_the_rows_that_are_wanted(kind):
    read, whole = decode.Decode(3), decoded(JPEGS[kind])
    frame = decode.frame_of(JPEGS[kind])
    for stop in range(1, 25):
        rows = read.rows(JPEGS[kind], frame, stop)
        assert len(rows) == min(24, stop + decode.CONTEXT)
        assert far(rows[:stop], whole[:stop]) == 0


def test_colour_becomes_grey_by_the_usual_weights():
    exact = NOISE @ [0.299, 0.587, 0.114]
    assert np.abs(decoded(encode(NOISE, "PNG"), 1)[:, :, 0] - exact).max() <= 1.1


def test_decode_ignores_the_exif_rotation():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert far(decoded(encode(NOISE, "PNG", exif=exif)), NOISE) == 0


@pytest.mark.parametrize("data", [b"", b"a line of text", b"\xff\xd8\xff\xe0"])
def test_bytes_that_are_no_image_are_refused(data):
    with pytest.raises(decode.DecodeError, match=f"^{len(data)} bytes that are no"):
        decoded(data)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(12, 9), (17, 50)])
@pytest.mark.parametrize("name", list(decode.FILTERS))
def test_a_filter_is_that_of_pillow_or_opencv(name, size, channels):
    image = NOISE[:, :, :channels]
    planes = [np.ascontiguousarray(image[:, :, k]) for k in range(channels)]
    if name in ("bilinear", "bicubic"):
        how = Image.Resampling[name.upper()]
        expected = [Image.fromarray(plane).resize(size[::-1], how) for plane in planes]
    else:
        how = getattr(cv2, f"INTER_{name.upper()}")
        expected = [cv2.resize(plane, size[::-1], interpolation=how) for plane in planes]
    assert far(decode.resize(size, name)(image, None), np.stack(expected, -1)) == 0
    assert decode.resize(image.shape[:2], name)(image, None) is image


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((500, 375), (341, 256)),
        ((375, 500), (256, 341)),
        ((100, 100), (256, 256)),
        ((333, 500), (256, 384)),
        ((1, 1000), (256, 256_000)),
    ],
)
def test_resize_short_keeps_the_proportions(shape, expected):
    out = decode.resize_short(256)(np.zeros((*shape, 1), np.uint8), None)
    assert out.shape == (*expected, 1)


@pytest.mark.slow
def test_resize_short_rounds_the_longer_side_or_truncates_it_as_torchvision(torchvision):
    theirs = torchvision.transforms.functional._compute_resized_output_size
    for height, width in np.random.default_rng(0).integers(1, 900, (300, 2)).tolist():
        image = np.zeros((height, width, 1), np.uint8)
        if max(height, width) > 20 * min(height, width):
            continue
        out = decode.resize_short(97, rounding="truncate")(image, None)
        assert list(out.shape[:2]) == theirs((height, width), [97]), (height, width)
    image = np.zeros((375, 500, 1), np.uint8)  # 341.33 at 256, 330.67 at 248.
    for size, rounded, truncated in ((256, 341, 341), (248, 331, 330)):
        op = decode.resize_short
        assert op(size)(image, None).shape[1] == rounded
        assert op(size, rounding="truncate")(image, None).shape[1] == truncated


@pytest.mark.parametrize("fill", [0, 77, (124, 116, 104)])
@pytest.mark.parametrize("shape", [(9, 12), (9, 40), (50, 8), (7, 50), (31, 31), (20, 10)])
@pytest.mark.parametrize("size", [(24, 24), (17, 30), (10, 5)])
def test_letterbox_is_pillows_pad(shape, size, fill):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    colour = (fill,) * 3 if isinstance(fill, int) else fill
    expected = ImageOps.pad(
        Image.fromarray(image), size[::-1], Image.Resampling.BICUBIC, colour
    )
    out = decode.letterbox(size, fill, "bicubic")(image, None)
    np.testing.assert_array_equal(out, np.asarray(expected))
    inside = decode.resize_long(size, "bicubic")(image, None)
    np.testing.assert_array_equal(decode.pad(size, fill)(inside, None), out)


def test_of_a_line_a_row_is_left():
    out = decode.letterbox(24, 9)(np.full((1, 300, 3), 200, np.uint8), None)
    assert out[:, 0, 0].tolist() == [9] * 12 + [200] + [9] * 11


def test_pad_refuses_what_does_not_fit_and_colours_of_other_images():
    with pytest.raises(decode.DecodeError, match=r"8x5 pixels .* put resize_long\(6\) bef"):
        decode.pad(6)(np.zeros((5, 8, 3), np.uint8), None)
    with pytest.raises(decode.DecodeError, match="has 3 values, and images 1 channel"):
        decode.letterbox(6, (1, 2, 3))(np.zeros((5, 8, 1), np.uint8), None)
    for fill in (-1, 256, 0.5, (1, 2), "black", True):
        with pytest.raises(
            ValueError, match=r"fill=.* must be whole numbers from 0 to 255"
        ):
            decode.pad(6, fill)


def test_center_crop_takes_the_middle_rounding_half_to_even():
    image = np.arange(9 * 12, dtype=np.uint8).reshape(9, 12, 1)
    for size, (top, left) in {(4, 9): (2, 2), (6, 7): (2, 2), (5, 6): (2, 3)}.items():
        expected = image[top : top + size[0], left : left + size[1]]
        assert far(decode.center_crop(size)(image, None), expected) == 0
    assert far(decode.center_crop(5)(image, None), image[2:7, 4:9]) == 0


def test_center_crop_pads_what_is_smaller_with_black():
    out = decode.center_crop(5)(np.full((2, 7, 3), 9, np.uint8), None)
    assert out[:, :, 0].tolist() == [[0] * 5, [9] * 5, [9] * 5, [0] * 5, [0] * 5]


def boxes(shape, n, **options):
    """(top, left, height, width) of n random crops, read off the corners of the output."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.stack([y, x, 0 * x], -1).astype(np.uint8)
    op = decode.random_resized_crop((256, 256), **options)
    for seed in range(n):
        out = op(image, batches.example_rng(0, seed)).astype(int)
        (top, left, _), (bottom, right, _) = out[0, 0], out[-1, -1]
        yield top, left, bottom - top + 1, right - left + 1


def test_random_crops_are_uniform_in_area_log_ratio_and_place():
    side, low, high = 250, 0.1, 0.4
    found = boxes((side, side), 500, area=(low, high), ratio=(0.5, 2))
    top, left, h, w = np.array(list(found)).T
    area, ratio = h * w / side**2, np.log2(w / h)
    samples = {
        "area": (area - low) / (high - low),
        "ratio": (ratio + 1) / 2,
        "top": top / (side - h),
        "left": left / (side - w),
    }
    for name, values in samples.items():
        assert stats.kstest(values, "uniform").pvalue > 0.01, name


def test_crops_by_tensorflows_law_are_uniform_in_ratio_and_height():
    # The heights that fit: of areas 0.05 to 1 of 375x500, for ratios 0.75 to 1.33.
    n, (height, width), low, high = 20_000, (375, 500), 0.75, 1.33
    crop = decode.random_resized_crop(8, (0.05, 1.0), (low, high), law="tf")
    drawn = (crop.box(height, width, batches.example_rng(0, seed)) for seed in range(n))
    top, left, h, w = np.array(list(drawn)).T
    ratios = low + (high - low) * (np.arange(1000) + 0.5) / 1000
    shortest = np.sqrt(0.05 * height * width / ratios)
    tallest = np.minimum(height, width / ratios)
    # A mean over 20 quantiles of each ratio's heights.
    heights = shortest + (tallest - shortest) * (np.arange(20)[:, None] + 0.5) / 20
    expected = (heights**2 * ratios).mean() / (height * width)
    found = h * w / (height * width)
    assert abs(expected - 0.342) < 0.005  # By torchvision's law it is 0.417.
    assert abs(found.mean() - expected) < 4 * found.std() / n**0.5
    ratio = w / h
    assert stats.kstest((ratio - low) / (high - low), "uniform").statistic < 0.02
    shortest = np.sqrt(0.05 * height * width / ratio)
    tallest = np.minimum(height, width / ratio)
    assert stats.kstest((h - shortest) / (tallest - shortest), "uniform").statistic < 0.02
    for start, room in ((top, height - h), (left, width - w)):
        within = room > 20
        places = (start[within] + 0.5) / room[within]
        assert stats.kstest(places, "uniform").statistic < 0.02
        assert ((start < room) | (room == 0)).all()


def test_where_no_crop_of_tensorflows_law_fits_the_whole_image_is_taken():
    crop = decode.random_resized_crop(8, (0.9, 1.0), law="tf")
    boxes = {crop.box(10, 240, batches.example_rng(0, seed)) for seed in range(20)}
    assert boxes == {(0, 0, 10, 240)}
    for shape in ((1, 1), (1, 7), (7, 1), (2, 3)):
        crop = decode.random_resized_crop(8, (0.01, 1.0), law="tf")
        for seed in range(200):
            top, left, h, w = crop.box(*shape, batches.example_rng(0, seed))
            assert 0 <= top <= shape[0] - h < shape[0]
            assert 0 <= left <= shape[1] - w < shape[1]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((10, 240), (0, 113, 10, 13)), ((240, 10), (113, 0, 13, 10))],
)
def test_a_very_long_image_is_cropped_to_its_middle(shape, expected):
    assert set(boxes(shape, 20, area=(0.9, 1.0))) == {expected}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: decode.decode(4), "channels=4 must be 1 or 3"),
        (lambda: decode.resize(0), "size=0 must be a whole number or (height, width)"),
        (lambda: decode.resize(1_000_000), "must be at most 8192 pixels"),
        (lambda: decode.center_crop((1, 2, 3)), "size=(1, 2, 3) must be"),
        (lambda: decode.resize_short((8, 9)), "size=(8, 9) must be one whole number"),
        (lambda: decode.random_resized_crop(8, (0.5, 0.1)), "area=(0.5, 0.1)"),
        (lambda: decode.random_resized_crop(8, ratio=(2, 1)), "ratio=(2, 1)"),
    ],
)
def test_a_bad_argument_is_refused_by_its_value(make, said):
    with pytest.raises(ValueError, match="must be") as refused:
        make()
    assert said in str(refused.value)


def test_an_unknown_filter_is_refused_with_the_list():
    with pytest.raises(InputError, match=r"'lanczos'.* known: area, bicubic, bilinear"):
        decode.resize(8, "lanczos")


def test_an_unknown_law_or_rounding_is_refused_with_the_list():
    with pytest.raises(InputError, match=r"law 'uniform'.* known: tf, torchvision"):
        decode.random_resized_crop(8, law="uniform")
    with pytest.raises(InputError, match=r"rounding 'floor'.* known: round, truncate"):
        decode.resize_short(8, rounding="floor")


def test_sizes_that_no_memory_holds_are_refused():
    stripe = np.zeros((1, 4000, 1), np.uint8)
    with pytest.raises(decode.DecodeError, match=r"4000x1 pixels become 1024000x256, over"):
        decode.resize_short(256)(stripe, None)
