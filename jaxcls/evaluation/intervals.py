"""How well a figure is known from n examples or runs: intervals, of 95 % unless told.

`bootstrap` is not `scipy.stats.bootstrap`, which copies the examples that it draws: here
a statistic takes how often each counts, so that a split of a million needs no copies.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Of the two-sided interval; how many samples a bootstrap draws; what it draws by.
LEVEL, REPLICATES, SEED = 0.95, 1000, 0


class Interval(NamedTuple):
    """A figure, and from where to where 95 % of such intervals hold what it estimates.

    Where another share is meant, who makes it says so.
    """

    value: float
    low: float
    high: float


def proportion(hits: int, n: int) -> Interval:
    """The share of `hits` among `n`, with Wilson's score interval; NaN where n is 0."""
    import scipy.stats  # It takes a second, and training needs none of it.

    if not n:
        return Interval(math.nan, math.nan, math.nan)
    found = scipy.stats.binomtest(int(hits), n).proportion_ci(LEVEL, method="wilson")
    return Interval(int(hits) / n, float(found.low), float(found.high))


def deviation(values: np.ndarray) -> float:
    """The standard deviation of [n], with n - 1; NaN where n is below 2."""
    if len(values) < 2:
        return math.nan
    # From the first on, so that rounding makes no deviation of equal values.
    return float((values - values[0]).std(ddof=1))


def mean(values: np.ndarray, level: float = LEVEL) -> Interval:
    """The mean of [n] with Student's interval, whose ends are NaN where n is 1.

    level: the share of such intervals that hold the truth, where the values are normal.
    """
    import scipy.stats

    n = len(values)
    value = float(values[0] + (values - values[0]).mean())
    quantile = float(scipy.stats.t.ppf((1 + level) / 2, n - 1)) if n > 1 else math.nan
    half = quantile * deviation(values) / math.sqrt(n)
    return Interval(value, value - half, value + half)


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    n: int,
    *,
    replicates: int = REPLICATES,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> list[Interval]:
    """The intervals of m figures of n examples, by drawing the examples anew (Efron, 1979).

    statistic: how often each example counts, float64 [n] -> the figures [m]. limits: the
    least and the most that a figure can be. The seed is fixed, so the same examples give
    the same intervals.

    What is laid about a figure is the spread of its replicates about their mean: drawing
    anew also shifts some figures, such as a calibration error, and that is no news of them.
    """
    rng = np.random.default_rng(SEED)
    value = np.asarray(statistic(np.ones(n)), np.float64)
    drawn = np.empty((replicates, len(value)))
    for row in range(replicates):
        weights = np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)
        drawn[row] = statistic(weights)
    tail = (1 - LEVEL) / 2
    ends = value + np.quantile(drawn, [tail, 1 - tail], axis=0) - drawn.mean(0)
    ends = np.clip(ends, *limits)
    return [Interval(*map(float, row)) for row in zip(value, *ends, strict=True)]
