"""Policies draw what their papers say, and each row gets what its own key draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats

from jaxcls.augment import AUGMENTATIONS, Rows, levels, on_each_device, policies, row_keys
from jaxcls.augment.layer import NUMBERS, OPERATIONS
from jaxcls.augment.rows import fold
from jaxcls.augment.spaces import RANDAUGMENT, SUBPOLICIES
from tests.pillow import photographs, pillow
from tests.rows import KEY, augmented, jitted, rows

NAMES = list(OPERATIONS)
MANY = 4000
SIZE = (53, 72)
SIGNED = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
FACTORS = ("brightness", "color", "contrast", "sharpness")


def amounts_of(drawn):
    """{name: the amounts that were drawn for it}."""
    number, amount = np.asarray(drawn.operation), np.asarray(drawn.amount)
    return {NAMES[i]: amount[number == i] for i in np.unique(number)}


def assert_equally_often(counts):
    assert stats.chisquare(counts).pvalue > 0.001, counts


def drawn_randaugment(space, magnitude, keys=None, **options):
    draw = functools.partial(
        policies.draw_randaugment, space=RANDAUGMENT[space], size=SIZE, **options
    )
    keys = row_keys(KEY, MANY) if keys is None else keys
    return jax.jit(draw)(keys, magnitude=jnp.float32(magnitude))


def drawn_trivialaugment(keys):
    draw = functools.partial(policies.draw_trivialaugment, size=SIZE)
    return jax.jit(draw)(keys)


# At magnitude 10; test_parity.py compares the other spaces with torchvision's and timm's.
GOOGLE = {
    **{name: {-0.3, 0.3} for name in ("shear_x", "shear_y")},
    **{name: {-100, 100} for name in ("translate_x", "translate_y")},
    "rotate": {-30, 30},
    **{name: {1.9} for name in FACTORS},
    "posterize": {4},
    "solarize": {256},
    "solarize_add": {110},
    "cutout": {40},
    **{name: {0} for name in ("invert", "autocontrast", "equalize")},
}


@pytest.mark.slow
def test_randaugment_draws_each_operation_of_its_space_equally_often():
    drawn = amounts_of(drawn_randaugment("google", 10))
    assert set(drawn) == set(GOOGLE)
    assert_equally_often([len(amounts) for amounts in drawn.values()])
    for name, amounts in drawn.items():
        values, counts = np.unique(amounts, return_counts=True)
        np.testing.assert_allclose(values, sorted(GOOGLE[name]), rtol=1e-5, err_msg=name)
        assert len(values) == 1 or stats.chisquare(counts).pvalue > 1e-4, name


@pytest.mark.slow
def test_randaugment_with_noise_draws_the_magnitude_of_each_row():
    drawn = amounts_of(drawn_randaugment("timm", 7, noise=0.5))
    magnitudes = np.concatenate(
        [np.abs(drawn["rotate"]) / 3, np.abs(drawn["shear_x"]) / 0.03]
    )
    assert stats.kstest(magnitudes, stats.norm(7, 0.5).cdf).pvalue > 0.001
    strongest = amounts_of(drawn_randaugment("timm", 10, noise=0.5))["rotate"]
    assert np.abs(strongest).max() <= 30.0001
    assert 0.4 < np.isclose(np.abs(strongest), 30).mean() < 0.6


@pytest.mark.slow
def test_a_layer_with_a_probability_leaves_the_other_rows():
    drawn = drawn_randaugment("timm", 7, probability=0.5)
    left = int((np.asarray(drawn.operation) == NUMBERS["identity"]).sum())
    assert stats.binomtest(left, MANY, 0.5).pvalue > 0.001


def test_cutouts_lie_anywhere():
    place = np.asarray(drawn_randaugment("google", 10).place)
    for axis in (0, 1):
        assert stats.kstest(place[:, axis], "uniform").pvalue > 0.001


@pytest.mark.slow
def test_trivialaugment_draws_each_operation_and_each_magnitude_equally_often():
    drawn = amounts_of(drawn_trivialaugment(row_keys(KEY, MANY)))
    assert_equally_often([len(amounts) for amounts in drawn.values()])
    steps = np.round(np.abs(drawn["rotate"]) / 4.5).astype(int)
    np.testing.assert_allclose(np.abs(drawn["rotate"]), steps * 4.5, rtol=1e-5)
    assert_equally_often(np.bincount(steps, minlength=31))
    assert_equally_often(np.unique(drawn["rotate"] > 0, return_counts=True)[1])
    assert set(drawn["posterize"]) == {2, 3, 4, 5, 6, 7, 8}


@pytest.mark.slow
def test_autoaugment_draws_pairs_as_often_as_the_paper_says():
    draw = functools.partial(policies.draw_autoaugment, SUBPOLICIES["imagenet"], size=SIZE)
    first, second = jax.jit(draw)(rows(MANY))
    share = {name: len(amounts) / MANY for name, amounts in amounts_of(first).items()}
    # Summed by hand over the 25 first operations and their probabilities.
    expected = {
        "posterize": (0.4 + 0.6 + 0.8) / 25,
        "solarize": 3 * 0.6 / 25,
        "equalize": (0.8 + 3 * 0.4 + 0.6 + 0.8) / 25,
        "rotate": (0.2 + 0.8 + 0.4 + 0.8) / 25,
        "invert": 2 * 0.6 / 25,
        "color": (0.6 + 0.8 + 0.4 + 0.6) / 25,
        "sharpness": 0.4 / 25,
        "shear_x": 0.6 / 25,
    }
    assert set(share) == {*expected, "identity"}
    for name, probability in expected.items():
        count = round(share[name] * MANY)
        assert stats.binomtest(count, MANY, probability).pvalue > 1e-4, name
    np.testing.assert_allclose(
        np.unique(amounts_of(first)["rotate"]), [-30, -80 / 3, -10, 10, 80 / 3, 30], 1e-5
    )
    after_sharpness = np.asarray(second.operation)[
        np.asarray(first.operation) == NUMBERS["sharpness"]
    ]
    assert {NAMES[i] for i in after_sharpness} == {"invert", "identity"}


@pytest.mark.slow
def test_three_augment_gives_each_of_three_equally_often():
    image = np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype(np.uint8)
    got = augmented("three_augment", np.repeat(image[None], 600, axis=0)).astype(int)
    done = [pillow("color", image, 0), pillow("solarize", image, 128)]
    is_each = [(np.abs(got - each).max((1, 2, 3)) <= 1) for each in done]
    blurred = ~(is_each[0] | is_each[1])
    assert_equally_often([is_each[0].sum(), is_each[1].sum(), blurred.sum()])
    contrast = got[blurred].std((1, 2, 3))
    # From that of the image, with a deviation of 0.1 pixels, to that with 2 pixels.
    assert 0.95 * image.std() < contrast.max() <= image.std()
    assert contrast.min() < 0.3 * image.std()


def by_hand(name, image, amount, place, legacy):
    """Pillow's image, or that of what Pillow does not have."""
    if name == "cutout":
        y, x = (place * image.shape[:2]).astype(int)
        cut, half = image.copy(), int(amount)
        cut[max(0, y - half) : y + half, max(0, x - half) : x + half] = 0
        return cut
    if name == "contrast" and legacy:
        mean = image.shape[0] * image.shape[1] // 256
        return np.floor(np.clip(mean + amount * (image.astype(float) - mean), 0, 255))
    return pillow(name, image, amount)


