"""Whether probabilities are what they say: reliability, its error, a temperature.

Guo et al., arXiv:1706.04599. Not `sklearn.calibration.calibration_curve`: that gives no
count of a bin, without which there is no ECE, and leaves empty bins out.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxcls.evaluation.predictions import probabilities
from jaxcls.evaluation.scores import in_pieces

# Beyond these a temperature says only that all are right, or that nothing is known.
COLDEST, HOTTEST = 0.01, 100.0
BINS = 15


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Arrays [bins] over equal parts of 0..1: mean confidence, accuracy, count int64.

    NaN where a bin is empty. The confidence is the largest probability of an example.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def confidence(
    logits: np.ndarray, link: str = "softmax", temperature: float = 1.0
) -> np.ndarray:
    """logits [n, K] -> the largest probability [n] float64 of each; NaN where one is."""
    sure = np.empty(len(logits))
    for piece in in_pieces(len(logits)):
        sure[piece] = probabilities(logits[piece], link, temperature).max(-1)
    return sure


def reliability(confidence: np.ndarray, hits: np.ndarray, bins: int = BINS) -> Reliability:
    """confidence [n], hits bool [n] -> how sure, and how often right, in each bin.

    Examples whose confidence is NaN are left out.
    """
    known = ~np.isnan(confidence)
    sure, right = confidence[known].astype(np.float64), hits[known]
    where = bin_of(sure, bins)
    count = np.bincount(where, minlength=bins)
    sums = [np.bincount(where, column, bins) for column in (sure, right)]
    means = [
        np.divide(column, count, out=np.full(bins, np.nan), where=count > 0)
        for column in sums
    ]
    return Reliability(means[0], means[1], count.astype(np.int64))


def bin_of(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin [n] int64 of each confidence: bin b holds what is in (b, b + 1] / bins."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def error(
    confidence: np.ndarray, hits: np.ndarray, bins: int = BINS
) -> Callable[[np.ndarray], float]:
    """How often each example counts [n] -> ECE, the expected calibration error.

    It is the mean of |accuracy - confidence| over bins, each by its count; NaN where no
    example counts. Examples whose confidence is NaN are left out.
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
    """What to divide logits [n, K] by so that the labels [n] are likeliest.

    link: "softmax" or "sigmoid". Between 0.01 and 100; rows that are not finite are left
    out, and where none is left it is NaN.
    """
    import scipy.optimize  # It takes a second, and training needs none of it.

    known = np.flatnonzero(np.isfinite(logits).all(-1))
    if not known.size:
        return float("nan")

    def slope(log_temperature: float) -> float:
        """The derivative of the mean loss by 1 / temperature, which rises with it."""
        total = 0.0
        for piece in in_pieces(len(known)):
            rows = known[piece]
            part = logits[rows].astype(np.float64)
            # Softmax is the same, and adding is exact, about the label's own logit.
            own = np.take_along_axis(part, labels[rows, None], axis=1)
            shares = probabilities(part, link, np.exp(log_temperature))
            if link == "softmax":
                total += float((shares * (part - own)).sum())
            else:
                total += float((shares * part).sum() - own.sum())
        return total / len(known)

    low, high = np.log(COLDEST), np.log(HOTTEST)
    if slope(high) >= 0:  # Even there less confidence would be better.
        return HOTTEST
    if slope(low) <= 0:
        return COLDEST
    return float(np.exp(scipy.optimize.brentq(slope, low, high, xtol=1e-5)))
