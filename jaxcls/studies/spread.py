"""Statistics of n results of one recipe: spread and shares of variance.

At few seeds, trust Student's interval, `t`. The median and the interquartile mean have
percentile-bootstrap intervals; from `FEWEST` results on, the mean has a BCa interval, too
(Efron, 1987). Their nominal coverage is 95 %; at small n the true coverage is lower, so a
simulated coverage comes with each interval.
Functions import SciPy: the import takes a second, and training needs no SciPy.
"""

import functools
import math
from typing import Any

import numpy as np

from jaxcls.evaluation import intervals
from jaxcls.evaluation.intervals import Interval

# The fewest results with a BCa interval: of fewer, it holds the truth in under 90 %.
FEWEST = 10
# A bootstrap's samples; and the most numbers that it draws, which limits them for large n.
REPLICATES, DRAWN = 10_000, 10**7
# The coverage simulation: tables of normal draws, samples of each table, and the largest n.
_TABLES, _SAMPLES, _MOST = 5_000, 8_000, 100


def spread(values: np.ndarray) -> dict[str, Any]:
    """Returns the statistics of results [n] of one recipe, as study.json has them.

    n, mean, deviation (with n - 1), least and most. t: the mean with Student's interval.
    median, iqm: with percentile-bootstrap intervals. coverage_median, coverage_iqm: the
    share of such intervals that hold the truth on normal draws of this n (at most 100).
    bca, coverage_bca: the same of the mean; NaN below `FEWEST`. For n = 1, the deviation,
    the ends of intervals and the coverages are NaN.

    The interquartile mean follows the code of Agarwal et al. (arXiv:2108.13264), a
    `scipy.stats.trim_mean` of a quarter: it drops the n // 4 smallest and the n // 4
    largest results. Up to n = 3 it is the mean.
    """
    n, t = len(values), intervals.mean(values)
    most = min(n, _MOST)
    return {
        "n": n,
        "mean": t.value,
        "deviation": intervals.deviation(values),
        "least": float(values.min()),
        "most": float(values.max()),
        "t": t._asdict(),
        "bca": bca(values)._asdict(),
        "coverage_bca": coverage_of_bca(n),
        "median": _percentile(values, trimmed_mean(n, (n - 1) // 2))._asdict(),
        "coverage_median": coverage(most, (most - 1) // 2),
        "iqm": _percentile(values, trimmed_mean(n, n // 4))._asdict(),
        "coverage_iqm": coverage(most, most // 4),
    }


def trimmed_mean(n: int, cut: int) -> np.ndarray:
    """Returns weights [n] of n sorted results: their mean without `cut` at either end."""
    weights = np.zeros(n)
    weights[cut : n - cut] = 1 / (n - 2 * cut)
    return weights


def _percentile(values: np.ndarray, weights: np.ndarray) -> Interval:
    """Returns the weighted sum of sorted results [n] with a percentile bootstrap."""
    import scipy.stats

    def figure(drawn: np.ndarray, axis: int) -> np.ndarray:
        return np.sort(drawn, axis) @ weights  # SciPy draws along the last axis.

    n, low, high = len(values), math.nan, math.nan
    value = float(figure(values, -1))
    if n > 1:
        low, high = scipy.stats.bootstrap(
            (values,),
            figure,
            confidence_level=intervals.LEVEL,
            n_resamples=min(REPLICATES, max(1000, DRAWN // n)),
            batch=max(1, DRAWN // 10 // n),
            method="percentile",
            rng=np.random.default_rng(intervals.SEED),
        ).confidence_interval
    # Rounding of the weights could move a figure out of the range of the results.
    ends = np.clip([value, low, high], values.min(), values.max())
    return Interval(*map(float, ends))


def bca(values: np.ndarray) -> Interval:
    """Returns the mean of results [n] with a BCa interval; its ends are NaN below `FEWEST`.

    Bias-corrected and accelerated (Efron, 1987), as `scipy.stats.bootstrap` makes it.
    """
    import scipy.stats

    n, value = len(values), intervals.mean(values).value
    if n < FEWEST:
        return Interval(value, math.nan, math.nan)
    if not np.ptp(values):  # SciPy has no interval of equal values.
        return Interval(value, value, value)
    low, high = scipy.stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=intervals.LEVEL,
        n_resamples=min(REPLICATES, max(1000, DRAWN // n)),
        batch=max(1, DRAWN // 10 // n),
        method="BCa",
        rng=np.random.default_rng(intervals.SEED),
    ).confidence_interval
    return Interval(value, float(low), float(high))


def coverage_of_bca(n: int) -> float:
    """Returns the coverage of the BCa interval of n normal results; NaN below `FEWEST`."""
    # Of normal results it is the percentile bootstrap's to two decimals; a slow test counts
    # it of SciPy's BCa intervals.
    return coverage(min(n, _MOST), 0) if n >= FEWEST else math.nan


@functools.cache
def coverage(n: int, cut: int) -> float:
    """Returns the coverage of the percentile bootstrap of a trimmed mean, to two decimals.

    It is of n normal draws, simulated with a fixed seed to about 0.01; the truth is 0, and
    the nominal coverage 95 %. NaN if n is below 2. A bootstrap sample of sorted draws is
    another weighted sum of them, so one matrix product computes all samples of many tables.
    """
    if n < 2:
        return math.nan
    weights, rng = trimmed_mean(n, cut), np.random.default_rng(intervals.SEED)
    drawn = np.sort(rng.integers(0, n, (_SAMPLES, n)), axis=1)
    cells = (drawn + n * np.arange(_SAMPLES)[:, None]).ravel()
    of_draws = np.bincount(cells, np.tile(weights, _SAMPLES), minlength=_SAMPLES * n)
    samples = of_draws.reshape(_SAMPLES, n).astype(np.float32).T
    tail, held = (1 - intervals.LEVEL) / 2, 0
    for _ in range(10):  # A tenth at a time, to spare memory.
        tables = np.sort(rng.standard_normal((_TABLES // 10, n), np.float32), axis=1)
        below = (tables @ samples < 0).mean(1)
        held += int(((tail <= below) & (below <= 1 - tail)).sum())
    return round(held / _TABLES, 2)


def share_of_variance(part: np.ndarray, whole: np.ndarray) -> Interval:
    """Returns var(part [n]) / var(whole [m]) with its F interval.

    This is the share of one random stream in the variance: `part` varies that stream only,
    `whole` varies all streams. It assumes normal results. Both variances are estimates, so
    the share may exceed 1. Returns NaN if either has fewer than two results, or if `whole`
    has no variance.
    """
    import scipy.stats

    if min(len(part), len(whole)) < 2 or not np.ptp(whole):
        return Interval(math.nan, math.nan, math.nan)
    ratio = (intervals.deviation(part) / intervals.deviation(whole)) ** 2
    tail = (1 - intervals.LEVEL) / 2
    low, high = scipy.stats.f.ppf([1 - tail, tail], len(part) - 1, len(whole) - 1)
    return Interval(ratio, float(ratio / low), float(ratio / high))
