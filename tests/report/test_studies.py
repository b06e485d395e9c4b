"""A study in a report: its figures are those of the runs, and its words the command's."""

import re

import numpy as np
import pytest
import scipy.stats

from jaxcls.report import page, studies
from jaxcls.report.contents import Study
from jaxcls.runs.cost import Cost
from jaxcls.studies import summary, table
from jaxcls.studies.cells import Cell
from jaxcls.studies.outcomes import Outcome
from tests.report.test_page import DEFAULTS, NASTY, check_safe, parsed, rows, run, said

A, B = [0.90, 0.92, 0.91, 0.93, 0.94], [0.91, 0.94, 0.92, 0.935, 0.96]
LAST = [0.80, 0.81, 0.82, 0.83, 0.84]
COST = Cost({"TPU v4": 7200.0}, {"device_bytes": 3 * 2**29}, 12, 2, 1)
TWO = [Cell("base", {}, ()), Cell("optim.lr=0.1", {"optim.lr": "0.1"}, ())]


def outcomes(values):
    """Outcomes of seeds 0, 1, ...: a top-1, or how the run failed."""
    made = []
    for seed, value in enumerate(values):
        if isinstance(value, str):
            made.append(Outcome(seed, value, 0, {}, {}))
            continue
        places = {
            "test_best": {"top1": value},
            "test_last": {"top1": LAST[seed]},
            "eval_best": {"top1": value - 0.1},
        }
        made.append(Outcome(seed, "done", 10, dict.fromkeys(places, 100), places))
    return made


def study(*values, of=TWO, name="s", config=None):
    """A study of cells with these results, whose evaluations go from 0.5 to their ends."""
    found = dict(zip([cell.name for cell in of], map(outcomes, values), strict=True))
    result = summary.summarise(
        of, found, metric="top1", baseline=of[0].name, best_metric="top1"
    )
    records = {
        (cell, each.seed): [
            {"step": 5, "kind": "eval", "top1": 0.5},
            {"step": 10, "kind": "eval", "top1": each.values["eval_best"]["top1"]},
        ]
        for cell, runs in found.items()
        for each in runs
        if each.values
    }
    epochs = dict.fromkeys(found, 4.0)
    return Study(name, result, config or {}, records, epochs, COST)


def made(*found, runs=()):
    return page.page(runs, DEFAULTS, found)


@pytest.fixture(scope="module")
def pair():
    return study(A, B)


@pytest.fixture(scope="module")
def shown(pair):
    """The elements of the page of that study."""
    return parsed(made(pair))


def lines(root):
    return {said(line) for line in root.iter("li")}


def test_studies_are_a_whole_page_and_stand_before_runs(pair):
    text = made(pair, pair._replace(name="t"))
    root = parsed(text)
    assert root.findtext(".//h1") == "Report: s, t"
    assert "Learning curves" not in text
    text = made(pair, runs=[run("a", timing=[], scored=None)])
    parsed(text)
    assert text.index("Study: s") < text.index("Learning curves") < text.index('id="run1"')


def test_figures_are_those_of_numpy_and_scipy_for_the_best_and_the_last_step(shown):
    for place, first in (("best", A), ("last", LAST)):
        head, base, _ = rows(shown, f"top1 on data.test at the {place} step")
        low, high = scipy.stats.t.interval(0.95, 4, np.mean(first), scipy.stats.sem(first))
        assert head[:4] == ["cell", "n", "mean", "95 % interval"]
        assert base[:7] == [
            "base", "5", f"{np.mean(first):.4f}", f"{low:.4f} to {high:.4f}",
            f"{np.std(first, ddof=1):.4f}", f"{min(first):.4f}", f"{max(first):.4f}",
        ]  # fmt: skip
        assert base[7].startswith(f"{np.median(first):.4f} ")
        assert base[8].startswith(f"{scipy.stats.trim_mean(first, 0.25):.4f} ")
        # What percentile bootstraps of five hold, of normal results.
        assert re.search(r"to 0\.\d{4} \(holds 9[34]%\)$", base[7])
        assert re.search(r"to 0\.\d{4} \(holds (89|90)%\)$", base[8])


def test_differences_are_paired(shown):
    apart = 100 * (np.array(B) - np.array(A))
    low, high = scipy.stats.t.interval(0.95, 4, apart.mean(), scipy.stats.sem(apart))
    _, row = rows(shown, "Against base")
    span = f"{low:.3g} to {high:.3g}"
    assert row == ["optim.lr=0.1", f"{apart.mean():.3g}", span, f"{2 / 2**5:.3g}"]


