"""Computes every figure of a model, with confidence intervals, from its predictions."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxcls.evaluation import calibration, intervals, scores
from jaxcls.evaluation.intervals import Interval
from jaxcls.evaluation.predictions import Predictions, probabilities
from jaxcls.learning.metrics import LOSS

# The most classes with an AUC. Beyond this work (examples times classes), its interval uses
# a fifth of the replicates.
AUC_CLASSES, AUC_WORK = 50, 1_000_000
UNKNOWN = Interval(math.nan, math.nan, math.nan)


class Calibration(NamedTuple):
    """The calibration of a model. reliability, before: the bins and their errors.

    temperature: NaN if none was fitted. fitted_on: the examples, or the reason for NaN.
    after: the errors with the temperature.
    """

    reliability: calibration.Reliability
    before: calibration.Errors
    temperature: float
    fitted_on: str
    after: calibration.Errors


class Assessment(NamedTuple):
    """The figures of a model on n examples.

    non_finite: the number of examples without a predicted class. They count as wrong in
    top1 and the classes, and are left out of AUC and calibration. headline: figures by
    name. matrix: confusion matrix [K, K]. auc: [K], or [0] if there are too many classes.
    """

    n: int
    non_finite: int
    headline: dict[str, Interval]
    matrix: np.ndarray
    by_class: scores.ByClass
    auc: np.ndarray
    calibration: Calibration


class ScoreRow(NamedTuple):
    """A named row of scores: top1 and loss on n examples."""

    name: str
    n: int
    top1: Interval
    loss: Interval


class Corrupted(NamedTuple):
    """The scores under a corruption: at each strength from 1 on, and their mean."""

    name: str
    kind: str
    strengths: list[ScoreRow]
    mean: ScoreRow


class Attacked(NamedTuple):
    """The scores under an attack of one kind and epsilon."""

    kind: str
    epsilon: float
    row: ScoreRow


class Robustness(NamedTuple):
    """Scores under corruptions and attacks; mean: over the corruptions, or None."""

    corrupted: list[Corrupted]
    mean: ScoreRow | None
    attacked: list[Attacked]


def figure(values: np.ndarray) -> Interval:
    """Returns the mean of values [n], NaN if one is non-finite; of hits, a proportion."""
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        return UNKNOWN
    if np.isin(values, (0, 1)).all():
        return intervals.proportion(int(values.sum()), len(values))
    (found,) = intervals.bootstrap(
        lambda weights: np.array([(weights * values).sum() / weights.sum()]), len(values)
    )
    return found


def row(name: str, columns: Mapping[str, np.ndarray]) -> ScoreRow:
    """Returns the row of the columns [n] "top1" and "loss"."""
    top1, loss = columns["top1"], columns["loss"]
    return ScoreRow(name, len(top1), figure(top1), figure(loss))


def assess(
    found: Predictions,
    link: str,
    columns: Mapping[str, np.ndarray],
    temperature: float,
    fitted_on: str,
) -> Assessment:
    """Returns the figures of predictions, with logits that `link` turns into probabilities.

    columns: the metrics [n] of each example, "top1" and "loss" among them. temperature,
    fitted_on: as in `Calibration`.
    """
    logits, labels = found
    n, num_classes = logits.shape
    predicted = scores.predicted(logits)
    sure = calibration.confidence(logits, link)
    tempered = calibration.confidence(logits, link, temperature)
    hits = predicted == labels
    before, after = (calibration.errors(each, hits) for each in (sure, tempered))
    by_class, means = scores.by_class(predicted, labels, num_classes)

    def sampled(weights: np.ndarray) -> np.ndarray:
        _, means = scores.by_class(predicted, labels, num_classes, weights)
        return np.array([*means.values()])

    of_means = intervals.bootstrap(sampled, n, limits=(0.0, 1.0))
    names = sorted(columns, key=lambda name: (name == LOSS, name))  # Loss is last.
    headline = {name: figure(columns[name]) for name in names}
    headline["Brier score"] = figure(brier(logits, labels, link))
    headline |= dict(zip(means, of_means, strict=True))
    headline["ECE"] = Interval(before.ece, math.nan, math.nan)
    auc = np.zeros(0)
    if num_classes <= AUC_CLASSES:
        auc, headline["macro AUC"] = _auc(probabilities(logits, link), labels)
    reliability = calibration.reliability(sure, hits)
    return Assessment(
        n=n,
        non_finite=int((predicted < 0).sum()),
        headline=headline,
        matrix=scores.confusion(predicted, labels, num_classes),
        by_class=by_class,
        auc=auc,
        calibration=Calibration(reliability, before, temperature, fitted_on, after),
    )


def brier(logits: np.ndarray, labels: np.ndarray, link: str = "softmax") -> np.ndarray:
    """Returns the Brier score [n] of logits [n, K]: the sum over k of (p_k - y_k)**2.

    It is 0 at best, and 2 for a certain and wrong class (Brier, 1950); y is one-hot. It is
    NaN for logits that are NaN.
    """
    found = np.empty(len(logits))
    for piece in scores.in_pieces(len(logits)):
        apart = probabilities(logits[piece], link)
        apart[np.arange(len(apart)), labels[piece]] -= 1
        found[piece] = (apart**2).sum(1)
    return found


def _auc(likely: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, Interval]:
    """Returns the AUC of each class [K], and the mean over the classes that have one."""
    areas_of = scores.class_auc(likely, labels)
    areas = areas_of(np.ones(len(labels)))
    if np.isnan(areas).all():
        return areas, UNKNOWN

    def mean(weights: np.ndarray) -> np.ndarray:
        return np.array([mean_area(areas_of(weights))])

    (found,) = intervals.bootstrap(
        mean, len(labels), replicates=auc_replicates(likely.size), limits=(0.0, 1.0)
    )
    return areas, found


def mean_area(areas: np.ndarray) -> float:
    """Returns the mean of the AUC [K] of the classes that have one; NaN if none has."""
    known = areas[~np.isnan(areas)]
    return float(known.mean()) if known.size else math.nan


def auc_replicates(work: int) -> int:
    """Returns the replicates of an AUC's bootstrap. work: examples times classes."""
    return intervals.REPLICATES // (5 if work > AUC_WORK else 1)
