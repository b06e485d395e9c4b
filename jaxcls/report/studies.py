"""The section of a study in a report: plan, charts, tables, comparisons, next study."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcls import console
from jaxcls.learning.metrics import is_higher_better
from jaxcls.report import curves, tables
from jaxcls.report.contents import Study
from jaxcls.report.curves import Line
from jaxcls.report.drawing import GRID, INK, chart, colour
from jaxcls.report.markup import (
    COLOURS,
    Markup,
    details,
    group,
    join,
    note,
    section,
    swatch,
    table,
    tag,
)
from jaxcls.studies import table as study_table

# The most cells in the chart of runs, and the most letters of a cell's name there.
MOST_CELLS, MOST_LETTERS = 24, 44
# The most points of all learning curves together, which limits the size of the file.
MOST_POINTS = 20_000


def study(found: Study, number: int, defaults: Mapping[str, Any]) -> Markup:
    """Returns the section of a study.

    number: of the study in the page, from 0. defaults: {config key: default}.
    """
    result, id_ = found.result, f"study{number + 1}"
    colours = {name: i for i, name in enumerate(_best(result, COLOURS))}
    charts = group(
        [_dots(result, colours, f"{id_}-runs"), _curves(found, colours, f"{id_}-eval")],
        "charts",
    )
    runs = (
        [_keys(result, colours), charts] if charts else [note("No run has a result yet.")]
    )
    config = tables.settings(found.config, defaults)
    parts = [
        section("Plan", _plan(result), _said(study_table.lost(result)), level=3),
        section("Runs", *runs, level=3),
        section("Cells", *_cells(result, colours), level=3),
        section("Comparisons", _comparisons(result, colours), level=3),
        section("Where the variance is from", _shares(result), level=3),
        section("What a next study takes", _needed(result), level=3),
        details("The config that cells change", config),
    ]
    return section(f"Study: {found.name}", *parts, id_=id_)


def _plan(result: dict[str, Any]) -> Markup:
    """Returns a table of the study's plan and progress."""
    cells, seeds = result["cells"], [run["seed"] for run in result["cells"][0]["runs"]]
    overrides = [cell["overrides"] for cell in cells]
    keys = dict.fromkeys(key for each in overrides for key in each)
    values = {
        key: dict.fromkeys(each[key] for each in overrides if key in each) for key in keys
    }
    varied = dict.fromkeys(
        cell["vary"] if cell["vary"] == "all" else ",".join(cell["vary"]) for cell in cells
    )
    counts = ", ".join(f"{result[state]} {state}" for state in study_table.STATES)
    rows = [
        ["runs", f"{study_table.size(len(cells), len(seeds))}: {counts}"],
        ["steps trained", f"{result['budget']['steps']:,}"],
        ["seeds", study_table.listed(seeds)],
        ["a seed varies", "; ".join(varied)],
        *([f"cells vary {key}", study_table.listed([*values[key]])] for key in keys),
        ["compared by", result["metric"]],
        *([["compared with", result["baseline"]]] if len(cells) > 1 else []),
    ]
    return table(["what", "value"], rows, "What is trained, and how far it is")


def _best(result: dict[str, Any], most: int) -> list[str]:
    """Returns the cells in order: all, or if over `most`, the baseline and best by eval."""
    names = [cell["name"] for cell in result["cells"]]
    if len(names) <= most:
        return names
    metric = result["metric"]
    sign = -1 if is_higher_better(metric) else 1
    means = {
        cell["name"]: sign * figures[place][metric]["mean"]
        for cell in result["cells"]
        for figures in [cell["figures"]]
        for place in ("eval_last", "eval_best")
        if metric in figures.get(place, {})
    }
    order = sorted(names, key=lambda name: means.get(name, float("inf")))
    kept = [result["baseline"], *(n for n in order if n != result["baseline"])][:most]
    return [name for name in names if name in kept]


def _keys(result: dict[str, Any], colours: Mapping[str, int]) -> Markup:
    """Returns the legend, and a note on how to read the charts."""
    cells = len(result["cells"])
    text = (
        "Each dot is a run; below the dots of a cell is its mean with the 95 % interval."
        " An interval without an end goes on beyond the figure."
        " Each thin line is a run as data.eval saw it, and each thick one the median of a"
        " cell, as far as all its runs go."
    )
    if cells > len(colours):
        text += (
            f" Of {cells} cells the baseline and the {COLOURS - 1} best by data.eval have"
            " a colour and curves"
        )
        more = f"; the baseline and the {MOST_CELLS - 1} best have dots"
        text += f"{more if cells > MOST_CELLS else ''}; the table below has all."
    return join([curves.legend([*colours]), note(text)])


