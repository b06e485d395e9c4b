"""Statistical comparison of recipes: paired differences by seed, and equivalence.

The protocol is that of Du (arXiv:2511.19794): pairs of runs of the same seeds, and a
difference is claimed only if an interval of the mean of the paired differences and a
sign-flip test both say so. Its interval is BCa; here Student's decides, which holds the
truth more often at few seeds, and BCa is beside it from `spread.FEWEST` pairs on.

Holm's correction and Welch's interval from means and deviations are here because SciPy
lacks them. Functions import SciPy: the import takes a second, and training needs no SciPy.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcls.evaluation import intervals
from jaxcls.evaluation.intervals import Interval
from jaxcls.learning.metrics import is_higher_better
from jaxcls.studies import spread

# The significance level; and the most sign flips of a test, all of them up to 16 pairs.
LEVEL, FLIPS = 0.05, 100_000
_NONE = Interval(math.nan, math.nan, math.nan)


class Comparison(NamedTuple):
    """Comparison of b with a over n pairs of results; figures are NaN for n below 2.

    A pair is two results of one seed. unpaired: the number of seeds with one result only.
    comparisons: m, the number of comparisons made together. difference: the mean of
    b - a, with Student's interval at level 1 - 0.05 / m (Bonferroni). deviation: the
    standard deviation of the differences. p: of the sign-flip test. p_corrected: p
    corrected for m comparisons (Holm, 1979). least_p: the lower bound of p_corrected at
    this n. bca: the mean difference with a BCa interval at 95 %, from 10 pairs on.
    superiority: the probability that b is better at a seed, of pairs that are not
    equal, with Wilson's 95 % interval (Bouthillier et al., arXiv:2103.03098). unit: of the
    difference. higher: whether a larger value is better.
    """

    n: int
    unpaired: int
    comparisons: int
    difference: Interval
    deviation: float
    p: float
    p_corrected: float
    least_p: float
    bca: Interval
    superiority: Interval
    unit: str
    higher: bool

    @property
    def words(self) -> str:
        """The comparison as one line of text."""
        found, m = self.difference, self.comparisons
        if self.n < 2:
            seeds = "no seed" if self.n == 0 else "one seed"
            return f"cannot be compared: {seeds} in common, and it takes two"
        if found.value == self.deviation == 0:
            return f"no difference: the results are equal at each of {self.n} seeds"
        sign, places = (-1 if found.value < 0 else 1), _places(found)
        low, high = sorted((sign * found.low, sign * found.high))
        better = "better" if (found.value > 0) == self.higher else "worse"
        by = f"{better} by {abs(found.value):.{places}f}{_after(self.unit)}"
        within = f"{low:z.{places}f} to {high:z.{places}f}"
        p = f"p = {self.p_corrected:.3g}" + (f" (of {m} comparisons)" if m > 1 else "")
        interval_shows = found.low > 0 or found.high < 0
        said = {
            (True, True): f"{by} ({within}), {p}",
            (True, False): f"perhaps {by} ({within}): that leaves out 0, if differences are"
            f" normal, but sign flips give {p}",
            (False, True): f"perhaps {by}: sign flips give {p}, but the interval ({within})"
            " holds 0",
            (False, False): f"no difference seen: {_signed(found, self.unit)}, {p}",
        }[interval_shows, self.p_corrected <= LEVEL]
        if self.least_p <= LEVEL:
            return said
        enough = fewest(m)
        return (
            f"{said}; n too small to reach {LEVEL}: {self.n} pairs cannot go below"
            f" p = {self.least_p:.3g}; {enough or 'no number'} can"
        )


def unit(metric: str) -> str:
    """Returns the unit of a metric's differences: "points" (hundredths), or "" (as is)."""
    return "points" if is_higher_better(metric) else ""


def scale(metric: str) -> float:
    """Returns the factor from a metric to its unit: 100 for points, else 1."""
    return 100.0 if unit(metric) else 1.0


def compare(
    baseline: Mapping[int, float], others: Mapping[str, Mapping[int, float]], metric: str
) -> dict[str, Comparison]:
    """Compares each of `others` with the baseline, corrected for the number of tests.

    baseline, others: {seed: result}. Two results of one seed are a pair; a seed with one
    result is counted in `unpaired`. A candidate with fewer than two pairs gets NaN, and
    does not count in the correction. Differences are in the unit of the metric.
    """
    factor = scale(metric)
    pairs = {
        name: np.array(
            [
                factor * given[s] - factor * baseline[s]
                for s in sorted(baseline)
                if s in given
            ]
        )
        for name, given in others.items()
    }
    made = sum(len(differences) > 1 for differences in pairs.values())
    p = [sign_flips(differences) for differences in pairs.values()]
    corrected = holm(p)
    least = holm([_least(len(differences)) for differences in pairs.values()])
    return {
        name: Comparison(
            n=len(differences),
            unpaired=len(baseline.keys() ^ others[name].keys()),
            comparisons=made,
            difference=(
                intervals.mean(differences, 1 - LEVEL / made)
                if len(differences) > 1
                else _NONE
            ),
            deviation=intervals.deviation(differences),
            p=p[i],
            p_corrected=corrected[i],
            least_p=least[i],
            bca=spread.bca(differences) if len(differences) > 1 else _NONE,
            superiority=_superiority(differences, is_higher_better(metric)),
            unit=unit(metric),
            higher=is_higher_better(metric),
        )
        for i, (name, differences) in enumerate(pairs.items())
    }


