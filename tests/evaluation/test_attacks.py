"""Attacks on models whose gradient is known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.data.batch import Batch
from jaxcls.errors import InputError
from jaxcls.evaluation import attacks
from jaxcls.learning import losses

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 4, 4, 1)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2], np.int32)
BATCH = Batch(IMAGES, LABELS, np.arange(6, dtype=np.int32))
LINEAR = RNG.normal(size=(16, 3)).astype(np.float32)
HIDDEN = RNG.normal(size=(16, 8)).astype(np.float32), RNG.normal(size=(8, 3))


def linear(weights, images):
    return images.reshape(len(images), -1) / 255 @ weights


def bent(weights, images):
    """A model whose gradient turns many times."""
    first, second = weights
    hidden = jnp.sin(12 * images.reshape(len(images), -1) / 255 @ first)
    return hidden @ second.astype(np.float32)


def judge(logits, labels):
    targets = losses.smooth(labels, 3, 0.0)
    return losses.softmax()(logits, targets), logits.argmax(-1) == labels


def made(text, predict=linear, weights=LINEAR, batch=BATCH):
    """(images, losses, hits) of each attack."""
    advance = jax.jit(attacks.make_advance(predict, judge))
    moves = attacks.Moves(
        lambda path, *levels: advance(weights, path, *levels), jax.jit(attacks.scatter)
    )
    path = attacks.begin(jax.tree.map(jnp.asarray, batch))
    found = []
    for attack in attacks.named(text, "--attacks"):
        images = attack.make(moves, path)
        each = judge(predict(weights, images), jnp.asarray(batch.label))
        found.append([np.asarray(x) for x in (images, *each)])
    return found


def test_fgsm_of_a_linear_model_is_by_hand():
    ((images, *_),) = made("fgsm(3)")
    logits = IMAGES.reshape(6, 16).astype(float) / 255 @ LINEAR
    likely = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gradient = (likely - np.eye(3)[LABELS]) @ LINEAR.T
    expected = IMAGES.reshape(6, 16) + 3 * np.sign(gradient)
    np.testing.assert_array_equal(images.reshape(6, 16), np.clip(expected, 0, 255))


@pytest.mark.parametrize("epsilon", [0.5, 4, 255])
def test_no_level_moves_further_than_epsilon_or_out_of_range(epsilon):
    texts = f"fgsm({epsilon}) | pgd({epsilon}, steps=5, step_size={epsilon})"
    for images, *_ in made(texts, bent, HIDDEN):
        moved = np.abs(images - IMAGES)
        assert moved.max() <= epsilon * (1 + 1e-4)
        assert moved.max() > 0
        assert images.min() >= 0
        assert images.max() <= 255


def test_pgd_is_never_weaker_than_fgsm_whatever_its_steps():
    for epsilon in (1, 8, 64):
        for steps in (1, 3, 10):
            text = f"fgsm({epsilon}) | pgd({epsilon}, steps={steps}, step_size={epsilon})"
            fgsm, pgd = made(text, bent, HIDDEN)
            assert (pgd[2] <= fgsm[2]).all()
            same = pgd[2] == fgsm[2]
            assert (pgd[1] >= fgsm[1] - 1e-6)[same].all()
    assert fgsm[2].any()  # So that there was something to be stronger than.


def test_more_steps_find_more():
    few, many = made("pgd(16, steps=1) | pgd(16, steps=60, step_size=1)", bent, HIDDEN)
    assert many[1].mean() > few[1].mean()


def test_what_is_mistaken_is_kept_before_what_has_a_larger_loss():
    images = jnp.zeros((3, 1, 1, 1))
    a = attacks.Met(images, jnp.array([2.0, 1, 3]), jnp.array([True, False, True]))
    b = attacks.Met(images, jnp.array([1.0, 5, 4]), jnp.array([False, True, True]))
    found = attacks._worse(a, b)
    assert found.losses.tolist() == [1, 1, 4]
    assert found.hits.tolist() == [False, False, True]


def test_an_example_starts_by_its_index_alone():
    turned = jax.tree.map(lambda values: values[::-1], BATCH)
    (whole,) = made("pgd(8, steps=2)", bent, HIDDEN)
    (other,) = made("pgd(8, steps=2)", bent, HIDDEN, turned)
    np.testing.assert_allclose(other[0][::-1], whole[0], atol=1e-3)
    moved = BATCH._replace(index=BATCH.index + 6)
    noise = [np.asarray(attacks.begin(each).noise) for each in (BATCH, moved)]
    assert np.abs(noise[0]).max() <= 1
    assert noise[0].std() == pytest.approx(3**-0.5, rel=0.15)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fgms(1)", r"unknown --attacks 'fgms' \(did you mean 'fgsm'\?\); known: fgsm,"),
        ("fgsm(-1)", r"fgsm: epsilon=-1 must be above 0 and at most 255, such as 2"),
        ("fgsm(256)", r"fgsm: epsilon=256 must be above 0 and at most 255"),
        ("pgd(1, steps=0)", r"pgd: steps=0 must be at least 1, such as 10"),
        ("pgd(1, step_size=0.0)", r"pgd: step_size=0.0 must be above 0 and at most 255"),
        ("fgsm(1) | fgsm(1)", r"has fgsm\(1\) twice; name it once"),
    ],
)
def test_attacks_that_are_none_are_refused(text, said):
    with pytest.raises(InputError, match=said):
        attacks.named(text, "--attacks")


def test_the_name_says_every_option():
    (attack,) = attacks.named("pgd(2)", "--attacks")
    assert attack.name == "pgd(2, steps=10, step_size=0.5)"
