"""An assessment as tables to read, and as JSON."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from jaxcls import calibration, scores
from jaxcls.assessment import Assessment, Row
from jaxcls.intervals import Interval

# Classes that are shown unless all are asked for, and pairs of them.
CLASSES, PAIRS = 20, 10


def show(
    found: Assessment,
    rows: Sequence[Row],
    class_names: Sequence[str],
    *,
    about: str,
    every_class: bool,
) -> None:
    """Print it: headline, rows of their own, classes, confusions, calibration.

    about: whose headline it is.
    """
    width = None if sys.stdout.isatty() else 120  # A pipe has no width of its own.
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    if found.nameless:
        console.print(
            f"{found.nameless} of {found.n} examples have logits that are no numbers: they"
            " count as wrong, and are left out of AUC and calibration"
        )
    console.print(_headline(found, about))
    if rows:
        console.print(_rows(rows))
    console.print(_classes(found, class_names, every_class))
    pairs = scores.most_confused(found.matrix, PAIRS)
    if pairs:
        console.print(_confused(pairs, found, class_names))
    for line in _calibration(found):
        console.print(line, soft_wrap=True)


def _table(title: str, *columns: str, texts: int = 1) -> Table:
    """An empty table whose first `texts` columns hold texts, and the others numbers."""
    table = Table(title=title, box=box.SIMPLE, title_justify="left", title_style="bold")
    for number, name in enumerate(columns):
        is_text = number < texts
        table.add_column(name, justify="left" if is_text else "right", no_wrap=not is_text)
    return table


def _headline(found: Assessment, about: str) -> Table:
    table = _table(f"{about}, n={found.n}", "", "value", "95 % interval")
    for name, interval in found.headline.items():
        table.add_row(name, *_cells(interval))
    return table


def _rows(rows: Sequence[Row]) -> Table:
    columns = "n", "top1", "95 % interval", "loss", "95 % interval"
    table = _table("otherwise, not in the figures above", "", *columns)
    for row in rows:
        table.add_row(row.name, f"{row.n}", *_cells(row.top1), *_cells(row.loss))
    return table


def _classes(found: Assessment, class_names: Sequence[str], every: bool) -> Table:
    each = found.by_class
    chosen, title = np.arange(len(each.support)), "by class"
    if len(chosen) > CLASSES and not every:
        chosen = np.flatnonzero(each.support + found.matrix.sum(0))
        chosen = chosen[np.argsort(each.f1[chosen], kind="stable")][:CLASSES]
        title = f"the {len(chosen)} worst of {len(each.support)} classes by F1"
    has_auc = bool(found.auc.size)
    names = "precision", "recall", "F1", *(["AUC"] if has_auc else []), "support"
    table = _table(title, "class", *names)
    for k in chosen.tolist():
        figures = [each.precision[k], each.recall[k], each.f1[k]]
        figures += [found.auc[k]] if has_auc else []
        table.add_row(class_names[k], *map(_text, figures), f"{each.support[k]}")
    return table


def _confused(
    pairs: list[tuple[int, int, int]], found: Assessment, class_names: Sequence[str]
) -> Table:
    table = _table("most confused", "class", "taken for", "count", "of the class", texts=2)
    for truth, taken_for, count in pairs:
        share = count / found.by_class.support[truth]
        table.add_row(
            class_names[truth], class_names[taken_for], f"{count}", f"{share:.1%}"
        )
    return table


def _calibration(found: Assessment) -> Iterator[str]:
    own = found.calibration
    yield f"calibration: ECE {_both(own.before)} of {calibration.BINS} bins"
    if math.isnan(own.temperature):
        yield f"no temperature: {own.fitted_on}"
        return
    after = f"ECE {_both(own.after)}"
    yield f"temperature {own.temperature:.4g}: {after}; fitted on {own.fitted_on}"


def _both(interval: Interval) -> str:
    value, ends = _cells(interval)
    return f"{value} ({ends})"


def _cells(interval: Interval) -> tuple[str, str]:
    ends = f"{_text(interval.low)} to {_text(interval.high)}"
    return _text(interval.value), ends if math.isfinite(interval.low) else "-"


def _text(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"


def as_json(
    found: Assessment,
    rows: Sequence[Row],
    class_names: Sequence[str],
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """All of it as JSON has it: what is not finite is None.

    record: what else is known, such as step and split. confusion: [true, predicted, count]
    of the cells that are not 0; classes by number.
    """
    each, own = found.by_class, found.calibration
    truth, taken_for = np.nonzero(found.matrix)
    classes = [
        {
            "name": name,
            "support": int(each.support[k]),
            "precision": float(each.precision[k]),
            "recall": float(each.recall[k]),
            "f1": float(each.f1[k]),
            **({"auc": float(found.auc[k])} if found.auc.size else {}),
        }
        for k, name in enumerate(class_names)
    ]
    cells = np.stack([truth, taken_for, found.matrix[truth, taken_for]], axis=-1)
    whole = {
        **record,
        "without_numbers": found.nameless,
        "headline": {name: one._asdict() for name, one in found.headline.items()},
        "rows": [
            {"name": row.name, "n": row.n}
            | {"top1": row.top1._asdict(), "loss": row.loss._asdict()}
            for row in rows
        ],
        "classes": classes,
        "confusion": cells.tolist(),
        "calibration": {
            "ece": own.before._asdict(),
            "temperature": own.temperature,
            "fitted_on": own.fitted_on,
            "ece_with_temperature": own.after._asdict(),
            "confidence": own.reliability.confidence.tolist(),
            "accuracy": own.reliability.accuracy.tolist(),
            "count": own.reliability.count.tolist(),
        },
    }
    return _finite(whole)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
