"""Mixes against arithmetic by hand, Beta distributions, and torchvision's CutMix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import ndimage, stats

from jaxcls.augment import MIXES
from jaxcls.config import calls
from jaxcls.errors import InputError
from tests.rows import KEY

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((5, 6, 8, 2)).astype(np.float32)
TARGETS = np.eye(5, dtype=np.float32)
KEYS = 600


def mixed(text, share=0.5, images=IMAGES, targets=TARGETS, key=KEY):
    mix = calls.build_one(text, MIXES, "mix")
    return jax.tree.map(np.asarray, mix(key, jnp.float32(share), images, targets))


@functools.cache
def many(text):
    """Jitted share -> of each key, the own image's part [n, H, W] and its target [n]."""
    mix = calls.build_one(text, MIXES, "mix")
    images = jnp.zeros((2, 12, 20, 1)).at[0].set(1.0)
    keys = jax.random.split(KEY, KEYS)

    @jax.jit
    def at(share):
        images_of, targets_of = jax.vmap(lambda key: mix(key, share, images, jnp.eye(2)))(
            keys
        )
        return images_of[:, 0, :, :, 0], targets_of[:, 0, 0]

    return at


def drawn(text, share=0.5):
    own, weights = map(np.asarray, many(text)(jnp.float32(share)))
    np.testing.assert_allclose(own.mean((1, 2)), weights, rtol=1e-5, atol=1e-6)
    return own, weights


def test_mixup_is_a_convex_mixture_with_the_reversed_batch():
    images, targets = mixed("mixup(0.4)")
    weight = float(targets[0, 0])
    assert 0 < weight < 1
    for row, partner in enumerate([4, 3, 2, 1, 0]):
        expected = weight * IMAGES[row] + (1 - weight) * IMAGES[partner]
        np.testing.assert_allclose(images[row], expected, rtol=1e-5, atol=1e-6)
        expected = weight * TARGETS[row] + (1 - weight) * TARGETS[partner]
        np.testing.assert_allclose(targets[row], expected, rtol=1e-5)


def test_cutmix_pastes_one_box_of_the_reversed_batch_and_counts_its_pixels():
    sizes = set()
    for seed in range(6):
        images, targets = mixed("cutmix", key=jax.random.key(seed))
        pasted = (images != IMAGES).any((0, 3))
        expected = np.where(pasted[None, :, :, None], IMAGES[::-1], IMAGES)
        np.testing.assert_array_equal(images, expected)
        if pasted.any():
            (part,) = ndimage.find_objects(pasted.astype(int))
            assert pasted[part].all()
        weight = 1 - pasted.sum() / 48
        expected = weight * TARGETS + (1 - weight) * TARGETS[::-1]
        np.testing.assert_allclose(targets, expected, rtol=1e-6)
        sizes.add(int(pasted.sum()))
    assert len(sizes) > 3


def cutmix_by_the_paper(alpha, count, height, width):
    """Start and stop of the box, [n] each, in the order of the paper's algorithm."""
    rng = np.random.default_rng(1)
    side = np.sqrt(1 - rng.beta(alpha, alpha, count))
    found = []
    for length in (height, width):
        half = (length * side / 2).astype(int)
        middle = rng.integers(length, size=count)
        found.append((np.clip(middle - half, 0, length), np.clip(middle + half, 0, length)))
    return found


