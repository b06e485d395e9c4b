"""Tables of a report: runs, figures, classes, confusions, configs, provenance."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcls.evaluation import scores
from jaxcls.evaluation.figures import Assessment
from jaxcls.evaluation.intervals import Interval
from jaxcls.report.contents import Run, Scored
from jaxcls.report.markup import Markup, details, join, note, scrolling, swatch, table, tag
from jaxcls.training.meter import INPUT_BOUND, duration

# The most classes of a full confusion matrix; and the classes shown of a larger matrix.
WHOLE, PART = 25, 20
PAIRS = 12


def figure(found: Interval) -> str:
    """Returns a figure with its interval, such as "0.978 (0.957 to 0.989)"."""
    value, span = _parts(found)
    return f"{value} ({span})" if span else value


def _parts(found: Interval) -> tuple[str, str]:
    """Returns (figure, interval) as text; the interval is "" if it is NaN."""
    value, low, high = found
    if math.isnan(value):
        return "unknown", ""
    span = "" if math.isnan(low) else f"{_short(low)} to {_short(high)}"
    return _short(value), span


def overview(runs: Sequence[Run]) -> Markup:
    """Returns a table of runs: a row has a run's state, main figures and speed."""
    names = dict.fromkeys(
        k for run in runs if run.scored for k in run.scored.assessed.headline if _is_main(k)
    )
    heads = ["run", "state", "scored", *names, "images/s", "training", "data wait"]
    rows = []
    for i, run in enumerate(runs):
        found = run.scored.assessed.headline if run.scored else {}
        known = [_parts(found[name]) if name in found else None for name in names]
        cells = [join([one[0], tag("small", one[1])]) if one else "" for one in known]
        link = tag("a", run.name, href=f"#run{i + 1}")
        rows.append(
            [join([swatch(i), link]), run.state, _scored(run.scored), *cells, *_pace(run)]
        )
    shown = table(heads, rows, "Below each figure its 95 % interval")
    hints = [
        note(f"{run.name} waits for its data {share:.0%} of the time that it trains.")
        for run in runs
        if (share := _wait(run)) > INPUT_BOUND
    ]
    return join([shown, *hints])


def _is_main(name: str) -> bool:
    """Returns whether a figure gets a column in the overview of runs."""
    return not name.startswith("weighted") and name.split()[-1] not in _PARTS


# F1 combines them, so that the overview needs no columns for them.
_PARTS = {"precision", "recall"}


def _scored(found: Scored | None) -> str:
    if found is None:
        return "no"
    return f"{found.assessed.n} of {found.split}, step {found.step} ({found.at})"


def _pace(run: Run) -> list[str]:
    """Returns [median images/s, training time, share of data wait] as text."""
    if not run.timing:
        return ["", "", ""]
    rate = statistics.median(record["images_per_s"] for record in run.timing)
    seconds = sum(record["train_s"] for record in run.timing)
    return [f"{rate:,.0f}", duration(seconds), f"{_wait(run):.0%}"]


def _wait(run: Run) -> float:
    """Returns the fraction of training time that waits for data."""
    seconds = sum(record["train_s"] for record in run.timing)
    waited = sum(record["train_s"] * record["data_wait"] for record in run.timing)
    return float(waited / seconds) if seconds else 0.0


def headline(found: Assessment) -> Markup:
    """Returns a table of a run's figures with their intervals and meanings."""
    rows = [[name, *_parts(value)] for name, value in found.headline.items()]
    shown = table(["figure", "value", "interval"], rows, "Each with its 95 % interval")
    words = {word for name in found.headline for word in name.split()}
    meanings = [
        tag("li", tag("strong", word), f": {meaning}")
        for word, meaning in _MEANINGS.items()
        if word in words
    ]
    return join(
        [shown, details("What these are", tag("ul", *meanings)) if meanings else ""]
    )


_MEANINGS = {
    "top1": "the share whose likeliest class is the right one",
    "top5": "the share whose right class is among the five likeliest",
    "loss": "what training makes small; lower is better",
    "precision": "of what is called a class, the share that is of it",
    "recall": "of a class, the share that is called so",
    "F1": "precision and recall in one: 2 / (1 / precision + 1 / recall)",
    "macro": "the mean over classes, each counting alike",
    "weighted": "the mean over classes, each counting by its examples",
    "ECE": "expected calibration error, how far the probabilities are from the share that"
    " is right; 0 is best",
    "AUC": "area under the ROC, how often an example of a class has more of its probability"
    " than one of another; 0.5 is chance, 1 is best",
}


def by_class(found: Assessment, names: Sequence[str]) -> Markup:
    """Returns a table of precision, recall, F1 and, if known, AUC of every class."""
    heads = ["class", "examples", "precision", "recall", "F1"]
    columns = list(found.by_class)
    if found.auc.size:
        heads.append("AUC")
        columns.append(found.auc)
    rows = [
        [name, int(n), *(f"{value:.3f}" for value in values)]
        for name, n, *values in zip(names, *columns, strict=True)
    ]
    return table(heads, rows, "Each class; a click on a head sorts by it", sorts=True)


