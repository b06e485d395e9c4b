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

CHANGED = "optim.lr=0.1"
TWO = [Cell("base", {}, ()), Cell(CHANGED, {"optim.lr": "0.1"}, ())]


def runs(test, evaluation=None, last=None):
    """Outcomes of seeds 0, 1, ... with these top-1 values at the best and the last step."""
    made = []
    for seed, value in enumerate(test):
        if isinstance(value, str):
            made.append(Outcome(seed, value, 0, {}, {}))
            continue
        values = {"test_best": {"top1": value, "loss": 1 - value}}
        if last:
            values["test_last"] = {"top1": last[seed], "loss": 0.5}
        values["eval_best"] = {"top1": (evaluation or test)[seed], "loss": 0.1 * seed}
        made.append(Outcome(seed, "done", 10, dict.fromkeys(values, 100), values))
    return made


def summarise(*found, cells=TWO, metric="top1"):
    """The result of these outcomes, of one cell after the other."""
    named = {cell.name: each for cell, each in zip(cells, found, strict=False)}
    result = summary.summarise(
        cells[: len(found)], named, metric=metric, baseline="base", best_metric=metric
    )
    json.dumps(result, allow_nan=False)
    return result


A = [0.90, 0.92, 0.91, 0.93, 0.94]
B = [0.91, 0.94, 0.92, 0.935, 0.96]


def test_figures_are_those_of_numpy_and_scipy_at_the_best_and_the_last_step():
    found = summarise(runs(A, last=B))
    figures = found["cells"][0]["figures"]
    figure = figures["test_best"]["top1"]
    interval = scipy.stats.t.interval(0.95, 4, np.mean(A), scipy.stats.sem(A))
    assert (figure["n"], figure["least"], figure["most"]) == (5, 0.90, 0.94)
    assert figure["deviation"] == pytest.approx(np.std(A, ddof=1))
    expected = pytest.approx([np.mean(A), *interval])
    assert [figure["t"][key] for key in ("value", "low", "high")] == expected
    assert figures["test_last"]["top1"]["mean"] == pytest.approx(np.mean(B))
    assert found["headline"] == "test_best"
    assert found["selected"] is None  # There is no choice.


def test_differences_are_paired_by_seed_and_in_points():
    found = summarise(runs(A), runs(B))
    one = found["comparisons"]["test_best"][CHANGED]
    apart = 100 * (np.array(B) - np.array(A))
    interval = scipy.stats.t.interval(0.95, 4, apart.mean(), scipy.stats.sem(apart))
    assert found["unit"] == "points"
    assert [*one["difference"].values()] == pytest.approx([1.3, *interval])
    assert one["p"] == 2 / 2**5  # All five differences have one sign.
    assert "n too small to reach 0.05" in one["words"]


def test_a_recipe_that_is_better_at_every_seed_is_said_to_be_so_with_an_interval():
    found = summarise(runs(A), runs(B))
    (said,) = table.compared(found)
    # Wilson's interval of 5 of 5 ends at 1, and begins at 5 / (5 + 3.84).
    assert said.endswith("; P(better at a seed) = 1.00 (0.57 to 1.00)")
    (one,) = found["comparisons"]["test_best"].values()
    del one["superiority"]  # As a study of an older version is.
    assert "P(better" not in table.compared(found)[0]
    assert "P(better" not in table.compared(summarise(runs(A), runs(A)))[0]


def test_a_loss_is_better_low_and_in_its_own_unit():
    found = summarise(runs(A), runs(B), metric="loss")
    one = found["comparisons"]["test_best"][CHANGED]
    assert found["unit"] == ""
    assert one["difference"]["value"] == pytest.approx(-0.013)
    assert "better by 0.013" in one["words"]


def test_seeds_that_diverged_are_counted_and_in_no_figure():
    found = summarise(runs([0.9, "diverged", 0.92]), runs([0.9, 0.8, 0.7]))
    assert (found["done"], found["diverged"], found["missing"]) == (5, 1, 0)
    assert found["cells"][0]["figures"]["test_best"]["top1"]["n"] == 2
    one = found["comparisons"]["test_best"][CHANGED]
    assert (one["n"], one["unpaired"]) == (2, 1)
    said = table.lines(found)
    # Wilson's interval of 2 of 3: (2 + 1.92) / (3 + 3.84) -+ 0.365.
    assert said[0] == (
        "diverged: base, seed 1; not in its figures: 67% of its runs succeed (21% to 94%)"
    )
    rows = [table.row(cell, "test_best", "top1") for cell in found["cells"]]
    assert [row[1] for row in rows] == ["2 of 3", "3"]
    nothing = summarise(runs(["diverged", "missing"]), runs([0.9, 0.8]))
    row, lost = table.row(nothing["cells"][0], "test_best", "top1"), table.lost(nothing)
    assert row[1:3] == ["0 of 1", "-"]
    assert lost[0].endswith("figures: 0% of its runs succeed (0% to 79%)")
    assert lost[1] == "missing: base, seed 1; not ended yet"
    assert any("(1 seeds without a pair)" in line for line in said)