@pytest.mark.slow
def test_the_boxes_of_cutmix_are_distributed_as_in_the_paper():
    own, weights = drawn("cutmix")
    assert set(np.unique(own)) == {0.0, 1.0}
    (top, bottom), (left, right) = cutmix_by_the_paper(1.0, 20000, 12, 20)
    area = (bottom - top) * (right - left)
    pasted = np.rint(240 * (1 - weights))
    assert stats.ks_2samp(pasted, area).pvalue > 0.001
    height, width = (own == 0).any(2).sum(1), (own == 0).any(1).sum(1)
    assert stats.ks_2samp(height, (bottom - top) * (area > 0)).pvalue > 0.001
    assert stats.ks_2samp(width, (right - left) * (area > 0)).pvalue > 0.001
    first_row, first_column = ((own == 0).any(axis).argmax(1) for axis in (2, 1))
    assert stats.ks_2samp(first_row[height > 0], top[area > 0]).pvalue > 0.001
    assert stats.ks_2samp(first_column[width > 0], left[area > 0]).pvalue > 0.001


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_the_areas_of_cutmix_are_distributed_as_torchvisions(torchvision):
    import torch
    from torchvision.transforms import v2

    torch.manual_seed(0)
    mix = v2.CutMix(num_classes=2)
    images, labels = torch.zeros(2, 1, 12, 20), torch.tensor([0, 1])
    theirs = [float(mix(images, labels)[1][0, 0]) for _ in range(2000)]
    _, ours = drawn("cutmix")
    assert stats.ks_2samp(ours, theirs).pvalue > 0.001


@pytest.mark.slow
def test_each_batch_is_mixed_one_way_or_the_other_each_with_its_alpha():
    own, weights = drawn("mixup_or_cutmix(0.8, 0.3, cutmix_share=0.3)")
    flat = (own == own[:, :1, :1]).all((1, 2)) & (weights > 0) & (weights < 1)
    assert np.isin(own[~flat], [0, 1]).all()
    # Boxes may be empty or all of the image, but these are of cutmix, too.
    assert stats.binomtest(int((~flat).sum()), KEYS, 0.3).pvalue > 0.001
    assert stats.kstest(weights[flat], stats.beta(0.8, 0.8).cdf).pvalue > 0.001
    (top, bottom), (left, right) = cutmix_by_the_paper(0.3, 20000, 12, 20)
    pasted, area = np.rint(240 * (1 - weights[~flat])), (bottom - top) * (right - left)
    assert stats.ks_2samp(pasted, area).pvalue > 0.001
    # Where it is does not follow from which of the two it is.
    first_row = (own[~flat] == 0).any(2).argmax(1)[pasted > 0]
    assert stats.ks_2samp(first_row, top[area > 0]).pvalue > 0.001


@pytest.mark.parametrize(("share", "only"), [(0, "mixup(0.8)"), (1, "cutmix(1.0)")])
def test_a_share_of_0_or_1_of_cutmix_is_mixup_or_cutmix(share, only):
    for seed in range(8):
        either = mixed(f"mixup_or_cutmix(cutmix_share={share})", key=jax.random.key(seed))
        alone = mixed(only, key=jax.random.key(seed))
        jax.tree.map(np.testing.assert_array_equal, either, alone)


@pytest.mark.slow
def test_a_batch_is_mixed_with_its_probability():
    _, weights = drawn("mixup(1.0, probability=0.3)")
    assert stats.binomtest(int((weights < 1).sum()), KEYS, 0.3).pvalue > 0.001


def test_which_batches_are_mixed_does_not_follow_from_how():
    text, kinds = "mixup_or_cutmix(probability=0.5)", set()
    for key in map(jax.random.key, range(16)):
        images, targets = mixed(text, key=key)
        weight = targets[0, 0]
        pasted = np.isin(images[0], [IMAGES[0], IMAGES[4]]).all()
        kinds.add("none" if weight == 1 else "cutmix" if pasted else "mixup")
    assert kinds == {"none", "cutmix", "mixup"}


def test_a_batch_that_is_not_mixed_is_as_it_was():
    for text in ("mixup(0.2, 0)", "cutmix(1.0, 0)", "mixup_or_cutmix(probability=0)"):
        images, targets = mixed(text)
        np.testing.assert_array_equal(images, IMAGES)
        np.testing.assert_array_equal(targets, TARGETS)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "mixup_or_cutmix"])
