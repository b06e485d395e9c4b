"""What a split's predictions come to, class by class: hits, confusion, precision, AUC.

Of non-finite logits nothing is predicted: their examples count as wrong.
Scikit-learn is imported where it is used: it takes a second, and of training only
TensorBoard needs it. `means` and `macro_auc` are not its functions: a bootstrap asks them
a thousand times, and they sort or count once what scikit-learn would each time.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxcls.learning import metrics

# Rows of logits that are looked at together: a split may have a million.
_ROWS = 8192


def in_pieces(n: int) -> Iterator[slice]:
    """0..n-1 in pieces of a size that fits in memory beside the whole."""
    return (slice(start, min(start + _ROWS, n)) for start in range(0, n, _ROWS))


def mean(values: np.ndarray) -> float:
    """The mean of [n]; NaN if any is not finite.

    fsum is exact, so no batch size and no order of adding can change it.
    """
    if not np.isfinite(values).all():
        return math.nan
    return math.fsum(values.tolist()) / len(values)


def predicted(logits: np.ndarray) -> np.ndarray:
    """`metrics.predicted` of logits [n, K] of a whole split, int64 [n]."""
    found = np.empty(len(logits), np.int64)
    for piece in in_pieces(len(logits)):
        found[piece] = metrics.predicted(jnp.asarray(logits[piece]))
    return found


def confusion(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 [K, K]: how many examples of each class (row) are taken for each (column).

    predicted, labels: [n]. An example of which -1 is predicted is in no cell.
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
    """Arrays [K]: support int64, the examples of each class; precision, recall, f1."""

    support: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def by_class(matrix: np.ndarray, support: np.ndarray | None = None) -> ByClass:
    """The figures of each class from its confusions [K, K]; 0 where one has no value.

    support: examples [K] of each class, where not all are in the matrix.
    """
    import sklearn.metrics

    classes = np.arange(len(matrix))
    truth, taken_for = np.nonzero(matrix)
    weights = matrix[truth, taken_for]
    # What nothing was predicted of is taken for a class that is none of these.
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
    """(true, predicted, count) of the `count` largest confusions, the largest first.

    Of equal ones the lower classes come first; there are fewer where there are no more.
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
    """ "macro": the mean over classes that occur or are predicted; "weighted": by support.

    predicted (-1: nothing), labels: [n]; weights [n]: how often each example counts.
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
    """above / below, and 0 where that has no value."""
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)


def class_auc(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The area under the ROC of each class [K] against the rest; ties count half.

    probabilities [n, K], labels [n]. NaN for a class that has no example, or all of them;
    an example whose probabilities are NaN is left out.
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
    """How often each example counts [n] -> the mean of `class_auc` over its classes.

    What it costs to sort is paid once: a bootstrap asks a thousand times.
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
    """The examples of `rows` by the score [m] of one class; own: which are of it."""

    def __init__(self, rows: np.ndarray, score: np.ndarray, own: np.ndarray) -> None:
        order = np.argsort(score, kind="stable")
        ranked = score[order]
        self._own, self._others = rows[order[own[order]]], rows[order[~own[order]]]
        others = ranked[~own[order]]
        # Of the other classes' examples, how many score below each own one, or like it.
        self._below = np.searchsorted(others, ranked[own[order]], side="left")
        self._upto = np.searchsorted(others, ranked[own[order]], side="right")

    def area(self, weights: np.ndarray) -> float:
        own, others = weights[self._own], weights[self._others]
        sums = np.concatenate([[0.0], np.cumsum(others)])
        pairs = own.sum() * sums[-1]
        won = (own * (sums[self._below] + sums[self._upto])).sum() / 2
        return float(won / pairs) if pairs else math.nan