POLICIES = {
    "randaugment(1, 20)": lambda keys: drawn_randaugment("torchvision", 20, keys),
    "randaugment(1, 9, 'timm', noise=0.5, fill=(0,))": lambda keys: drawn_randaugment(
        "timm", 9, keys, noise=0.5
    ),
    "randaugment(1, 10, 'google', fill=(0,), legacy_contrast=True)": lambda keys: (
        drawn_randaugment("google", 10, keys)
    ),
    "trivialaugment": lambda keys: drawn_trivialaugment(keys),
}


@pytest.mark.slow
@pytest.mark.parametrize("text", POLICIES)
def test_every_row_is_what_pillow_makes_of_what_was_drawn(text):
    images = photographs(*SIZE, count=64)
    layer = fold(rows(64), 0)
    own = fold(layer, 0) if text.startswith("rand") else layer
    operations, amounts, places = map(np.asarray, POLICIES[text](own.key))
    got = augmented(text, images)
    for i in range(64):
        name = NAMES[int(operations[i])]
        expected = by_hand(name, images[i], amounts[i], places[i], "legacy" in text)
        if name in SIGNED:
            assert (got[i] == expected).all(-1).mean() >= 0.998, (name, amounts[i])
        else:
            apart = np.abs(got[i].astype(int) - expected).max()
            assert apart <= 1, (name, amounts[i], apart)


