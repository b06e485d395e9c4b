"""A study in a report: its charts, and the rows of its tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcls import console
from jaxcls.learning.metrics import is_higher_better
from jaxcls.report import charts
from jaxcls.report.charts import COLOURS, INK, Chart, Line, Reading, Readings
from jaxcls.report.contents import Study
from jaxcls.report.tables import Rows
from jaxcls.studies import table

# The most letters of a cell's name in the chart of runs.
MOST_LETTERS = 44


def plan(result: dict[str, Any]) -> Rows:
    """Returns rows of a study's plan and progress."""
    cells, seeds = result["cells"], [run["seed"] for run in result["cells"][0]["runs"]]
    keys = dict.fromkeys(key for cell in cells for key in cell["overrides"])
    values = {
        key: dict.fromkeys(c["overrides"][key] for c in cells if key in c["overrides"])
        for key in keys
    }
    varied = dict.fromkeys(
        cell["vary"] if cell["vary"] == "all" else ",".join(cell["vary"]) for cell in cells
    )
    counts = ", ".join(f"{result[state]} {state}" for state in table.STATES)
    return [
        ["runs", f"{table.size(len(cells), len(seeds))}: {counts}"],
        ["steps trained", f"{result['budget']['steps']:,}"],
        ["seeds", table.listed(seeds)],
        ["a seed varies", "; ".join(varied)],
        *([f"cells vary {key}", table.listed([*values[key]])] for key in keys),
        ["compared by", result["metric"]],
        *([["compared with", result["baseline"]]] if len(cells) > 1 else []),
    ]


def colours(result: dict[str, Any]) -> dict[str, int]:
    """Returns {cell: colour}, of many cells for the baseline and the best by data.eval."""
    names = [cell["name"] for cell in result["cells"]]
    metric = result["metric"]
    sign = -1 if is_higher_better(metric) else 1
    means = {
        cell["name"]: sign * cell["figures"][place][metric]["mean"]
        for cell in result["cells"]
        for place in ("eval_last", "eval_best")
        if metric in cell["figures"].get(place, {})
    }
    means[result["baseline"]] = -np.inf
    best = sorted(names, key=lambda name: means.get(name, np.inf))[:COLOURS]
    return {name: i for i, name in enumerate(n for n in names if n in best)}


def dots(result: dict[str, Any], shades: Mapping[str, int]) -> list[Chart]:
    """Returns a chart with a dot for each run, and the mean and 95 % interval by cell.

    shades: {cell: colour}. Returns [] before any run has a result.
    """
    place, metric, cells = result["headline"], result["metric"], result["cells"]
    figures = [cell["figures"].get(place, {}).get(metric) for cell in cells]
    values = [
        np.array([run["values"].get(place, {}).get(metric) for run in cell["runs"]], float)
        for cell in cells
    ]
    if np.isnan(np.concatenate(values)).all():
        return []

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for row, (cell, runs, known) in enumerate(zip(cells, values, figures, strict=True)):
            if row:
                axes.axhline(row - 0.5, color=charts.GRID, lw=0.6)
            where = axes.get_yaxis_transform()
            axes.text(
                0, row - 0.28, _label(cell), transform=where, va="center", parse_math=False
            )
            shade = shades.get(cell["name"])
            ink = INK if shade is None else charts.colour(shade)
            heights = np.full(len(runs), row + 0.06)
            axes.plot(runs, heights, "o", color=ink, ms=5, alpha=0.6, mew=0)
            if known:
                _draw_mean(axes, known, row + 0.32)
        axes.set_xlim(*_limits(np.concatenate(values), figures))
        axes.set_ylim(len(cells) - 0.45, -0.5)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(metric)

    about = "; ".join(
        f"{cell['name']}: mean {console.as_text(known['mean'])} of {known['n']}"
        for cell, known in zip(cells, figures, strict=True)
        if known
    )
    title, lines = f"{metric} on {table.PLACES[place]}", []
    for row, (cell, runs, known) in enumerate(zip(cells, values, figures, strict=True)):
        name, shade = cell["name"], shades.get(cell["name"])
        ink = 0 if shade is None else charts.shade(shade)
        for run, value in zip(cell["runs"], runs.tolist(), strict=True):
            seed = f"{name}, seed {run['seed']}"
            lines.append(Reading(seed, ink, [(value, value)], height=row + 0.06))
        if known:
            at = [(known["mean"], known["mean"])]
            lines.append(Reading(f"{name}, mean", ink, at, height=row + 0.32))
    readings = Readings(metric, lines, is_scattered=True)
    return [charts.chart(title, about, 0.55 + 0.58 * len(cells), draw, readings)]


