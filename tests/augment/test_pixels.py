"""Operations on pixels give what Pillow gives, or the formula where Pillow has none."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from jaxcls.augment import colors, geometry, layer, levels
from jaxcls.errors import InputError
from tests.pillow import photographs, pillow

AMOUNTS = {
    "identity": [0],
    "shear_x": [-0.99, -0.3, 0.1, 0.27],
    "shear_y": [-0.3, 0.1, 0.99],
    "translate_x": [-150, -7, 0.4, 12.25, 30],
    "translate_y": [-150, -7, 0.4, 12.25, 30],
    "rotate": [-135, -30, -10, 0, 0.5, 45, 90, 180],
    "brightness": [0, 0.1, 0.7, 1, 1.3, 1.9, 20],
    "contrast": [0, 0.1, 0.7, 1, 1.3, 1.9, 20],
    "posterize": [0, 1, 4, 7, 8],
    "solarize": [0, 77.5, 128, 256],
    "solarize_add": [0, 37, 110],
    "autocontrast": [0],
    "equalize": [0],
    "invert": [0],
    "color": [0, 0.1, 0.7, 1, 1.3, 1.9, 20],
    "sharpness": [0, 0.1, 0.7, 1, 1.3, 1.9, 20],
}
GEOMETRY = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
EXACT = ("identity", "posterize", "solarize", "solarize_add", "equalize", "invert")
FILL = 99
CASES = [(name, amount) for name, amounts in AMOUNTS.items() for amount in amounts]
apply = jax.jit(layer.apply, static_argnames=("among", "legacy_contrast", "interpolation"))


def drawn(cases, place=(0.5, 0.5)):
    names, amounts = zip(*cases, strict=True)
    return layer.Drawn(
        jnp.array([layer.NUMBERS[name] for name in names], jnp.int32),
        jnp.array(amounts, jnp.float32),
        jnp.broadcast_to(jnp.array([place]), (len(cases), 2)),
    )


def operated(image, cases=CASES, **options):
    """One image after each case, all in one batch."""
    fill = jnp.full((image.shape[-1],), FILL, jnp.uint8)
    images = np.repeat(image[None], len(cases), axis=0)
    among = tuple(layer.OPERATIONS)
    return np.asarray(apply(images, drawn(cases), among, fill=fill, **options))


def assert_pillow(image, same_pixels=0.998):
    for (name, amount), got in zip(CASES, operated(image), strict=True):
        expected = pillow(name, image, amount, FILL)
        if name in GEOMETRY:
            same = (got == expected).all(-1).mean()
            assert same >= same_pixels, (name, amount, same)
        else:
            apart = np.abs(got.astype(int) - expected).max()
            assert apart <= (name not in EXACT), (name, amount, apart)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("number", [0, 1])
def test_photographs_are_as_pillow_makes_them(number, channels):
    assert_pillow(photographs(97, 120, channels=channels)[number])


@pytest.mark.parametrize("channels", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_bicubic_geometry_is_within_a_level_of_pillows(channels):
    image = photographs(97, 120, channels=channels)[0]
    cases = [case for case in CASES if case[0] in GEOMETRY]
    # A right angle puts pixels on the border itself, which may fall to either side.
    cases = [(n, a + 1 if n == "rotate" and a and a % 45 == 0 else a) for n, a in cases]
    for (name, amount), got in zip(
        cases, operated(image, cases, interpolation="bicubic"), strict=True
    ):
        expected = pillow(name, image, amount, FILL, Image.Resampling.BICUBIC)
        apart = np.abs(got.astype(int) - expected)
        assert apart.max() <= 1, (name, amount, apart.max())
        assert (apart > 0).mean() < 0.01, (name, amount)


def edges(height, width, channels):
    shape = (height, width, channels)
    yield np.zeros(shape, np.uint8)
    yield np.full(shape, 255, np.uint8)
    yield np.full(shape, [200, 31, 94][:channels], np.uint8)
    yield (np.arange(height * width * channels) % 7 * 40).astype(np.uint8).reshape(shape)


MORE_SIZES = [(17, 20, 3), (17, 20, 1), (9, 1, 3), (2, 2, 1), (1, 1, 1)]
SIZES = [(1, 1, 3), (1, 9, 1)]
SIZES += [pytest.param(size, marks=pytest.mark.slow) for size in MORE_SIZES]


@pytest.mark.parametrize("size", SIZES)
def test_edge_images_are_as_pillow_makes_them(size):
    for image in edges(*size):
        # One pixel of so few that lies on a border may fall to either side.
        assert_pillow(image, same_pixels=0.998 if min(size) > 2 else 0.75)


def test_identity_and_factors_of_1_change_nothing():
    image = photographs(40, 30)[0]
    cases = [(n, 1) for n in ("brightness", "contrast", "color", "sharpness")]
    cases += [("rotate", 0), ("shear_x", 0), ("translate_y", 0), ("posterize", 8)]
    cases += [("solarize", 256), ("identity", 5)]
    np.testing.assert_array_equal(operated(image, cases), [image] * len(cases))


def test_each_row_has_its_own_operation_on_its_own_image():
    images = photographs(97, 120, count=len(CASES))
    fill = jnp.full((3,), FILL, jnp.uint8)
    among = tuple(layer.OPERATIONS)
    together = np.asarray(apply(images, drawn(CASES), among, fill=fill))
    order = np.random.default_rng(0).permutation(len(CASES))
    shuffled = jax.tree.map(lambda leaf: leaf[order], drawn(CASES))
    other = np.asarray(apply(images[order], shuffled, among, fill=fill))
    np.testing.assert_array_equal(other, together[order])


@pytest.mark.parametrize(
    "case", [("equalize", 0), ("rotate", 33), ("shear_x", 0.3), ("translate_y", -9)]
)
@pytest.mark.parametrize("count", [0, 1, 7, 24])
def test_any_number_of_rows_may_draw_a_costly_operation(case, count):
    images = photographs(20, 23, count=24)
    order = np.random.default_rng(1).permutation(24)
    cases = [("brightness", 0.7)] * 24
    for row in order[:count]:
        cases[row] = case
    fill = jnp.full((3,), FILL, jnp.uint8)
    got = apply(images, drawn(cases), tuple(layer.OPERATIONS), fill=fill)
    for image, (name, amount), found in zip(images, cases, np.asarray(got), strict=True):
        apart = (found != pillow(name, image, amount, FILL)).any(-1).mean()
        assert apart <= 0.005, name


@pytest.mark.parametrize("name", ["rotate", "color", "sharpness", "equalize", "solarize"])
def test_only_steps_that_may_be_needed_are_there_and_give_the_same(name):
    image = photographs(97, 120)[0]
    got = operated(image)
    for case, whole in zip(CASES, got, strict=True):
        if case[0] == name:
            fill = jnp.full((3,), FILL, jnp.uint8)
            alone = apply(image[None], drawn([case]), (name,), fill=fill)
            np.testing.assert_array_equal(alone[0], whole, err_msg=str(case))


def test_contrast_as_many_trainers_have_it_is_about_the_number_of_pixels():
    image = photographs(64, 100)[0]
    (got,) = operated(image, [("contrast", 1.9)], legacy_contrast=True)
    expected = np.clip(25 + 1.9 * (image.astype(float) - 25), 0, 255)
    assert np.abs(got - np.floor(expected)).max() <= 1
    assert np.abs(got.astype(int) - pillow("contrast", image, 1.9)).max() > 20


@pytest.mark.parametrize("place", [(0.5, 0.5), (0.0, 0.99), (0.3, 0.0)])
def test_cutout_fills_the_part_of_a_square_that_lies_inside(place):
    image = photographs(20, 30)[0]
    fill = jnp.array([1, 2, 3], jnp.uint8)
    case = drawn([("cutout", 6)], place)
    got = layer.apply(image[None], case, ("cutout",), fill=fill)[0]
    y, x = int(place[0] * 20), int(place[1] * 30)
    expected = image.copy()
    expected[max(0, y - 6) : y + 6, max(0, x - 6) : x + 6] = (1, 2, 3)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (70, 131)])
def test_a_histogram_counts_every_pixel_of_each_channel(size):
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (3, *size, 3)).astype(np.uint8)
    images[2] = 0
    expected = [
        [np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)]
        for image in images
    ]
    np.testing.assert_array_equal(levels.histogram(images), expected)


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (70, 131)])
def test_a_table_gives_every_level_of_each_channel_its_entry(size):
    rng = np.random.default_rng(4)
    images = rng.integers(0, 256, (3, *size, 3)).astype(np.uint8)
    tables = rng.integers(0, 256, (3, 3, 256))
    expected = np.stack(
        [[tables[i, c][images[i, ..., c]] for c in range(3)] for i in range(3)]
    )
    got = levels.look_up(images, jnp.asarray(tables, jnp.int32))
    np.testing.assert_array_equal(got, expected.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("turns", [-0.5, -0.13, 0.0, 0.01, 0.3, 0.5])
def test_hue_is_turned_on_the_circle_of_hsv(turns):
    image = photographs(12, 17)[0]
    image[0, :5] = [[0, 0, 0], [255] * 3, [255, 0, 0], [90, 90, 90], [0, 7, 255]]
    got = np.asarray(colors.hue(image[None], jnp.array([turns])))[0]

    def turned(pixel):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        return colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)

    expected = 255 * np.apply_along_axis(turned, -1, image.astype(float))
    assert np.abs(got - expected).max() <= 0.501
    if turns == 0:
        np.testing.assert_array_equal(got, image)


@pytest.mark.parametrize("size", [(40, 33), (1, 12)])
def test_blur_is_a_gaussian_that_repeats_the_border(size):
    sigmas = [0.0, 0.1, 0.5, 1.3, 2.0]
    image = photographs(*size)[0]
    images = np.repeat(image[None], len(sigmas), axis=0)
    blur = jax.jit(colors.blur, static_argnames="radius")
    got = np.asarray(blur(images, jnp.array(sigmas), radius=colors.reach(2.0)))
    for sigma, blurred in zip(sigmas, got, strict=True):
        expected = ndimage.gaussian_filter(
            image.astype(float), (sigma, sigma, 0), mode="nearest", radius=8
        )
        assert np.abs(blurred - expected).max() <= 0.51, sigma
    np.testing.assert_array_equal(got[0], image)


@pytest.mark.parametrize("operation", ["hue", "saturation"])
def test_one_channel_has_no_colours_to_change(operation):
    images = photographs(8, 9, channels=1)
    got = getattr(colors, operation)(images, jnp.array([0.0, 0.4]))
    np.testing.assert_array_equal(got, images)


def test_shear_about_the_middle_leaves_the_middle():
    image = np.zeros((1, 21, 31, 1), np.uint8)
    image[0, 10] = 200
    image[0, :, 15] = 100
    matrix = geometry.shear(jnp.array([0.4]), jnp.array([0.0]), (10.5, 15.5))
    got = np.asarray(geometry.affine(image, matrix, jnp.array([0], jnp.uint8)))[0, ..., 0]
    np.testing.assert_array_equal(got[10], image[0, 10, :, 0])
    # A row 10 below reads 4 pixels further right, so its line lies 4 to the left.
    assert [int(np.argmax(got[y])) for y in (0, 10 + 5, 20)] == [19, 13, 11]


def test_other_channels_than_1_or_3_are_refused_where_colour_is_needed():
    with pytest.raises(InputError, match=r"^the images have 4 channels; .* need 1 or 3"):
        colors.saturation(jnp.zeros((1, 2, 2, 4), jnp.uint8), jnp.ones(1))
