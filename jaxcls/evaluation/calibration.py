"""Calibration: reliability, its expected error (ECE), and temperature scaling.

Guo et al., arXiv:1706.04599. `sklearn.calibration.calibration_curve` is unsuitable: it
returns no counts of bins, which ECE needs, and omits empty bins.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from jaxcls.evaluation.predictions import probabilities
from jaxcls.evaluation.scores import in_pieces

# Bounds of a temperature: beyond them it says only that all examples are correct, or that
# the logits carry no information.
COLDEST, HOTTEST = 0.01, 100.0
BINS = 15


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Arrays [bins] over equal bins of 0..1: mean confidence, accuracy, count int64.

    Means of an empty bin are NaN. The confidence of an example is its largest probability.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def confidence(
    logits: np.ndarray, link: str = "softmax", temperature: float = 1.0
) -> np.ndarray:
    """Returns the largest probability [n] float64 of logits [n, K]; NaN if one is NaN."""
    sure = np.empty(len(logits))
    for piece in in_pieces(len(logits)):
        sure[piece] = probabilities(logits[piece], link, temperature).max(-1)
    return sure


def reliability(confidence: np.ndarray, hits: np.ndarray, bins: int = BINS) -> Reliability:
    """Returns the mean confidence, accuracy and count of each bin.

    confidence: [n]; hits: bool [n]. Examples whose confidence is NaN are left out.
    """
    known = ~np.isnan(confidence)
    sure, right = confidence[known], hits[known]
    where = bin_of(sure, bins)
    count = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an empty bin.
        confidence, accuracy = (
            np.bincount(where, each, bins) / count for each in (sure, right)
        )
    return Reliability(confidence, accuracy, count)


def bin_of(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Returns the bin [n] int64 of each confidence: bin b holds (b, b + 1] / bins."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


class Errors(NamedTuple):
    """Calibration errors of n examples, in `BINS` bins; NaN if n is 0.

    ece: the mean of |accuracy - confidence| over equal bins, weighted by their counts.
    adaptive: the same over bins of equal counts. Chance moves the accuracy of a bin, so
    both are above 0 for a calibrated model, the more so the smaller n is: they have no
    interval. debiased: the root of the mean squared error over equal bins, without the
    part that is due to chance (Kumar et al., arXiv:1909.10155); at least 0.
    """

    ece: float
    adaptive: float
    debiased: float


def errors(confidence: np.ndarray, hits: np.ndarray, bins: int = BINS) -> Errors:
    """Returns the calibration errors of confidences [n] and hits, bool [n].

    Examples whose confidence is NaN are left out.
    """
    known = ~np.isnan(confidence)
    sure, gaps = confidence[known], hits[known] - confidence[known]
    if not sure.size:
        return Errors(math.nan, math.nan, math.nan)
    equal, inner = bin_of(sure, bins), np.arange(1, bins) / bins
    # Equal confidences are in one bin, so their order is without effect.
    edges = np.unique(np.quantile(sure, inner, method="inverted_cdf"))
    ece, adaptive = (
        float(np.abs(np.bincount(where, gaps)).sum() / len(gaps))
        for where in (equal, np.searchsorted(edges, sure))
    )
    return Errors(ece, adaptive, float(np.sqrt(np.maximum(0, _squared(equal, gaps)))))


def _squared(where: np.ndarray, gaps: np.ndarray) -> float:
    """Returns an unbiased estimate of the mean squared gap of the bins; it may be negative.

    where: the bin [n] of each gap [n], a hit minus its confidence. The square of a bin's
    mean gap exceeds the true one by the variance of that mean, which is subtracted. Kumar
    et al. have the variance of the hits, which is the same if a bin has one confidence. A
    bin of one example has no variance, so it is left out.
    """
    count = np.bincount(where)
    count = np.where(count > 1, count, 0)
    there = count > 0
    if not there.any():
        return math.nan
    sums, squares = np.bincount(where, gaps)[there], np.bincount(where, gaps**2)[there]
    count = count[there]
    mean = sums / count
    variance = (squares - count * mean**2) / (count - 1)
    return float((count * mean**2 - variance).sum() / count.sum())


def fit_temperature(logits: np.ndarray, labels: np.ndarray, link: str = "softmax") -> float:
    """Returns the temperature of logits [n, K] that maximises the likelihood of labels [n].

    link: "softmax" or "sigmoid". The result lies between 0.01 and 100. Non-finite rows are
    left out; the result is NaN if no row remains.
    """
    import scipy.optimize  # The import takes a second; training does not need it.

    known = np.flatnonzero(np.isfinite(logits).all(-1))
    if not known.size:
        return float("nan")

    def slope(log_temperature: float) -> float:
        """Returns the mean loss's derivative by 1 / temperature, which rises with it."""
        total = 0.0
        for piece in in_pieces(len(known)):
            rows = known[piece]
            part = logits[rows].astype(np.float64)
            shares = probabilities(part, link, np.exp(log_temperature))
            # Row by row: of examples that are right at this temperature, it is exactly 0.
            of_label = part[np.arange(len(rows)), labels[rows]]
            total += float(((shares * part).sum(1) - of_label).sum())
        return total / len(known)

    low, high = np.log(COLDEST), np.log(HOTTEST)
    if slope(high) >= 0:  # Even at this bound, less confidence would be better.
        return HOTTEST
    if slope(low) <= 0:
        return COLDEST
    return float(np.exp(scipy.optimize.brentq(slope, low, high, xtol=1e-5)))
