"""A study's result, of outcomes made by hand: against NumPy, SciPy and arithmetic."""

import json
import math

import numpy as np
import pytest
import scipy.stats

from jaxcls.errors import InputError
from jaxcls.studies import summary, table
from jaxcls.studies.cells import Cell
from jaxcls.studies.outcomes import Outcome

TWO = [Cell("base", {}, ()), Cell("optim.lr=0.1", {"optim.lr": "0.1"}, ())]


def runs(test, evaluation=None, last=None):
    """Outcomes of seeds 0, 1, ... with these top-1 values at the best and the last step."""
    made = []
    for seed, value in enumerate(test):
        if value is None:
            made.append(Outcome(seed, "diverged", 0, {}, {}))
            continue
        values = {"test_best": {"top1": value, "loss": 1 - value}}
        if last:
            values["test_last"] = {"top1": last[seed], "loss": 0.5}
        values["eval_best"] = {"top1": (evaluation or test)[seed], "loss": 0.1 * seed}
        made.append(Outcome(seed, "done", 10, dict.fromkeys(values, 100), values))
    return made


def summarise(found, cells=TWO, metric="top1", baseline="base", best_metric="top1"):
    result = summary.summarise(
        cells, found, metric=metric, baseline=baseline, best_metric=best_metric
    )
    json.dumps(result, allow_nan=False)
    return result


A = [0.90, 0.92, 0.91, 0.93, 0.94]
B = [0.91, 0.94, 0.92, 0.935, 0.96]


def test_figures_are_those_of_numpy_and_scipy():
    found = summarise({"base": runs(A), "optim.lr=0.1": runs(B)})
    figure = found["cells"][0]["figures"]["test_best"]["top1"]
    low, high = scipy.stats.t.interval(0.95, 4, np.mean(A), scipy.stats.sem(A))
    assert figure["n"] == 5
    assert figure["mean"] == pytest.approx(np.mean(A))
    assert figure["deviation"] == pytest.approx(np.std(A, ddof=1))
    assert figure["t"] == {
        "value": pytest.approx(np.mean(A)),
        "low": pytest.approx(low),
        "high": pytest.approx(high),
    }
    assert (figure["least"], figure["most"]) == (0.90, 0.94)


def test_differences_are_paired_by_seed_and_in_points():
    found = summarise({"base": runs(A), "optim.lr=0.1": runs(B)})
    one = found["comparisons"]["test_best"]["optim.lr=0.1"]
    apart = 100 * (np.array(B) - np.array(A))
    low, high = scipy.stats.t.interval(0.95, 4, apart.mean(), scipy.stats.sem(apart))
    assert found["unit"] == "points"
    assert one["difference"]["value"] == pytest.approx(1.3)
    assert one["difference"]["low"] == pytest.approx(low)
    assert one["difference"]["high"] == pytest.approx(high)
    assert one["p"] == 2 / 2**5  # All five differences have one sign.
    assert "n too small to reach 0.05" in one["words"]
    assert "0.0625" in one["words"]


def test_a_loss_is_better_low_and_in_its_own_unit():
    found = summarise(
        {"base": runs(A), "optim.lr=0.1": runs(B)}, metric="loss", best_metric="loss"
    )
    one = found["comparisons"]["test_best"]["optim.lr=0.1"]
    assert found["unit"] == ""
    assert one["difference"]["value"] == pytest.approx(-0.013)
    assert "better by 0.013" in one["words"]


def test_the_best_and_the_last_step_are_apart():
    found = summarise({"base": runs(A, last=B)}, TWO[:1])
    figures = found["cells"][0]["figures"]
    assert figures["test_best"]["top1"]["mean"] == pytest.approx(np.mean(A))
    assert figures["test_last"]["top1"]["mean"] == pytest.approx(np.mean(B))
    assert found["headline"] == "test_best"


def test_seeds_that_diverged_are_counted_and_in_no_figure():
    found = summarise(
        {"base": runs([0.9, None, 0.92]), "optim.lr=0.1": runs([0.9, 0.8, 0.7])}
    )
    assert (found["done"], found["diverged"], found["missing"]) == (5, 1, 0)
    assert found["cells"][0]["figures"]["test_best"]["top1"]["n"] == 2
    one = found["comparisons"]["test_best"]["optim.lr=0.1"]
    assert (one["n"], one["unpaired"]) == (2, 1)
    said = table.lines(found)
    assert said[0] == "diverged: base, seed 1; not in its figures"
    assert any("(1 seeds without a pair)" in line for line in said)


