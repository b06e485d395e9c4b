"""What n results of one recipe tell: where they lie, how well that is known, what is next.

The interval to trust at few seeds is Student's, `Spread.t`. Those of the median and of the
interquartile mean are percentile bootstraps, which promise 95 % and hold less at small n:
beside each stands what it does hold.
SciPy is imported where it is used: it takes a second, and training needs none of it.
"""

import bisect
import functools
import math
from typing import NamedTuple

import numpy as np

from jaxcls.evaluation import intervals
from jaxcls.evaluation.intervals import Interval

# Samples that a bootstrap draws, fewer where n is large; how many numbers it draws at most.
REPLICATES, DRAWN = 10_000, 10**7
# To find the coverage: tables of normal draws; samples from each; the largest n simulated.
_TABLES, _SAMPLES, _MOST = 5_000, 8_000, 100
# More pairs than this nobody trains.
MOST_RUNS = 100_000


class Spread(NamedTuple):
    """Where n results lie; deviation: with n - 1, and NaN where n is 1, as every end is.

    t: the mean with Student's interval. median, iqm: with the percentile bootstrap's; the
    coverage of each is the share of such intervals, on normal draws of this n (past 100, of
    100), that hold the truth: to two decimals, and it should be 0.95.
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
    """What [n] results of one recipe, one a seed, tell.

    iqm: the interquartile mean of Agarwal et al. (arXiv:2108.13264) as its authors compute
    it (`scipy.stats.trim_mean` of a quarter): the n // 4 least and the n // 4 most are left
    out, so of three results or fewer it is the mean.
    Raises `ValueError` where there are none, or one is not finite.
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
    """The weights [n] of n results in rising order whose sum is the median."""
    weights = np.zeros(n)
    weights[[(n - 1) // 2, n // 2]] += 0.5 if n % 2 == 0 else 1.0
    return weights


def iqm_weights(n: int) -> np.ndarray:
    """The weights [n] of n results in rising order whose sum is the interquartile mean."""
    weights = np.zeros(n)
    weights[n // 4 : n - n // 4] = 1 / (n - 2 * (n // 4))
    return weights


def _percentile(values: np.ndarray, weights: np.ndarray) -> Interval:
    """A weighted sum of [n] results in order, with its percentile bootstrap."""
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
    # Weights sum to one but for rounding.
    ends = np.clip([value, low, high], values.min(), values.max())
    return Interval(*map(float, ends))


@functools.cache
def _coverages(n: int) -> tuple[float, float]:
    """Of the median's and the interquartile mean's interval at this n, to two decimals."""
    if n < 2:
        return math.nan, math.nan
    return round(coverage(median_weights(n)), 2), round(coverage(iqm_weights(n)), 2)


def coverage(weights: np.ndarray) -> float:
    """How often the percentile bootstrap of 95 % holds the truth on n normal draws.

    weights [n]: of the draws in rising order, whose sum is the figure; symmetric, so that
    the truth is 0. By simulation with a fixed seed, true to about 0.01: a bootstrap sample
    of sorted draws weights them, and one product makes all samples of many tables.
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
    """The variance of [n] results over that of [m] others, with its F interval.

    What share of the variance comes from one random stream: `part` varies it alone, `whole`
    varies them all. Of normal results; nothing keeps it below 1, for both are estimates.
    NaN where either has fewer than two, or `whole` does not vary.
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
    """How many pairs of runs show a mean difference; None where over 100,000.

    deviation: of the paired differences, not of the results. power: the share of studies
    of that size in which a two-sided paired t test at `level` sees it. The square of its
    statistic is noncentral F, which is exact for normal differences.
    Raises `ValueError` where a number is not finite or out of its range.
    """
    import scipy.stats

    if not (math.isfinite(difference) and math.isfinite(deviation) and deviation >= 0):
        raise ValueError(f"cannot plan for a deviation of {deviation}, {difference} apart")
    if not (0 < power < 1 and 0 < level < 1):
        raise ValueError(f"power and level must be between 0 and 1: {power}, {level}")
    # More deviations than this any two pairs show, and squares stay finite.
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
