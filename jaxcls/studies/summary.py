"""The result of a study from the outcomes of its runs: spreads, comparisons, selection.

A place is a split and a step (see `outcomes.PLACES`): "test_best" is data.test at the best
step by data.eval, and "test_last" is data.test at the last step.
"""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcls import atomic
from jaxcls.errors import InputError, did_you_mean
from jaxcls.evaluation import intervals
from jaxcls.learning.metrics import is_higher_better
from jaxcls.studies import comparison, folder, power, spread
from jaxcls.studies.cells import Cell
from jaxcls.studies.outcomes import PLACES, Outcome, values_of

# Differences for which the next study is planned, in points (for a loss, in hundredths).
DIFFERENCES = (0.1, 0.2, 0.5, 1.0, 2.0)


def summarise(
    cells: Sequence[Cell],
    found: Mapping[str, Sequence[Outcome]],
    *,
    metric: str,
    baseline: str,
    best_metric: str,
) -> dict[str, Any]:
    """Returns the content of study.json, a pure function of the outcomes.

    found: {cell: outcomes, one for each seed}. metric: of the comparisons. baseline: the
    cell that all others are compared with. best_metric: selects the best step and the best
    cell on data.eval. Raises `InputError` for a metric that no run has.
    """
    runs = [run for each in found.values() for run in each]
    known = {name for run in runs for values in run.values.values() for name in values}
    if known and metric not in known:
        near = did_you_mean(metric, known) or f"; there are: {', '.join(sorted(known))}"
        raise InputError(f"--metric={metric} is in no run's records{near}")
    places = [place for place in PLACES if any(place in run.values for run in runs)]
    states = collections.Counter(run.state for run in runs)
    compared = {place: _compared(found, place, metric, baseline) for place in places}
    best = headline(places)
    whole = {
        "format": folder.FORMAT,
        "metric": metric,
        "unit": comparison.unit(metric),
        "baseline": baseline,
        "headline": best,
        "budget": {
            "cells": len(cells),
            "runs": len(runs),
            "steps": sum(run.steps for run in runs),
        },
        **{state: states[state] for state in ("done", "diverged", "missing")},
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
    """Returns the least biased place of `places`; "" without any.

    eval_best comes last: the best of many evaluations is an optimistic estimate.
    """
    order = ("test_best", "test_last", "eval_last", "eval_best")
    return next((place for place in order if place in places), "")


def _row(runs: Sequence[Outcome], place: str, metric: str) -> np.ndarray:
    return np.array([*values_of(runs, place, metric).values()])


def _cell(cell: Cell, runs: Sequence[Outcome], places: Sequence[str]) -> dict[str, Any]:
    figures: dict[str, dict[str, Any]] = {}
    for place in places:
        names = dict.fromkeys(name for run in runs for name in run.values.get(place, {}))
        figures[place] = {name: spread.spread(_row(runs, place, name)) for name in names}
    return {
        "name": cell.name,
        "overrides": cell.overrides,
        "vary": list(cell.streams) or "all",
        "runs": [run._asdict() for run in runs],
        "figures": figures,
    }


def _compared(
    found: Mapping[str, Sequence[Outcome]], place: str, metric: str, baseline: str
) -> dict[str, Any]:
    """Returns {cell: its comparison with the baseline}, in the metric's unit."""
    values = {name: values_of(runs, place, metric) for name, runs in found.items()}
    made = comparison.compare(values.pop(baseline), values, metric)
    return {
        name: {
            **one._asdict(),
            **{
                key: getattr(one, key)._asdict()
                for key in ("difference", "bca", "superiority")
            },
            "words": one.words,
        }
        for name, one in made.items()
    }


def _selected(
    cells: Sequence[Cell], found: Mapping[str, Sequence[Outcome]], metric: str
) -> dict[str, Any] | None:
    """Returns the cell with the best mean on data.eval; None without a choice.

    A cell that lacks the result of a seed is no candidate: the gap must not help it.
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
    """Returns {place: {streams: their share of the variance}}; {} if none varied alone."""
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
    """Returns the seeds that the next comparison needs, for each of DIFFERENCES.

    values [n]: of the baseline. compared: {cell: its comparison with the baseline}. The
    deviation is the largest one among the comparisons. Without a comparison, it is the
    deviation of the difference of two independent runs. The number of comparisons is that
    of this study, or 1. Returns None without a deviation.
    """
    scale, of = comparison.scale(metric), "paired differences"
    deviations = [
        one["deviation"] for one in compared.values() if math.isfinite(one["deviation"])
    ]
    if not deviations:
        of = "two independent runs"
        deviations = [scale * math.sqrt(2) * intervals.deviation(values)]
    deviation = max(deviations)
    if not deviation > 0:  # One run, or equal runs, allow no plan.
        return None
    apart = [difference * scale / 100 for difference in DIFFERENCES]
    made = max((one["comparisons"] for one in compared.values()), default=0) or 1
    seeds = {f"{each:g}": power.runs_needed(deviation, each, made) for each in apart}
    return {"of": of, "deviation": deviation, "comparisons": made, "seeds": seeds}