def test_what_is_said_is_what_the_command_says(pair, shown):
    found = {line for line in table.lines(pair.result) if "against" in line}
    assert len(found) == 1
    assert found | set(table.chosen(pair.result)) <= lines(shown)
    assert dict(rows(shown, "Seeds to see it")[1:]) == table.needed(pair.result)
    plan = dict(rows(shown, "What is trained")[1:])
    assert plan["runs"] == "2 cells x 5 seeds = 10 runs: 10 done, 0 diverged, 0 missing"
    assert plan["a seed varies"] == "all"


def dots(chart, shade):
    """Where the markers of a colour stand, from left to right, in a chart."""
    found = re.findall(
        rf'<use [^>]*?x="([\d.]+)" y="([\d.]+)" style="fill: {re.escape(shade)}',
        chart.content,
    )
    return np.sort(np.array(found, float), axis=0)


def chart_of_runs(found):
    (chart,) = studies.dots(found.result, studies.colours(found.result))
    return chart


def test_every_run_is_a_dot_at_its_value(pair):
    chart = chart_of_runs(pair)
    seen = [dots(chart, f"var(--run{k})") for k in (1, 2)]
    assert [len(found) for found in seen] == [5, 5]
    x, y = np.concatenate([f[:, 0] for f in seen]), np.concatenate([np.sort(A), np.sort(B)])
    # One straight line from value to place, for both cells.
    slope, start = np.polyfit(y, x, 1)
    np.testing.assert_allclose(slope * y + start, x, atol=0.01)
    assert slope > 0
    assert {len(set(found[:, 1])) for found in seen} == {1}
    assert seen[0][0, 1] < seen[1][0, 1]


def test_each_seed_has_a_thin_curve_and_each_cell_a_thick_one(pair):
    (chart,) = studies.curves(pair, studies.colours(pair.result))
    for k in (1, 2):
        found = re.findall(rf'style="([^"]*stroke: var\(--run{k}\)[^"]*)"', chart.content)
        faint = [line for line in found if "stroke-opacity" in line]
        assert (len(faint), len(found)) == (5, 6)
    ends = [f"{np.median(values) - 0.1:.4g} at step 10" for values in (A, B)]
    assert chart.about == f"ends at {'; '.join(ends)}"


def test_on_hover_are_the_runs_the_means_and_the_medians(pair):
    (chart,) = studies.dots(pair.result, studies.colours(pair.result))
    found = {line["name"]: line["points"] for line in chart.readings["lines"]}
    expected = {f"base, seed {k}": [[x, x]] for k, x in enumerate(A)}
    expected |= {f"optim.lr=0.1, seed {k}": [[x, x]] for k, x in enumerate(B)}
    means = {"base, mean": np.mean(A), "optim.lr=0.1, mean": np.mean(B)}
    assert {name: found.pop(name)[0][1] for name in means} == pytest.approx(means)
    assert found == expected
    (x, dx), (y, dy) = chart.readings["x"], chart.readings["y"]
    for shade, values, row in ((1, A, 0), (2, B, 1)):
        seen = dots(chart, f"var(--run{shade})")
        heights = [
            one["height"] for one in chart.readings["lines"] if one["colour"] == shade
        ]
        np.testing.assert_allclose(seen[:, 0], x + dx * np.sort(values), atol=0.01)
        np.testing.assert_allclose(seen[:, 1], y + dy * heights[0], atol=0.01)
        assert row < heights[0] < heights[-1] < row + 1
    (curve,) = studies.curves(pair, studies.colours(pair.result))
    assert [(line["name"], line["epoch"]) for line in curve.readings["lines"]] == [
        ("base, median", 4.0), ("optim.lr=0.1, median", 4.0),
    ]  # fmt: skip
    last = [line["points"][-1] for line in curve.readings["lines"]]
    assert last == [[10, pytest.approx(np.median(each) - 0.1)] for each in (A, B)]


def test_the_median_is_of_steps_that_every_run_has():
    first = np.array([1, 2, 3, 5]), np.array([0.1, 0.2, 0.3, 0.5])
    others = (np.array([2, 5]), np.array([0.6, 0.7])), (np.array([2, 4, 5]), np.ones(3))
    steps, values = studies.median([first, *others])
    np.testing.assert_array_equal(steps, [2, 5])
    np.testing.assert_allclose(values, [0.6, 0.7])