def test_a_cell_is_chosen_by_data_eval_and_never_by_data_test():
    good, bad = [0.9, 0.9], [0.1, 0.1]
    found = summarise({"base": runs(good, evaluation=bad), "optim.lr=0.1": runs(bad, good)})
    assert found["selected"] == {
        "cell": "optim.lr=0.1",
        "by": "eval_best",
        "metric": "top1",
        "mean": pytest.approx(0.9),
    }


def test_a_cell_that_lacks_seeds_is_not_chosen():
    found = summarise({"base": runs([0.5, 0.6]), "optim.lr=0.1": runs([0.9, None])})
    assert found["selected"]["cell"] == "base"


def test_without_a_search_nothing_is_chosen():
    assert summarise({"base": runs(A)}, TWO[:1])["selected"] is None


def test_shares_of_the_variance_are_ratios_with_f_intervals():
    cells = [Cell("base", {}, ()), Cell("vary=order", {}, ("order",))]
    found = summarise({"base": runs(A), "vary=order": runs(B)}, cells)
    share = found["streams"]["test_best"]["order"]
    ratio = np.var(B, ddof=1) / np.var(A, ddof=1)
    assert share["value"] == pytest.approx(ratio)
    assert share["low"] == pytest.approx(ratio / scipy.stats.f.ppf(0.975, 4, 4))
    assert share["high"] == pytest.approx(ratio / scipy.stats.f.ppf(0.025, 4, 4))


def test_seeds_needed_follow_from_the_paired_differences():
    found = summarise({"base": runs(A), "optim.lr=0.1": runs(B)})
    needed = found["runs_needed"]
    deviation = np.std(100 * (np.array(B) - np.array(A)), ddof=1)
    assert needed["deviation"] == pytest.approx(deviation)

    def power(n):
        freedom, apart = n - 1, 0.5 * math.sqrt(n) / deviation
        bound = scipy.stats.t.ppf(0.975, freedom)
        there = scipy.stats.nct.sf(bound, freedom, apart)
        return there + scipy.stats.nct.cdf(-bound, freedom, apart)

    seeds = needed["seeds"]["0.5"]
    assert power(seeds - 1) < 0.8 <= power(seeds)


def test_of_one_cell_they_follow_from_two_independent_runs():
    needed = summarise({"base": runs(A)}, TWO[:1])["runs_needed"]
    assert needed["of"] == "two independent runs"
    assert needed["deviation"] == pytest.approx(100 * math.sqrt(2) * np.std(A, ddof=1))


def test_one_seed_has_no_interval_and_says_so_in_no_number():
    found = summarise({"base": runs([0.9]), "optim.lr=0.1": runs([0.8])})
    figure = found["cells"][0]["figures"]["test_best"]["top1"]
    assert (figure["deviation"], figure["t"]["low"], figure["t"]["value"]) == (
        None,
        None,
        0.9,
    )
    assert found["runs_needed"] is None
    words = found["comparisons"]["test_best"]["optim.lr=0.1"]["words"]
    assert words == "cannot be compared: one seed in common, and it takes two"


def test_before_any_run_ended_there_is_a_result_that_says_so(capsys):
    missing = [Outcome(seed, "missing", 0, {}, {}) for seed in range(3)]
    found = summarise({"base": missing}, TWO[:1])
    table.show(found)
    assert table.closing(found) == (
        "not all runs are there yet: cells=1 done=0 diverged=0 missing=3"
    )


def test_a_metric_that_no_run_has_is_refused():
    with pytest.raises(
        InputError, match=r"--metric=top2 is in no run's records \(did you mean"
    ):
        summarise({"base": runs(A)}, TWO[:1], metric="top2")


def test_tables_hold_every_cell_and_the_figures(capsys):
    table.show(summarise({"base": runs(A), "optim.lr=0.1": runs(B, last=B)}))
    out = capsys.readouterr().out
    assert "top1 on data.test at the best step" in out
    assert "top1 on data.test at the last step" in out
    assert "0.9200" in out
    assert "0.9330" in out
    assert "optim.lr=0.1 against base: perhaps better by 1.30 points" in out