def confusions(matrix: np.ndarray, names: Sequence[str]) -> Markup:
    """Returns the confusion matrix of all or the most confused classes, and worst pairs."""
    pairs = scores.most_confused(matrix, PAIRS)
    shown = np.arange(len(matrix))
    text = "Rows: the truth. Columns: what it was taken for."
    if len(matrix) > WHOLE:
        shown = _most_confused(matrix)
        text += f" Of {len(matrix)} classes the {len(shown)} that are confused most."
    if not pairs:
        text += " No example is taken for another class."
    worst = table(
        ["truth", "taken for", "examples"],
        [[names[a], names[b], count] for a, b, count in pairs],
        "The most confused pairs",
    )
    heat = _heat_map(matrix, shown, names) if len(shown) else ""
    return join([note(text), heat, worst])


def _most_confused(matrix: np.ndarray) -> np.ndarray:
    """Returns the classes of the largest confusions, at most PART, in order."""
    chosen: dict[int, None] = {}
    for pair in scores.most_confused(matrix, PART * PART):
        both = dict.fromkeys(pair[:2])
        if len(chosen | both) > PART:
            break
        chosen |= both
    return np.sort(np.array(list(chosen), np.int64))


def _heat_map(matrix: np.ndarray, shown: np.ndarray, names: Sequence[str]) -> Markup:
    """Returns the confusions among the classes `shown`; the depth is the row's share."""
    totals = np.maximum(matrix.sum(1), 1)
    heads = [tag("th", tag("span", names[k]), scope="col") for k in shown]
    rows = []
    for k in shown:
        cells = [
            _cell(int(matrix[k, other]), matrix[k, other] / totals[k], k == other)
            for other in shown
        ]
        rows.append(tag("tr", tag("th", names[k], scope="row"), *cells))
    caption = "Examples of each class by what they are taken for"
    made = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", tag("td"), *heads)),
        tag("tbody", *rows),
        class_="heat",
    )
    return scrolling(made, caption)


def _cell(count: int, share: float, is_right: bool) -> Markup:
    if not count:
        return tag("td")
    kind = "right" if is_right else "wrong"
    # A small share of errors would be invisible without the offset.
    depth = share if is_right else min(1.0, 0.15 + share)
    is_deep = depth > 0.55
    classes = f"{kind} deep" if is_deep else kind
    return tag("td", count, class_=classes, style=f"--depth: {100 * depth:.0f}%")


def differences(runs: Sequence[Run], defaults: Mapping[str, Any]) -> Markup:
    """Returns a table of the config keys that differ between runs.

    For one run, the table shows its differences from `defaults`.
    """
    configs = [run.saved["config"] for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    names = [join([swatch(i), run.name]) for i, run in enumerate(runs)]
    if len(runs) == 1:
        configs.append(dict(defaults))
        names.append(Markup("default"))
    what = "What differs between the configs" if len(runs) > 1 else "What is set"
    shown = table(["key", *names], _differing(configs, keys), what)
    return shown or note("All configs are the same.")


def settings(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Markup:
    """Returns a table of the keys that differ from the defaults; "" without any."""
    rows = _differing([config, defaults], list(config))
    return table(["key", "value", "default"], rows, "What is set")


def _differing(
    configs: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> list[list[Markup]]:
    return [
        [tag("code", key), *(_value(config, key) for config in configs)]
        for key in keys
        if any(config.get(key) != configs[0].get(key) for config in configs)
    ]


def _value(config: Mapping[str, Any], key: str) -> Markup:
    if key not in config:
        return Markup("(not there)")
    return tag("code", "''" if config[key] == "" else config[key])


def provenance(run: Run) -> Markup:
    """Returns tables of a run's code, packages, machine, data, digests and starts."""
    implied, last = run.saved["implied"], run.starts[-1] if run.starts else {}
    facts = implied.get("facts", {})
    config = run.saved["config"]
    cpu = last.get("cpu", {})
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
        "seed": config.get("seed"),
        "order": implied.get("order"),
        "data": f"{facts.get('name')} {facts.get('version')}",
        "fingerprint of the data": facts.get("fingerprint"),
        "initial weights": implied.get("weights"),
        "teacher": implied.get("teacher"),
    }
    if run.digests:
        at = run.digests[-1]
        rows[f"digest of the state at step {at['step']}"] = at["digest"]
    known = [(key, value) for key, value in rows.items() if value not in (None, "")]
    facts_table = table(["what", "value"], known, "Of the last start")
    return join([facts_table, _starts(run)])


def _starts(run: Run) -> Markup:
    if not run.starts:
        return note("There is no manifest.json.")
    rows = [
        [
            start.get("started", ""),
            start.get("resumed_from") or "the beginning",
            start.get("ended", ""),
            start.get("reason", "not ended"),
        ]
        for start in run.starts
    ]
    return table(["started", "from step", "ended", "how"], rows, "Every start")


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"
