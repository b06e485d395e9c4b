"""Charts of runs as SVG, in the colours of the page, light or dark.

A chart carries its values, too: `read.js` shows them under the pointer.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcls.evaluation.calibration import Reliability
from jaxcls.evaluation.figures import Robustness
from jaxcls.learning.metrics import AVERAGED
from jaxcls.report.contents import Run
from jaxcls.runs.records import MEAN, Record

# The number of colours for runs; the style of the page defines them.
COLOURS = 8
# Placeholder colours of a figure; the SVG gets CSS colours of the page in their place.
INK, GRID, PAPER = "#010101", "#020202", "#040404"
_FIXED = {INK: "currentColor", GRID: "var(--line)", PAPER: "var(--paper)"}
# Typed Any because the type of rcParams differs between versions of matplotlib.
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxcls",
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
# A chart shows no more points. Above this limit a point is a mean of neighbours.
MOST_POINTS = 400
# In inches: about the width of a phone.
WIDTH = 3.7
_TITLES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "grad_norm": "Norm of the gradient",
    "images_per_s": "Images a second",
    "data_wait": "Share of training time waiting for data",
}
_NO_VALUES = {"step", "kind", "split", "n", "at", "best_step", "index", "to"}


# (x, value) of each point of a line, such as (strength, top1).
Points = Sequence[tuple[float, float]]


class Reading(NamedTuple):
    """The values of one line that the page shows on hover.

    colour: of the run, from 1; 0 is the colour of text. epoch: the steps of an epoch, 0 if
    unknown. height: the place of all points on the y axis, if it is not their value.
    """

    name: str
    colour: int
    points: Points
    epoch: float = 0
    height: float | None = None


class Readings(NamedTuple):
    """The values of a chart that the page shows on hover.

    unit: of the x axis. is_scattered: the point nearest to the pointer counts, not the
    nearest x.
    """

    unit: str
    lines: Sequence[Reading]
    is_percent: bool = False
    is_scattered: bool = False


class Chart(NamedTuple):
    """A chart. about: a text alternative for screen readers. box, content: of its <svg>.

    readings: `Readings` in JSON types, with the places of both axes in the box.
    """

    title: str
    about: str
    box: str
    content: str
    readings: dict[str, Any]


class Line(NamedTuple):
    """A line of values [n] at steps [n].

    run: the number that decides the colour. style: of the line, for matplotlib. name: on
    hover. epoch: the steps of an epoch, 0 if unknown. is_faint: draws a thin line, for a
    single run behind its median.
    """

    run: int
    style: str
    steps: np.ndarray
    values: np.ndarray
    name: str = ""
    epoch: float = 0
    is_faint: bool = False


def colour(run: int) -> str:
    """Returns the placeholder colour of run number `run`, from 0."""
    return f"#0300{shade(run):02x}"


def shade(run: int) -> int:
    """Returns the number, from 1, of the page's colour for run number `run`, from 0."""
    return run % COLOURS + 1


