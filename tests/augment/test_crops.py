"""Augmentations give one of the possible results, whoever else is in the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import ndimage, stats

from jaxcls.augment.rows import at
from tests.rows import KEY, augmented, jitted, rows

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(1, 256, (32, 5, 6, 3)).astype(np.uint8)


def boxes(painted):
    """Of masks bool [B, H, W], each one rectangle: start and stop of both axes [B, 4]."""
    found = []
    for mask in painted:
        (part,) = ndimage.find_objects(mask.astype(int))
        assert mask[part].all()
        found.append([part[0].start, part[1].start, part[0].stop, part[1].stop])
    return np.array(found)


@pytest.mark.parametrize(("name", "axis"), [("flip", 2), ("flip_vertical", 1)])
def test_a_flip_gives_the_image_or_its_mirror_about_equally_often(name, axis):
    images = np.repeat(IMAGES[:1], 400, axis=0)
    got = augmented(name, images)
    mirrored = (got == np.flip(images, axis)).all((1, 2, 3))
    as_it_was = (got == images).all((1, 2, 3))
    assert (mirrored ^ as_it_was).all()
    assert stats.binomtest(int(mirrored.sum()), 400).pvalue > 0.001


@pytest.mark.parametrize(("probability", "step"), [(0, 1), (1, -1), (1.0, -1)])
def test_a_flip_with_probability_0_or_1_is_certain(probability, step):
    got = augmented(f"flip({probability})", IMAGES)
    np.testing.assert_array_equal(got, IMAGES[:, :, ::step])
    got = augmented(f"flip_vertical({probability})", IMAGES)
    np.testing.assert_array_equal(got, IMAGES[:, ::step])


def mirrored(text="alternating_flip", count=400, **told):
    images = np.repeat(IMAGES[:1], count, axis=0)
    return (augmented(text, images, **told) != images).any((1, 2, 3))


def test_an_alternating_flip_starts_by_chance_and_then_shows_the_other_side():
    first = mirrored()
    assert stats.binomtest(int(first.sum()), 400).pvalue > 0.001
    for epoch in range(1, 5):
        seen = mirrored(epoch=epoch, key=jax.random.key(epoch))
        np.testing.assert_array_equal(seen, first ^ bool(epoch % 2))


def test_an_alternating_flip_follows_the_example_wherever_in_a_batch_it_is():
    order = RNG.permutation(400)
    # A batch over the end of an epoch holds rows of both.
    epoch = np.where(np.arange(400) < 150, 0, 1)
    seen = mirrored(example=order, epoch=epoch)
    np.testing.assert_array_equal(seen, mirrored()[order] ^ (epoch == 1))


def test_an_alternating_flip_starts_otherwise_in_another_run():
    alike = mirrored(run=0) == mirrored(run=1)
    assert stats.binomtest(int(alike.sum()), 400).pvalue > 0.001


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_random_crop_gives_each_possible_crop_and_no_other(mode):
    image = IMAGES[0]
    wide = np.pad(
        image,
        ((2, 2), (2, 2), (0, 0)),
        mode="constant" if mode == "zero" else "reflect",
    )
    crops = {wide[y : y + 5, x : x + 6].tobytes() for y in range(5) for x in range(5)}
    got = augmented(f"random_crop(2, mode={mode!r})", np.repeat(image[None], 400, axis=0))
    assert got.dtype == np.uint8
    assert len(crops) == 25
    assert {crop.tobytes() for crop in got} == crops


def test_no_augmentation_is_the_image():
    np.testing.assert_array_equal(augmented("", IMAGES), IMAGES)


@pytest.mark.parametrize("size", [2, 3, 20])
def test_cutout_gives_each_square_centred_in_the_image_and_no_other(size):
    image = IMAGES[0]
    possible = set()
    for y, x in np.ndindex(5, 6):
        cut = image.copy()
        top, left = max(0, y - size // 2), max(0, x - size // 2)
        cut[top : y - size // 2 + size, left : x - size // 2 + size] = 0
        possible.add(cut.tobytes())
    got = augmented(f"cutout({size}, fill=0)", np.repeat(image[None], 400, axis=0))
    assert got.dtype == np.uint8
    assert {cut.tobytes() for cut in got} == possible


def test_cutout_paints_with_its_probability():
    images = np.full((400, 5, 6, 1), 9, np.uint8)
    painted = (augmented("cutout(3, 0.3, fill=0)", images) == 0).any((1, 2, 3))
    assert stats.binomtest(int(painted.sum()), 400, 0.3).pvalue > 0.001
    # Which are painted says nothing of where, and every centre is equally likely.
    starts = boxes(augmented("cutout(1, 0.3, fill=0)", images)[painted, ..., 0] == 0)
    counts = np.zeros((5, 6))
    np.add.at(counts, tuple(starts[:, :2].T), 1)
    assert stats.chisquare(counts.ravel()).pvalue > 0.001


@pytest.mark.parametrize(
    "text", ["cutout(99{})", "random_erasing(1, (0.6, 0.6), (1, 1){})"]
)
@pytest.mark.parametrize(
    ("fill", "painted"), [("7", [7, 7, 7]), ("(1, 2, 255)", [1, 2, 255])]
)
def test_a_box_is_painted_with_a_level_for_all_channels_or_one_for_each(
    text, fill, painted
):
    images = np.zeros((8, 9, 9, 3), np.uint8)
    got = augmented(text.format(f", fill={fill}"), images)
    changed = (got != images).any(-1)
    assert changed.any((1, 2)).all()
    np.testing.assert_array_equal(got[changed], np.tile(painted, (changed.sum(), 1)))


def test_cutout_paints_the_middle_grey_unless_told():
    assert (augmented("cutout(99)", IMAGES) == 128).all()


def erased(text, count=1500, shape=(40, 60), **told):
    """The boxes that random erasing paints on images of zeros, and which it paints."""
    images = np.zeros((count, *shape, 1), np.uint8)
    painted = augmented(text, images, **told)[..., 0] == 1
    which = painted.any((1, 2))
    return boxes(painted[which]), which


@pytest.mark.slow
def test_the_area_and_ratio_of_an_erased_box_are_as_asked_and_uniform():
    text = "random_erasing(1, (0.1, 0.3), (0.5, 2.0), fill=1)"
    found, which = erased(text, shape=(400, 400), count=400)
    assert which.all()
    height, width = found[:, 2] - found[:, 0], found[:, 3] - found[:, 1]
    area, ratio = height * width / 400**2, np.log(height / width)
    # Any of these fits: sides of at most 400 sqrt(0.3 * 2) = 310 pixels.
    assert stats.kstest(area, stats.uniform(0.1, 0.2).cdf).pvalue > 0.001
    assert stats.kstest(ratio, stats.uniform(-np.log(2), np.log(4)).cdf).pvalue > 0.001
    assert abs(stats.pearsonr(area, ratio).statistic) < 0.2


@pytest.mark.slow
def test_the_places_of_an_erased_box_are_uniform_within_the_image():
    # 10 by 20 pixels in 12 by 25: three rows and six columns to start in.
    text = "random_erasing(1, (0.6666, 0.6667), (0.5, 0.5), fill=1)"
    found, which = erased(text, 1800, (12, 25))
    assert which.all()
    np.testing.assert_array_equal(found[:, 2:] - found[:, :2], np.tile([10, 20], (1800, 1)))
    counts = np.zeros((3, 6))
    np.add.at(counts, tuple(found[:, :2].T), 1)
    assert counts.sum() == 1800
    assert stats.chisquare(counts.ravel()).pvalue > 0.001


@pytest.mark.slow
def test_a_box_that_does_not_fit_is_drawn_again_and_at_last_left_out():
    found, which = erased("random_erasing(1, (0.5, 0.5), (0.1, 10.0), fill=1)", 400)
    # Of log ratios in +-2.3, those of 0.5 * 40 * 60 pixels that fit 40 by 60: by hand.
    fitting = (np.log(40**2 / 1200) + np.log(60**2 / 1200)) / (2 * np.log(10))
    assert 0.25 < fitting < 0.35
    assert stats.binomtest(int(which.sum()), 400, 1 - (1 - fitting) ** 10).pvalue > 0.001
    assert (found[:, 2] - found[:, 0] < 40).all()
    assert (found[:, 3] - found[:, 1] < 60).all()
    for area, shape in ((0.9, (12, 25)), (1.0, (12, 12))):
        text = f"random_erasing(1, ({area}, {area}), (1.0, 1.0), fill=1)"
        assert not erased(text, 20, shape)[1].any()


@pytest.mark.slow
def test_erased_noise_is_uniform_over_the_levels_and_differs_everywhere():
    images = np.zeros((60, 31, 33, 3), np.uint8)  # Not a multiple of four bytes.
    got = augmented("random_erasing(1, (0.8, 0.8), (1.0, 1.0))", images)
    noise = got[:, 5:26, 5:28]
    assert stats.chisquare(np.bincount(noise.ravel(), minlength=256)).pvalue > 0.001
    flat = noise.reshape(60, -1).astype(float)
    between_images = np.corrcoef(flat)[np.triu_indices(60, 1)]
    between_channels = np.corrcoef(noise.reshape(-1, 3).T.astype(float))
    neighbours = np.corrcoef(noise[:, :, 1:].ravel(), noise[:, :, :-1].ravel())
    assert np.abs(between_images).max() < 0.15
    assert np.abs(between_channels[np.triu_indices(3, 1)]).max() < 0.03
    assert abs(neighbours[0, 1]) < 0.03


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_erased_boxes_are_distributed_as_torchvisions(torchvision):
    import torch
    from torchvision.transforms import RandomErasing

    torch.manual_seed(0)
    image = torch.zeros(1, 40, 60)
    drawn = [
        RandomErasing.get_params(image, (0.02, 1 / 3), (0.3, 3.3), [0.0])
        for _ in range(1500)
    ]
    theirs = np.array([[y, x, y + h, x + w] for y, x, h, w, _ in drawn])
    ours, which = erased("random_erasing(1, fill=1)")
    assert which.all()
    for values in (
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 2] - b[:, 0],
        lambda b: b[:, 3] - b[:, 1],
        lambda b: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]),
    ):
        assert stats.ks_2samp(values(ours), values(theirs)).pvalue > 0.001


ALL = (
    "random_crop(2) | flip | random_crop(1, mode='reflect') | flip_vertical"
    " | alternating_flip | cutout(2, 0.5) | random_erasing(0.5, (0.02, 0.5))"
)


def test_a_row_is_augmented_the_same_beside_other_rows_and_in_a_shorter_batch():
    whole = augmented(ALL, IMAGES)
    np.testing.assert_array_equal(augmented(ALL, IMAGES[:9]), whole[:9])
    others = IMAGES.copy()
    others[np.arange(32) != 5] = RNG.integers(0, 256, (31, 5, 6, 3))
    np.testing.assert_array_equal(augmented(ALL, others)[5], whole[5])


@pytest.mark.parametrize("text", ["flip", "alternating_flip"])
def test_equal_steps_of_a_pipeline_draw_independently(text):
    twice = mirrored(f"{text} | {text}", 64)
    assert 0 < twice.sum() < 64


def test_rows_split_over_8_devices_are_augmented_as_on_1():
    mesh = Mesh(np.array(jax.devices()[:8]), ("batch",))
    whole, split = (NamedSharding(mesh, PartitionSpec(*a)) for a in ((), ("batch",)))
    apply = jax.jit(
        lambda key, images: jitted(ALL)(rows(len(images), key), images),
        in_shardings=(whole, split),
        out_shardings=split,
    )
    eight = apply(jax.device_put(KEY, whole), IMAGES)
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_array_equal(eight, augmented(ALL, IMAGES))


@pytest.mark.parametrize(
    ("amount", "share", "expected"),
    [(0.5, 0.7, 0.5), (2, 0.0, 2), ((0.0, 4.0), 0.25, 1.0), ([3, 1], 1.0, 1.0)],
)
def test_an_amount_goes_linearly_from_its_first_to_its_second(amount, share, expected):
    got = at(amount, jnp.float32(share))
    assert got.dtype == jnp.float32
    assert got.shape == ()
    assert float(got) == expected
