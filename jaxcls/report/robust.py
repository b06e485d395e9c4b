"""Charts and tables of accuracy by the strength of corruptions and attacks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcls.evaluation.figures import Corrupted, Robustness, ScoreRow
from jaxcls.evaluation.intervals import Interval
from jaxcls.report import tables
from jaxcls.report.drawing import INK, chart, colour
from jaxcls.report.markup import Markup, group, join, note, table

_SIZE = (3.7, 2.9)


def robustness(found: Robustness, clean: Interval, number: int) -> Markup:
    """Returns the charts and tables of corruptions and attacks; "" without any.

    clean: top1 of unchanged images. number: of the run, from 0. Each kind of corruption has
    a chart, which also shows the mean over all corruptions.
    """
    parts: list[Markup] = []
    if found.corrupted:
        kinds = dict.fromkeys(each.kind for each in found.corrupted)
        values = [[row.top1.value for row in one.strengths] for one in found.corrupted]
        mean = np.mean(values, axis=0).tolist()
        charts = [
            _by_strength(
                kind,
                [each for each in found.corrupted if each.kind == kind],
                mean,
                clean.value,
                f"corruptions{number + 1}-{place}",
            )
            for place, kind in enumerate(kinds)
        ]
        count = f"{len(values)} corruption{'s' if len(values) > 1 else ''}"
        about = (
            "top1 by the strength of a corruption (arXiv:1903.12261); 0 is the image as it"
            f" is. Bold: the mean over {count}."
        )
        parts += [note(about), group(charts, "charts")]
        parts += [_corruptions(found.corrupted, found.mean, mean)]
    if found.attacked:
        about = (
            "top1 by the largest change of any level, of 255: one step along the"
            " gradient's sign (FGSM, arXiv:1412.6572), and several (PGD, arXiv:1706.06083)."
        )
        by_epsilon = _by_epsilon(found, clean.value, f"attacks{number + 1}")
        parts += [note(about), group([by_epsilon], "charts"), _attacks(found)]
    return join(parts)


def _by_strength(
    kind: str, each: Sequence[Corrupted], mean: list[float], clean: float, id_: str
) -> Markup:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for place, one in enumerate(each):
            values = [clean, *(row.top1.value for row in one.strengths)]
            label = one.name.replace("_", " ")
            axes.plot(values, "o-", color=colour(place), lw=1.4, ms=3, label=label)
        axes.plot([clean, *mean], "-", color=INK, lw=3, zorder=1, label="mean of all")
        _finish(axes, "strength")

    about = "; ".join(f"{one.name} {one.mean.top1.value:.3f}" for one in each)
    return chart(draw, id_, f"Corruptions: {kind}", f"means {about}", _SIZE)


def _by_epsilon(found: Robustness, clean: float, id_: str) -> Markup:
    kinds = dict.fromkeys(each.kind for each in found.attacked)
    lines = {
        kind: sorted(
            (each.epsilon, each.row.top1.value)
            for each in found.attacked
            if each.kind == kind
        )
        for kind in kinds
    }

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for place, (kind, points) in enumerate(lines.items()):
            epsilons, values = zip((0.0, clean), *points, strict=True)
            style = {"color": colour(place), "lw": 1.7, "ms": 4}
            axes.plot(epsilons, values, "o-", label=kind.upper(), **style)
        _finish(axes, "epsilon, levels of 255")

    about = "; ".join(f"{x.row.name} {x.row.top1.value:.3f}" for x in found.attacked)
    return chart(draw, id_, "Attacks", about, _SIZE)


def _finish(axes: Any, name: str) -> None:
    axes.set(ylim=(0, 1.02), xlabel=name, ylabel="top1")
    axes.set_xlim(left=0)
    axes.legend(fontsize=7.5, frameon=False, loc="lower left")


def _corruptions(
    each: Sequence[Corrupted], mean: ScoreRow | None, by_strength: Sequence[float]
) -> Markup:
    heads = ["corruption", "mean", *(f"{k}" for k in range(1, len(by_strength) + 1))]
    rows = [
        [
            one.name,
            tables.figure(one.mean.top1),
            *(f"{row.top1.value:.3f}" for row in one.strengths),
        ]
        for one in each
    ]
    if mean:
        values = (f"{value:.3f}" for value in by_strength)
        rows.append([mean.name, tables.figure(mean.top1), *values])
    caption = "top1 of corrupted images by strength, means with their 95 % intervals"
    return table(heads, rows, caption, sorts=True)


def _attacks(found: Robustness) -> Markup:
    rows = [
        [each.row.name, tables.figure(each.row.top1), tables.figure(each.row.loss)]
        for each in found.attacked
    ]
    caption = "Images that are attacked, each figure with its 95 % interval"
    return table(["attack", "top1", "loss"], rows, caption)
