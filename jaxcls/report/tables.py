"""Rows of the tables of a report: figures, classes, confusions, configs, provenance."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcls.evaluation import scores
from jaxcls.evaluation.figures import Assessment, Calibration, Robustness
from jaxcls.evaluation.intervals import Interval
from jaxcls.report.contents import Cell, Run
from jaxcls.runs.cost import Cost
from jaxcls.training.meter import duration

# The most classes of a full confusion matrix; and the classes shown of a larger matrix.
WHOLE, PART = 25, 20
Rows = list[list[Any]]


def figure(found: Interval) -> str:
    """Returns a figure with its interval, such as "0.978 (0.957 to 0.989)"."""
    value, span = parts(found)
    return f"{value} ({span})" if span else value


def parts(found: Interval) -> tuple[str, str]:
    """Returns (figure, interval) as text; the interval is "" if it is NaN."""
    if math.isnan(found.value):
        return "unknown", ""
    value, low, high = (f"{x:.3f}" if abs(x) < 100 else f"{x:.4g}" for x in found)
    return value, "" if math.isnan(found.low) else f"{low} to {high}"


def main_figures(runs: Sequence[Run]) -> list[str]:
    """Returns the names of the figures that get a column in the overview of runs.

    F1 combines precision and recall, which get none.
    """
    names = dict.fromkeys(
        name for run in runs if run.scored for name in run.scored.assessed.headline
    )
    less = ("precision", "recall")
    return [n for n in names if not n.startswith("weighted") and not n.endswith(less)]


def epochs(runs: Sequence[Run]) -> str:
    """Returns what runs of different epochs have in place of an axis; "" if they agree."""
    if len({run.epoch for run in runs}) == 1:
        return ""
    known = [f"{run.name} {run.epoch:.4g}" for run in runs if run.epoch]
    return f"Steps of an epoch: {', '.join(known)}." if known else ""


def pace(run: Run) -> list[str]:
    """Returns [median images/s, training time, share of data wait] as text."""
    if not run.timing:
        return ["", "", ""]
    rate = statistics.median(record["images_per_s"] for record in run.timing)
    seconds = sum(record["train_s"] for record in run.timing)
    return [f"{rate:,.0f}", duration(seconds), f"{run.data_wait:.0%}"]


def by_class(
    found: Assessment, names: Sequence[str], trained: Sequence[int] = ()
) -> tuple[list[str], Rows]:
    """Returns (heads, rows) of each class, with AUC and training examples if known.

    trained: the training examples of each class, or ().
    """
    support, *columns = found.by_class
    heads = ["class", "examples", "precision", "recall", "F1"]
    if found.auc.size:
        columns.append(found.auc)
        heads.append("AUC")
    rows = [
        [name, int(n), *(f"{value:.3f}" for value in values)]
        for name, n, *values in zip(names, support, *columns, strict=True)
    ]
    if trained:
        heads.insert(1, "in training")
        for row, count in zip(rows, trained, strict=True):
            row.insert(1, count)
    return heads, rows


def confused(matrix: np.ndarray) -> int:
    """Returns the number of pairs of classes (truth, taken for) that are confused."""
    return int(np.count_nonzero(matrix) - np.count_nonzero(np.diag(matrix)))


def pictured(cells: Sequence[Cell]) -> list[tuple[int, int]]:
    """Returns the (truth, taken for) of cells."""
    return [(cell.truth, cell.taken_for) for cell in cells]


def in_matrix(matrix: np.ndarray) -> list[int]:
    """Returns the classes of a shown matrix; of many those of the largest confusions."""
    if len(matrix) <= WHOLE:
        return list(range(len(matrix)))
    pairs = scores.most_confused(matrix, PART * PART)
    chosen = dict.fromkeys(k for pair in pairs for k in pair[:2])
    return sorted([*chosen][:PART])


def heat_map(
    matrix: np.ndarray, names: Sequence[str]
) -> list[tuple[str, list[tuple[int, float]]]]:
    """Returns (class, [(examples, depth of colour)]) of each class by what it is taken for.

    The classes are those `in_matrix`. The depth is the share of the row's examples; errors
    are deeper by 0.15, without which a small share would be invisible.
    """
    shown = in_matrix(matrix)
    counts = matrix[np.ix_(shown, shown)]
    share = counts / np.maximum(matrix[shown].sum(1, keepdims=True), 1)
    depth = np.where(np.eye(len(shown)), share, np.minimum(1, share + 0.15))
    return [
        (names[k], list(zip(counts[i].tolist(), depth[i].tolist(), strict=True)))
        for i, k in enumerate(shown)
    ]


def temperature(found: Calibration) -> str:
    """Returns what a temperature makes of the calibration, as a sentence."""
    if math.isnan(found.temperature):
        return f"No temperature: {found.fitted_on}."
    return (
        f"Logits divided by a temperature of {found.temperature:.3f} have an ECE of"
        f" {found.after.ece:.3f}. It was fitted on {found.fitted_on}."
    )


def corruptions(found: Robustness) -> Rows:
    """Returns rows of (corruption, mean, top1 at each strength), and their mean last."""
    values = [[row.top1.value for row in one.strengths] for one in found.corrupted]
    each = [one.mean for one in found.corrupted]
    if found.mean:
        values.append(np.mean(values, axis=0).tolist())
        each.append(found.mean)
    return [
        [mean.name, figure(mean.top1), *(f"{value:.3f}" for value in strengths)]
        for mean, strengths in zip(each, values, strict=True)
    ]


def differing(
    configs: Sequence[Mapping[str, Any]], default: Mapping[str, Any] | None = None
) -> Rows:
    """Returns rows of (key, value in each config) for the keys whose values differ.

    default: one more config, whose further keys are left out.
    """
    keys = dict.fromkeys(key for config in configs for key in config)
    every = [*configs, *([default] if default else [])]
    return [
        [key, *(_value(config.get(key, "(not there)")) for config in every)]
        for key in keys
        if any(config.get(key) != every[0].get(key) for config in every)
    ]


def _value(value: Any) -> Any:
    return "''" if value == "" else value


def provenance(run: Run) -> Rows:
    """Returns rows of a run's code, packages, machine, data and last digest, if known."""
    implied, last = run.saved["implied"], run.starts[-1] if run.starts else {}
    facts, cpu = implied.get("facts", {}), last.get("cpu", {})
    rows = {
        "command": last.get("command"),
        "commit": last.get("commit"),
        "code": last.get("code"),
        "jaxcls": last.get("jaxcls"),
        "Python": last.get("python"),
        **last.get("versions", {}),
        "devices": ", ".join(last.get("devices", [])),
        "hosts": last.get("hosts"),
        "machine": f"{cpu.get('model', '')} {cpu.get('machine', '')}".strip(),
        "system": last.get("platform"),
        "XLA_FLAGS": last.get("xla_flags"),
        "seed": run.saved["config"].get("seed"),
        "order": implied.get("order"),
        "data": f"{facts.get('name')} {facts.get('version')}",
        "fingerprint of the data": facts.get("fingerprint"),
        "initial weights": implied.get("weights"),
        "teacher": implied.get("teacher"),
    }
    for record in run.digests[-1:]:
        rows[f"digest of the state at step {record['step']}"] = record["digest"]
    return [[key, value] for key, value in rows.items() if value not in (None, "")]


def cost(found: Cost) -> Rows:
    """Returns rows of device-seconds by kind of device, and of peak memory."""
    rows: Rows = [
        [f"device-seconds, {kind}", f"{taken:,.1f} ({duration(taken)})"]
        for kind, taken in found.seconds.items()
    ]
    for key, title in _PEAKS.items():
        if key in found.peaks:
            rows.append([title, f"{found.peaks[key] / 2**30:.2f} GiB"])
    return rows


_PEAKS = {
    "device_bytes": "peak memory of a device",
    "process_bytes": "peak memory of the process",
}
