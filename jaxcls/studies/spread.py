"""Statistics of n results of one recipe: spread, shares of variance, seeds to plan.

At few seeds, trust Student's interval, `Spread.t`. The median and the interquartile mean
have percentile-bootstrap intervals. Their nominal coverage is 95 %; at small n the true
coverage is lower, so a simulated coverage comes with each interval.
Functions import SciPy: the import takes a second, and training needs no SciPy.
"""

import bisect
import functools
import math
from typing import NamedTuple

import numpy as np

from jaxcls.evaluation import intervals
from jaxcls.evaluation.intervals import Interval

# A bootstrap's samples; and the most numbers that it draws, which limits them for large n.
REPLICATES, DRAWN = 10_000, 10**7
# The coverage simulation: tables of normal draws, samples of each table, and the largest n.
_TABLES, _SAMPLES, _MOST = 5_000, 8_000, 100
# The most pairs of runs that a study could train.
MOST_RUNS = 100_000


class Spread(NamedTuple):
    """Statistics of n results.

    For n = 1, `deviation`, the ends of intervals and the coverages are NaN. deviation: the
    standard deviation with n - 1. t: the mean with Student's interval. median, iqm: with
    percentile-bootstrap intervals. Each coverage is the share of such intervals that hold
    the truth on normal draws of this n (at most 100), to two decimals; nominal is 0.95.
    """

    n: int
    mean: float
    deviation: float
    least: float
    most: float
    t: Interval
    median: Interval
    coverage_median: float
    iqm: Interval
    coverage_iqm: float


def spread(values: np.ndarray) -> Spread:
    """Returns the statistics of results [n] of one recipe, one result for each seed.

    The interquartile mean follows the code of Agarwal et al. (arXiv:2108.13264), a
    `scipy.stats.trim_mean` of a quarter: it drops the n // 4 smallest and the n // 4
    largest results. Up to n = 3 it is the mean.
    Raises `ValueError` for no result or a non-finite result.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"results must be a row of finite numbers, not {values}")
    n, t = len(values), intervals.mean(values)
    coverages = _coverages(min(n, _MOST))
    return Spread(
        n=n,
        mean=t.value,
        deviation=intervals.deviation(values),
        least=float(values.min()),
        most=float(values.max()),
        t=t,
        median=_percentile(values, median_weights(n)),
        coverage_median=coverages[0],
        iqm=_percentile(values, iqm_weights(n)),
        coverage_iqm=coverages[1],
    )


def median_weights(n: int) -> np.ndarray:
    """Returns weights [n]: the median is their weighted sum of n sorted results."""
    weights = np.zeros(n)
    weights[[(n - 1) // 2, n // 2]] += 0.5 if n % 2 == 0 else 1.0
    return weights


def iqm_weights(n: int) -> np.ndarray:
    """Returns weights [n]: the interquartile mean is the weighted sum of sorted results."""
    weights = np.zeros(n)
    weights[n // 4 : n - n // 4] = 1 / (n - 2 * (n // 4))
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


@functools.cache
def _coverages(n: int) -> tuple[float, float]:
    """Returns the coverages of the median and the interquartile mean, to two decimals."""
    if n < 2:
        return math.nan, math.nan
    return round(coverage(median_weights(n)), 2), round(coverage(iqm_weights(n)), 2)


def coverage(weights: np.ndarray) -> float:
    """Returns the coverage of the 95 % percentile bootstrap on n normal draws.

    weights [n]: of the sorted draws; the figure is the weighted sum. They are symmetric, so
    that the truth is 0. The coverage is simulated with a fixed seed, to about 0.01. A
    bootstrap sample of sorted draws is another weighted sum of them, so one matrix product
    computes all samples of many tables.
    """
    n, rng = len(weights), np.random.default_rng(intervals.SEED)
    drawn = np.sort(rng.integers(0, n, (_SAMPLES, n)), axis=1)
    cells = (drawn + n * np.arange(_SAMPLES)[:, None]).ravel()
    of_draws = np.bincount(cells, np.tile(weights, _SAMPLES), minlength=_SAMPLES * n)
    samples = of_draws.reshape(_SAMPLES, n).astype(np.float32).T
    tail, held = (1 - intervals.LEVEL) / 2, 0
    for _ in range(10):  # A tenth at a time, to spare memory.
        tables = np.sort(rng.standard_normal((_TABLES // 10, n), np.float32), axis=1)
        below = (tables @ samples < 0).mean(1)
        held += int(((tail <= below) & (below <= 1 - tail)).sum())
    return held / _TABLES


def share_of_variance(part: np.ndarray, whole: np.ndarray) -> Interval:
    """Returns var(part [n]) / var(whole [m]) with its F interval.

    This is the share of one random stream in the variance: `part` varies that stream only,
    `whole` varies all streams. It assumes normal results. Both variances are estimates, so
    the share may exceed 1. Returns NaN if either has fewer than two results, or if `whole`
    has no variance.
    """
    import scipy.stats

    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    if min(len(part), len(whole)) < 2 or not np.ptp(whole):
        return Interval(math.nan, math.nan, math.nan)
    ratio = (intervals.deviation(part) / intervals.deviation(whole)) ** 2
    tail = (1 - intervals.LEVEL) / 2
    low, high = scipy.stats.f.ppf([1 - tail, tail], len(part) - 1, len(whole) - 1)
    return Interval(ratio, float(ratio / low), float(ratio / high))


def runs_needed(
    deviation: float, difference: float, power: float = 0.8, level: float = 0.05
) -> int | None:
    """Returns the number of pairs of runs that show a difference; None if over 100,000.

    deviation: the standard deviation of the paired differences, not of the results. power:
    of a two-sided paired t test at `level`. The square of its statistic has a noncentral F
    distribution, which is exact for normal differences.
    Raises `ValueError` for a non-finite number, or a number out of its range.
    """
    import scipy.stats

    if not (math.isfinite(difference) and math.isfinite(deviation) and deviation >= 0):
        raise ValueError(f"cannot plan for a deviation of {deviation}, {difference} apart")
    if not (0 < power < 1 and 0 < level < 1):
        raise ValueError(f"power and level must be between 0 and 1: {power}, {level}")
    # Two pairs show an effect of this size. The limit keeps squares finite.
    far = 1e4
    effect = far if difference else 0.0
    if deviation and abs(difference) < far * deviation:
        effect = abs(difference) / deviation

    def is_enough(n: int) -> bool:
        bound = scipy.stats.f.ppf(1 - level, 1, n - 1)
        return bool(scipy.stats.ncf.sf(bound, 1, n - 1, n * effect**2) >= power)

    counts = range(2, MOST_RUNS + 1)
    found = bisect.bisect_left(counts, True, key=is_enough)
    return counts[found] if found < len(counts) else None
