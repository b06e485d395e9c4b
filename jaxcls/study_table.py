"""A study as lines and tables to read."""

import math
import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

# What the places of outcomes.PLACES are called.
PLACES = {
    "test_best": "data.test at the best step",
    "test_last": "data.test at the last step",
    "eval_best": "data.eval at the best step, which it chose itself",
    "eval_last": "data.eval at the last step",
}
_CELLS = 20


def plan(cells: Sequence[str], seeds: Sequence[int], shard: tuple[int, int]) -> str:
    """What a study is made of, in a few lines."""
    first, of = shard
    names = [
        *cells[:_CELLS],
        *([f"... and {len(cells) - _CELLS} more"] if len(cells) > _CELLS else []),
    ]
    runs = len(cells) * len(seeds)
    lines = [
        f"study:  {len(cells)} cells x {len(seeds)} seeds = {runs} runs",
        *(f"cell:   {name}" for name in names),
        f"seeds:  {', '.join(map(str, seeds[:20]))}{', ...' if len(seeds) > 20 else ''}",
    ]
    if of > 1:
        lines.append(f"shard:  {first} of {of}, {len(range(first, runs, of))} runs")
    return "\n".join(lines)


def show(found: dict[str, Any]) -> None:
    """Print a study's result: cells, comparisons, streams, and what a next one takes."""
    width = None if sys.stdout.isatty() else 120  # A pipe has no width of its own.
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    metric, role = found["metric"], found["headline"].partition("_")[0]
    for place, title in PLACES.items():
        known = any(metric in cell["figures"].get(place, {}) for cell in found["cells"])
        if known and place.startswith(role):
            console.print(_cells(found, place, f"{metric} on {title}"))
    for line in lines(found):
        console.print(line, soft_wrap=True)


def lines(found: dict[str, Any]) -> list[str]:
    """What there is to say of a study besides its tables."""
    said = []
    for cell in found["cells"]:
        lost = [str(run["seed"]) for run in cell["runs"] if run["state"] == "diverged"]
        if lost:
            said.append(
                f"diverged: {cell['name']}, seed {', '.join(lost)}; not in its figures"
            )
    place = found["headline"]
    for cell in found["cells"]:
        if figure := cell["figures"].get(place, {}).get(found["metric"]):
            said += _coverage(figure, cell["name"])
    for name, one in found["comparisons"].get(place, {}).items():
        apart = f" ({one['unpaired']} seeds without a pair)" if one["unpaired"] else ""
        said.append(f"{name} against {found['baseline']}: {one['words']}{apart}")
    if chosen := found["selected"]:
        said.append(
            f"chosen by {chosen['metric']} on data.eval alone: {chosen['cell']} (mean"
            f" {chosen['mean']:.4g})"
        )
    for streams, share in found["streams"].get(place, {}).items():
        if share["value"] is not None:
            said.append(
                f"of the variance, {streams} alone makes {share['value']:.0%}"
                f" ({share['low']:.0%} to {share['high']:.0%})"
            )
    if needed := found["runs_needed"]:
        unit = f" {found['unit']}" if found["unit"] else ""
        each = ", ".join(
            f"{difference}{unit}: {seeds if seeds else 'over 100,000'}"
            for difference, seeds in needed["seeds"].items()
        )
        said.append(
            f"seeds to see a difference of {each} (80% power; from the deviation of"
            f" {needed['of']}, {needed['deviation']:.3g}{unit})"
        )
    return said


def _coverage(figure: dict[str, Any], name: str) -> list[str]:
    """What median and IQM are worth: their bootstrap intervals, and what those hold."""
    if figure["median"]["low"] is None:
        return []
    each = [
        f"{word} {_text(figure[key]['low'])} to {_text(figure[key]['high'])} (holds"
        f" {figure[f'coverage_{key}']:.0%})"
        for key, word in (("median", "median"), ("iqm", "IQM"))
    ]
    return [f"{name}, by bootstrap: {', '.join(each)}; 95% is meant, and n={figure['n']}"]


def closing(found: dict[str, Any]) -> str:
    """The last line of a study."""
    is_done = found["missing"] == 0
    counts = " ".join(f"{name}={found[name]}" for name in ("done", "diverged", "missing"))
    word = "done" if is_done else "not all runs are there yet"
    return f"{word}: cells={len(found['cells'])} {counts}"


def duration(seconds: float) -> str:
    """'1:02:03' or '4:05'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _cells(found: dict[str, Any], place: str, title: str) -> Table:
    columns = (
        "cell",
        "n",
        "mean",
        "95 % interval",
        "deviation",
        "least",
        "most",
        "median",
        "IQM",
    )
    table = Table(title=title, box=box.SIMPLE, title_justify="left", title_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=number > 0)
    for cell in found["cells"]:
        figure = cell["figures"].get(place, {}).get(found["metric"])
        if figure is None:
            table.add_row(cell["name"], "0", *["-"] * (len(columns) - 2))
            continue
        ends = [figure["t"]["low"], figure["t"]["high"]]
        interval = "-" if None in ends else f"{_text(ends[0])} to {_text(ends[1])}"
        table.add_row(
            cell["name"],
            str(figure["n"]),
            _text(figure["mean"]),
            interval,
            *(_text(figure[name]) for name in ("deviation", "least", "most")),
            *(_text(figure[name]["value"]) for name in ("median", "iqm")),
        )
    return table


def _text(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"