EXACT = ("identity", "equalize", "posterize", "solarize")


@pytest.mark.parametrize(
    ("magnitude", "threshold"), [(9, 230), (10, 0), (15, 128), (20, 0), (30, 0)]
)
def test_a_legacy_threshold_of_solarize_wraps_as_uint8(magnitude, threshold):
    images = photographs(*SIZE, count=8)
    keys = row_keys(KEY, 256)
    drawn = drawn_randaugment("google", magnitude, keys)
    amount = np.asarray(drawn.amount)[np.asarray(drawn.operation) == NUMBERS["solarize"]]
    assert set(amount % 256) == {threshold}  # int(magnitude / 10 * 256), as uint8.
    expected = np.where(images < np.uint8(threshold), images, 255 - images)
    amounts = jnp.full(8, float(amount[0]))
    got = levels.solarize(jnp.asarray(images), amounts, legacy=True)
    np.testing.assert_array_equal(got, expected)
    plain = levels.solarize(jnp.asarray(images), amounts)
    assert (np.asarray(plain) == images).all() == (magnitude >= 10)


@pytest.mark.slow
def test_randaugment_wraps_solarize_where_it_is_told_to():
    images = photographs(*SIZE, count=64)
    new = augmented("randaugment(1, 10, 'google')", images)
    old = augmented("randaugment(1, 10, 'google', legacy_solarize=True)", images)
    drawn = drawn_randaugment("google", 10, fold(fold(rows(64), 0), 0).key)
    solarized = np.asarray(drawn.operation) == NUMBERS["solarize"]
    assert solarized.any()
    np.testing.assert_array_equal(old[solarized], 255 - images[solarized])
    np.testing.assert_array_equal(old[~solarized], new[~solarized])


@pytest.mark.slow
def test_two_layers_are_one_after_the_other_with_draws_of_their_own():
    images = photographs(*SIZE, count=64)
    layers = fold(rows(64), 0)
    one, two = (drawn_randaugment("torchvision", 9, fold(layers, i).key) for i in (0, 1))
    got = augmented("randaugment(2, 9)", images)
    assert (np.asarray(one.operation) != np.asarray(two.operation)).mean() > 0.7
    checked = 0
    for i in range(64):
        name, other = NAMES[int(one.operation[i])], NAMES[int(two.operation[i])]
        if name in EXACT and other in EXACT:
            first = pillow(name, images[i], one.amount[i])
            second = pillow(other, first, two.amount[i])
            np.testing.assert_array_equal(got[i], second, err_msg=f"{name}, {other}")
            checked += 1
    assert checked > 2


@pytest.mark.slow
def test_a_magnitude_grows_with_the_run():
    images = photographs(*SIZE, count=64)
    np.testing.assert_array_equal(
        augmented("randaugment(2, (0, 12))", images, share=0.75),
        augmented("randaugment(2, 9)", images),
    )
    np.testing.assert_array_equal(augmented("rotate((0, 90))", images), images)


