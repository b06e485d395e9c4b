"""Confidence intervals of a figure from n examples or runs, at 95 % by default.

`scipy.stats.bootstrap` is unsuitable: it copies the drawn examples. Here a statistic takes
the count of each example, so a split of a million needs no copies.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

# The level of the two-sided interval, the replicates of a bootstrap, and its seed.
LEVEL, REPLICATES, SEED = 0.95, 1000, 0


class Interval(NamedTuple):
    """A figure and its 95 % confidence interval, low to high.

    A function that uses another level says so.
    """

    value: float
    low: float
    high: float


def proportion(hits: int, n: int) -> Interval:
    """Returns `hits` / `n` with Wilson's score interval; NaN if n is 0."""
    import scipy.stats  # The import takes a second; training does not need it.

    if not n:
        return Interval(math.nan, math.nan, math.nan)
    found = scipy.stats.binomtest(int(hits), n).proportion_ci(LEVEL, method="wilson")
    return Interval(int(hits) / n, float(found.low), float(found.high))


def deviation(values: np.ndarray) -> float:
    """Returns the standard deviation of [n], with n - 1; NaN if n is below 2."""
    if len(values) < 2:
        return math.nan
    # Differences from the first value: rounding then gives equal values no deviation.
    return float((values - values[0]).std(ddof=1))


def mean(values: np.ndarray, level: float = LEVEL) -> Interval:
    """Returns the mean of [n] with Student's interval; the ends are NaN if n is 1.

    level: the coverage of the interval, if the values are normal.
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
    """Returns the bootstrap intervals of m figures of n examples (Efron, 1979).

    statistic: counts of the examples, float64 [n] -> figures [m]. limits: the range of a
    figure. The seed is fixed, so the same examples give the same intervals.

    An interval is the spread of the replicates about their mean, moved to the figure. A
    bootstrap bias of the figure is not part of the interval.
    """
    value = np.asarray(statistic(np.ones(n)), np.float64)
    drawn = np.array([statistic(weights) for weights in counts(n, replicates)])
    return about(value, drawn, limits)


def counts(n: int, replicates: int = REPLICATES) -> Iterator[np.ndarray]:
    """Returns the counts, float64 [n], of the examples of each bootstrap replicate."""
    rng = np.random.default_rng(SEED)
    for _ in range(replicates):
        yield np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)


def about(
    value: np.ndarray, drawn: np.ndarray, limits: tuple[float, float]
) -> list[Interval]:
    """Returns the intervals of figures [m] with replicates [replicates, m]."""
    tail = (1 - LEVEL) / 2
    ends = value + np.quantile(drawn, [tail, 1 - tail], axis=0) - drawn.mean(0)
    ends = np.clip(ends, *limits)
    return [Interval(*map(float, row)) for row in zip(value, *ends, strict=True)]
