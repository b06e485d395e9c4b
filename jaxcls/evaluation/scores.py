"""Scores of a split's predictions: hits, confusions, precision, recall, F1, AUC.

Non-finite logits predict no class, and their examples count as wrong. The functions import
scikit-learn themselves: it takes a second, and in training only TensorBoard needs it.
`means` and `macro_auc` do not use scikit-learn: a bootstrap calls them a thousand times,
and they sort or count only once.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxcls.learning import metrics

# The rows of logits in one slice: a split may have a million rows.
_ROWS = 8192


def in_pieces(n: int) -> Iterator[slice]:
    """Returns slices that cover 0..n-1, of a size that fits in memory beside the data."""
    return (slice(start, min(start + _ROWS, n)) for start in range(0, n, _ROWS))


def mean(values: np.ndarray) -> float:
    """Returns the mean of [n]; NaN if any value is non-finite.

    fsum is exact, so the batch size and the order of addition do not change the result.
    """
    if not np.isfinite(values).all():
        return math.nan
    return math.fsum(values.tolist()) / len(values)


def predicted(logits: np.ndarray) -> np.ndarray:
    """Returns `metrics.predicted` of the logits [n, K] of a whole split, int64 [n]."""
    found = np.empty(len(logits), np.int64)
    for piece in in_pieces(len(logits)):
        found[piece] = metrics.predicted(jnp.asarray(logits[piece]))
    return found


def confusion(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the confusion matrix int64 [K, K]: true class (row) by predicted (column).

    predicted, labels: [n]. A prediction of -1 counts in no cell.
    """
    import sklearn.metrics

    known = predicted >= 0
    if not known.any():
        return np.zeros((num_classes, num_classes), np.int64)
    matrix = sklearn.metrics.confusion_matrix(
        labels[known], predicted[known], labels=np.arange(num_classes)
    )
    return matrix.astype(np.int64)


class ByClass(NamedTuple):
    """Arrays [K]: precision, recall and f1, and support int64, the examples of a class."""

    support: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def by_class(matrix: np.ndarray, support: np.ndarray | None = None) -> ByClass:
    """Returns the figures of each class from the confusion matrix [K, K]; 0 if undefined.

    support: the examples [K] of each class, if the matrix lacks some.
    """
    import sklearn.metrics

    classes = np.arange(len(matrix))
    truth, taken_for = np.nonzero(matrix)
    weights = matrix[truth, taken_for]
    # Missed examples take an extra class, which is none of these.
    missed = matrix.sum(1) * 0 if support is None else support - matrix.sum(1)
    found = sklearn.metrics.precision_recall_fscore_support(
        np.concatenate([truth, classes]),
        np.concatenate([taken_for, np.full(len(classes), len(classes))]),
        labels=classes,
        sample_weight=np.concatenate([weights, missed]),
        zero_division=0,
    )
    precision, recall, f1, total = found
    return ByClass(np.rint(total).astype(np.int64), precision, recall, f1)


def most_confused(matrix: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """Returns (true, predicted, count) of the `count` largest confusions, largest first.

    Equal counts are in the order of their classes. There are fewer rows if fewer classes
    are confused.
    """
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    truth, taken_for = np.nonzero(wrong)
    cells = wrong[truth, taken_for]
    first = np.argsort(-cells, kind="stable")[:count]
    return [(int(truth[i]), int(taken_for[i]), int(cells[i])) for i in first]


class Means(NamedTuple):
    """Precision, recall and F1, each a mean over classes."""

    precision: float
    recall: float
    f1: float


def means(
    predicted: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    weights: np.ndarray | None = None,
) -> dict[str, Means]:
    """Returns "macro" and "weighted" means over classes.

    "macro" averages over classes that occur or are predicted. "weighted" weights each class
    by its support. predicted [n]: -1 predicts no class. labels: [n]. weights [n]: the count
    of each example.
    """
    count = np.ones(len(labels)) if weights is None else weights

    def each(classes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return np.bincount(classes[chosen], count[chosen], num_classes)

    known = predicted >= 0
    hits = each(labels, predicted == labels)
    taken, support = each(predicted, known), each(labels, labels >= 0)
    precision, recall = _ratio(hits, taken), _ratio(hits, support)
    table = precision, recall, _ratio(2 * hits, taken + support)
    there = (taken + support) > 0
    total = support.sum()
    return {
        "macro": Means(*(float(column[there].mean()) for column in table)),
        "weighted": Means(*(float((column * support).sum() / total) for column in table)),
    }


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Returns above / below, and 0 where below is 0."""
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)


def class_auc(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the one-vs-rest AUC of each class [K]; ties count half.

    probabilities: [n, K]; labels: [n]. A class without examples, or with all of them, has
    NaN. Examples with a NaN probability are left out.
    """
    import sklearn.metrics

    known = ~np.isnan(probabilities).any(-1)
    kept, truth = probabilities[known], labels[known]
    areas = np.full(probabilities.shape[1], np.nan)
    for k in np.unique(truth):
        own = truth == k
        if not own.all():
            areas[k] = sklearn.metrics.roc_auc_score(own, kept[:, k])
    return areas


def macro_auc(
    probabilities: np.ndarray, labels: np.ndarray
) -> Callable[[np.ndarray], float]:
    """Returns a function: counts of the examples [n] -> mean of `class_auc` over classes.

    It sorts once, because a bootstrap calls the function a thousand times.
    """
    rows = np.flatnonzero(~np.isnan(probabilities).any(-1))
    classes = [
        _Sorted(rows, probabilities[rows, k], labels[rows] == k)
        for k in np.unique(labels[rows])
    ]

    def mean(weights: np.ndarray) -> float:
        areas = np.array([each.area(weights) for each in classes])
        known = areas[~np.isnan(areas)]
        return float(known.mean()) if known.size else math.nan

    return mean


class _Sorted:
    """The examples `rows`, sorted by the score [m] of one class; own: its examples."""

    def __init__(self, rows: np.ndarray, score: np.ndarray, own: np.ndarray) -> None:
        order = np.argsort(score, kind="stable")
        ranked = score[order]
        self._own, self._others = rows[order[own[order]]], rows[order[~own[order]]]
        others = ranked[~own[order]]
        # For each example of the class: the other examples that score lower, and lower or
        # equal.
        self._below = np.searchsorted(others, ranked[own[order]], side="left")
        self._upto = np.searchsorted(others, ranked[own[order]], side="right")

    def area(self, weights: np.ndarray) -> float:
        own, others = weights[self._own], weights[self._others]
        sums = np.concatenate([[0.0], np.cumsum(others)])
        pairs = own.sum() * sums[-1]
        won = (own * (sums[self._below] + sums[self._upto])).sum() / 2
        return float(won / pairs) if pairs else math.nan
