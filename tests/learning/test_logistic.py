"""The head of a probe beside scikit-learn's logistic regression."""

import numpy as np
import pytest
import scipy.special
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from jaxcls.learning import logistic

TRAIN, TEST = slice(0, 900), slice(900, None)


@pytest.fixture(scope="module")
def digits():
    """Features of very different scales, one of them constant, and labels."""
    pixels, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    mixed = np.maximum(pixels @ rng.standard_normal((64, 40)) / 10, 0)
    mixed *= 10.0 ** rng.uniform(-2, 1, 40)
    mixed[:, 5] = 3.0
    return mixed.astype(np.float32), labels


def loss(kernel, bias, features, labels, penalty):
    logits = features.astype(np.float64) @ kernel + bias
    likely = scipy.special.log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    return -likely.mean() + penalty / 2 * (kernel.astype(np.float64) ** 2).sum()


@pytest.mark.parametrize(
    "penalty", [1e-1, 1e-3, pytest.param(1e-5, marks=pytest.mark.slow)]
)
def test_it_finds_what_scikit_learn_finds(digits, penalty):
    features, labels = digits
    train = features[TRAIN], labels[TRAIN]
    head = logistic.fit(*train, penalty, logistic.zeros(40, 10))
    theirs = LogisticRegression(C=1 / (900 * penalty), tol=1e-6, max_iter=20_000)
    theirs.fit(*train)
    ours = loss(head.kernel, head.bias, *train, penalty)
    least = loss(theirs.coef_.T, theirs.intercept_, *train, penalty)
    assert ours <= least * 1.01
    right = logistic.logits(head, features[TEST]).argmax(1) == labels[TEST]
    other = theirs.predict(features[TEST]) == labels[TEST]
    assert abs(right.mean() - other.mean()) <= 0.005
    assert 5 < head.iterations < logistic.MOST


@pytest.mark.parametrize("penalty", [1e-2, 1e-4])
def test_its_accuracy_is_within_0_2_points_of_scikit_learns(penalty):
    """On 10 classes that overlap, so that one image in three is wrong."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 10, 8_000)
    centers = 0.35 * rng.standard_normal((10, 24))
    features = (centers[labels] + rng.standard_normal((8_000, 24))).astype(np.float32)
    train, test = slice(0, 2_000), slice(2_000, None)
    head = logistic.fit(features[train], labels[train], penalty, logistic.zeros(24, 10))
    theirs = LogisticRegression(C=1 / (2_000 * penalty), tol=1e-6, max_iter=5_000)
    theirs.fit(features[train], labels[train])
    right = (logistic.logits(head, features[test]).argmax(1) == labels[test]).mean()
    assert 0.5 < right < 0.8
    assert abs(right - theirs.score(features[test], labels[test])) <= 0.002


def test_it_goes_on_from_a_head_and_ends_at_the_same_place(digits):
    features, labels = digits
    train = features[TRAIN], labels[TRAIN]
    first = logistic.fit(*train, 1e-2, logistic.zeros(40, 10))
    again = logistic.fit(*train, 1e-2, first)
    assert again.iterations < first.iterations / 4
    values = [loss(each.kernel, each.bias, *train, 1e-2) for each in (first, again)]
    assert values[1] == pytest.approx(values[0], rel=1e-4)


def test_it_is_a_function_of_its_arguments(digits):
    features, labels = digits
    made = [logistic.fit(features, labels, 1e-2, logistic.zeros(40, 10)) for _ in "ab"]
    np.testing.assert_array_equal(made[0].kernel, made[1].kernel)
