"""Statistical comparison of recipes: paired differences by seed, and equivalence.

Holm's correction and Welch's interval from means and deviations are here because SciPy
lacks them. Functions import SciPy: the import takes a second, and training needs no SciPy.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxcls.evaluation import intervals
from jaxcls.evaluation.intervals import Interval

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
    this n. unit: of the difference. higher: whether a larger value is better.
    """

    n: int
    unpaired: int
    comparisons: int
    difference: Interval
    deviation: float
    p: float
    p_corrected: float
    least_p: float
    unit: str = ""
    higher: bool = True

    @property
    def is_seen(self) -> bool:
        """True if the interval and the sign-flip test both show a difference."""
        return self.p_corrected <= LEVEL and _leaves_out_zero(self.difference)

    @property
    def words(self) -> str:
        """The comparison as one line of text."""
        if self.n < 2:
            seeds = "no seed" if self.n == 0 else "one seed"
            return f"cannot be compared: {seeds} in common, and it takes two"
        if self.difference.value == self.deviation == 0:
            return f"no difference: the results are equal at each of {self.n} seeds"
        p = f"p = {self.p_corrected:.3g}"
        if self.comparisons > 1:
            p += f" (of {self.comparisons} comparisons)"
        by, within = self._amount()
        if self.is_seen:
            said = f"{by} ({within}), {p}"
        elif _leaves_out_zero(self.difference):
            said = (
                f"perhaps {by} ({within}): that leaves out 0, if differences are normal,"
                f" but sign flips give {p}"
            )
        elif self.p_corrected <= LEVEL:
            said = f"perhaps {by}: sign flips give {p}, but the interval ({within}) holds 0"
        else:
            said = f"no difference seen: {_signed(self.difference, self.unit)}, {p}"
        return said + self._too_small()

    def _amount(self) -> tuple[str, str]:
        """Returns ('better by 0.42 points', '0.10 to 0.74').

        If the difference is negative, the sign of the interval changes with it.
        """
        found = self.difference
        if found.value < 0:
            found = Interval(-found.value, -found.high, -found.low)
        places = _places(found)
        better = (self.difference.value > 0) == self.higher
        return (
            f"{'better' if better else 'worse'} by {found.value:.{places}f}"
            f"{_after(self.unit)}",
            f"{found.low:z.{places}f} to {found.high:z.{places}f}",
        )

    def _too_small(self) -> str:
        if self.least_p <= LEVEL:
            return ""
        m = self.comparisons
        enough = next(n for n in itertools.count(2) if m * 2.0 ** (1 - n) <= LEVEL)
        return (
            f"; n too small to reach {LEVEL}: {self.n} pairs cannot go below"
            f" p = {self.least_p:.3g}; {enough} can"
        )


def compare(
    baseline: Mapping[int, float],
    others: Mapping[str, Mapping[int, float]],
    *,
    unit: str = "",
    higher: bool = True,
) -> dict[str, Comparison]:
    """Compares each of `others` with the baseline, corrected for the number of tests.

    baseline, others: {seed: result}. Two results of one seed are a pair; a seed with one
    result is counted in `unpaired`. A candidate with fewer than two pairs gets NaN, and
    does not count in the correction. unit: of the results, for `Comparison.words`.
    higher: whether a larger result is better. Raises `ValueError` for a non-finite result.
    """
    for name, results in {"the baseline": baseline, **others}.items():
        for seed, value in results.items():
            if not math.isfinite(value):
                raise ValueError(f"the result of {name} at seed {seed} is {value}")
    pairs = {
        name: np.array([own[s] - baseline[s] for s in sorted(baseline.keys() & own.keys())])
        for name, own in others.items()
    }
    made = [name for name, differences in pairs.items() if len(differences) > 1]
    p = {name: sign_flips(pairs[name]) for name in made}
    corrected = dict(zip(made, holm([p[name] for name in made]), strict=True))
    least = holm([_least(len(pairs[name])) for name in made])
    least_p = dict(zip(made, least, strict=True))
    return {
        name: Comparison(
            n=len(differences),
            unpaired=len(baseline.keys() ^ others[name].keys()),
            comparisons=len(made),
            difference=(
                intervals.mean(differences, 1 - LEVEL / len(made)) if name in p else _NONE
            ),
            deviation=intervals.deviation(differences),
            p=p.get(name, math.nan),
            p_corrected=corrected.get(name, math.nan),
            least_p=least_p.get(name, math.nan),
            unit=unit,
            higher=higher,
        )
        for name, differences in pairs.items()
    }