def test_a_cell_is_chosen_by_data_eval_and_never_by_data_test():
    good, bad = [0.9, 0.9], [0.1, 0.1]
    assert summarise(runs(good, evaluation=bad), runs(bad, good))["selected"] == {
        "cell": CHANGED, "by": "eval_best", "metric": "top1", "mean": pytest.approx(0.9)
    }  # fmt: skip
    # One that lacks a seed is not chosen.
    found = summarise(runs([0.5, 0.6]), runs([0.9, "missing"]))
    assert found["selected"]["cell"] == "base"


def test_shares_of_the_variance_are_ratios_with_f_intervals():
    cells = [Cell("base", {}, ()), Cell("vary=order", {}, ("order",))]
    share = summarise(runs(A), runs(B), cells=cells)["streams"]["test_best"]["order"]
    ratio = np.var(B, ddof=1) / np.var(A, ddof=1)
    ends = ratio / scipy.stats.f.ppf([0.975, 0.025], 4, 4)
    assert [*share.values()] == pytest.approx([ratio, *ends])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("order", "of the variance, order alone makes"),
        # Where all streams vary, these do not: their variance is no part of that one.
        ("split", "beside the variance of all streams, split by itself has"),
        ("fraction", "beside the variance of all streams, fraction by itself has"),
    ],
)
def test_only_a_stream_has_a_share_of_the_variance(source, said):
    cells = [Cell("base", {}, ()), Cell(f"vary={source}", {}, (source,))]
    ratio = np.var(B, ddof=1) / np.var(A, ddof=1)
    lines = table.lines(summarise(runs(A), runs(B), cells=cells))
    (line,) = (each for each in lines if "variance" in each)
    assert line.startswith(f"{said} {ratio:.0%} (")


def test_seeds_needed_follow_from_the_paired_differences_or_two_independent_runs():
    needed = summarise(runs(A), runs(B))["runs_needed"]
    deviation = np.std(100 * (np.array(B) - np.array(A)), ddof=1)
    assert needed["deviation"] == pytest.approx(deviation)

    def power(n):
        freedom, apart = n - 1, 0.5 * math.sqrt(n) / deviation
        bound = scipy.stats.t.ppf(0.975, freedom)
        there = scipy.stats.nct.sf(bound, freedom, apart)
        return there + scipy.stats.nct.cdf(-bound, freedom, apart)

    seeds = needed["seeds"]["0.5"]
    assert power(seeds - 1) < 0.8 <= power(seeds)
    needed = summarise(runs(A))["runs_needed"]
    assert needed["of"] == "two independent runs"
    assert needed["deviation"] == pytest.approx(100 * math.sqrt(2) * np.std(A, ddof=1))
    assert summarise(runs([0.5, 0.5]))["runs_needed"] is None


def test_one_seed_has_no_interval_and_says_so_in_no_number():
    found = summarise(runs([0.9]), runs([0.8]))
    figure = found["cells"][0]["figures"]["test_best"]["top1"]
    assert figure["deviation"] is None
    assert figure["t"] == {"value": 0.9, "low": None, "high": None}
    assert found["runs_needed"] is None
    words = found["comparisons"]["test_best"][CHANGED]["words"]
    assert words == "cannot be compared: one seed in common, and it takes two"


def test_before_any_run_ended_there_is_a_result_that_says_so():
    found = summarise(runs(["missing"] * 3))
    table.show(found)
    assert table.closing(found) == (
        "not all runs are there yet: cells=1 done=0 diverged=0 missing=3"
    )


def test_a_metric_that_no_run_has_is_refused():
    with pytest.raises(InputError, match=r"--metric=top2 is in no .* \(did you mean"):
        summarise(runs(A), metric="top2")


def test_tables_hold_every_cell_and_the_figures(capsys):
    table.show(summarise(runs(A), runs(B, last=B)))
    out = capsys.readouterr().out
    for text in (
        "top1 on data.test at the best step",
        "top1 on data.test at the last step",
        "0.9200",
        "0.9330",
        "optim.lr=0.1 against base: perhaps better by 1.30 points",
    ):
        assert text in out