def _dots(result: dict[str, Any], colours: Mapping[str, int], id_: str) -> Markup:
    """Returns a chart with a dot for each run, and the mean and 95 % interval by cell."""
    place, metric = result["headline"], result["metric"]
    names = _best(result, MOST_CELLS)
    cells = [cell for cell in result["cells"] if cell["name"] in names]
    values = [_values(cell, place, metric) for cell in cells]
    figures = [cell["figures"].get(place, {}).get(metric) for cell in cells]
    if not any(each.size for each in values):
        return Markup("")

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for row, (cell, dots, known) in enumerate(zip(cells, values, figures, strict=True)):
            shade = colours.get(cell["name"])
            ink = INK if shade is None else colour(shade)
            if row:
                axes.axhline(row - 0.5, color=GRID, lw=0.6)
            axes.text(
                0, row - 0.28, _label(cell), transform=axes.get_yaxis_transform(),
                va="center", color=INK, parse_math=False,
            )  # fmt: skip
            at = np.full(len(dots), row + 0.06)
            axes.plot(dots, at, "o", color=ink, ms=5, alpha=0.6, mew=0)
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
    title = f"{metric} on {study_table.PLACES[place]}"
    return chart(draw, id_, title, about, (3.7, 0.55 + 0.58 * len(cells)))


def _draw_mean(axes: Any, known: dict[str, Any], height: float) -> None:
    low, high = known["t"]["low"], known["t"]["high"]
    if low is not None:
        axes.plot([low, high], [height] * 2, "-|", color=INK, lw=1.2, ms=6)
    axes.plot([known["mean"]], [height], "D", color=INK, ms=4)


def _values(cell: dict[str, Any], place: str, metric: str) -> np.ndarray:
    """Returns the results [n] of a cell's runs that have a result."""
    values = [run["values"].get(place, {}).get(metric) for run in cell["runs"]]
    return np.array([value for value in values if value is not None], np.float64)


def _label(cell: dict[str, Any]) -> str:
    """Returns a cell's shortened name, with the counts of its diverged and missing runs."""
    states = [run["state"] for run in cell["runs"]]
    lost = [
        f"{count} {state}"
        for state in study_table.STATES[1:]
        if (count := states.count(state))
    ]
    more = f" ({', '.join(lost)})" if lost else ""
    name, room = cell["name"], MOST_LETTERS - len(more)
    if len(name) > room:
        name = f"{name[: room // 2]}…{name[1 - room // 2 :]}"
    return name + more


def _limits(
    dots: np.ndarray, figures: Sequence[dict[str, Any] | None]
) -> tuple[float, float]:
    """Returns the axis limits: all dots, and the intervals up to 0.6 of the dots' span."""
    least, most = dots.min(), dots.max()
    span = (most - least) or 0.01 * abs(most) or 0.01
    ends = [f["t"] for f in figures if f and f["t"]["low"] is not None]
    low = min([least, *(end["low"] for end in ends)])
    high = max([most, *(end["high"] for end in ends)])
    edge = 0.06 * span
    return max(low, least - 0.6 * span) - edge, min(high, most + 0.6 * span) + edge


