"""Outcomes of a study's runs -> its result: spreads, comparisons, what was chosen.

What is scored is told apart by split and step (see `outcomes.PLACES`): "test_best" is
data.test at the best step by data.eval, "test_last" data.test at the last one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcls import atomic
from jaxcls.errors import InputError, did_you_mean
from jaxcls.learning.metrics import is_higher_better
from jaxcls.studies import comparison, folder, spread
from jaxcls.studies.cells import Cell
from jaxcls.studies.comparison import Comparison
from jaxcls.studies.outcomes import PLACES, Outcome, values_of

# Differences that a next study may want to see, in points (of a loss: in hundredths).
DIFFERENCES = (0.1, 0.2, 0.5, 1.0, 2.0)


def summarise(
    cells: Sequence[Cell],
    found: Mapping[str, Sequence[Outcome]],
    *,
    metric: str,
    baseline: str,
    best_metric: str,
) -> dict[str, Any]:
    """The content of study.json: a function of what the runs' folders hold.

    found: {cell: outcomes, one a seed}. metric: what is compared, with `baseline`.
    best_metric: by which, on data.eval, the best step and the best cell are chosen.
    Raises `InputError` for a metric that no run has.
    """
    _check_metric(metric, found)
    places = [
        p for p in PLACES if any(p in run.values for runs in found.values() for run in runs)
    ]
    runs = [run for each in found.values() for run in each]
    states = {
        state: sum(run.state == state for run in runs) for state in ("done", "diverged")
    }
    compared = {place: _compared(found, place, metric, baseline) for place in places}
    best = headline(places)
    whole = {
        "format": folder.FORMAT,
        "metric": metric,
        "unit": unit(metric),
        "baseline": baseline,
        "headline": best,
        "budget": {
            "cells": len(cells),
            "runs": len(runs),
            "steps": sum(r.steps for r in runs),
        },
        **states,
        "missing": len(runs) - sum(states.values()),
        "cells": [_cell(cell, found[cell.name], places) for cell in cells],
        "comparisons": compared,
        "selected": _selected(cells, found, best_metric),
        "streams": _streams(cells, found, places, metric),
        "runs_needed": _needed(
            _row(found[baseline], best, metric), compared.get(best, {}), metric
        ),
    }
    return atomic.finite(whole)


def headline(places: Sequence[str]) -> str:
    """Of what there is, the figure that nothing was chosen by; "" where there is none.

    Not eval_best while there is another: the best of many evaluations flatters itself.
    """
    order = ("test_best", "test_last", "eval_last", "eval_best")
    return next((place for place in order if place in places), "")


def unit(metric: str) -> str:
    """What differences of a metric are given in: points (hundredths), or as they are."""
    return "points" if is_higher_better(metric) else ""


def _row(runs: Sequence[Outcome], place: str, metric: str) -> np.ndarray:
    return np.array([*values_of(runs, place, metric).values()])


def _check_metric(metric: str, found: Mapping[str, Sequence[Outcome]]) -> None:
    known = {
        name
        for runs in found.values()
        for run in runs
        for values in run.values.values()
        for name in values
    }
    if known and metric not in known:
        near = did_you_mean(metric, known) or f"; there are: {', '.join(sorted(known))}"
        raise InputError(f"--metric={metric} is in no run's records{near}")


def _cell(cell: Cell, runs: Sequence[Outcome], places: Sequence[str]) -> dict[str, Any]:
    figures: dict[str, dict[str, Any]] = {}
    for place in places:
        names = dict.fromkeys(name for run in runs for name in run.values.get(place, {}))
        figures[place] = {name: _figure(runs, place, name) for name in names}
    return {
        "name": cell.name,
        "overrides": cell.overrides,
        "vary": list(cell.streams) or "all",
        "runs": [run._asdict() for run in runs],
        "figures": figures,
    }


def _figure(runs: Sequence[Outcome], place: str, metric: str) -> dict[str, Any]:
    found = spread.spread(_row(runs, place, metric))
    intervals = {name: getattr(found, name)._asdict() for name in ("t", "median", "iqm")}
    return found._asdict() | intervals


def _compared(
    found: Mapping[str, Sequence[Outcome]], place: str, metric: str, baseline: str
) -> dict[str, Any]:
    """{cell: how it compares with the baseline}, in the metric's unit."""
    scaled = {
        name: {s: scale(metric) * v for s, v in values_of(runs, place, metric).items()}
        for name, runs in found.items()
    }
    made: dict[str, Comparison] = comparison.compare(
        scaled.pop(baseline), scaled, unit=unit(metric), higher=is_higher_better(metric)
    )
    return {
        name: {**one._asdict(), "difference": one.difference._asdict(), "words": one.words}
        for name, one in made.items()
    }


def _selected(
    cells: Sequence[Cell], found: Mapping[str, Sequence[Outcome]], metric: str
) -> dict[str, Any] | None:
    """The cell whose mean on data.eval is best; None where there is nothing to choose.

    Of runs that all ended: a cell is not chosen for the seeds that it lacks.
    """
    if len({str(cell.overrides) for cell in cells}) < 2:
        return None
    means = {}
    for name, runs in found.items():
        values = values_of(runs, "eval_best", metric)
        if values and len(values) == len(runs):
            means[name] = math.fsum(values.values()) / len(values)
    if not means:
        return None
    best = (max if is_higher_better(metric) else min)(means, key=lambda name: means[name])
    return {"cell": best, "by": "eval_best", "metric": metric, "mean": means[best]}


def _streams(
    cells: Sequence[Cell],
    found: Mapping[str, Sequence[Outcome]],
    places: Sequence[str],
    metric: str,
) -> dict[str, Any]:
    """{place: {streams: their share of the variance}} where each varied by itself."""
    whole = [cell.name for cell in cells if not cell.streams and not cell.overrides]
    parts = [cell for cell in cells if cell.streams and not cell.overrides]
    if not (whole and parts):
        return {}
    return {
        place: {
            ",".join(cell.streams): spread.share_of_variance(
                _row(found[cell.name], place, metric),
                _row(found[whole[0]], place, metric),
            )._asdict()
            for cell in parts
        }
        for place in places
    }


def _needed(
    values: np.ndarray, compared: Mapping[str, Mapping[str, Any]], metric: str
) -> dict[str, Any] | None:
    """How many seeds a next comparison takes, by the difference that it is to show.

    values [n]: of the baseline. compared: with it, by cell. The deviation of a difference
    is the largest that was seen between the baseline and another cell; of one cell alone,
    that of two independent runs of it.
    """
    found = [one["deviation"] for one in compared.values()]
    deviations = [deviation for deviation in found if math.isfinite(deviation)]
    of = "paired differences"
    if not deviations:
        if len(values) < 2:
            return None
        of = "two independent runs"
        deviations = [scale(metric) * math.sqrt(2) * spread.spread(values).deviation]
    deviation = max(deviations)
    if not deviation:
        return None  # Of runs that are the same nothing follows.
    apart = [d * scale(metric) / 100 for d in DIFFERENCES]
    seeds = {f"{d:g}": spread.runs_needed(deviation, d) for d in apart}
    return {"of": of, "deviation": deviation, "seeds": seeds}


def scale(metric: str) -> float:
    """What a metric is multiplied by to be in its unit."""
    return 100.0 if unit(metric) else 1.0
