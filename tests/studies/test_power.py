"""Seeds needed: against published tables, and against the verdicts of simulated studies."""

import itertools
import math
import time

import numpy as np
import pytest
import scipy.stats

from jaxcls.studies import power
from jaxcls.studies.comparison import compare
from jaxcls.studies.power import runs_needed


def is_seen(differences):
    """Whether each study [studies, n, m] says "worse" of its first recipe: no code of ours.

    All sign flips are counted; Holm's step for the first is by its rank among the p.
    """
    _, n, m = differences.shape
    flips = np.array([*itertools.product((1.0, -1.0), repeat=n)])
    sums = np.abs(np.einsum("fn,snm->sfm", flips, differences))
    p = (sums >= sums[:, :1] - 1e-9).mean(1)
    in_order = np.sort(p, axis=1) * np.arange(m, 0, -1)
    rank = (p < p[:, :1]).sum(1)
    corrected = np.maximum.accumulate(in_order, axis=1)[np.arange(len(p)), rank]
    first = scipy.stats.ttest_1samp(differences[:, :, 0], 0, axis=1)
    return (corrected <= 0.05) & (first.confidence_interval(1 - 0.05 / m).low > 0)


def studied(n, effect, comparisons, studies):
    """Differences of simulated studies whose first recipe alone differs."""
    drawn = np.random.default_rng(77).normal(size=(studies, n, comparisons))
    drawn[:, :, 0] += effect
    return drawn


def verdicts(n, effect, comparisons):
    """The share of 4,000 studies that see the difference."""
    drawn = studied(n, effect, comparisons, 4000)
    pieces = np.array_split(drawn, 40)  # A fortieth at a time, to spare memory.
    return np.concatenate([is_seen(piece) for piece in pieces]).mean()


@pytest.mark.parametrize(("n", "comparisons"), [(6, 1), (8, 3)])
def test_a_simulated_verdict_is_the_one_that_a_study_prints(n, comparisons):
    drawn = studied(n, 1.4, comparisons, 40)
    printed = []
    for rows in drawn:
        others = {str(i): dict(enumerate(row)) for i, row in enumerate(rows.T)}
        found = compare(dict.fromkeys(range(n), 0.0), others, "loss")["0"]
        printed.append(found.words.startswith("worse by"))  # A loss is better low.
    assert printed == is_seen(drawn).tolist()
    assert 0 < sum(printed) < 40


@pytest.mark.slow
@pytest.mark.parametrize("comparisons", [1, 3])
@pytest.mark.parametrize("effect", [4.0, 1.6, 1.3, 1.05])
def test_the_verdict_is_as_likely_as_is_promised_and_less_so_with_a_seed_fewer(
    effect, comparisons
):
    n = runs_needed(1.0, effect, comparisons)
    assert verdicts(n, effect, comparisons) >= 0.77
    assert verdicts(n - 1, effect, comparisons) <= 0.83


@pytest.mark.parametrize(("comparisons", "least"), [(1, 6), (2, 7), (3, 7), (9, 9)])
def test_no_fewer_seeds_are_promised_than_the_sign_flip_test_needs(comparisons, least):
    # All flips but two leave the least p, 2 / 2**n, which is multiplied by comparisons.
    assert comparisons * 2 / 2**least <= 0.05 < comparisons * 2 / 2 ** (least - 1)
    for difference in (5.0, 1e9):
        assert runs_needed(1.0, difference, comparisons) == least
    assert runs_needed(1e-300, 1.0, comparisons) == least
    everyone_up = dict.fromkeys(
        map(str, range(comparisons)), dict.fromkeys(range(least), 1)
    )
    everyone_up["0"] = {seed: 1 + seed / 1e3 for seed in range(least)}
    found = compare(dict.fromkeys(range(least), 0), everyone_up, "loss")
    assert found["0"].words.startswith("worse by")


def test_six_seeds_are_enough_where_all_six_go_one_way_in_80_percent_of_studies():
    # By hand: p = 2 / 64 takes one sign in all, of probability phi(effect) ** 6, while
    # Student's interval alone would take less.
    assert runs_needed(1.0, 1.85) == 6  # 0.9678 ** 6 = 0.822
    assert runs_needed(1.0, 1.75) == 7  # 0.9599 ** 6 = 0.782


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_as_many_runs_are_needed_as_is_published(effect, pairs):
    # As G*Power has them, of a two-sided paired t test at 0.05 with a power of 0.8.
    assert runs_needed(1.0, effect) == pairs
    assert runs_needed(0.02, 0.02 * effect) == pairs


def test_what_no_number_of_runs_shows():
    # By the normal law: ((1.960 + 0.842) / effect) ** 2 pairs.
    assert runs_needed(1.0, 2.8016 / math.sqrt(99_000)) == pytest.approx(99_000, rel=1e-3)
    assert runs_needed(1.0, 2.8016 / math.sqrt(101_000)) is None
    # The sign-flip test draws 100,000 flips, so p is never below 1 / 100,001.
    assert runs_needed(1.0, 9.0, 5000) == 17
    assert runs_needed(1.0, 9.0, 5001) is None


def test_a_plan_is_made_at_once():
    power.runs_needed.cache_clear()
    runs_needed(1.0, 0.5)  # SciPy is imported.
    start = time.process_time()
    for difference in (0.11, 0.22, 0.51, 1.1, 2.2):
        runs_needed(0.6, difference, 3)
    assert time.process_time() - start < 1.0  # 0.1 s on a machine that is not busy.
