"""How often the intervals of a study hold the truth, in 2,000 simulated studies.

`docs/reference/intervals.md` has the figures of those that hold it in other shares than
0.93 to 0.97. The medians, interquartile means and BCa intervals are printed with their
coverage: tests/studies/test_spread.py.
"""

import functools

import numpy as np
import pytest
import scipy.stats

from jaxcls.evaluation import intervals
from jaxcls.studies import comparison, spread

STUDIES = 2000


def held(found, truth):
    return np.mean([low <= truth <= high for _, low, high in found])


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5, 10, 30])
def test_students_interval_of_a_mean_over_seeds(n):
    draws = np.random.default_rng(n).normal(0.9, 0.01, size=(STUDIES, n))
    assert 0.93 <= held(map(intervals.mean, draws), 0.9) <= 0.97
    # Shares of 360 right answers, whose rate varies with the seed as in a study of digits.
    rng = np.random.default_rng(n)
    rates = rng.normal(0.95, 0.01, size=(STUDIES, n)).clip(0, 1)
    shares = rng.binomial(360, rates) / 360
    assert 0.93 <= held(map(intervals.mean, shares), 0.95) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("n", "cells"), [(3, 1), (9, 1), (8, 4)])
def test_the_intervals_of_all_differences_hold_them_together(n, cells, monkeypatch):
    # The intervals do not depend on the tests beside them, which take most of the time.
    monkeypatch.setattr(comparison, "sign_flips", lambda differences: 1.0)
    rng, every = np.random.default_rng([n, cells]), []
    for _ in range(STUDIES):
        # Results of one seed go together.
        rows = rng.normal(size=n) + rng.normal(
            np.arange(cells + 1)[:, None], 1, (cells + 1, n)
        )
        others = {str(i): dict(enumerate(rows[i])) for i in range(1, cells + 1)}
        found = comparison.compare(dict(enumerate(rows[0])), others, "loss")
        every.append(
            all(
                one.difference.low <= int(i) <= one.difference.high
                for i, one in found.items()
            )
        )
    # Bonferroni's are together as sure, or a little surer.
    assert 0.93 <= np.mean(every) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), [(5, 5), (10, 20)])
def test_the_share_of_a_stream_in_the_variance(n, m):
    rng = np.random.default_rng([n, m])
    parts, wholes = rng.normal(0, 0.5, (STUDIES, n)), rng.normal(0, 1, (STUDIES, m))
    found = map(spread.share_of_variance, parts, wholes)
    assert 0.93 <= held(found, 0.25) <= 0.97


@functools.cache
def proportions(n):
    """The ends of Wilson's intervals of all outcomes of n tries."""
    return np.array([intervals.proportion(k, n)[1:] for k in range(n + 1)]).T


def wilson(n, truth):
    """The coverage of Wilson's interval of n tries: arithmetic over all outcomes."""
    low, high = proportions(n)
    holds = (low <= truth) & (truth <= high)
    return float(scipy.stats.binom.pmf(np.arange(n + 1), n, truth) @ holds)


# As docs/reference/intervals.md says them, of P(better at a seed) and the success rate.
WILSON = {
    (3, 0.5): 1.00,
    (3, 0.9): 0.97,
    (3, 0.95): 0.86,
    (5, 0.5): 0.94,
    (5, 0.9): 0.92,
    (5, 0.95): 0.98,
    (10, 0.5): 0.98,
    (10, 0.9): 0.93,
    (10, 0.95): 0.91,
    (20, 0.5): 0.96,
    (20, 0.9): 0.96,
    (20, 0.95): 0.92,
    (100, 0.99): 0.92,
}


@pytest.mark.parametrize(("case", "stated"), WILSON.items())
def test_the_interval_of_a_share_of_few_seeds_holds_it_as_often_as_is_stated(case, stated):
    assert wilson(*case) == pytest.approx(stated, abs=0.0055)


@pytest.mark.parametrize("n", [360, 500])
def test_the_interval_of_a_share_of_many_examples(n):
    rates = [*np.arange(0.5, 0.99, 0.01), *np.arange(0.99, 0.9955, 0.001)]
    held = [wilson(n, truth) for truth in rates]
    assert 0.93 <= min(held) <= max(held) <= 0.98


@pytest.mark.slow
def test_the_interval_of_an_equivalence_is_of_90_percent():
    rng, inside = np.random.default_rng(2), 0
    for _ in range(STUDIES):
        old, new = rng.normal(size=10), rng.normal(0, 1.5, size=6)
        recorded, now = (
            {"n": len(x), "mean": x.mean(), "deviation": x.std(ddof=1)} for x in (old, new)
        )
        # The least margin that the interval lies in: it holds 0 where the verdict at a
        # margin of the mean difference itself is open.
        words = comparison.equivalence(recorded, now, 1e-9, "loss")[1]
        low, high = words.partition("(")[2].partition(")")[0].split(" to ")
        inside += float(low) <= 0 <= float(high)
    assert 0.88 <= inside / STUDIES <= 0.92