def _superiority(differences: np.ndarray, higher: bool) -> Interval:
    """Returns the share of differences [n] that are better, of those that are not 0."""
    if len(differences) < 2:
        return _NONE
    better = differences > 0 if higher else differences < 0
    return intervals.proportion(int(better.sum()), int(np.count_nonzero(differences)))


def sign_flips(differences: np.ndarray) -> float:
    """Returns the two-sided p of the sign-flip test for the mean of differences [n].

    The null hypothesis is that each sign is random. The test enumerates all flips up to
    n = 16; above, it draws 100,000 flips with a fixed seed and counts the observed signs
    as one more. Sums that differ by rounding only are ties. NaN if n is below 2.
    """
    import scipy.stats

    if len(differences) < 2:
        return math.nan
    bound = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()

    def is_as_far(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return (np.abs((b - a).sum(axis)) >= bound).astype(np.float64)

    # SciPy swaps the values of a pair; for (0, difference) this flips the sign.
    return float(
        scipy.stats.permutation_test(
            (np.zeros_like(differences), differences),
            is_as_far,
            permutation_type="samples",
            alternative="greater",
            n_resamples=FLIPS,
            batch=max(1, 10**6 // len(differences)),
            rng=np.random.default_rng(intervals.SEED),
        ).pvalue
    )


def _least(n: int) -> float:
    """Returns the smallest possible p of n pairs: all differences have the same sign."""
    if n < 2:
        return math.nan
    return 2.0 ** (1 - n) if 2**n <= FLIPS else 1 / (FLIPS + 1)


def fewest(comparisons: int) -> int | None:
    """Returns the least n at which p can be significant; None if it cannot at any n."""
    counts = range(2, FLIPS.bit_length() + 1)
    return next((n for n in counts if comparisons * _least(n) <= LEVEL), None)


def holm(p: Sequence[float]) -> list[float]:
    """Returns p [m] corrected for m tests by Holm's step-down method (Holm, 1979).

    To reject at corrected p <= 0.05 keeps the family-wise error rate at 0.05. A p of NaN
    is no test.
    """
    order = np.argsort(p)  # NaN comes last.
    steps = np.array(p)[order] * (np.isfinite(p).sum() - np.arange(len(p)))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return [float(value) for value in corrected]


def equivalence(
    recorded: Mapping[str, Any], now: Mapping[str, Any], margin: float, metric: str
) -> tuple[bool, str]:
    """Tests whether the mean of new results equals a recorded mean within a margin.

    recorded, now: "n", "mean" and "deviation" of the results. The test is two one-sided
    Welch t tests at 0.05 (Schuirmann, 1987): the 90 % interval must lie within
    -margin..margin. An insignificant difference alone is no equivalence. Returns whether
    the means are equivalent, and the verdict as one line of text.
    """
    import scipy.stats

    n, m = recorded["n"], now["n"]
    if min(n, m) < 2:
        return False, "cannot be told: too few seeds, and it takes two on either side"
    factor, of_metric = scale(metric), unit(metric)
    value, half = factor * (now["mean"] - recorded["mean"]), 0.0
    parts = np.array([recorded["deviation"] ** 2 / n, now["deviation"] ** 2 / m])
    if parts.any():
        freedom = parts.sum() ** 2 / (parts**2 / [n - 1, m - 1]).sum()
        quantile = float(scipy.stats.t.ppf(1 - LEVEL, freedom))
        half = quantile * factor * math.sqrt(parts.sum())
    difference = Interval(value, value - half, value + half)
    verdict, is_equivalent = "cannot be told, too few seeds", False
    if -margin < difference.low and difference.high < margin:
        verdict, is_equivalent = "consistent", True
    elif difference.low > margin or difference.high < -margin:
        verdict = "differs"
    return is_equivalent, (
        f"{verdict}: {_signed(difference, of_metric)} from the record,"
        f" margin {margin:g}{_after(of_metric)}"
    )


def _places(interval: Interval) -> int:
    """Returns the decimals that show about two digits of an interval's half-width."""
    size = max((interval.high - interval.low) / 2, abs(interval.value) / 1000)
    return max(0, 1 - math.floor(math.log10(size))) if size else 0


def _signed(interval: Interval, of_metric: str) -> str:
    """Returns '+0.12 points (-0.20 to +0.44)'."""
    value, low, high = (f"{end:+z.{_places(interval)}f}" for end in interval)
    return f"{value}{_after(of_metric)} ({low} to {high})"


def _after(of_metric: str) -> str:
    return f" {of_metric}" if of_metric else ""
