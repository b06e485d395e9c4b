"""The predictions of a split -> every figure of how good they are, with intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxcls.evaluation import calibration, intervals, scores
from jaxcls.evaluation.intervals import Interval
from jaxcls.evaluation.predictions import Predictions, probabilities
from jaxcls.learning.metrics import LOSS

# The most classes for which an area under the ROC is found, and the work (examples times
# classes) beyond which its interval is of a fifth of the replicates.
AUC_CLASSES, AUC_WORK = 50, 1_000_000
UNKNOWN = Interval(math.nan, math.nan, math.nan)


class Calibration(NamedTuple):
    """reliability, before: as it is, and its ECE. after: that with the temperature.

    temperature: NaN where none was fitted; fitted_on: what it was, or why there is none.
    """

    reliability: calibration.Reliability
    before: Interval
    temperature: float
    fitted_on: str
    after: Interval


class Assessment(NamedTuple):
    """What n examples say of a model.

    non_finite: examples of which no class is predicted, which count as wrong in top1 and by
    class, and are left out of AUC and calibration. headline: each figure by its name.
    matrix: confusions [K, K]. auc: [K], or [0] where there are too many classes.
    """

    n: int
    non_finite: int
    headline: dict[str, Interval]
    matrix: np.ndarray
    by_class: scores.ByClass
    auc: np.ndarray
    calibration: Calibration


class ScoreRow(NamedTuple):
    """The same model, or the same labels, otherwise: n examples, and what they say."""

    name: str
    n: int
    top1: Interval
    loss: Interval


class Corrupted(NamedTuple):
    """A corruption, what it is one of, its strengths from 1 on, and the mean over them."""

    name: str
    kind: str
    strengths: list[ScoreRow]
    mean: ScoreRow


class Attacked(NamedTuple):
    """A kind of attack, how far it goes, and what it leaves."""

    kind: str
    epsilon: float
    row: ScoreRow


class Robustness(NamedTuple):
    """Corruptions and attacks; mean: over the corruptions, None where there is none."""

    corrupted: list[Corrupted]
    mean: ScoreRow | None
    attacked: list[Attacked]


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


def row(name: str, columns: Mapping[str, np.ndarray]) -> ScoreRow:
    """A row of the values [n] called "top1" and "loss"."""
    top1, loss = columns["top1"], columns["loss"]
    return ScoreRow(name, len(top1), figure(top1), figure(loss))


def assess(
    found: Predictions,
    link: str,
    columns: Mapping[str, np.ndarray],
    temperature: float,
    fitted_on: str,
) -> Assessment:
    """The figures of predictions whose logits the loss means as `link`.

    columns: the values [n] of the examples by metric, "top1" and "loss" among them.
    temperature, fitted_on: as in `Calibration`.
    """
    logits, labels = found
    n, num_classes = logits.shape
    predicted = scores.predicted(logits)
    matrix = scores.confusion(predicted, labels, num_classes)
    support = np.bincount(labels, minlength=num_classes)
    names = sorted(columns, key=lambda name: (name == LOSS, name))  # The loss is last.
    headline = {name: figure(columns[name]) for name in names}
    sure = calibration.confidence(logits, link)
    tempered = calibration.confidence(logits, link, temperature)
    means, (before, after) = _sampled(predicted, labels, num_classes, (sure, tempered))
    headline |= {**means, "ECE": before}
    auc = np.zeros(0)
    if num_classes <= AUC_CLASSES:
        auc, headline["macro AUC"] = _auc(probabilities(logits, link), labels)
    return Assessment(
        n=n,
        non_finite=int((predicted < 0).sum()),
        headline=headline,
        matrix=matrix,
        by_class=scores.by_class(matrix, support),
        auc=auc,
        calibration=Calibration(
            calibration.reliability(sure, predicted == labels),
            before,
            temperature,
            fitted_on,
            after,
        ),
    )


def _sampled(
    predicted: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    confidences: Sequence[np.ndarray],
) -> tuple[dict[str, Interval], list[Interval]]:
    """What a bootstrap gives the intervals of: means over classes, and calibration errors.

    confidences: each [n], of the predicted class.
    """
    errors = [calibration.error(each, predicted == labels) for each in confidences]

    def statistic(weights: np.ndarray) -> np.ndarray:
        by_name = scores.means(predicted, labels, num_classes, weights)
        figures = [x for each in by_name.values() for x in each]
        return np.array([*figures, *(error(weights) for error in errors)])

    values = intervals.bootstrap(statistic, len(labels), limits=(0.0, 1.0))
    names = [
        f"{kind} {figure}"
        for kind in ("macro", "weighted")
        for figure in ("precision", "recall", "F1")
    ]
    means = dict(zip(names, values, strict=False))
    return means, values[len(names) :]


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