def _label(cell: dict[str, Any]) -> str:
    """Returns a cell's shortened name, with the counts of its diverged and missing runs."""
    states = [run["state"] for run in cell["runs"]]
    counts = {state: states.count(state) for state in table.STATES[1:]}
    lost = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    more = f" ({lost})" if lost else ""
    name, room = cell["name"], MOST_LETTERS - len(more)
    if len(name) > room:
        name = f"{name[: room // 2]}…{name[1 - room // 2 :]}"
    return name + more


def _draw_mean(axes: Any, known: dict[str, Any], height: float) -> None:
    low, high = known["t"]["low"], known["t"]["high"]
    if low is not None:
        axes.plot([low, high], [height] * 2, "-|", color=INK, lw=1.2, ms=6)
    axes.plot([known["mean"]], [height], "D", color=INK, ms=4)


def _limits(
    values: np.ndarray, figures: Sequence[dict[str, Any] | None]
) -> tuple[float, float]:
    """Returns the axis limits: all dots, and the intervals up to 0.6 of the dots' span."""
    least, most = np.nanmin(values), np.nanmax(values)
    span = (most - least) or 0.01 * abs(most) or 0.01
    ends = [one["t"] for one in figures if one and one["t"]["low"] is not None]
    low = min([least, *(end["low"] for end in ends)])
    high = max([most, *(end["high"] for end in ends)])
    edge = 0.06 * span
    return max(low, least - 0.6 * span) - edge, min(high, most + 0.6 * span) + edge


def curves(found: Study, shades: Mapping[str, int]) -> list[Chart]:
    """Returns a chart of the evaluations of all runs in coloured cells, with medians."""
    metric = found.result["metric"]
    faint, medians = [], []
    for cell in found.result["cells"]:
        if cell["name"] not in shades:
            continue
        name, ended = cell["name"], []
        shade, epoch = shades[name], found.epochs.get(name, 0)
        for run in cell["runs"]:
            records = found.records.get((name, run["seed"]), [])
            line = charts.points(records, metric, "eval")
            faint.append(Line(shade, "-", *line, epoch=epoch, is_faint=True))
            if run["state"] == "done" and len(line[0]):
                ended.append(line)
        if ended:
            medians.append(Line(shade, "-", *median(ended), f"{name}, median", epoch))
    return charts.by_step(metric, [*faint, *medians], f"{metric} on data.eval")


def median(
    lines: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps [m], medians [m]) of lines, at the steps common to all lines."""
    steps = sorted(set.intersection(*({*line[0].tolist()} for line in lines)))
    at = [values[np.searchsorted(at_steps, steps)] for at_steps, values in lines]
    return np.array(steps, np.int64), np.median(at, 0)


def row(cell: dict[str, Any], place: str, metric: str) -> list[tuple[str, str]]:
    """Returns (text, bootstrap interval or "") for each of `table.COLUMNS`."""
    known = cell["figures"].get(place, {}).get(metric)
    made = []
    for name, text in zip(table.COLUMNS, table.row(cell, place, metric), strict=True):
        has_span = known and name in ("median", "IQM")
        made.append((text, table.bootstrapped(known, name) if has_span else ""))
    return made


def comparisons(result: dict[str, Any]) -> Rows:
    """Returns rows of (cell, difference from the baseline, interval, corrected p)."""
    rows = []
    for name, one in result["comparisons"].get(result["headline"], {}).items():
        value, low, high = (one["difference"][key] for key in ("value", "low", "high"))
        span = "-" if low is None else f"{_number(low)} to {_number(high)}"
        rows.append([name, _number(value), span, _number(one["p_corrected"])])
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def shares(result: dict[str, Any]) -> Rows:
    """Returns rows of (what varies alone, its variance over that of all, interval)."""
    rows = []
    for stream, share in result["streams"].get(result["headline"], {}).items():
        known = ["-", "-"]
        if share["value"] is not None:
            known = [f"{share['value']:.0%}", f"{share['low']:.0%} to {share['high']:.0%}"]
        rows.append([stream, *known])
    return rows
