"""Augmentations give one of the possible results, whoever else is in the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats

from jaxcls import pipeline
from jaxcls.augment import AUGMENTATIONS, MIXES, NORMALIZATIONS, chain, row_keys
from jaxcls.errors import InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(1, 256, (32, 5, 6, 3)).astype(np.uint8)
KEY = jax.random.key(7)


def augmented(text, images=IMAGES, key=KEY):
    apply = chain(pipeline.build(text, AUGMENTATIONS, "augment"))
    return np.asarray(apply(row_keys(key, len(images)), jnp.asarray(images)))


def test_flip_gives_the_image_or_its_mirror_about_equally_often():
    images = np.repeat(IMAGES[:1], 400, axis=0)
    got = augmented("flip", images)
    mirrored = (got == images[:, :, ::-1]).all((1, 2, 3))
    as_it_was = (got == images).all((1, 2, 3))
    assert (mirrored ^ as_it_was).all()
    assert stats.binomtest(int(mirrored.sum()), 400).pvalue > 0.001


@pytest.mark.parametrize(("probability", "step"), [(0, 1), (1, -1), (1.0, -1)])
def test_flip_with_probability_0_or_1_is_certain(probability, step):
    got = augmented(f"flip({probability})")
    np.testing.assert_array_equal(got, IMAGES[:, :, ::step])


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_random_crop_gives_each_possible_crop_and_no_other(mode):
    image = IMAGES[0]
    wide = np.pad(
        image,
        ((2, 2), (2, 2), (0, 0)),
        mode="constant" if mode == "zero" else "reflect",
    )
    crops = {wide[y : y + 5, x : x + 6].tobytes() for y in range(5) for x in range(5)}
    got = augmented(f"random_crop(2, mode={mode!r})", np.repeat(image[None], 500, axis=0))
    assert got.dtype == np.uint8
    assert len(crops) == 25
    assert {crop.tobytes() for crop in got} == crops


def test_random_crop_without_padding_is_the_image():
    np.testing.assert_array_equal(augmented("random_crop(0)"), IMAGES)


def test_no_augmentation_is_the_image():
    np.testing.assert_array_equal(augmented(""), IMAGES)


ALL = "random_crop(2) | flip | random_crop(1, mode='reflect')"


def test_another_key_augments_otherwise_and_the_same_key_the_same():
    np.testing.assert_array_equal(augmented(ALL), augmented(ALL))
    assert (augmented(ALL) != augmented(ALL, key=jax.random.key(8))).any()


def test_a_row_is_augmented_the_same_beside_other_rows_and_in_a_shorter_batch():
    whole = augmented(ALL)
    np.testing.assert_array_equal(augmented(ALL, IMAGES[:9]), whole[:9])
    others = IMAGES.copy()
    others[np.arange(32) != 5] = RNG.integers(0, 256, (31, 5, 6, 3))
    np.testing.assert_array_equal(augmented(ALL, others)[5], whole[5])


def test_equal_steps_of_a_pipeline_draw_independently():
    images = np.repeat(IMAGES[:1], 64, axis=0)
    twice = augmented("flip | flip", images)
    mirrored = (twice != images).any((1, 2, 3))
    assert 0 < mirrored.sum() < 64


def on_devices(count):
    """IMAGES augmented under jit, their rows split among `count` devices."""
    mesh = Mesh(np.array(jax.devices()[:count]), ("batch",))
    whole, rows = (NamedSharding(mesh, PartitionSpec(*a)) for a in ((), ("batch",)))
    apply = chain(pipeline.build(ALL, AUGMENTATIONS, "augment"))
    jitted = jax.jit(
        lambda key, images: apply(row_keys(key, len(images)), images),
        in_shardings=(whole, rows),
        out_shardings=rows,
    )
    return jitted(jax.device_put(KEY, whole), IMAGES)


def test_rows_split_over_8_devices_are_augmented_as_on_1():
    one, eight = on_devices(1), on_devices(8)
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_array_equal(one, eight)
    np.testing.assert_array_equal(one, augmented(ALL))


def test_mixup_is_a_convex_mixture_with_the_reversed_batch():
    images = RNG.standard_normal((5, 2, 2, 1)).astype(np.float32)
    targets = np.eye(5, dtype=np.float32)
    mixed, mixed_targets = MIXES["mixup"](0.4)(KEY, jnp.asarray(images), targets)
    weight = float(mixed_targets[0, 0])
    assert 0 < weight < 1
    for row, partner in enumerate([4, 3, 2, 1, 0]):
        expected = weight * images[row] + (1 - weight) * images[partner]
        np.testing.assert_allclose(mixed[row], expected, rtol=1e-5, atol=1e-6)
        expected = weight * targets[row] + (1 - weight) * targets[partner]
        np.testing.assert_allclose(mixed_targets[row], expected, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_weight_of_mixup_is_beta_distributed(alpha):
    mix, targets = MIXES["mixup"](alpha), jnp.eye(2)
    keys = jax.random.split(KEY, 1000)
    mixed = jax.vmap(lambda key: mix(key, jnp.zeros((2, 1, 1, 1)), targets)[1])(keys)
    weights = np.asarray(mixed[:, 0, 0])
    assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).pvalue > 0.001


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("unit", 0, 1),
        ("symmetric", 0.5, 0.5),
        ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("cifar10", [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        ("mean_std((0.1, 0.2, 0.3), (1, 2, 3))", [0.1, 0.2, 0.3], [1, 2, 3]),
    ],
)
def test_a_normalization_is_its_mean_and_deviation_of_0_to_1(text, mean, std):
    normalize = pipeline.build_one(text, NORMALIZATIONS, "normalize")
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


@pytest.mark.parametrize(
    ("text", "table", "said"),
    [
        ("flip(1.5)", AUGMENTATIONS, "probability=1.5 must be from 0 to 1, such as 0.5"),
        ("random_crop(-1)", AUGMENTATIONS, "padding=-1, mode='zero': at least 0; zero or"),
        (
            "random_crop(1, 'wrap')",
            AUGMENTATIONS,
            "mode='wrap': at least 0; zero or reflect",
        ),
        ("mixup(0)", MIXES, "alpha=0 must be above 0"),
        ("mean_std((0, 0), (1,))", NORMALIZATIONS, "std=(1,) must be as long, std above 0"),
        ("mean_std((0,), (0,))", NORMALIZATIONS, "std=(0,) must be as long, std above 0"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_rule(text, table, said):
    with pytest.raises(InputError) as caught:
        pipeline.build(text, table, "augment")
    assert said in str(caught.value)
