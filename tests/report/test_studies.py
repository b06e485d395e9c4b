"""A study in a report: its figures are those of the runs, and its words the command's."""

import re

import numpy as np
import pytest
import scipy.stats

from jaxcls.report import page, studies
from jaxcls.report.contents import Study
from jaxcls.studies import summary, table
from jaxcls.studies.cells import Cell
from jaxcls.studies.outcomes import Outcome
from tests.report.test_page import DEFAULTS, NASTY, Parsed, cells, check_whole, run

A, B = [0.90, 0.92, 0.91, 0.93, 0.94], [0.91, 0.94, 0.92, 0.935, 0.96]
LAST = [0.80, 0.81, 0.82, 0.83, 0.84]
TWO = [Cell("base", {}, ()), Cell("optim.lr=0.1", {"optim.lr": "0.1"}, ())]


def outcomes(values, last=LAST):
    """Outcomes of seeds 0, 1, ...: a top-1, or how the run failed."""
    made = []
    for seed, value in enumerate(values):
        if isinstance(value, str):
            made.append(Outcome(seed, value, 0, {}, {}))
            continue
        places = {
            "test_best": {"top1": value},
            "test_last": {"top1": last[seed]},
            "eval_best": {"top1": value - 0.1},
        }
        made.append(Outcome(seed, "done", 10, dict.fromkeys(places, 100), places))
    return made


def evaluations(found):
    """What runs wrote as they went, from 0.5 to what they ended at."""
    return {
        (name, each.seed): [
            {"step": 5, "kind": "eval", "top1": 0.5},
            {"step": 10, "kind": "eval", "top1": each.values["eval_best"]["top1"]},
        ]
        for name, runs in found.items()
        for each in runs
        if each.values
    }


def study(found, of=TWO, name="s", config=None):
    result = summary.summarise(
        of, found, metric="top1", baseline=of[0].name, best_metric="top1"
    )
    return Study(name, result, config or {}, evaluations(found))


def made(*found, runs=()):
    return page.page(runs, DEFAULTS, found)


@pytest.fixture(scope="module")
def pair():
    return study({"base": outcomes(A), "optim.lr=0.1": outcomes(B)})


@pytest.fixture(scope="module")
def shown(pair):
    """The page of that study."""
    return made(pair)


def after(text, caption):
    """What follows the table's caption."""
    return text[text.index(f"<caption>{caption}") :]


def test_a_study_alone_is_a_whole_page(pair):
    text = made(pair, pair._replace(name="t"))
    assert "Report: s, t" in check_whole(text).texts
    assert "Learning curves" not in text
    assert made(pair, pair._replace(name="t")) == text


def test_a_study_stands_before_runs(pair):
    text = made(pair, runs=[run("a", timing=[], scored=None)])
    Parsed(text)
    assert text.index("Study: s") < text.index("Learning curves") < text.index('id="run1"')


def test_figures_are_those_of_numpy_and_scipy_for_the_best_and_the_last_step(shown):
    for place, first in (("best", A), ("last", LAST)):
        head, base, _ = cells(after(shown, f"top1 on data.test at the {place} step"))
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


def test_differences_are_paired_and_said_in_words(shown):
    apart = 100 * (np.array(B) - np.array(A))
    low, high = scipy.stats.t.interval(0.95, 4, apart.mean(), scipy.stats.sem(apart))
    _, row = cells(after(shown, "Against base"))
    span = f"{low:.3g} to {high:.3g}"
    assert row == ["optim.lr=0.1", f"{apart.mean():.3g}", span, f"{2 / 2**5:.3g}"]
    assert "optim.lr=0.1 against base: perhaps better by 1.30 points" in shown
    assert "n too small to reach 0.05" in shown


def test_what_is_said_is_what_the_command_says(pair, shown):
    texts = Parsed(shown).texts
    said = table.lines(pair.result)
    whole = [line for line in said if "against" in line or line.startswith("chosen")]
    assert len(whole) == 2
    assert set(whole) <= set(texts)
    assert "2 cells x 5 seeds = 10 runs: 10 done, 0 diverged, 0 missing" in texts


def dots(text, shade):
    """Where the markers of a colour stand, from left to right, in the first chart."""
    svg = re.search("<svg.*?</svg>", text, re.S)[0]
    found = re.findall(
        rf'<use [^>]*?x="([\d.]+)" y="([\d.]+)" style="fill: {re.escape(shade)}', svg
    )
    return np.sort(np.array(found, float), axis=0)


def test_every_run_is_a_dot_at_its_value(shown):
    seen = [dots(shown, f"var(--run{k})") for k in (1, 2)]
    values = [np.sort(A), np.sort(B)]
    assert [len(found) for found in seen] == [5, 5]
    x, y = np.concatenate([f[:, 0] for f in seen]), np.concatenate(values)
    # One straight line from value to place, for both cells.
    slope, start = np.polyfit(y, x, 1)
    np.testing.assert_allclose(slope * y + start, x, atol=0.01)
    assert slope > 0
    assert {len(set(found[:, 1])) for found in seen} == {1}
    assert seen[0][0, 1] < seen[1][0, 1]


