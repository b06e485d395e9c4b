"""Corruptions against Pillow, SciPy, colorsys and arithmetic by hand."""

import colorsys
import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from jaxcls.data import batches
from jaxcls.errors import InputError
from jaxcls.evaluation import corruptions
from jaxcls.evaluation.corruptions import CORRUPTIONS

RNG = np.random.default_rng(0)
SHAPES = (8, 8, 1), (32, 32, 3), (224, 200, 3)
GREY = np.full((200, 200, 3), 128, np.uint8)


def photo(shape, seed=0):
    """Something like a photo: large shapes, small ones, and edges."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=shape)
    layers = [ndimage.gaussian_filter(noise, (s, s, 0)) for s in (0, 1, max(shape) / 8)]
    shares = 0.1, 0.4, 1.0
    image = sum(s * each / each.std() for s, each in zip(shares, layers, strict=True))
    image[shape[0] // 2 :, : shape[1] // 3] += 2
    return np.clip(128 + 40 * image, 0, 255).astype(np.uint8)


def corrupted(name, image, strength, seed=0):
    return CORRUPTIONS[name](image, strength, np.random.default_rng(seed))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_strength_is_further_from_the_image(name, shape):
    images = [photo(shape, seed) for seed in range(max(1, 400 // shape[0]))]
    found = [[corrupted(name, x, k, i) for i, x in enumerate(images)] for k in range(1, 6)]
    assert {x.dtype for each in found for x in each} == {np.dtype(np.uint8)}
    squares = np.square(np.array(found, float) - images).mean((1, 2, 3, 4))
    assert squares[0] > 0
    assert squares[-1] > 1.2 * squares[0]
    steps, is_small = np.diff(squares), shape[0] < 85
    # Few pixels become so few in steps that the image may fit better or worse; and of two
    # trails one is longer where nothing is left of them.
    if not (name == "pixelate" and is_small):
        tie = name == "motion_blur" and is_small
        assert steps.min() >= 0 if tie else steps.min() > 0


def test_noise_has_its_deviation():
    def deviation(name, strength):
        return (corrupted(name, GREY, strength).astype(float) / 255).std()

    assert deviation("gaussian_noise", 2) == pytest.approx(0.12, rel=0.01)
    assert deviation("speckle_noise", 1) == pytest.approx(0.15 * 128 / 255, rel=0.01)
    # Poisson's variance is its mean.
    assert deviation("shot_noise", 1) == pytest.approx(np.sqrt(128 / 255 / 60), rel=0.01)
    found = corrupted("impulse_noise", GREY, 3)
    assert (found == 0).mean() == pytest.approx(0.045, rel=0.03)
    assert (found == 255).mean() == pytest.approx(0.045, rel=0.03)
    assert np.isin(found, (0, 128, 255)).all()


@pytest.mark.parametrize(("side", "strength", "sigma"), [(84, 5, 0.1), (85, 1, 0.08)])
def test_small_images_have_the_amounts_of_32_pixels(side, strength, sigma):
    found = corrupted("gaussian_noise", np.full((side, 300, 1), 128, np.uint8), strength)
    assert (found / 255).std() == pytest.approx(sigma, rel=0.02)


@pytest.mark.parametrize(("shape", "sigma"), [((8, 8, 1), 1.0), ((120, 90, 3), 6)])
def test_a_gaussian_blur_is_scipys(shape, sigma):
    image = photo(shape)
    expected = ndimage.gaussian_filter(
        image.astype(float), (sigma, sigma, 0), mode="nearest", truncate=4
    )
    found = corrupted("gaussian_blur", image, 5)
    assert np.abs(found - expected).max() < 0.6


def test_defocus_is_the_mean_over_a_disk():
    image = np.zeros((101, 101, 1), np.float32)
    image[50, 50] = 1
    found = corruptions.defocus_blur(image, (10, 0.5), RNG)
    distance = np.hypot(*np.mgrid[-50:51, -50:51])
    assert found.sum() == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(found[distance < 7], 1 / (distance <= 10).sum(), rtol=1e-4)
    assert found[distance > 13].max() < 1e-6


def test_motion_is_a_trail_of_one_direction_and_of_weight_1():
    image = np.zeros((101, 101, 1), np.float32)
    image[50, 50] = 1
    slopes, first = [], 1 / np.exp(-(np.arange(31) ** 2) / 128).sum()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found = corruptions.motion_blur(image, (15, 8), rng).reshape(101, 101)
        assert (found.sum(), found[50, 50]) == pytest.approx((1, first), rel=1e-4)
        rows, columns = np.nonzero(found > 1e-6) - np.array([[50], [50]])
        assert columns.max() == 0 or columns.min() == 0  # To one side only.
        far = np.abs(columns).argmax()
        slopes.append(rows[far] / columns[far])
    assert -1.1 < min(slopes) < -0.5
    assert 0.5 < max(slopes) < 1.1


def test_a_zoom_leaves_the_middle_and_moves_the_edge():
    ramp = np.tile(np.linspace(0, 1, 33, dtype=np.float32), (33, 1))[..., None]
    found = corruptions.zoom_blur(ramp, (1.2, 0.1), RNG).reshape(33, 33)
    # On a ramp about its middle a zoom by z divides by z what differs from the middle.
    share = (1 + 1 + 1 / 1.1 + 1 / 1.2) / 4
    expected = 0.5 + (ramp[..., 0] - 0.5) * share
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_brightness_is_hsvs_value():
    image = np.array([[[0, 0, 0], [255, 128, 0]], [[10, 60, 35], [90, 90, 90]]], np.uint8)
    found = corrupted("brightness", image, 5)
    for pixel, after in zip(image.reshape(4, 3), found.reshape(4, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
        expected = np.array(colorsys.hsv_to_rgb(h, s, min(v + 0.3, 1))) * 255
        np.testing.assert_allclose(after, expected, atol=0.6)


def test_contrast_is_a_share_of_what_differs_from_the_mean():
    image = np.array([[[0, 10], [100, 30]], [[200, 50], [100, 70]]], np.uint8)
    # Means 100 and 40; strength 5 leaves 0.15, which is 0, 15 and 4.5, 1.5 levels.
    expected = [[[85, 36], [100, 38]], [[115, 42], [100, 44]]]
    found = corrupted("contrast", image, 5)
    np.testing.assert_allclose(found, expected, atol=0.51)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_jpeg_and_pixels_are_pillows(shape):
    image = photo(shape)
    picture = Image.fromarray(image[..., 0] if shape[2] == 1 else image)
    is_large = min(shape[:2]) > 85
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=10 if is_large else 50)
    expected = np.asarray(Image.open(file)).reshape(shape)
    np.testing.assert_array_equal(corrupted("jpeg_compression", image, 4), expected)
    share = 0.25 if is_large else 0.65
    size = int(shape[1] * share), int(shape[0] * share)
    for each in (size, picture.size):
        picture = picture.resize(each, Image.Resampling.BOX)
    expected = np.asarray(picture).reshape(shape)
    np.testing.assert_array_equal(corrupted("pixelate", image, 5), expected)


def test_an_example_is_corrupted_by_its_own_numbers_alone():
    image = photo((32, 32, 3))

    def noise(name, example):
        op = corruptions.at_every_strength(name, CORRUPTIONS[name])
        return op(image, batches.example_rng(0, example)).astype(int) - image

    first = noise("gaussian_noise", 4)
    assert first.shape == (5, 32, 32, 3)
    np.testing.assert_array_equal(first, noise("gaussian_noise", 4))
    all_ = [*first, *noise("gaussian_noise", 5), noise("speckle_noise", 4)[0]]
    matches = np.corrcoef([each.ravel() for each in all_]) - np.eye(len(all_))
    assert np.abs(matches).max() < 0.1


def test_names_are_one_or_more_or_all():
    assert corruptions.named("all", "k") == dict(CORRUPTIONS)
    found = corruptions.named("contrast, shot_noise", "k")
    assert [*found.items()] == [(k, CORRUPTIONS[k]) for k in ("contrast", "shot_noise")]
    assert corruptions.named("", "k") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("contrasts", r"unknown --corruptions 'contrasts' \(did you mean 'contrast'\?\)"),
        ("contrast, contrast", r"must name each once; try --corruptions=all"),
        ("all, contrast", r"must name each once; try --corruptions=all"),
    ],
)
def test_unknown_names_are_refused(text, said):
    with pytest.raises(InputError, match=said):
        corruptions.named(text, "--corruptions")
