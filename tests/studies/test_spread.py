"""Spread against SciPy, tables and simulation; intervals are counted."""

import math

import numpy as np
import pytest
import scipy.stats

from jaxcls.studies.spread import coverage, share_of_variance, spread

RESULTS = np.array([93.1, 94.0, 93.6, 92.2, 93.8, 94.4, 93.3, 93.9])


def ends(interval):
    return [interval["low"], interval["high"]]


def test_results_lie_where_numpy_and_scipy_say():
    found = spread(RESULTS)
    student = scipy.stats.ttest_1samp(RESULTS, 0).confidence_interval(0.95)
    assert found["n"] == 8
    assert found["mean"] == found["t"]["value"] == pytest.approx(RESULTS.mean(), rel=1e-14)
    assert found["deviation"] == pytest.approx(np.std(RESULTS, ddof=1), rel=1e-12)
    assert (found["least"], found["most"]) == (92.2, 94.4)
    assert ends(found["t"]) == pytest.approx(list(student), rel=1e-12)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 8])
def test_a_median_and_an_interquartile_mean_have_scipys_bootstrap(n):
    def trimmed(values, axis):
        return scipy.stats.trim_mean(values, 0.25, axis=axis)

    values, found = RESULTS[:n], spread(RESULTS[:n])
    for name, figure in (("median", np.median), ("iqm", trimmed)):
        assert found[name]["value"] == pytest.approx(figure(values, axis=0), rel=1e-14)
        expected = scipy.stats.bootstrap(
            (values,), figure, n_resamples=20_000, method="percentile", rng=5
        ).confidence_interval
        near = 0.1 * (expected.high - expected.low)
        assert ends(found[name]) == pytest.approx(list(expected), abs=near)
    assert found == spread(values)


def test_from_ten_results_on_the_mean_has_scipys_bca_interval():
    assert np.isnan(ends(spread(np.append(RESULTS, 93.0))["bca"])).all()
    values = np.append(RESULTS, [90.1, 93.7])  # Skewed: the percentile interval differs.
    found = spread(values)
    expected, plain = (
        scipy.stats.bootstrap(
            (values,), np.mean, n_resamples=20_000, method=method, rng=5
        ).confidence_interval
        for method in ("BCa", "percentile")
    )
    near = 0.02 * (expected.high - expected.low)
    assert found["bca"]["value"] == found["mean"]
    assert ends(found["bca"]) == pytest.approx(list(expected), abs=near)
    assert abs(expected.low - plain.low) > 3 * near


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 20])
def test_the_coverage_stated_of_bca_is_that_of_scipys_intervals(n):
    rng, held = np.random.default_rng(n), []
    for values in rng.normal(size=(2000, n)):
        low, high = scipy.stats.bootstrap(
            (values,), np.mean, n_resamples=1000, method="BCa", rng=rng
        ).confidence_interval
        held.append(low <= 0 <= high)
    assert spread(values)["coverage_bca"] == pytest.approx(np.mean(held), abs=0.02)


def test_one_result_has_no_deviation_and_no_interval():
    found = spread(np.array([0.7]))
    assert np.isnan(ends(found.pop("bca"))).all()
    intervals = [found.pop(name) for name in ("t", "median", "iqm")]
    assert [interval["value"] for interval in intervals] == [0.7] * 3
    assert np.isnan([end for interval in intervals for end in ends(interval)]).all()
    assert [found.pop(name) for name in ("n", "mean", "least", "most")] == [1, *[0.7] * 3]
    assert np.isnan([*found.values()]).all()


@pytest.mark.parametrize("n", [2, 3, 7])
def test_equal_results_have_no_deviation_not_even_by_rounding(n):
    found = spread(np.full(n, 0.1))
    assert (found["deviation"], found["mean"]) == (0, 0.1)
    for name in ("t", "median", "iqm"):
        assert set(found[name].values()) == {0.1}
    assert set(spread(np.full(12, 0.1))["bca"].values()) == {0.1}


def test_many_hundreds_of_results_are_no_trouble_and_have_the_normal_laws_intervals():
    n = 1500
    found = spread(scipy.stats.norm.ppf((np.arange(n) + 0.5) / n))
    error = 1.96 / math.sqrt(n)
    # The factor of a median of large n is in textbooks.
    for name, factor in (("t", 1.0), ("median", math.sqrt(math.pi / 2))):
        low, high = ends(found[name])
        assert low < 0 < high
        assert (high - low) / 2 == pytest.approx(factor * error, rel=0.1)
    assert found["coverage_median"] == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(("n", "published"), [(3, 0.73), (5, 0.83), (10, 0.90)])
def test_a_percentile_bootstrap_of_a_mean_holds_it_less_often(n, published):
    assert coverage(n, 0) == pytest.approx(published, abs=0.025)


@pytest.mark.parametrize("n", [2, 3])
def test_of_two_or_three_results_the_interval_is_from_the_least_to_the_most(n):
    # One of n**n samples has only the least, over 2.5 %; all are on one side of the truth
    # in 2 of 2**n.
    found = spread(RESULTS[:n])
    for name in ("iqm", "median"):
        assert ends(found[name]) == [min(RESULTS[:n]), max(RESULTS[:n])]
        assert found[f"coverage_{name}"] == pytest.approx(1 - 2 / 2**n, abs=0.011)


@pytest.mark.parametrize("n", [5, 9, 21])
def test_the_coverage_of_a_median_is_that_of_order_statistics(n):
    # A sample's median is at most the k-th least where over half of it is.
    k = np.arange(1, n + 1)
    share = scipy.stats.binom.sf(n // 2, n, k / n)
    low, high = k[share >= 0.025][0], k[share >= 0.975][0]
    exact = scipy.stats.binom.cdf([low - 1, high - 1], n, 0.5)
    found = spread(np.arange(float(n)))
    assert found["coverage_median"] == pytest.approx(exact[1] - exact[0], abs=0.015)
    assert ends(found["median"]) == [low - 1, high - 1]


@pytest.mark.slow
def test_the_coverage_stated_is_that_of_the_intervals_given():
    n, held = 6, np.zeros(2)
    for values in np.random.default_rng(n).normal(size=(1500, n)):
        found = spread(values)
        for i, name in enumerate(("median", "iqm")):
            held[i] += found[name]["low"] <= 0 <= found[name]["high"]
    stated = [found["coverage_median"], found["coverage_iqm"]]
    assert held / 1500 == pytest.approx(stated, abs=0.025)


def test_a_share_of_variance_has_the_f_tables_interval():
    part = np.array([1.0, 2.0, 3.0, 4.0, 5.0])  # Variance 2.5, of 4 degrees.
    whole = np.array([0.0, 6.0] * 5)  # Variance 10, of 9 degrees.
    found = share_of_variance(part, whole)
    # F tables at 2.5 %: 4.718 of (4, 9), 8.905 of (9, 4).
    expected = (0.25, 0.25 / 4.718, 0.25 * 8.905)
    assert found == pytest.approx(expected, rel=2e-4)


def test_no_share_of_variance_without_variance():
    for part, whole in (([1.0], [1.0, 2.0]), ([1.0, 2.0], [1.0]), ([1.0, 2.0], [0.1] * 3)):
        assert np.isnan(share_of_variance(np.array(part), np.array(whole))).all()
    assert share_of_variance(np.full(3, 0.1), np.array([1.0, 2.0])) == (0, 0, 0)