def test_each_seed_has_a_thin_curve_and_each_cell_a_thick_one(shown):
    svg = re.findall("<svg.*?</svg>", shown, re.S)[1]
    for k in (1, 2):
        lines = re.findall(rf'style="([^"]*stroke: var\(--run{k}\)[^"]*)"', svg)
        faint = [line for line in lines if "stroke-opacity" in line]
        assert (len(faint), len(lines)) == (5, 6)
    label = re.search('aria-label="([^"]*)"', svg)[1]
    assert f"{np.median(A) - 0.1:.4g} at step 10; {np.median(B) - 0.1:.4g} at" in label


def test_the_median_is_of_steps_that_every_run_has():
    first = np.array([1, 2, 3, 5]), np.array([0.1, 0.2, 0.3, 0.5])
    others = (np.array([2, 5]), np.array([0.6, 0.7])), (np.array([2, 4, 5]), np.ones(3))
    steps, values = studies.median([first, *others])
    np.testing.assert_array_equal(steps, [2, 5])
    np.testing.assert_allclose(values, [0.6, 0.7])


def test_seeds_without_a_result_are_said_and_drawn_nowhere():
    found = study(
        {
            "base": outcomes([0.9, "diverged", 0.92]),
            "optim.lr=0.1": outcomes(["diverged", "missing", "missing"]),
        }
    )
    text = made(found)
    texts = Parsed(text).texts
    for line in (
        "diverged: base, seed 1; not in its figures",
        "diverged: optim.lr=0.1, seed 0; not in its figures",
        "missing: optim.lr=0.1, seed 1, 2; not ended yet",
    ):
        assert line in texts
    assert "base (1 diverged)" in text
    assert "optim.lr=0.1 (1 diverged, 2 missing)" in text
    assert [len(dots(text, f"var(--run{k})")) for k in (1, 2)] == [2, 0]
    rows = cells(after(text, "top1 on data.test at the best step"))
    assert rows[2] == ["optim.lr=0.1", "0", *["-"] * 7]


def test_before_any_run_ended_the_plan_is_there():
    found = study({cell.name: outcomes(["missing"] * 2) for cell in TWO})
    text = made(found)
    Parsed(text)
    assert "2 cells x 2 seeds = 4 runs: 0 done, 0 diverged, 4 missing" in text
    assert "No run has a result yet." in text
    assert "<svg" not in text


def test_one_seed_of_one_cell_has_no_interval():
    text = made(study({"base": outcomes([0.9])}, TWO[:1]))
    row = cells(after(text, "top1 on data.test at the best step"))[1]
    assert [each.strip() for each in row[:5]] == ["base", "1", "0.9000", "-", "-"]
    assert len(dots(text, "var(--run1)")) == 1
    assert "Comparisons" not in text


def test_shares_of_the_variance_are_ratios():
    each = [Cell("base", {}, ()), Cell("vary=order", {}, ("order",))]
    text = made(study({"base": outcomes(A), "vary=order": outcomes(B)}, each))
    row = cells(after(text, "Streams of randomness"))[1]
    ratio = np.var(B, ddof=1) / np.var(A, ddof=1)
    assert row[:2] == ["order", f"{ratio:.0%}"]
    low, high = ratio / scipy.stats.f.ppf([0.975, 0.025], 4, 4)
    assert row[2] == f"{low:.0%} to {high:.0%}"
    assert ["a seed varies", "all; order"] in cells(after(text, "What is trained"))


def test_seeds_that_a_next_study_takes_are_listed(shown):
    rows = cells(after(shown, "Seeds to see it"))
    needed = dict(rows[1:])
    assert [*needed] == [f"{d} points" for d in ("0.1", "0.2", "0.5", "1", "2")]
    # The normal formula is a lower bound, and near where there are many.
    deviation = 100 * np.std(np.array(B) - np.array(A), ddof=1)
    normal = ((1.959964 + 0.841621) * deviation / 0.1) ** 2
    assert normal < int(needed["0.1 points"]) < normal + 4


def test_of_many_cells_the_baseline_and_the_best_have_colours():
    many = [Cell(f"lr={k}", {"optim.lr": str(k)}, ()) for k in range(30)]
    values = {cell.name: outcomes([0.5 + k / 100]) for k, cell in enumerate(many)}
    text = made(study(values, many))
    legend = re.search('<ul class="legend">.*?</ul>', text, re.S)[0]
    names = re.findall("lr=\\d+", legend)
    assert names == ["lr=0", *(f"lr={k}" for k in range(23, 30))]
    svg = re.search("<svg.*?</svg>", text, re.S)[0]
    assert len(set(re.findall(">(lr=\\d+)<", svg))) == studies.MOST_CELLS
    assert len(cells(after(text, "top1 on data.test at the best step"))) == 31


def test_the_config_is_folded_and_names_are_text():
    name = NASTY[0]
    nasty = [Cell(name, {}, ()), Cell(NASTY[1], {"augment": NASTY[2]}, ())]
    values = {name: outcomes(A), NASTY[1]: outcomes(B)}
    parsed = Parsed(made(study(values, nasty, name, {**DEFAULTS, "batch_size": 7})))
    assert len(parsed.all("script")) == 1
    assert not [k for _, found in parsed.elements for k in found if k.startswith("on")]
    assert f"Study: {name}" in parsed.texts
    assert {"batch_size", "7", "128"} <= set(parsed.texts)
