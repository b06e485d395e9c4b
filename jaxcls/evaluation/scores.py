"""Scores of a split's predictions: confusions, precision, recall, F1, AUC.

Non-finite logits predict no class, and their examples count as wrong. Where a figure takes
the count of each example, it needs no scikit-learn: a bootstrap calls it a thousand times,
and it sorts only once.
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
    matrix, known = np.zeros((num_classes, num_classes), np.int64), predicted >= 0
    np.add.at(matrix, (labels[known], predicted[known]), 1)
    return matrix


def most_confused(matrix: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """Returns (true, predicted, count) of the `count` largest confusions, largest first.

    Equal counts are in the order of their classes. There are fewer rows if fewer classes
    are confused.
    """
    truth, taken_for = np.nonzero(matrix - np.diag(np.diag(matrix)))
    cells = matrix[truth, taken_for]
    first = np.argsort(-cells, kind="stable")[:count]
    return [(int(truth[i]), int(taken_for[i]), int(cells[i])) for i in first]


class ByClass(NamedTuple):
    """Arrays [K]: the number of examples, and precision, recall and F1, 0 if undefined."""

    support: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def by_class(
    predicted: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    weights: np.ndarray | None = None,
) -> tuple[ByClass, dict[str, float]]:
    """Returns the figures of each class, and their means over classes by name.

    "macro" means are over classes that occur or are predicted. "weighted" ones weight each
    class by its support. predicted [n]: -1 predicts no class. labels: [n]. weights [n]: the
    count of each example.
    """

    def counted(classes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        count = None if weights is None else weights[chosen]
        return np.bincount(classes[chosen], count, num_classes)

    def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return np.divide(above, below, out=np.zeros(num_classes), where=below > 0)

    hits, support = counted(labels, predicted == labels), counted(labels, labels >= 0)
    taken = counted(predicted, predicted >= 0)
    precision, recall = ratio(hits, taken), ratio(hits, support)
    each = ByClass(support, precision, recall, ratio(2 * hits, taken + support))
    names, there = ("precision", "recall", "F1"), (taken + support) > 0
    columns = dict(zip(names, each[1:], strict=True))
    means = {f"macro {name}": values[there].mean() for name, values in columns.items()}
    means |= {
        f"weighted {name}": (values * support).sum() / support.sum()
        for name, values in columns.items()
    }
    return each, means


def class_auc(
    probabilities: np.ndarray, labels: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function: counts of the examples [n] -> one-vs-rest AUC of each class [K].

    probabilities: [n, K]; labels: [n]. Ties count half. A class without examples, or with
    all of them, has NaN. Examples with a NaN probability are left out.
    """
    rows = np.flatnonzero(~np.isnan(probabilities).any(-1))
    each = [
        _auc(probabilities[rows, k], labels[rows] == k)
        for k in range(probabilities.shape[1])
    ]
    return lambda weights: np.array([area(weights[rows]) for area in each])


def _auc(score: np.ndarray, is_positive: np.ndarray) -> Callable[[np.ndarray], float]:
    """Returns a function: counts [n] -> AUC of `score` [n] for `is_positive` [n]."""
    positives, negatives = np.flatnonzero(is_positive), np.flatnonzero(~is_positive)
    negatives = negatives[np.argsort(score[negatives])]
    # For each example of the class: the negatives that score lower, and lower or equal.
    below = np.searchsorted(score[negatives], score[positives], side="left")
    upto = np.searchsorted(score[negatives], score[positives], side="right")

    def area(weights: np.ndarray) -> float:
        sums = np.concatenate([[0.0], np.cumsum(weights[negatives])])
        pairs = weights[positives].sum() * sums[-1]
        won = (weights[positives] * (sums[below] + sums[upto])).sum() / 2
        return float(won / pairs) if pairs else math.nan

    return area