ALL = {
    "randaugment": "randaugment(2, 10, 'google')",
    "jitter": "autoaugment('cifar10') | color_jitter(0.4, 0.4, 0.4, 0.1) | three_augment",
    "singles": "rotate | shear | translate | sharpness | equalize | blur | greyscale",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_row_depends_on_no_other_row_and_on_no_device(name):
    images = jnp.asarray(photographs(40, 33, count=16))
    apply = jitted(ALL[name])
    whole = np.asarray(apply(rows(16), images))
    assert whole.dtype == np.uint8
    reverse = rows(16)._replace(key=row_keys(KEY, 16)[::-1])
    np.testing.assert_array_equal(apply(reverse, images[::-1]), whole[::-1])
    mesh = Mesh(np.array(jax.devices()[:8]), ("batch",))
    split, same = (NamedSharding(mesh, PartitionSpec(*a)) for a in (("batch",), ()))
    sharded = Rows(*(jax.device_put(x, split if x.ndim else same) for x in rows(16)))
    arguments = sharded, jax.device_put(images, split)
    apply = jax.jit(on_each_device(apply, split))
    eight = apply(*arguments)
    assert eight.sharding.is_equivalent_to(split, 4)
    np.testing.assert_array_equal(eight, whole)
    text = apply.lower(*arguments).compile().as_text()
    assert not any(word in text for word in ("all-", "collective", "reduce-scatter"))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_entry_gives_images_of_the_shape_that_it_was_given(channels):
    images = jnp.asarray(photographs(9, 13, count=4, channels=channels))
    for name, make in AUGMENTATIONS.items():
        apply = make(2) if name in ("cutout", "random_crop") else make()
        got = jax.eval_shape(apply, rows(4), images)
        assert (got.shape, got.dtype) == (images.shape, np.uint8), name


WITH_PROBABILITY = {
    "greyscale": ("color", 0),
    "solarize": ("solarize", 128),
    "posterize": ("posterize", 4),
    "equalize": ("equalize", 0),
    "autocontrast": ("autocontrast", 0),
    "invert": ("invert", 0),
    "sharpness": ("sharpness", 2),
}


@pytest.mark.parametrize("entry", WITH_PROBABILITY)
def test_an_operation_with_a_probability_is_pillow_s_or_nothing(entry):
    (image,) = photographs(16, 20, count=1)
    got = augmented(f"{entry}(0.3)", np.repeat(image[None], 300, axis=0))
    done = pillow(*WITH_PROBABILITY[entry][:1], image, WITH_PROBABILITY[entry][1])
    left = (got == image).all((1, 2, 3))
    changed = got[~left].astype(int)
    assert stats.binomtest(len(changed), 300, 0.3).pvalue > 0.001
    assert np.abs(changed - done).max() <= 1


@pytest.mark.slow
def test_brightness_and_contrast_factors_are_uniform_about_1():
    flat = np.full((MANY, 1, 2, 1), 100, np.uint8)
    bright = augmented("color_jitter(0.5)", flat)[:, 0, 0, 0]
    assert stats.kstest(bright + 0.5, stats.uniform(50, 100).cdf).pvalue > 0.001
    flat[:, :, 1] = 0
    apart = augmented("color_jitter(contrast=0.5)", flat)[:, 0, :, 0].astype(float)
    factor = (apart[:, 0] - apart[:, 1]) / 100
    assert stats.kstest(factor[factor < 1], stats.uniform(0.5, 0.5).cdf).pvalue > 1e-6
    assert stats.binomtest(int((factor < 1).sum()), MANY).pvalue > 1e-6


@pytest.mark.slow
def test_saturation_and_hue_of_a_jitter_stay_within_their_ranges():
    red = np.zeros((500, 1, 1, 3), np.uint8)
    red[..., 0] = 255
    turned = augmented("color_jitter(hue=0.1)", red)[:, 0, 0].astype(int)
    # A tenth of a turn is 0.6 of the way from red to yellow or to magenta.
    assert (turned[:, 0] == 255).all()
    assert turned[:, 1].max() in (151, 152, 153)
    assert turned[:, 2].max() in (151, 152, 153)
    paler = augmented("color_jitter(saturation=1.0)", red)[:, 0, 0].astype(int)
    assert (paler[:, 1] <= 76).all()  # The grey of red is 76.
    assert paler[:, 1].max() > 70
    assert paler[:, 1].min() == 0


def test_translate_moves_by_whole_pixels_equally_often_each_way():
    image = np.zeros((20, 40, 1), np.uint8)
    image[10, 20] = 255
    got = augmented("translate(0.25)", np.repeat(image[None], 2000, axis=0))[..., 0]
    assert (got.sum((1, 2), dtype=int) == 255).all()
    down, right = (got.max(axis).argmax(-1) for axis in (2, 1))
    assert set(down) == set(range(5, 16))
    assert set(right) == set(range(10, 31))
    # The two outermost are drawn half as often: they are rounded to from one side.
    assert_equally_often(np.bincount(right - 10, minlength=21)[1:-1])


@pytest.mark.slow
def test_rotate_turns_to_either_side_by_up_to_its_degrees():
    image = np.zeros((101, 101, 1), np.uint8)
    image[50, 100] = 255
    image[50, 90:] = 255
    got = augmented("rotate(20)", np.repeat(image[None], 400, axis=0))[..., 0]
    y, x = np.indices((101, 101)) - 50
    weight = got / got.sum((1, 2), keepdims=True, dtype=float)
    angle = np.degrees(np.arctan2(-(weight * y).sum((1, 2)), (weight * x).sum((1, 2))))
    assert np.abs(angle).max() < 20.5
    assert stats.kstest(angle, stats.uniform(-20, 40).cdf).pvalue > 0.001