def test_nothing_is_mixed_from_until_on(name):
    def changes(until, share):
        keys = map(jax.random.key, range(4))
        found = (mixed(f"{name}(until={until})", share, key=key) for key in keys)
        return [bool((images != IMAGES).any()) for images, _ in found]

    assert any(changes(0.75, 0.7499))
    assert any(changes(1.0, 1.0))
    for until, share in ((0.75, 0.75), (0.75, 1.0), (0, 0.0)):
        assert not any(changes(until, share))


@pytest.mark.slow
def test_the_weight_is_beta_distributed_by_the_alpha_of_the_share_of_the_run():
    text = "mixup((0.0, 2.0))"
    for share, alpha in ((0.1, 0.2), (0.5, 1.0), (1.0, 2.0)):
        _, weights = drawn(text, share)
        assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).pvalue > 0.001


def test_an_alpha_that_grows_from_0_mixes_nothing_at_first():
    text = "mixup((0.0, 2.0))"
    own, weights = drawn(text, 0.0)
    assert (own == 1).all()
    assert (weights == 1).all()
    for share in (1e-6, 1e-3):
        assert np.isfinite(drawn(text, share)[1]).all()


@pytest.mark.slow
def test_of_two_ways_only_the_one_whose_alpha_is_above_0_mixes():
    own, weights = drawn("mixup_or_cutmix((0.5, 0.0), (0.0, 1.0))", 1.0)
    assert np.isin(own, [0, 1]).all()
    assert stats.binomtest(int((weights < 1).sum()), KEYS, 0.5).pvalue > 0.001
    own, _ = drawn("mixup_or_cutmix((0.5, 0.0), (0.0, 1.0))", 0.0)
    assert (own == own[:, :1, :1]).all()


def test_a_row_is_mixed_the_same_whatever_other_rows_than_its_partner_hold():
    others = IMAGES.copy()
    others[[0, 2, 4]] = RNG.standard_normal((3, 6, 8, 2))
    for text in ("mixup(1.0)", "cutmix"):
        whole, again = mixed(text), mixed(text, images=others)
        np.testing.assert_array_equal(again[0][[1, 3]], whole[0][[1, 3]])
        np.testing.assert_array_equal(again[1], whole[1])


def boxes_of(pasted):
    """(top, bottom, left, right) of where each row is its partner's."""
    found = [ndimage.find_objects(mask.astype(int)) for mask in pasted]
    parts = [part[0] if part else (slice(0, 0), slice(0, 0)) for part in found]
    return [(y.start, y.stop, x.start, x.stop) for y, x in parts]


def by_timm(mode, images, labels, weights, boxed, boxes):
    """What timm's Mixup makes of one GPU's batch, given what it would have drawn."""
    import torch
    from timm.data import mixup

    made = mixup.Mixup(cutmix_alpha=1.0, mode=mode, label_smoothing=0.0, num_classes=16)
    # timm asks for the box of each row that it pastes into; one that is whole has none.
    given = zip(boxes, weights, boxed, strict=True)
    of_box = iter([(box, w) for box, w, is_boxed in given if is_boxed and w != 1])

    if mode == "batch":
        made._params_per_batch = lambda: (weights[0], boxed[0])
    else:
        made._params_per_elem = lambda _: (np.float32(weights), np.asarray(boxed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixup, "cutmix_bbox_and_lam", lambda *_, **__: next(of_box))
        first = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        pixels, targets = made(first, torch.from_numpy(labels))
    return pixels.numpy().transpose(0, 2, 3, 1), targets.numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "each"), [(1, True), (4, False), (4, True)])