def sign_flips(differences: np.ndarray) -> float:
    """Returns the two-sided p of the sign-flip test for the mean of differences [n > 1].

    The null hypothesis is that each sign is random. The test enumerates all flips up to
    n = 16; above, it draws 100,000 flips with a fixed seed and counts the observed signs
    as one more. Sums that differ by rounding only are ties.
    """
    import scipy.stats

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
    return 2.0 ** (1 - n) if 2**n <= FLIPS else 1 / (FLIPS + 1)


def holm(p: Sequence[float]) -> list[float]:
    """Returns p [m] corrected for m tests by Holm's step-down method (Holm, 1979).

    To reject at corrected p <= 0.05 keeps the family-wise error rate at 0.05.
    """
    order = np.argsort(p)
    steps = np.array(p)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return [float(value) for value in corrected]


class Equivalence(NamedTuple):
    """Result of an equivalence test of new against recorded results.

    difference: of the means, new - recorded, with Welch's 90 % interval; its ends are NaN
    if either has fewer than two results. is_equivalent: the interval lies within the
    margin. is_different: the interval lies outside. If both are False, the test is
    inconclusive.
    """

    difference: Interval
    margin: float
    is_equivalent: bool
    is_different: bool
    unit: str = ""

    @property
    def words(self) -> str:
        """The verdict as one line of text."""
        if math.isnan(self.difference.low):
            return "cannot be told: too few seeds, and it takes two on either side"
        verdict = "cannot be told, too few seeds"
        if self.is_equivalent or self.is_different:
            verdict = "consistent" if self.is_equivalent else "differs"
        return (
            f"{verdict}: {_signed(self.difference, self.unit)} from the record,"
            f" margin {self.margin:g}{_after(self.unit)}"
        )


def equivalence(
    mean: float,
    deviation: float,
    n: int,
    values: np.ndarray,
    margin: float,
    *,
    unit: str = "",
) -> Equivalence:
    """Tests whether the mean of new `values` [m] equals a recorded mean within a margin.

    mean, deviation, n: of the recorded results. The test is two one-sided Welch t tests at
    0.05 (Schuirmann, 1987): the 90 % interval must lie within -margin..margin. An
    insignificant difference alone is no equivalence. Raises `ValueError` for a non-finite
    number (for n = 1 the deviation may be NaN), or a margin that is not above 0.
    """
    values = np.asarray(values, np.float64)
    recorded = [mean] if n == 1 else [mean, deviation]
    if n < 1 or not len(values) or not np.isfinite([*recorded, *values]).all():
        raise ValueError(f"{mean} ± {deviation} of {n} cannot be compared with {values}")
    if not 0 < margin < math.inf:
        raise ValueError(f"the margin must be above 0 and finite, not {margin}")
    value = intervals.mean(values).value - mean
    half = _welch(deviation, n, intervals.deviation(values), len(values))
    low, high = value - half, value + half
    return Equivalence(
        difference=Interval(value, low, high),
        margin=margin,
        is_equivalent=-margin < low and high < margin,
        is_different=low > margin or high < -margin,
        unit=unit,
    )


def _welch(a: float, n: int, b: float, m: int) -> float:
    """Returns half of the 90 % interval of a difference of means; NaN for a count below 2.

    a, b: standard deviations. n, m: counts.
    """
    import scipy.stats

    if min(n, m) < 2:
        return math.nan
    parts = np.array([a**2 / n, b**2 / m])
    if not parts.any():
        return 0.0
    freedom = parts.sum() ** 2 / (parts**2 / [n - 1, m - 1]).sum()
    return float(scipy.stats.t.ppf(1 - LEVEL, freedom) * math.sqrt(parts.sum()))


def _leaves_out_zero(interval: Interval) -> bool:
    return interval.low > 0 or interval.high < 0


def _places(interval: Interval) -> int:
    """Returns the decimals that show about two digits of an interval's half-width."""
    size = max((interval.high - interval.low) / 2, abs(interval.value) / 1000)
    return max(0, 1 - math.floor(math.log10(size))) if size else 0


def _signed(interval: Interval, unit: str) -> str:
    """Returns '+0.12 points (-0.20 to +0.44)'."""
    value, low, high = (f"{end:+z.{_places(interval)}f}" for end in interval)
    return f"{value}{_after(unit)} ({low} to {high})"


def _after(unit: str) -> str:
    return f" {unit}" if unit else ""
