"""The predictions of a split -> every figure of how good they are, with intervals."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxcls import calibration, intervals, scores
from jaxcls.intervals import Interval
from jaxcls.predictions import Predictions, probabilities

# The most classes for which an area under the ROC is found, and the work (examples times
# classes) beyond which its interval is of a fifth of the replicates.
AUC_CLASSES, AUC_WORK = 50, 1_000_000
UNKNOWN = Interval(math.nan, math.nan, math.nan)


class Calibration(NamedTuple):
    """reliability: as it is. temperature: NaN where none was fitted; after: ECE with it."""

    reliability: calibration.Reliability
    before: Interval
    temperature: float
    after: Interval


class Assessment(NamedTuple):
    """What n examples say of a model.

    nameless: examples whose logits are not all numbers, which count as wrong in hits and by
    class, and are left out of AUC and calibration. headline: each figure by its name.
    matrix: confusions [K, K]. auc: [K], or [0] where there are too many classes.
    """

    n: int
    nameless: int
    headline: dict[str, Interval]
    matrix: np.ndarray
    by_class: scores.ByClass
    auc: np.ndarray
    calibration: Calibration


class Row(NamedTuple):
    """The same model, or the same labels, otherwise: n examples, and what they say."""

    name: str
    n: int
    top1: Interval
    loss: Interval


def figure(values: np.ndarray) -> Interval:
    """The mean of values [n], NaN if any is not finite; of hits it is a proportion."""
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        return UNKNOWN
    if np.isin(values, (0, 1)).all():
        return intervals.proportion(int(values.sum()), len(values))
    (found,) = intervals.bootstrap(
        lambda weights: np.array([(weights * values).sum() / weights.sum()]), len(values)
    )
    return found


def row(name: str, columns: Mapping[str, np.ndarray]) -> Row:
    """A row of the values [n] called "top1" and "loss"."""
    top1, loss = columns["top1"], columns["loss"]
    return Row(name, len(top1), figure(top1), figure(loss))


def assess(
    found: Predictions, link: str, columns: Mapping[str, np.ndarray], temperature: float
) -> Assessment:
    """The figures of predictions whose logits the loss means as `link`.

    columns: the value [n] of each example by the loss and every metric. temperature: what
    was fitted for them, on other examples; NaN: nothing was.
    """
    logits, labels = found
    n, num_classes = logits.shape
    predicted = scores.predicted(logits)
    matrix = scores.confusion(predicted, labels, num_classes)
    support = np.bincount(labels, minlength=num_classes)
    headline = {name: figure(values) for name, values in columns.items() if name != "loss"}
    headline = {"top1": figure(predicted == labels), **headline}
    if num_classes > 5 and "top5" not in headline:
        headline["top5"] = figure(scores.top_hits(logits, labels, 5))
    headline["loss"] = figure(columns["loss"])
    by_class, calibrated = _sampled(found, predicted, link, temperature)
    headline |= by_class
    headline["ECE"] = calibrated.before
    auc = np.zeros(0)
    if num_classes <= AUC_CLASSES:
        auc, headline["macro AUC"] = _auc(probabilities(logits, link), labels)
    return Assessment(
        n=n,
        nameless=int((~np.isfinite(logits.max(-1))).sum()),
        headline=headline,
        matrix=matrix,
        by_class=scores.by_class(matrix, support),
        auc=auc,
        calibration=calibrated,
    )


def _sampled(
    found: Predictions, predicted: np.ndarray, link: str, temperature: float
) -> tuple[dict[str, Interval], Calibration]:
    """What a bootstrap gives the intervals of: means over classes, and the calibration."""
    logits, labels = found
    num_classes, hits = logits.shape[1], predicted == labels
    sure = confidence(logits, link)
    has_fit = not math.isnan(temperature)
    both = [sure, confidence(logits, link, temperature)] if has_fit else [sure]
    errors = [_Error(each, hits) for each in both]

    def statistic(weights: np.ndarray) -> np.ndarray:
        by_name = scores.means(predicted, labels, num_classes, weights)
        figures = [x for each in by_name.values() for x in each]
        return np.array([*figures, *(error.of(weights) for error in errors)])

    values = intervals.bootstrap(statistic, len(labels), limits=(0.0, 1.0))
    names = [
        f"{kind} {figure}"
        for kind in ("macro", "weighted")
        for figure in ("precision", "recall", "F1")
    ]
    before, after = values[len(names)], values[-1] if has_fit else UNKNOWN
    reliability = calibration.of_confidence(sure, hits)
    calibrated = Calibration(reliability, before, temperature, after)
    return dict(zip(names, values, strict=False)), calibrated


class _Error:
    """The expected calibration error where examples count other than once."""

    def __init__(self, confidence: np.ndarray, hits: np.ndarray) -> None:
        self._rows = np.flatnonzero(~np.isnan(confidence))
        sure = confidence[self._rows]
        self._bins, self._gaps = calibration.bin_of(sure), hits[self._rows] - sure

    def of(self, weights: np.ndarray) -> float:
        kept = weights[self._rows]
        if not kept.any():
            return math.nan
        gaps = np.bincount(self._bins, kept * self._gaps)
        return float(np.abs(gaps).sum() / kept.sum())


def confidence(logits: np.ndarray, link: str, temperature: float = 1.0) -> np.ndarray:
    """logits [n, K] -> the largest probability [n] float64 of each; NaN where one is."""
    sure = np.empty(len(logits))
    for piece in scores.in_pieces(len(logits)):
        sure[piece] = probabilities(logits[piece], link, temperature).max(-1)
    return sure


def _auc(likely: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, Interval]:
    """The area of each class [K], and the mean of those that have one."""
    areas, mean_of = scores.class_auc(likely, labels), scores.macro_auc(likely, labels)
    if np.isnan(areas).all():
        return areas, UNKNOWN
    is_much = likely.size > AUC_WORK
    (found,) = intervals.bootstrap(
        lambda weights: np.array([mean_of(weights)]),
        len(labels),
        replicates=intervals.REPLICATES // (5 if is_much else 1),
        limits=(0.0, 1.0),
    )
    return areas, found