@pytest.mark.usefixtures("torchvision")
def test_groups_and_rows_are_mixed_as_timm_mixes_the_batch_of_each_gpu(groups, each):
    pytest.importorskip("timm")
    images = RNG.standard_normal((16, 6, 8, 2)).astype(np.float32)
    text, kinds = f"mixup_or_cutmix(groups={groups}, each={each})", set()
    targets, labels = np.eye(16, dtype=np.float32), np.arange(16)
    for seed in range(3):
        got, got_targets = mixed(text, 0.5, images, targets, jax.random.key(seed))
        weights = got_targets[np.arange(16), np.arange(16)].tolist()
        pasted = (got != images).any(-1)
        # The labels of the rows of a GPU, as its sampler deals them: every groups-th.
        for rank in (slice(gpu, None, groups) for gpu in range(groups)):
            rows = labels[rank]
            boxed = [bool(np.isin(got[r], images[rows]).all()) for r in rows]
            boxes = boxes_of(pasted[rank])
            mode = "elem" if each else "batch"
            given = ([weights[r] for r in rows], boxed, boxes)
            theirs, theirs_targets = by_timm(mode, images[rank], rows, *given)
            np.testing.assert_allclose(got[rank], theirs, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(got_targets[rank], theirs_targets, atol=1e-6)
            kinds |= set(boxed)
            assert len({*given[0]}) == 1 or each
        draws = {round(weight, 6) for weight in weights}
        assert len(draws) > 8 if each else len(draws) == groups
    assert kinds == {True, False}


@pytest.mark.slow
def test_weights_of_rows_and_groups_are_beta_distributed_and_not_of_one_another():
    labels, images = np.eye(600, dtype=np.float32), np.zeros((600, 1, 1, 1), np.float32)
    for text, drawn_rows in (("each=True", 600), ("groups=300", 300)):
        _, found = mixed(f"mixup(0.5, {text})", 0.5, images, labels)
        weights = found[np.arange(drawn_rows), np.arange(drawn_rows)]
        assert stats.kstest(weights, stats.beta(0.5, 0.5).cdf).pvalue > 0.001
        assert abs(np.corrcoef(weights[1:], weights[:-1])[0, 1]) < 0.2


def test_copies_of_an_image_meet_the_partners_that_their_gpus_give_them():
    # Three copies in a row are dealt to three GPUs of eight; each GPU reverses its own.
    copies, labels = np.arange(48), np.eye(48, dtype=np.float32)
    images = np.zeros((48, 1, 1, 1), np.float32)
    _, targets = mixed("mixup(1e6, groups=8)", 0.5, images, labels)
    for gpu in range(8):
        dealt = copies[gpu::8]
        for mine, other in zip(dealt, dealt[::-1], strict=True):
            assert set(np.flatnonzero(targets[mine])) == {mine, other}


def test_groups_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(InputError, match=r"groups=3 .* batch_size=5, such as groups=1"):
        mixed("mixup(groups=3)")
    with pytest.raises(InputError, match="groups=0"):
        mixed("mixup(groups=0)")


def on_devices(count, images, targets, text):
    mesh = Mesh(np.array(jax.devices()[:count]), ("batch",))
    whole, split = (NamedSharding(mesh, PartitionSpec(*a)) for a in ((), ("batch",)))
    step = jax.jit(
        calls.build_one(text, MIXES, "mix"),
        in_shardings=(whole, whole, split, split),
        out_shardings=split,
    )
    for seed in range(4):
        yield step(jax.random.key(seed), jnp.float32(0.5), images, targets)


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "(groups=2)", "(groups=4, each=True)"])
def test_rows_split_over_8_devices_are_mixed_as_on_1(options):
    images = RNG.standard_normal((16, 6, 8, 2)).astype(np.float32)
    targets = np.eye(16, dtype=np.float32)
    text = f"mixup_or_cutmix{options}"
    both = (on_devices(count, images, targets, text) for count in (1, 8))
    kinds = set()
    for one, eight in zip(*both, strict=True):
        assert len(eight[0].sharding.device_set) == 8
        jax.tree.map(np.testing.assert_array_equal, one, eight)
        kinds.add(bool(np.isin(one[0][0], images).all()))
    assert kinds == {True, False}
