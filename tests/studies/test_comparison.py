"""Comparisons against SciPy's tests, counting by hand, and how often they cry wolf."""

import itertools

import numpy as np
import pytest
import scipy.stats

from jaxcls.studies.comparison import compare, equivalence, holm, sign_flips


def by_seed(values):
    return dict(enumerate(values))


def of(differences, metric="loss"):
    """The comparison whose pairs differ so."""
    baseline = np.zeros(len(differences))
    return compare(by_seed(baseline), {"b": by_seed(differences)}, metric)["b"]


def is_seen(found):
    return found.words.startswith(("better", "worse"))


def counted(differences):
    """The share of sign flips whose integer sum is as far from 0: arithmetic by hand."""
    signs = itertools.product((1, -1), repeat=len(differences))
    sums = [abs(sum(s * d for s, d in zip(row, differences, strict=True))) for row in signs]
    return np.mean([found >= sums[0] for found in sums])


def test_pairs_are_made_by_seed_and_have_scipys_interval():
    a = {3: 91.2, 1: 90.4, 2: 91.0, 7: 90.9, 8: 1e6}
    b = {1: 91.0, 2: 91.1, 9: -1e6, 3: 91.9, 7: 91.5, 10: 0.0}
    found = compare(a, {"b": b}, "loss")["b"]
    seeds = [1, 2, 3, 7]
    test = scipy.stats.ttest_rel([b[s] for s in seeds], [a[s] for s in seeds])
    assert (found.n, found.unpaired, found.comparisons) == (4, 3, 1)
    differences = [0.6, 0.1, 0.7, 0.6]
    assert found.difference.value == pytest.approx(np.mean(differences), rel=1e-9)
    assert found.difference[1:] == pytest.approx(list(test.confidence_interval()), rel=1e-9)
    assert found.deviation == pytest.approx(np.std(differences, ddof=1), rel=1e-9)
    assert found.p == found.p_corrected == found.least_p == 2 / 2**4


def test_intervals_are_as_wide_as_all_comparisons_together_need():
    rng = np.random.default_rng(0)
    a, cells = rng.normal(size=9), rng.normal(size=(4, 9))
    others = {str(i): by_seed(cell) for i, cell in enumerate(cells)}
    found = compare(by_seed(a), others, "loss")
    for i, cell in enumerate(cells):
        expected = scipy.stats.ttest_rel(cell, a).confidence_interval(1 - 0.05 / 4)
        assert found[str(i)].difference[1:] == pytest.approx(list(expected), rel=1e-9)
        assert found[str(i)].comparisons == 4


@pytest.mark.parametrize(
    "differences",
    [
        [3, -1, 4, 1, -5, 9, 2],
        [1, 1, 1, -1, 1, 1, 1, 1],
        [0, 0, 2, 1, 0, 1],
        [5, -5],
        [0, 0, 0],
        [7, 6, -4, 5, 3, 9, 8, -2, 6, 7, 4, 5],
    ],
)
def test_sign_flips_are_counted_one_by_one(differences):
    assert sign_flips(np.array(differences, float)) == counted(differences)


def test_shares_that_differ_by_rounding_are_ties():
    rng = np.random.default_rng(4)
    for _ in range(50):
        hits = rng.integers(330, 340, (2, 7))
        differences = hits[1] / 360 - hits[0] / 360
        assert sign_flips(differences) == counted(hits[1] - hits[0])


def test_up_to_sixteen_pairs_every_flip_is_made_and_beyond_a_hundred_thousand():
    assert sign_flips(np.arange(1.0, 17)) == 2 / 2**16
    drawn = sign_flips(np.arange(1.0, 18)) * 100_001
    assert drawn == pytest.approx(round(drawn), abs=1e-9)
    assert 1 <= drawn <= 8  # 1.5 flips of one sign are expected, and the one seen.
    many = np.random.default_rng(0).normal(0.35, 1, size=40)
    expected = scipy.stats.ttest_1samp(many, 0).pvalue
    assert sign_flips(many) == pytest.approx(expected, abs=0.004)
    assert sign_flips(many) == sign_flips(many)


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.04, 0.001, 0.6, 0.02], [0.08, 0.004, 0.6, 0.06]),
        ([0.9, 0.8], [1, 1]),
        ([0.04, np.nan, 0.02], [0.04, np.nan, 0.04]),
        ([], []),
    ],
)
def test_holm_steps_down_as_by_hand(p, corrected):
    assert holm(p) == pytest.approx(corrected, nan_ok=True)


