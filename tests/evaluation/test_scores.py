"""Figures of predictions against scikit-learn's, and against counting by hand."""

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from jaxcls.evaluation import scores
from jaxcls.learning import metrics

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


@each_case
def test_hits_are_the_label_among_the_first_when_ranked_one_by_one(logits, labels):
    for k in (1, 2, logits.shape[1]):
        expected = []
        for row, label in zip(logits, labels, strict=True):
            ranked = sorted(range(len(row)), key=lambda c: (-row[c], c))
            expected.append(label in ranked[:k])
        hits = metrics.topk(k).function(np.float32(logits), np.int32(labels))
        np.testing.assert_array_equal(hits, expected)
    hits = scores.predicted(logits) == labels
    np.testing.assert_array_equal(metrics.top1().function(logits, labels), hits)


def test_what_is_no_number_is_never_a_hit_and_no_class():
    logits = np.array([[np.nan, 1, 0], [5, np.nan, 1], [np.inf, 0, 0], [-np.inf, 2, 1]])
    labels = np.array([1, 0, 0, 1])
    assert scores.predicted(logits).tolist() == [-1, -1, -1, 1]
    assert metrics.top1().function(logits, labels).tolist() == [0, 0, 0, 1]
    matrix = scores.confusion(scores.predicted(logits), labels, 3)
    assert matrix.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    found = scores.by_class(matrix, np.bincount(labels, minlength=3))
    assert found.support.tolist() == [2, 2, 0]
    assert found.recall.tolist() == [0, 0.5, 0]
    assert found.precision.tolist() == [0, 1, 0]
    nothing = scores.confusion(np.array([-1, -1]), np.array([0, 1]), 2)
    assert nothing.tolist() == [[0, 0], [0, 0]]


@each_case
def test_confusion_and_classes_are_scikit_learns(logits, labels):
    classes, predicted = np.arange(logits.shape[1]), scores.predicted(logits)
    matrix = scores.confusion(predicted, labels, len(classes))
    np.testing.assert_array_equal(
        matrix, sklearn_metrics.confusion_matrix(labels, predicted, labels=classes)
    )
    assert matrix.dtype == np.int64
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0
    )
    for found in (
        scores.by_class(matrix),
        scores.by_class(matrix, np.bincount(labels, minlength=len(classes))),
    ):
        np.testing.assert_allclose(found.precision, precision, rtol=1e-12)
        np.testing.assert_allclose(found.recall, recall, rtol=1e-12)
        np.testing.assert_allclose(found.f1, f1, rtol=1e-12)
        np.testing.assert_array_equal(found.support, support)


@each_case
def test_means_over_classes_are_scikit_learns_also_where_examples_count_twice(
    logits, labels
):
    predicted = scores.predicted(logits)
    counts = np.random.default_rng(1).integers(0, 3, len(labels))
    counts[0] = 1
    for weights in (None, counts):
        found = scores.means(predicted, labels, logits.shape[1], weights)
        repeats = 1 if weights is None else weights
        for kind, means in found.items():
            expected = sklearn_metrics.precision_recall_fscore_support(
                np.repeat(labels, repeats),
                np.repeat(predicted, repeats),
                average=kind,
                zero_division=0,
            )
            assert means == pytest.approx(expected[:3], rel=1e-12)


def test_the_most_confused_pairs_are_the_largest_cells_off_the_diagonal():
    matrix = np.array([[9, 2, 0], [1, 50, 4], [2, 0, 7]])
    pairs = [(1, 2, 4), (0, 1, 2), (2, 0, 2), (1, 0, 1)]
    assert scores.most_confused(matrix, 10) == pairs
    assert scores.most_confused(matrix, 2) == pairs[:2]
    assert scores.most_confused(np.eye(3, dtype=int), 5) == []
    assert matrix[0, 0] == 9


@pytest.mark.parametrize("decimals", [1, 9])
def test_areas_are_scikit_learns_with_and_without_ties(decimals):
    labels = RNG.integers(0, 4, 300)
    likely = np.round(RNG.dirichlet(np.ones(4), 300), decimals)
    likely[np.arange(300), labels] += 0.1
    areas = scores.class_auc(likely, labels)
    for k in range(4):
        assert areas[k] == pytest.approx(
            sklearn_metrics.roc_auc_score(labels == k, likely[:, k])
        )
    whole = likely / likely.sum(1, keepdims=True)
    expected = sklearn_metrics.roc_auc_score(labels, whole, multi_class="ovr")
    assert scores.class_auc(whole, labels).mean() == pytest.approx(expected)
    mean = scores.macro_auc(likely, labels)
    assert mean(np.ones(300)) == pytest.approx(areas.mean())
    counts = RNG.integers(0, 3, 300)
    again = scores.class_auc(np.repeat(likely, counts, 0), np.repeat(labels, counts))
    assert mean(counts.astype(float)) == pytest.approx(again.mean())


def test_a_class_without_examples_or_with_all_has_no_area():
    likely = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.3, 0.7, 0.0]])
    np.testing.assert_array_equal(
        scores.class_auc(likely, np.array([0, 1, 1])), [1, 1, np.nan]
    )
    one = np.array([1, 1, 1])
    assert np.isnan(scores.class_auc(likely, one)).all()
    assert math.isnan(scores.macro_auc(likely, one)(np.ones(3)))
    # What has no numbers is left out.
    likely[2] = np.nan
    np.testing.assert_array_equal(
        scores.class_auc(likely, np.array([0, 1, 0])), [1, 1, np.nan]
    )
    assert scores.macro_auc(likely, np.array([0, 1, 0]))(np.ones(3)) == 1


def test_a_mean_is_the_same_in_any_order_and_nothing_where_one_value_is():
    values = RNG.normal(size=1001) * 10.0 ** RNG.integers(-8, 8, 1001)
    assert scores.mean(values) == scores.mean(values[::-1])
    assert math.isnan(scores.mean(np.array([1.0, np.inf])))


def test_many_examples_are_as_a_few():
    logits, _ = drawn(20_000, 3)
    np.testing.assert_array_equal(scores.predicted(logits), logits.argmax(1))