def chart(
    title: str, about: str, height: float, draw: Callable[[Any], None], readings: Readings
) -> Chart:
    """Returns the chart that `draw(figure)` draws, `height` inches high.

    readings: the values on the first axes of the figure.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        out = io.StringIO()
        none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=none, transparent=True)
    # Matplotlib's <style> would apply to the whole page.
    outside = r"^.*?<svg[^>]*>|<defs>\s*<style.*?</style>\s*</defs>|</svg>\s*$"
    svg = re.sub(outside, "", out.getvalue(), flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    for placeholder, real in _FIXED.items():
        svg = svg.replace(placeholder, real)
    svg = re.sub(r"#0300([0-9a-f]{2})", lambda found: f"var(--run{int(found[1], 16)})", svg)
    width, height = 72 * WIDTH, 72 * height
    found = _as_json(readings) | _places(figure.axes[0], width, height)
    return Chart(title, about, f"0 0 {width:g} {height:g}", svg, found)


def _as_json(readings: Readings) -> dict[str, Any]:
    """Returns readings in JSON types, with 5 digits of each finite value."""
    lines = [
        line._asdict()
        | {"points": [[x, float(f"{y:.5g}")] for x, y in line.points if math.isfinite(y)]}
        for line in readings.lines
    ]
    return readings._asdict() | {"lines": lines}


def _places(axes: Any, width: float, height: float) -> dict[str, Any]:
    """Returns {"x", "y": [place of 0, place of 1 more], "is_log"} of drawn axes.

    Places are in a box [width, height]. On a logarithmic axis, y is that of log10.
    """
    box, is_log = axes.get_position(), axes.get_yscale() == "log"
    left, right = axes.get_xlim()
    bottom, top = np.log10(axes.get_ylim()) if is_log else axes.get_ylim()
    x, y = width * box.width / (right - left), height * box.height / (bottom - top)
    return {
        "x": [float(f"{place:.8g}") for place in (width * box.x0 - left * x, x)],
        "y": [float(f"{place:.8g}") for place in (height * (1 - box.y0) - bottom * y, y)],
        "is_log": is_log,
    }


def learning(runs: Sequence[Run]) -> list[Chart]:
    """Returns the charts of metrics, learning rate and speed of all runs.

    Lines of evaluations are solid, of the averaged weights dashed, of training dotted. A
    metric that no evaluation has is solid, too. A line of training is of the means since
    the record before, if its run has recorded them.
    """
    trained, evaluated = (
        dict.fromkeys(
            key
            for run in runs
            for record in run.metrics
            if record["kind"] == kind
            for key in record
            if key not in _NO_VALUES
        )
        for kind in ("train", "eval")
    )
    found = []
    names = (key.removeprefix(AVERAGED) for key in evaluated | trained)
    for name in dict.fromkeys(name for name in names if not name.startswith(MEAN)):
        is_both = name in evaluated
        styles = {
            ("train", name): (":", ", training") if is_both else ("-", ""),
            ("eval", f"{AVERAGED}{name}"): ("--", ", averaged weights"),
            ("eval", name): ("-", ", evaluation"),
        }
        lines = [
            Line(
                number,
                style,
                *_points_or_means(run.metrics, key, kind),
                run.name + what,
                run.epoch,
            )
            for number, run in enumerate(runs)
            for (kind, key), (style, what) in styles.items()
        ]
        found += by_step(name, lines, _TITLES.get(name, name))
    for name in ("images_per_s", "data_wait"):
        pace = [
            Line(i, "-", *points(run.timing, name), run.name, run.epoch)
            for i, run in enumerate(runs)
        ]
        found += by_step(name, pace, _TITLES[name])
    return found


def _points_or_means(
    records: Sequence[Record], name: str, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the `points` of the mean since the record before; if none, of `name`."""
    means = points(records, f"{MEAN}{name}", kind)
    return means if len(means[0]) else points(records, name, kind)


def points(
    records: Sequence[Record], name: str, kind: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps [n] int64, values [n] float64) of a metric; NaN if non-finite."""
    found = [(r["step"], r[name]) for r in records if name in r and r.get("kind") == kind]
    steps = np.array([step for step, _ in found], np.int64)
    return steps, np.array([value for _, value in found], np.float64)


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most MOST_POINTS points: means of neighbours, each at its last step."""
    if len(steps) <= MOST_POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), MOST_POINTS)
    means = [values[part].mean() for part in parts]
    return steps[[part[-1] for part in parts]], np.array(means)


def by_step(name: str, lines: Sequence[Line], title: str) -> list[Chart]:
    """Returns the chart of one metric by step; [] without a finite value.

    Lines with the same epochs have an axis of epochs above.
    """
    drawn = [line for line in lines if np.isfinite(line.values).any()]
    if not drawn:
        return []
    known = np.concatenate([line.values[np.isfinite(line.values)] for line in drawn])
    is_wide = name in ("loss", "grad_norm") and 0 < 30 * known.min() < known.max()
    epochs = {line.epoch for line in drawn}
    epoch = epochs.pop() if len(epochs) == 1 else 0

    def draw(figure: Any) -> None:
        from matplotlib import ticker

        axes = figure.subplots()
        for line in drawn:
            steps, values = thinned(line.steps, line.values)
            axes.plot(
                steps,
                values,
                line.style,
                color=colour(line.run),
                lw=0.7 if line.is_faint else 1.1 if line.style == ":" else 1.7,
                marker="o" if len(steps) == 1 else None,
                ms=4,
                alpha=0.45 if line.is_faint else 1,
            )
        axes.set_xlabel("step")
        if is_wide:  # Plain numbers are easier to read than powers of ten.
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        if name in ("data_wait", "images_per_s", "lr"):
            axes.set_ylim(bottom=0)
        if name == "data_wait":
            axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=4, integer=True))
        if epoch:
            ways = (lambda step: step / epoch), (lambda number: number * epoch)
            above = axes.secondary_xaxis("top", functions=ways)
            above.set_xlabel("epoch")
            above.xaxis.set_major_locator(ticker.MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))

    last = [
        f"{line.values[-1]:.4g} at step {line.steps[-1]}"
        for line in drawn
        if not line.is_faint
    ]
    read = []
    for line in drawn:
        if not line.is_faint:
            steps, values = thinned(line.steps, line.values)
            each = [*zip(steps.tolist(), values.tolist(), strict=True)]
            read.append(Reading(line.name, shade(line.run), each, line.epoch))
    readings = Readings("step", read, is_percent=name == "data_wait")
    return [chart(title, f"ends at {'; '.join(last)}", 2.8, draw, readings)]


