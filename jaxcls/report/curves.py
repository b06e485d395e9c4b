"""Charts of the records of runs by step, several runs in one chart."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcls.evaluation.calibration import Reliability
from jaxcls.learning.metrics import AVERAGED
from jaxcls.report.contents import Record, Run
from jaxcls.report.drawing import INK, PAPER, chart, colour
from jaxcls.report.markup import Markup, group, join, note, swatch, tag

# A chart shows no more points. Above this limit a point is a mean of neighbours.
MOST_POINTS = 400
_SIZE = (3.7, 2.5)  # Inches: about the width of a phone.
_TITLES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "grad_norm": "Norm of the gradient",
    "images_per_s": "Images a second",
    "data_wait": "Share of training time waiting for data",
}
# Line styles of one metric: in training, in evaluation, and of the averaged weights.
_TRAIN, EVAL, _AVERAGED = ":", "-", "--"
_NO_VALUES = {"step", "kind", "split", "n", "at", "best_step", "index", "to"}


class Line(NamedTuple):
    """A line of values [n] at steps [n].

    run: the number that decides the colour. style: of the line, for matplotlib. is_faint:
    draws a thin line, for a single run behind its median.
    """

    run: int
    style: str
    steps: np.ndarray
    values: np.ndarray
    is_faint: bool = False


def points(records: Sequence[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps [n] int64, values [n] float64) of a metric; NaN if non-finite."""
    found = [(r["step"], r[name]) for r in records if name in r]
    steps = np.array([step for step, _ in found], np.int64)
    values = [np.nan if value is None else value for _, value in found]
    return steps, np.array(values, np.float64)


def thinned(
    steps: np.ndarray, values: np.ndarray, most: int = MOST_POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most `most` points: means of neighbours, each at its last step."""
    if len(steps) <= most:
        return steps, values
    parts = [p for p in np.array_split(np.arange(len(steps)), most) if p.size]
    with np.errstate(invalid="ignore"):
        means = [values[part].mean() for part in parts]
    return steps[[part[-1] for part in parts]], np.array(means)


def learning(runs: Sequence[Run]) -> Markup:
    """Returns the charts of metrics, learning rate and speed of all runs."""
    trained, evaluated = (
        [[r for r in run.metrics if r.get("kind") == kind] for run in runs]
        for kind in ("train", "eval")
    )
    keys = [
        dict.fromkeys(key for records in each for record in records for key in record)
        for each in (evaluated, trained)
    ]
    names = dict.fromkeys(
        key.removeprefix(AVERAGED) for each in keys for key in each if key not in _NO_VALUES
    )
    charts = []
    for name in names:
        style = _TRAIN if name in keys[0] else EVAL
        lines = [
            line
            for i in range(len(runs))
            for line in (
                Line(i, style, *points(trained[i], name)),
                Line(i, _AVERAGED, *points(evaluated[i], f"{AVERAGED}{name}")),
                Line(i, EVAL, *points(evaluated[i], name)),
            )
        ]
        charts.append(by_step(name, lines, f"curve-{name}"))
    for name in ("images_per_s", "data_wait"):
        lines = [Line(i, EVAL, *points(run.timing, name)) for i, run in enumerate(runs)]
        charts.append(by_step(name, lines, f"curve-{name}"))
    shown = group(charts, "charts")
    if not shown:
        return note("No run has a record yet.")
    text = "By steps of training. Solid: evaluation, or the only one. Dotted: one batch."
    if any(key.startswith(AVERAGED) for key in keys[0]):
        text += " Dashed: evaluation of the averaged weights."
    return join([legend([run.name for run in runs]), note(text), shown])


def legend(names: Sequence[str]) -> Markup:
    """Returns a list of names, each with its colour."""
    each = (tag("li", swatch(i), name) for i, name in enumerate(names))
    return group(each, "legend", "ul")


def by_step(name: str, lines: Sequence[Line], id_: str, title: str = "") -> Markup:
    """Returns the chart of one metric by step; "" without a finite value."""
    drawn = [line for line in lines if np.isfinite(line.values).any()]
    if not drawn:
        return Markup("")
    known = np.concatenate([line.values[np.isfinite(line.values)] for line in drawn])
    is_wide = name in ("loss", "grad_norm") and known.min() > 0
    is_wide = is_wide and known.max() > 30 * known.min()

    def draw(figure: Any) -> None:
        from matplotlib import ticker

        axes = figure.subplots()
        for line in drawn:
            steps, values = thinned(line.steps, line.values)
            marker = "o" if len(steps) == 1 else None
            width = 0.7 if line.is_faint else 1.1 if line.style == _TRAIN else 1.7
            axes.plot(
                steps, values, line.style, color=colour(line.run), lw=width,
                marker=marker, ms=4, alpha=0.45 if line.is_faint else 1,
            )  # fmt: skip
        axes.set_xlabel("step")
        if is_wide:  # Plain numbers are easier to read than powers of ten.
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        if name in ("data_wait", "images_per_s", "lr"):
            axes.set_ylim(bottom=0)
        if name == "data_wait":
            axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=4, integer=True))

    last = [
        f"{line.values[-1]:.4g} at step {line.steps[-1]}"
        for line in drawn
        if not line.is_faint
    ]
    about = f"ends at {'; '.join(last)}"
    return chart(draw, id_, title or _TITLES.get(name, name), about, _SIZE)


def reliability(found: Reliability, error: str, id_: str) -> Markup:
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
        below.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")

    about = "; ".join(
        f"{confidence:.2f}: {accuracy:.2f} of {count}"
        for confidence, accuracy, count in zip(
            found.confidence, found.accuracy, found.count, strict=True
        )
        if count
    )
    made = chart(draw, id_, f"Reliability, {error}", about, (3.7, 3.9))
    text = (
        "How often predictions of about a probability are right: on the dashed line they"
        " are as sure as they are right. Below, how many of the examples are there."
    )
    return join([made, note(text)])
