"""A study as lines and tables to read."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from jaxcls import console
from jaxcls.console import as_text

# What the places of outcomes.PLACES are called.
PLACES = {
    "test_best": "data.test at the best step",
    "test_last": "data.test at the last step",
    "eval_best": "data.eval at the best step, which it chose itself",
    "eval_last": "data.eval at the last step",
}
# How a run may have ended, or not.
STATES = ("done", "diverged", "missing")
COLUMNS = (
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
_LISTED = 20


def plan(cells: Sequence[str], seeds: Sequence[int], shard: tuple[int, int]) -> str:
    """What a study is made of, in a few lines."""
    first, of = shard
    names = [
        *cells[:_LISTED],
        *([f"... and {len(cells) - _LISTED} more"] if len(cells) > _LISTED else []),
    ]
    lines = [
        f"study:  {size(len(cells), len(seeds))}",
        *(f"cell:   {name}" for name in names),
        f"seeds:  {listed(seeds)}",
    ]
    if of > 1:
        runs = len(range(first, len(cells) * len(seeds), of))
        lines.append(f"shard:  {first} of {of}, {_counted(runs, 'run')}")
    return "\n".join(lines)


def size(cells: int, seeds: int) -> str:
    """How many runs there are, and why."""
    of = f"{_counted(cells, 'cell')} x {_counted(seeds, 'seed')}"
    return f"{of} = {_counted(cells * seeds, 'run')}"


def _counted(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def listed(each: Sequence[object]) -> str:
    """The first ones, and whether there are more."""
    return ", ".join([*map(str, each[:_LISTED]), *(["..."] if len(each) > _LISTED else [])])


def show(found: dict[str, Any]) -> None:
    """Print a study's result: cells, comparisons, streams, and what a next one takes."""
    out = console.console()
    for place, title in titles(found).items():
        out.print(_cells(found, place, title))
    for line in lines(found):
        out.print(line, soft_wrap=True)


def titles(found: dict[str, Any]) -> dict[str, str]:
    """{place: the title of its table} of the split that the headline is of."""
    metric, role = found["metric"], found["headline"].partition("_")[0]
    return {
        place: f"{metric} on {title}"
        for place, title in PLACES.items()
        if place.startswith(role)
        and any(metric in cell["figures"].get(place, {}) for cell in found["cells"])
    }


def lines(found: dict[str, Any]) -> list[str]:
    """What there is to say of a study besides its tables."""
    place, metric = found["headline"], found["metric"]
    said = lost(found)
    for cell in found["cells"]:
        figure = cell["figures"].get(place, {}).get(metric)
        if figure and figure["median"]["low"] is not None:
            each = (f"{word} {bootstrapped(figure, word)}" for word in ("median", "IQM"))
            n = figure["n"]
            said.append(
                f"{cell['name']}, by bootstrap: {', '.join(each)}; 95% is meant, and n={n}"
            )
    said += [*compared(found), *chosen(found)]
    for streams, share in found["streams"].get(place, {}).items():
        if share["value"] is not None:
            said.append(
                f"of the variance, {streams} alone makes {share['value']:.0%}"
                f" ({share['low']:.0%} to {share['high']:.0%})"
            )
    if found["runs_needed"]:
        each = (f"{difference}: {seeds}" for difference, seeds in needed(found).items())
        said.append(f"seeds to see a difference of {', '.join(each)} ({needed_by(found)})")
    return said


def lost(found: dict[str, Any]) -> list[str]:
    """A line for each cell and each way in which its seeds have no result."""
    ways = {"diverged": "not in its figures", "missing": "not ended yet"}
    return [
        f"{state}: {cell['name']}, seed {listed(seeds)}; {what}"
        for cell in found["cells"]
        for state, what in ways.items()
        if (seeds := [run["seed"] for run in cell["runs"] if run["state"] == state])
    ]


def bootstrapped(figure: dict[str, Any], word: str) -> str:
    """The bootstrap interval of the "median" or "IQM", and what such intervals hold."""
    key = word.lower()
    low, high = figure[key]["low"], figure[key]["high"]
    if low is None:
        return ""
    return f"{as_text(low)} to {as_text(high)} (holds {figure[f'coverage_{key}']:.0%})"


def compared(found: dict[str, Any]) -> list[str]:
    """What to say of each cell against the baseline, by the headline's figures."""
    said = []
    for name, one in found["comparisons"].get(found["headline"], {}).items():
        apart = f" ({one['unpaired']} seeds without a pair)" if one["unpaired"] else ""
        said.append(f"{name} against {found['baseline']}: {one['words']}{apart}")
    return said


def chosen(found: dict[str, Any]) -> list[str]:
    """Which cell is best by data.eval, where there is one to choose."""
    if not (best := found["selected"]):
        return []
    mean = f"{best['mean']:.4g}"
    return [
        f"chosen by {best['metric']} on data.eval alone: {best['cell']} (mean {mean})",
    ]


def needed(found: dict[str, Any]) -> dict[str, str]:
    """{difference: how many seeds show it}."""
    return {
        f"{difference}{_unit(found)}": str(seeds or "over 100,000")
        for difference, seeds in found["runs_needed"]["seeds"].items()
    }


def needed_by(found: dict[str, Any]) -> str:
    """What the seeds that are needed follow from."""
    by = found["runs_needed"]
    deviation = f"{by['deviation']:.3g}{_unit(found)}"
    return f"80% power; from the deviation of {by['of']}, {deviation}"


def _unit(found: dict[str, Any]) -> str:
    return f" {found['unit']}" if found["unit"] else ""


def closing(found: dict[str, Any]) -> str:
    """The last line of a study."""
    is_done = found["missing"] == 0
    counts = " ".join(f"{name}={found[name]}" for name in STATES)
    word = "done" if is_done else "not all runs are there yet"
    return f"{word}: cells={len(found['cells'])} {counts}"


def _cells(found: dict[str, Any], place: str, title: str) -> Table:
    made = console.table(title, *COLUMNS)
    for cell in found["cells"]:
        made.add_row(*row(cell, place, found["metric"]))
    return made


def row(cell: dict[str, Any], place: str, metric: str) -> list[str]:
    """The figures of a cell, one for each of `COLUMNS`."""
    figure = cell["figures"].get(place, {}).get(metric)
    if figure is None:
        return [cell["name"], "0", *["-"] * (len(COLUMNS) - 2)]
    ends = [figure["t"]["low"], figure["t"]["high"]]
    return [
        cell["name"],
        str(figure["n"]),
        as_text(figure["mean"]),
        "-" if None in ends else f"{as_text(ends[0])} to {as_text(ends[1])}",
        *(as_text(figure[name]) for name in ("deviation", "least", "most")),
        *(as_text(figure[name]["value"]) for name in ("median", "iqm")),
    ]