def reliability(found: Reliability, title: str) -> Chart:
    """Returns the reliability diagram: accuracy by confidence, with counts below."""
    bins = len(found.count)
    edges = np.arange(bins) / bins
    share = found.count / max(1, found.count.sum())
    known = found.count > 0

    def draw(figure: Any) -> None:
        above, below = figure.subplots(2, sharex=True, height_ratios=[4, 1])
        bars = {"width": 1 / bins, "align": "edge", "edgecolor": PAPER, "lw": 0.8}
        above.bar(edges[known], found.accuracy[known], color=colour(0), alpha=0.75, **bars)
        above.plot([0, 1], [0, 1], "--", color=INK, lw=1)
        above.plot(found.confidence[known], found.accuracy[known], "o", color=INK, ms=3)
        above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that is right")
        below.bar(edges, share, color=INK, alpha=0.6, **bars)
        below.set(xlabel="probability of the predicted class", ylabel="examples")
        below.yaxis.set_major_formatter("{x:.0%}")

    columns = (column[known] for column in (found.confidence, found.accuracy, found.count))
    rows = [*zip(*(column.tolist() for column in columns), strict=True)]
    about = "; ".join(f"{x:.2f}: {y:.2f} of {n}" for x, y, n in rows)
    lines = [
        Reading("share that is right", 1, [(x, y) for x, y, _ in rows]),
        Reading("examples", 0, [(x, n) for x, _, n in rows], height=0),
    ]
    return chart(title, about, 3.9, draw, Readings("probability", lines))


def corruptions(found: Robustness, clean: float) -> list[Chart]:
    """Returns a chart for each kind of corruption: top1 by strength, with the mean of all.

    clean: top1 of unchanged images.
    """
    values = {
        one.name: [clean, *(row.top1.value for row in one.strengths)]
        for one in found.corrupted
    }
    mean = list(enumerate(np.mean([*values.values()], axis=0)))
    charts = []
    for kind in dict.fromkeys(one.kind for one in found.corrupted):
        names = [one.name for one in found.corrupted if one.kind == kind]
        lines = {name: list(enumerate(values[name])) for name in names}
        charts.append(_top1(f"Corruptions: {kind}", "strength", lines, mean))
    return charts


def attacks(found: Robustness, clean: float) -> Chart:
    """Returns the chart of attacks: top1 by epsilon, a line for each kind."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for one in sorted(found.attacked, key=lambda one: one.epsilon):
        line = lines.setdefault(one.kind.upper(), [(0.0, clean)])
        line.append((one.epsilon, one.row.top1.value))
    return _top1("Attacks", "epsilon, levels of 255", lines, [])


def _top1(title: str, unit: str, lines: Mapping[str, Points], mean: Points) -> Chart:
    """Returns a chart of top1 by a strength in `unit`; mean: a bold line, if any."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for number, (name, points) in enumerate(lines.items()):
            style = {"color": colour(number), "lw": 1.4, "ms": 3}
            axes.plot(*zip(*points, strict=True), "o-", label=name, **style)
        if mean:
            line = zip(*mean, strict=True)
            axes.plot(*line, color=INK, lw=3, zorder=1, label="mean of all")
        axes.set(ylim=(0, 1.02), xlabel=unit, ylabel="top1")
        axes.set_xlim(left=0)
        axes.legend(fontsize=7.5, frameon=False, loc="lower left")

    about = (
        f"{name} {', '.join(f'{top1:.3f}' for _, top1 in points)}"
        for name, points in lines.items()
    )
    read = [Reading(n, shade(i), each) for i, (n, each) in enumerate(lines.items())]
    read += [Reading("mean of all", 0, mean)] if mean else []
    readings = Readings(unit.partition(",")[0], read)
    return chart(title, "; ".join(about), 2.9, draw, readings)
