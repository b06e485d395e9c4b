"""Wilson's interval by its formula; a bootstrap against scipy's and its own promise."""

import math

import numpy as np
import pytest
import scipy.stats

from jaxcls.evaluation.intervals import Interval, bootstrap, proportion


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (10, 10), (38_123, 50_000)])
def test_a_proportion_has_wilsons_interval(hits, n):
    z, p = scipy.stats.norm.ppf(0.975), hits / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = proportion(hits, n)
    assert found == pytest.approx((p, middle - half, middle + half), abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert all(map(math.isnan, proportion(0, 0)))


def mean_of(values):
    return lambda weights: np.array([weights @ values / weights.sum()])


def test_a_mean_has_scipys_interval():
    values = np.random.default_rng(3).exponential(size=400)
    (found,) = bootstrap(mean_of(values), 400)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    assert found.value == pytest.approx(values.mean(), rel=1e-12)
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.06 * width)
    assert found.high == pytest.approx(expected.high, abs=0.06 * width)


def test_the_same_examples_give_the_same_interval_and_figures_keep_their_order():
    values = np.random.default_rng(3).normal(size=50)

    def both(weights):
        return np.array([weights @ values, weights.sum()])

    first, again = bootstrap(both, 50, replicates=50), bootstrap(both, 50, replicates=50)
    assert first == again
    assert first[1] == Interval(50, 50, 50)


def test_what_drawing_anew_adds_to_a_figure_is_not_laid_beside_it():
    # How many examples are not seen: of all of them 0, of a sample always about a third.
    def missing(weights):
        return np.array([(weights == 0).mean()])

    (found,) = bootstrap(missing, 1000, limits=(0.0, 1.0))
    assert found.value == found.low == 0
    assert found.high < 0.05


def test_no_interval_leaves_its_limits_and_a_figure_that_is_none_has_none():
    def figures(weights):
        return np.array([weights[0], math.nan])

    bounded, none = bootstrap(figures, 10, limits=(0.5, 1.5))
    assert (bounded.low, bounded.high) == (0.5, 1.5)
    assert all(map(math.isnan, none))
