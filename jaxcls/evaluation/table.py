"""Prints an assessment as tables, and converts it to JSON."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from jaxcls import atomic, console
from jaxcls.console import as_text, table
from jaxcls.evaluation import calibration, scores
from jaxcls.evaluation.assess import Evaluation
from jaxcls.evaluation.figures import Assessment, Corrupted, ScoreRow
from jaxcls.evaluation.intervals import Interval

# The most classes and pairs to print, unless the user asks for all.
CLASSES, PAIRS = 20, 10


def show(
    done: Evaluation, class_names: Sequence[str], *, about: str, every_class: bool
) -> None:
    """Prints the figures: headline, rows, robustness, classes, confusions, calibration.

    about: the model of the headline, in words.
    """
    out, found, robust = console.console(), done.assessed, done.robustness
    if found.non_finite:
        out.print(
            f"{found.non_finite} of {found.n} examples have non-finite logits: they count"
            " as wrong, and are left out of AUC and calibration"
        )
    out.print(_headline(found, about))
    if done.rows:
        out.print(_rows("otherwise, not in the figures above", done.rows))
    if robust.mean:
        out.print(_corrupted(robust.corrupted, robust.mean))
    if robust.attacked:
        title = "under attacks, within epsilon levels of 255"
        out.print(_rows(title, [each.row for each in robust.attacked]))
    out.print(_classes(found, class_names, every_class))
    if pairs := scores.most_confused(found.matrix, PAIRS):
        out.print(_confused(pairs, found, class_names))
    fit = found.calibration
    out.print(
        f"calibration: {_errors(fit.before)}; {calibration.BINS} bins; ECE of few examples"
        " is too large by chance, so it has no interval, and debiased is without that part",
        soft_wrap=True,
    )
    said = f"no temperature: {fit.fitted_on}"
    if not math.isnan(fit.temperature):
        said = f"temperature {fit.temperature:.4g}: {_errors(fit.after)}; fitted on "
        said += fit.fitted_on
    out.print(said, soft_wrap=True)


def _headline(found: Assessment, about: str) -> Table:
    made = table(f"{about}, n={found.n}", "", "value", "95 % interval")
    for name, interval in found.headline.items():
        made.add_row(name, *_cells(interval))
    return made


def _rows(title: str, rows: Sequence[ScoreRow]) -> Table:
    columns = "n", "top1", "95 % interval", "loss", "95 % interval"
    made = table(title, "", *columns)
    for row in rows:
        made.add_row(row.name, f"{row.n}", *_cells(row.top1), *_cells(row.loss))
    return made


def _corrupted(each: Sequence[Corrupted], mean: ScoreRow) -> Table:
    strengths = [f"{k + 1}" for k in range(len(each[0].strengths))]
    title = f"top1 of n={mean.n} corrupted at strengths 1 to {len(strengths)}"
    made = table(title, "", "mean", "95 % interval", *strengths)
    for one in each:
        figures = (as_text(row.top1.value) for row in one.strengths)
        made.add_row(one.name, *_cells(one.mean.top1), *figures)
    together = zip(*(one.strengths for one in each), strict=True)
    means = (statistics.fmean(row.top1.value for row in rows) for rows in together)
    made.add_section()
    made.add_row(mean.name, *_cells(mean.top1), *map(as_text, means))
    return made


def _classes(found: Assessment, class_names: Sequence[str], every: bool) -> Table:
    each = found.by_class
    chosen, title = np.arange(len(each.support)), "by class"
    if len(chosen) > CLASSES and not every:
        chosen = np.flatnonzero(each.support + found.matrix.sum(0))
        chosen = chosen[np.argsort(each.f1[chosen], kind="stable")][:CLASSES]
        title = f"the {len(chosen)} worst of {len(each.support)} classes by F1"
    has_auc = bool(found.auc.size)
    names = "precision", "recall", "F1", *(["AUC"] if has_auc else []), "support"
    made = table(title, "class", *names)
    for k in chosen.tolist():
        figures = [each.precision[k], each.recall[k], each.f1[k]]
        figures += [found.auc[k]] if has_auc else []
        made.add_row(class_names[k], *map(as_text, figures), f"{each.support[k]}")
    return made


def _confused(
    pairs: list[tuple[int, int, int]], found: Assessment, class_names: Sequence[str]
) -> Table:
    made = table("most confused", "class", "taken for", "count", "of the class", texts=2)
    for truth, taken_for, count in pairs:
        share = count / found.by_class.support[truth]
        made.add_row(class_names[truth], class_names[taken_for], f"{count}", f"{share:.1%}")
    return made


def _errors(found: calibration.Errors) -> str:
    ece, adaptive, debiased = map(as_text, found)
    return f"ECE {ece}, in bins of equal counts {adaptive}, debiased (l2) {debiased}"


def _cells(interval: Interval) -> tuple[str, str]:
    ends = f"{as_text(interval.low)} to {as_text(interval.high)}"
    return as_text(interval.value), ends if math.isfinite(interval.low) else "-"


def as_json(
    done: Evaluation, class_names: Sequence[str], record: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the figures as JSON values; a non-finite number becomes None.

    record: further values, such as step and split. confusion: [true, predicted, count] of
    each nonzero cell; classes are numbers.
    """
    found, robust, fit = done.assessed, done.robustness, done.assessed.calibration
    columns = found.by_class._asdict() | ({"auc": found.auc} if found.auc.size else {})
    truth, taken_for = np.nonzero(found.matrix)
    cells = np.stack([truth, taken_for, found.matrix[truth, taken_for]], axis=-1)
    whole = {
        **record,
        "non_finite": found.non_finite,
        "headline": {name: one._asdict() for name, one in found.headline.items()},
        "rows": [_as_json(row) for row in done.rows],
        "corruptions": [
            {**_as_json(each.mean), "kind": each.kind}
            | {"strengths": [_as_json(row) for row in each.strengths]}
            for each in robust.corrupted
        ],
        "corruptions_mean": _as_json(robust.mean) if robust.mean else None,
        "attacks": [
            {**_as_json(each.row), "kind": each.kind, "epsilon": each.epsilon}
            for each in robust.attacked
        ],
        "classes": [
            {"name": name, **{what: values[k].item() for what, values in columns.items()}}
            for k, name in enumerate(class_names)
        ],
        "confusion": cells.tolist(),
        "calibration": {
            **fit.before._asdict(),
            "temperature": fit.temperature,
            "fitted_on": fit.fitted_on,
            "with_temperature": fit.after._asdict(),
            **{what: values.tolist() for what, values in vars(fit.reliability).items()},
        },
    }
    return atomic.finite(whole)


def _as_json(row: ScoreRow) -> dict[str, Any]:
    return row._asdict() | {"top1": row.top1._asdict(), "loss": row.loss._asdict()}
