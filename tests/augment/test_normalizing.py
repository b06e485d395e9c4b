"""Normalisations against their definitions in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.augment import NORMALIZATIONS
from jaxcls.config import calls
from jaxcls.errors import InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(1, 256, (8, 5, 6, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("unit", 0, 1),
        ("symmetric", 0.5, 0.5),
        ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("cifar10", [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        ("cifar100", [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
        ("mean_std((0.1, 0.2, 0.3), (1, 2, 3))", [0.1, 0.2, 0.3], [1, 2, 3]),
    ],
)
def test_a_normalization_is_its_mean_and_deviation_of_0_to_1(text, mean, std):
    normalize = calls.build_one(text, NORMALIZATIONS, "normalize")
    images = IMAGES.copy()
    images[0], images[1] = 0, 255
    got = normalize(jnp.asarray(images))
    assert got.dtype == jnp.float32
    expected = (images / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_one_mean_serves_any_number_of_channels():
    normalize = NORMALIZATIONS["unit"]()
    assert normalize(jnp.full((2, 3, 3, 1), 51, jnp.uint8))[0, 0, 0, 0] == pytest.approx(
        0.2
    )


def test_other_channels_than_the_normalization_has_are_refused():
    normalize = NORMALIZATIONS["imagenet"]()
    with pytest.raises(InputError) as caught:
        normalize(jnp.zeros((2, 4, 4, 1), jnp.uint8))
    assert str(caught.value) == (
        "normalize has 3 channels and the images have 1; try 'unit', or decode(3)"
    )


def per_image(images):
    return np.asarray(NORMALIZATIONS["per_image"]()(jnp.asarray(images)))


def test_per_image_leaves_each_image_mean_0_and_deviation_1():
    images = np.stack([IMAGES[0], IMAGES[1] // 8, 255 - IMAGES[2] // 64])
    got = per_image(images)
    assert got.dtype == np.float32
    for ours, image in zip(got, images.astype(np.float64), strict=True):
        # tf.image.per_image_standardization's documentation; 90 levels an image.
        expected = (image - image.mean()) / max(image.std(ddof=0), 1 / np.sqrt(90))
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose([ours.mean(), ours.std()], [0, 1], atol=1e-5)


@pytest.mark.parametrize("level", [0, 7, 255])
def test_per_image_makes_an_image_of_one_colour_0(level):
    got = per_image(np.full((2, 7, 9, 3), level, np.uint8))
    np.testing.assert_allclose(got, 0.0, atol=1e-6)


def test_per_image_divides_a_nearly_even_image_by_no_less_than_its_size_allows():
    image = np.full((1, 30, 40, 1), 9, np.uint8)
    image[0, 3, 4, 0] = 10  # A deviation of sqrt(1199) / 1200, just below 1 / sqrt(1200).
    got = per_image(image)
    expected = (image - image.mean()) * np.sqrt(1200)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