@pytest.mark.parametrize("counts", [(5,), (4, 4, 4), (6, 2), (10, 6, 7)])
def test_the_least_p_is_reached_where_all_differences_have_one_sign(counts):
    others = {str(i): by_seed([1.0] * n) for i, n in enumerate(counts)}
    found = compare(by_seed([0.0] * 10), others, "loss")
    for comparison in found.values():
        assert comparison.p_corrected == comparison.least_p
    assert found["0"].least_p >= 2 / 2 ** counts[0]


@pytest.mark.parametrize("m", [1, 2, 4, 9])
def test_the_number_of_pairs_that_is_said_to_be_enough_is_and_one_fewer_is_not(m):
    def compared(n):
        others = {str(i): by_seed(np.arange(1.0, n + 1)) for i in range(m)}
        return compare(by_seed([0.0] * n), others, "loss")["0"]

    enough = int(compared(2).words.split()[-2])
    assert is_seen(compared(enough))
    assert "too small" not in compared(enough).words
    fewer = compared(enough - 1)
    assert not is_seen(fewer)
    assert f"too small to reach 0.05: {enough - 1} pairs cannot" in fewer.words


SEEN = [0.30, 0.50, 0.42, 0.38, 0.52, 0.40]
LESS = [-d for d in SEEN]
FAR = [0.1, 0.1, 0.1, 0.1, 0.1, 2.0]
CLEAR = [0.4, 0.5, 0.42, 0.38, -0.05, 0.45]


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        (LESS, "better by 0.420 (0.335 to 0.505), p = 0.0312"),
        (SEEN, "worse by 0.420 (0.335 to 0.505), p = 0.0312"),
        (
            FAR,
            "perhaps worse by 0.42: sign flips give p = 0.0312, but the interval"
            " (-0.40 to 1.23) holds 0",
        ),
        (
            CLEAR,
            "perhaps worse by 0.35 (0.14 to 0.56): that leaves out 0, if differences are"
            " normal, but sign flips give p = 0.0625",
        ),
        (
            [1, -2, 3, -1],
            "no difference seen: +0.2 (-3.3 to +3.8), p = 1; n too small to reach 0.05:"
            " 4 pairs cannot go below p = 0.125; 6 can",
        ),
        ([0, 0, 0], "no difference: the results are equal at each of 3 seeds"),
        ([1.0], "cannot be compared: one seed in common, and it takes two"),
        ([], "cannot be compared: no seed in common, and it takes two"),
    ],
)
def test_words_say_no_more_than_is_known(differences, words):
    assert of(differences).words == words


def test_a_share_is_compared_in_points_and_better_high():
    found = of([d / 100 for d in SEEN], "top1")
    assert found.words == "better by 0.420 points (0.335 to 0.505), p = 0.0312"
    found = of([d / 100 for d in (1, -2, 3, -1, 0, 2, -3)], "top1")
    assert found.words == "no difference seen: +0.0 points (-2.0 to +2.0), p = 1"


@pytest.mark.parametrize(("metric", "better"), [("top1", 5), ("loss", 2)])
def test_the_probability_to_be_better_at_a_seed_has_wilsons_interval(metric, better):
    found = of([0.1, 0.2, -0.1, 0.0, 0.3, 0.4, -0.2, 0.1], metric)
    z, p, n = scipy.stats.norm.ppf(0.975), better / 7, 7  # The equal pair is no win.
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert found.superiority == pytest.approx((p, middle - half, middle + half))
    assert np.isnan(of([0.0, 0.0], metric).superiority).all()
    assert np.isnan(of([0.3], metric).superiority).all()


def test_words_say_of_how_many_comparisons_a_p_is():
    others = {"b": by_seed(SEEN * 2), "c": by_seed([0.0] * 12)}
    found = compare(by_seed([0.0] * 12), others, "loss")
    assert found["b"].words.endswith(f"p = {2 * 2 / 2**12:.3g} (of 2 comparisons)")
    assert found["c"].words == "no difference: the results are equal at each of 12 seeds"


def test_what_cannot_be_compared_costs_the_others_nothing():
    pair, alone = by_seed(SEEN), {0: 1.0, 77: 2.0}
    found = compare(by_seed([0.0] * 6), {"b": pair, "alone": alone}, "loss")
    assert found["b"] == of(SEEN)
    alone = found["alone"]
    assert (alone.n, alone.unpaired) == (1, 6)
    figures = [alone.deviation, alone.p, alone.p_corrected, alone.least_p]
    assert np.isnan([*alone.difference, *figures]).all()
    assert compare(by_seed(SEEN), {}, "loss") == {}