def test_seeds_without_a_result_are_said_and_drawn_nowhere():
    found = study([0.9, "diverged", 0.92], ["diverged", "missing", "missing"])
    root = parsed(made(found))
    assert {
        "diverged: base, seed 1; not in its figures: 67% of its runs succeed (21% to 94%)",
        "diverged: optim.lr=0.1, seed 0; not in its figures: 0% of its runs succeed"
        " (0% to 79%)",
        "missing: optim.lr=0.1, seed 1, 2; not ended yet",
    } <= lines(root)
    chart = chart_of_runs(found)
    assert "base (1 diverged)" in chart.content
    assert "optim.lr=0.1 (1 diverged, 2 missing)" in chart.content
    assert [len(dots(chart, f"var(--run{k})")) for k in (1, 2)] == [2, 0]
    each = rows(root, "top1 on data.test at the best step")
    assert each[2] == ["optim.lr=0.1", "0 of 1", *["-"] * 7]


def test_before_any_run_ended_the_plan_is_there():
    text = made(study(["missing"] * 2, ["missing"] * 2))
    plan = dict(rows(parsed(text), "What is trained")[1:])
    assert plan["runs"] == "2 cells x 2 seeds = 4 runs: 0 done, 0 diverged, 4 missing"
    assert "No run has a result yet." in text
    assert "<svg" not in text


def test_one_seed_of_one_cell_has_no_interval():
    text = made(study([0.9], of=TWO[:1]))
    row = rows(parsed(text), "top1 on data.test at the best step")[1]
    assert row[:5] == ["base", "1", "0.9000", "-", "-"]
    assert "Comparisons" not in text


def test_shares_of_the_variance_are_ratios():
    each = [Cell("base", {}, ()), Cell("vary=order", {}, ("order",))]
    root = parsed(made(study(A, B, of=each)))
    row = rows(root, "Streams of randomness")[1]
    ratio = np.var(B, ddof=1) / np.var(A, ddof=1)
    low, high = ratio / scipy.stats.f.ppf([0.975, 0.025], 4, 4)
    assert row == ["order", f"{ratio:.0%}", f"{low:.0%} to {high:.0%}"]
    assert ["a seed varies", "all; order"] in rows(root, "What is trained")


def test_of_many_cells_the_baseline_and_the_best_have_colours():
    many = [Cell(f"lr={k}", {"optim.lr": str(k)}, ()) for k in range(30)]
    found = study(*([0.5 + k / 100] for k in range(30)), of=many)
    root = parsed(made(found))
    legend = [said(name) for name in root.find(".//ul[@class='legend']")]
    assert legend == ["lr=0", *(f"lr={k}" for k in range(23, 30))]
    chart = chart_of_runs(found)
    assert len(set(re.findall(">(lr=\\d+)<", chart.content))) == 30
    assert len(rows(root, "top1 on data.test at the best step")) == 31


def test_results_stand_before_the_plan_and_the_config(pair):
    text = made(pair._replace(config={**DEFAULTS, "batch_size": 7}))
    places = [text.index(f">{part}<") for part in (
        "Runs", "Cells", "Comparisons", "Plan", "The config that cells change",
    )]  # fmt: skip
    assert places == sorted(places)


def test_the_config_is_folded_and_names_are_text():
    names = [f"{NASTY[0]},{NASTY[2]}", NASTY[1]]
    nasty = [Cell(names[0], {}, ()), Cell(names[1], {"augment": NASTY[2]}, ())]
    config = {**DEFAULTS, "batch_size": 7}
    root = parsed(made(study(A, B, of=nasty, name=NASTY[0], config=config)))
    check_safe(root, [f"Study: {NASTY[0]}", NASTY[1]])
    cells = rows(root, "top1 on data.test at the best step")[1:]
    assert [cell[0] for cell in cells] == names
    assert rows(root.find(".//details"), "What is set")[1] == ["batch_size", "7", "128"]


def test_the_cost_of_all_runs_is_beside_the_plan(shown, pair):
    assert rows(shown, "Cost of every start")[1:] == [
        ["device-seconds, TPU v4", "7,200.0 (2:00:00)"],
        ["peak memory of a device", "1.50 GiB"],
    ]
    assert f"Measured, so that a repeat has another one. {COST.unsure}" in made(pair)
