"""Figures of predictions against scikit-learn's, and against counting by hand."""

import math

import numpy as np
import pytest
from sklearn import metrics

from jaxcls.evaluation import scores

RNG = np.random.default_rng(0)


def drawn(n, num_classes, labels=None, seed=0):
    """Coarse logits, so that many tie, and labels that they are good at."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, n) if labels is None else labels
    logits = rng.integers(-2, 3, (n, num_classes)).astype(np.float32)
    logits[np.arange(n), labels] += rng.integers(0, 3, n)
    return logits, labels


CASES = {
    "random": drawn(500, 7),
    "two classes": drawn(40, 2),
    "a class never predicted": (drawn(200, 4)[0] - [9, 0, 0, 0], drawn(200, 4)[1]),
    "a class that never occurs": (drawn(200, 5)[0], np.minimum(drawn(200, 5)[1], 3)),
    "a class that neither occurs nor is predicted": (
        drawn(200, 4)[0] - [9, 0, 0, 0],
        np.maximum(drawn(200, 4)[1], 1),
    ),
    "one class": drawn(30, 3, np.ones(30, int)),
    "one example": drawn(1, 4),
}
each_case = pytest.mark.parametrize(("logits", "labels"), CASES.values(), ids=CASES)


def test_what_is_no_number_is_no_class():
    logits = np.array([[np.nan, 1, 0], [5, np.nan, 1], [np.inf, 0, 0], [-np.inf, 2, 1]])
    labels = np.array([1, 0, 0, 1])
    predicted = scores.predicted(logits)
    assert predicted.tolist() == [-1, -1, -1, 1]
    matrix = scores.confusion(predicted, labels, 3)
    assert matrix.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    found, _ = scores.by_class(predicted, labels, 3)
    assert found.support.tolist() == [2, 2, 0]
    assert found.recall.tolist() == [0, 0.5, 0]
    assert found.precision.tolist() == [0, 1, 0]


@each_case
def test_classes_and_means_are_scikit_learns_also_where_examples_count_twice(
    logits, labels
):
    classes, predicted = np.arange(logits.shape[1]), scores.predicted(logits)
    matrix = metrics.confusion_matrix(labels, predicted, labels=classes)
    np.testing.assert_array_equal(scores.confusion(predicted, labels, len(classes)), matrix)
    counts = np.random.default_rng(1).integers(0, 3, len(labels))
    counts[0] = 1
    for weights, repeats in ((None, 1), (counts, counts)):
        each, means = scores.by_class(predicted, labels, len(classes), weights)
        given = np.repeat(labels, repeats), np.repeat(predicted, repeats)
        figures = metrics.precision_recall_fscore_support
        *expected, support = figures(*given, labels=classes, zero_division=0)
        np.testing.assert_array_equal(each.support, support)
        np.testing.assert_allclose(each[1:], expected, rtol=1e-12)
        expected = {}
        for kind in ("macro", "weighted"):
            found = figures(*given, average=kind, zero_division=0)
            names = f"{kind} precision", f"{kind} recall", f"{kind} F1"
            expected |= dict(zip(names, found[:3], strict=True))
        assert means == pytest.approx(expected, rel=1e-12)
        assert list(means) == list(expected)


def test_the_most_confused_pairs_are_the_largest_cells_off_the_diagonal():
    matrix = np.array([[9, 2, 0], [1, 50, 4], [2, 0, 7]])
    pairs = [(1, 2, 4), (0, 1, 2), (2, 0, 2), (1, 0, 1)]
    assert scores.most_confused(matrix, 10) == pairs
    assert scores.most_confused(matrix, 2) == pairs[:2]
    assert scores.most_confused(np.eye(3, dtype=int), 5) == []
    assert matrix[0, 0] == 9


@pytest.mark.parametrize("decimals", [1, 9])
def test_areas_are_scikit_learns_with_and_without_ties(decimals):
    labels, counts = RNG.integers(0, 4, 300), RNG.integers(0, 3, 300)
    likely = np.round(RNG.dirichlet(np.ones(4), 300), decimals)
    likely[np.arange(300), labels] += 0.1
    areas = scores.class_auc(likely, labels)
    for weights in (np.ones(300), counts.astype(float)):
        for k, area in enumerate(areas(weights)):
            expected = metrics.roc_auc_score(
                labels == k, likely[:, k], sample_weight=weights
            )
            assert area == pytest.approx(expected)


def test_a_class_without_examples_or_with_all_has_no_area():
    likely = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.3, 0.7, 0.0]])

    def areas(*labels):
        return scores.class_auc(likely, np.array(labels))(np.ones(3))

    np.testing.assert_array_equal(areas(0, 1, 1), [1, 1, np.nan])
    assert np.isnan(areas(1, 1, 1)).all()
    likely[2] = np.nan  # What has no numbers is left out.
    np.testing.assert_array_equal(areas(0, 1, 0), [1, 1, np.nan])


def test_a_mean_is_the_same_in_any_order_and_nothing_where_one_value_is():
    values = RNG.normal(size=1001) * 10.0 ** RNG.integers(-8, 8, 1001)
    assert scores.mean(values) == scores.mean(values[::-1])
    assert math.isnan(scores.mean(np.array([1.0, np.inf])))
