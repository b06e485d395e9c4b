"""The number of seeds with which a comparison is likely to see a difference.

A comparison sees a difference if Student's interval leaves out 0 and the sign-flip test is
significant, both corrected for the number of comparisons (`Comparison.words`). Functions
import SciPy: the import takes a second, and training needs no SciPy.
"""

import bisect
import functools
import itertools
import math

import numpy as np

from jaxcls.evaluation import intervals
from jaxcls.studies.comparison import LEVEL, fewest

# The most pairs of runs that a study could train, and the probability to see a difference.
MOST_RUNS, POWER = 100_000, 0.8
# From the first n on, sign flips and Student's interval agree in all but 2 % of studies, or
# 5 % for 100 comparisons. A simulation draws at most so many studies, and sums of flips.
_AGREE, _STUDIES, _SUMS = 17, 2000, 2**23


@functools.cache
def runs_needed(deviation: float, difference: float, comparisons: int = 1) -> int | None:
    """Returns the number of pairs of runs that see a difference; None if over 100,000.

    deviation: above 0; the standard deviation of the paired differences, not of the
    results. comparisons: the number of comparisons made together, m. The correction is
    p * m (Bonferroni), which is that of Holm if no other recipe differs. Differences are
    normal. Returns None, too, if m is too large for any number of pairs.
    """
    least = fewest(comparisons)
    if least is None:
        return None
    # The limit keeps squares finite.
    effect, level = min(difference / deviation, 1e4), LEVEL / comparisons
    counts = range(least, MOST_RUNS + 1)
    start = bisect.bisect_left(
        counts, True, key=lambda n: _power_of_t(n, effect, level) >= POWER
    )
    for n in counts[start:]:
        missed = _missed(n, effect, level) if n < _AGREE else 0.0
        if _power_of_t(n, effect, level) - missed >= POWER:
            return n
    return None


def _power_of_t(n: int, effect: float, level: float) -> float:
    """Returns the probability that Student's interval of n differences leaves out 0.

    effect: the mean difference in deviations. The square of the statistic has a noncentral
    F distribution, which is exact for normal differences.
    """
    import scipy.stats

    bound = scipy.stats.f.ppf(1 - level, 1, n - 1)
    return float(scipy.stats.ncf.sf(bound, 1, n - 1, n * effect**2))


def _missed(n: int, effect: float, level: float) -> float:
    """Returns the probability that Student's interval leaves out 0, and sign flips do not.

    It is the share among simulated studies, with all flips of each, and a fixed seed.
    """
    import scipy.stats

    # Flips of all signs have the same absolute sum, so the first sign stays.
    flips = [(1, *rest) for rest in itertools.product((1, -1), repeat=n - 1)]
    signs = np.array(flips, np.float32).T
    count = min(_STUDIES, _SUMS // len(flips))
    rng = np.random.default_rng(intervals.SEED)
    drawn = rng.normal(effect, 1, (count, n)).astype(np.float32)
    t = math.sqrt(n) * drawn.mean(1) / drawn.std(1, ddof=1)
    drawn = drawn[np.abs(t) > scipy.stats.t.ppf(1 - level / 2, n - 1)]
    sums = np.abs(drawn @ signs)
    bound = sums[:, :1] * (1 - 1e-5)  # Rounding must not lose the observed signs.
    return float(((sums >= bound).mean(1) > level).sum() / count)