@pytest.mark.slow
@pytest.mark.parametrize(("cells", "n"), [(2, 3), (2, 7), (2, 9), (5, 8)])
def test_in_few_studies_of_equal_recipes_any_is_said_to_differ(cells, n):
    rng, alarms = np.random.default_rng(cells * 100 + n), []
    for _ in range(2000):
        # Results of one seed go together, as they do.
        results = rng.normal(size=n) + rng.normal(size=(cells, n))
        rows = {str(i): by_seed(row) for i, row in enumerate(results[1:])}
        found = compare(by_seed(results[0]), rows, "loss").values()
        alarms.append([any(map(is_seen, found)), any(c.p_corrected <= 0.05 for c in found)])
    said, flips = np.mean(alarms, axis=0)
    assert max(said, flips) <= 0.065
    if (cells, n) == (2, 7):  # Of 64 pairs of flips 3 are within 0.05.
        assert flips == pytest.approx(3 / 64, abs=0.015)


def test_a_difference_of_two_deviations_is_seen_at_ten_seeds():
    draws = np.random.default_rng(1).normal(2, 1, size=(100, 10))
    assert np.mean([is_seen(of(row)) for row in draws]) >= 0.95


NEW = np.array([98.4, 98.9, 98.1, 98.6, 98.8])
OLD = np.array([98.5, 98.7, 98.2, 98.9, 98.3, 98.6, 98.4])


def figures(values):
    deviation = np.std(values, ddof=1) if len(values) > 1 else None
    return {"n": len(values), "mean": np.mean(values), "deviation": deviation}


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3, -0.4, 2.0])
@pytest.mark.parametrize("margin", [0.2, 0.5, 1.0])
def test_equivalence_is_two_one_sided_welch_tests(shift, margin):
    new = NEW + shift
    is_same, words = equivalence(figures(OLD), figures(new), margin, "loss")

    def p(apart, alternative):
        return scipy.stats.ttest_ind(
            new - apart, OLD, equal_var=False, alternative=alternative
        ).pvalue

    assert is_same == (max(p(-margin, "greater"), p(margin, "less")) < 0.05)
    is_far = min(p(margin, "greater"), p(-margin, "less")) < 0.05
    assert words.startswith("differs") == is_far
    welch = scipy.stats.ttest_ind(new, OLD, equal_var=False).confidence_interval(0.90)
    assert f"({welch.low:+.2f} to {welch.high:+.2f}) from the record" in words


@pytest.mark.parametrize(
    ("top1", "margin", "words"),
    [
        (
            [0.010, 0.011, 0.009],
            0.5,
            "consistent: +0.00 points (-0.15 to +0.15) from the record, margin 0.5 points",
        ),
        (
            [0.020, 0.021, 0.019],
            0.5,
            "differs: +1.00 points (+0.85 to +1.15) from the record, margin 0.5 points",
        ),
        (
            [0.010, 0.011, 0.009],
            0.1,
            "cannot be told, too few seeds: +0.00 points (-0.15 to +0.15) from the record,"
            " margin 0.1 points",
        ),
        ([0.01], 0.5, "cannot be told: too few seeds, and it takes two on either side"),
    ],
)
def test_words_tell_consistent_from_different_from_unknown(top1, margin, words):
    recorded = {"n": 12, "mean": 0.01, "deviation": 0.001}
    expected = words.startswith("consistent"), words
    assert equivalence(recorded, figures(top1), margin, "top1") == expected


def test_results_that_do_not_vary_are_compared_as_they_are():
    recorded = {"n": 3, "mean": 0.5, "deviation": 0.0}
    assert equivalence(recorded, figures([0.5, 0.5]), 0.01, "loss")[0]
    assert "differs" in equivalence(recorded, figures([0.25, 0.25]), 0.01, "loss")[1]


def test_few_that_differ_by_the_margin_are_called_consistent():
    rng, found = np.random.default_rng(3), []
    for _ in range(2000):
        old, new = rng.normal(size=10), rng.normal(2.0, 1.5, size=8)
        found.append(equivalence(figures(old), figures(new), 2.0, "loss"))
    assert 0.02 <= np.mean([is_same for is_same, _ in found]) <= 0.065
    assert np.mean([words.startswith("differs") for _, words in found]) <= 0.065
