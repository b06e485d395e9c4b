"""Calibration: reliability, its expected error (ECE), and temperature scaling.

Guo et al., arXiv:1706.04599. `sklearn.calibration.calibration_curve` is unsuitable: it
returns no counts of bins, which ECE needs, and omits empty bins.
"""

import dataclasses
from collections.abc import Callable

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


def error(
    confidence: np.ndarray, hits: np.ndarray, bins: int = BINS
) -> Callable[[np.ndarray], float]:
    """Returns a function: weights [n] of the examples -> expected calibration error (ECE).

    ECE is the mean of |accuracy - confidence| over bins, weighted by their counts. It is
    NaN if all weights are 0. Examples whose confidence is NaN are left out.
    """
    rows = np.flatnonzero(~np.isnan(confidence))
    sure = confidence[rows]
    where, gaps = bin_of(sure, bins), hits[rows] - sure

    def expected(weights: np.ndarray) -> float:
        kept = weights[rows]
        if not kept.any():
            return float("nan")
        return float(np.abs(np.bincount(where, kept * gaps)).sum() / kept.sum())

    return expected


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