def _curves(found: Study, colours: Mapping[str, int], id_: str) -> Markup:
    """Returns a chart of the evaluations of all runs in coloured cells, with medians."""
    result, metric = found.result, found.result["metric"]
    faint, medians = [], []
    count = max(1, sum(cell in colours for cell, _ in found.evaluations))
    for cell in result["cells"]:
        if cell["name"] not in colours:
            continue
        shade, ended = colours[cell["name"]], []
        for run in cell["runs"]:
            records = found.evaluations.get((cell["name"], run["seed"]), [])
            line = curves.points(records, metric)
            if run["state"] == "done" and len(line[0]):
                ended.append(line)
            thin = curves.thinned(*line, max(20, MOST_POINTS // count))
            faint.append(Line(shade, curves.EVAL, *thin, is_faint=True))
        if ended:
            medians.append(Line(shade, curves.EVAL, *median(ended)))
    return curves.by_step(metric, [*faint, *medians], id_, f"{metric} on data.eval")


def median(
    lines: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps [m], medians [m]) of lines, at the steps common to all lines."""
    steps = sorted(set.intersection(*({*line[0].tolist()} for line in lines)))
    at = [values[np.searchsorted(own, steps)] for own, values in lines]
    return np.array(steps, np.int64), np.median(at, 0)


def _cells(result: dict[str, Any], colours: Mapping[str, int]) -> list[Markup]:
    """Returns the selected cell, and a table of all cells for the best and last step."""
    metric = result["metric"]
    made = [
        table(
            study_table.COLUMNS,
            [_row(cell, place, metric, colours) for cell in result["cells"]],
            title,
            sorts=True,
        )
        for place, title in study_table.titles(result).items()
    ]
    if not made:
        return []
    text = (
        "Below median and IQM their interval by bootstrap: 95 % is meant, and in brackets"
        " is how often such an interval holds the truth at this n. Student's, after the"
        " mean, is the one to trust."
    )
    return [_said(study_table.chosen(result)), *made, note(text)]


def _row(
    cell: dict[str, Any], place: str, metric: str, colours: Mapping[str, int]
) -> list[object]:
    name, *figures = study_table.row(cell, place, metric)
    row: list[object] = [_named(name, colours), *figures]
    if figure := cell["figures"].get(place, {}).get(metric):
        for column in ("median", "IQM"):
            at = study_table.COLUMNS.index(column)
            span = tag("small", study_table.bootstrapped(figure, column))
            row[at] = join([row[at], " ", span])
    return row


def _named(name: str, colours: Mapping[str, int]) -> Markup:
    parts = name.split(",")
    ends = [join([part, ",", tag("wbr")]) for part in parts[:-1]]
    key = swatch(colours[name]) if name in colours else ""
    return tag("span", key, tag("span", *ends, parts[-1]), class_="key")


def _comparisons(result: dict[str, Any], colours: Mapping[str, int]) -> Markup:
    """Returns the comparisons of all cells with the baseline."""
    found = result["comparisons"].get(result["headline"], {})
    if not found:
        return Markup("")
    unit = f" ({result['unit']})" if result["unit"] else ""
    rows = [
        [
            _named(name, colours),
            _number(one["difference"]["value"]),
            _span(one["difference"]),
            _number(one["p_corrected"]),
        ]
        for name, one in found.items()
    ]
    heads = ["cell", f"difference{unit}", "interval", "p"]
    said = _said(study_table.compared(result))
    if len(rows) > COLOURS:
        said = details("In words", said)
    made = max(one["comparisons"] for one in found.values())
    if not made:
        return said
    text = f"On {study_table.PLACES[result['headline']]}, seed by seed; intervals of 95 %"
    if made > 1:
        text += (
            f" for all {made} comparisons together (Bonferroni), and p corrected for their"
            " number (Holm)"
        )
    shown = table(heads, rows, f"Against {result['baseline']}", sorts=True)
    return join([said, shown, note(f"{text}.")])


def _said(lines: Sequence[str]) -> Markup:
    """Returns lines, as the command prints them, as a list; "" without a line."""
    return group((tag("li", line) for line in lines), "said", "ul")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _span(found: dict[str, Any]) -> str:
    if found["low"] is None:
        return "-"
    return f"{_number(found['low'])} to {_number(found['high'])}"


def _shares(result: dict[str, Any]) -> Markup:
    """Returns a table of each random stream's share of the variance."""
    found = result["streams"].get(result["headline"], {})
    if not found:
        return Markup("")
    rows = [
        [streams, f"{share['value']:.0%}", f"{share['low']:.0%} to {share['high']:.0%}"]
        if share["value"] is not None
        else [streams, "-", "-"]
        for streams, share in found.items()
    ]
    heads = ["varied by itself", "share of the variance", "95 % interval"]
    text = (
        "The variance where only this varies, over that where all do. Both are estimates,"
        " so that a share may be above 100 %, and shares need not add up."
    )
    return join([table(heads, rows, "Streams of randomness"), note(text)])


def _needed(result: dict[str, Any]) -> Markup:
    """Returns a table of the seeds that show a difference of a size."""
    if not result["runs_needed"]:
        return Markup("")
    rows = study_table.needed(result).items()
    shown = table(["difference", "seeds"], rows, "Seeds to see it")
    return join([shown, note(f"At {study_table.needed_by(result)}.")])
