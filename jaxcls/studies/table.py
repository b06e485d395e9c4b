"""A study's result as text: lines and tables."""

from collections.abc import Sequence
from typing import Any

from jaxcls import console
from jaxcls.console import as_text
from jaxcls.evaluation import intervals
from jaxcls.studies import spread
from jaxcls.studies.cells import FRACTION, SPLIT

# The titles of outcomes.PLACES.
PLACES = {
    "test_best": "data.test at the best step",
    "test_last": "data.test at the last step",
    "eval_best": "data.eval at the best step, which it chose itself",
    "eval_last": "data.eval at the last step",
}
# The values of `Outcome.state`.
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
    """Returns the plan of a study: its size, cells, seeds and shard, one line for each."""
    first, of = shard
    runs = len(range(first, len(cells) * len(seeds), of))
    lines = [
        f"study:  {size(len(cells), len(seeds))}",
        *(f"cell:   {name}" for name in cells),
        f"seeds:  {listed(seeds)}",
        f"shard:  {first} of {of}, {_counted(runs, 'run')}",
    ]
    return "\n".join(lines if of > 1 else lines[:-1])


def size(cells: int, seeds: int) -> str:
    """Returns the number of runs as text, such as "2 cells x 3 seeds = 6 runs"."""
    of = f"{_counted(cells, 'cell')} x {_counted(seeds, 'seed')}"
    return f"{of} = {_counted(cells * seeds, 'run')}"


def _counted(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def listed(each: Sequence[object]) -> str:
    """Returns the first items with commas; "..." stands for more."""
    more = ["..."] if len(each) > _LISTED else []
    return ", ".join([*map(str, each[:_LISTED]), *more])


def show(found: dict[str, Any]) -> None:
    """Prints a study's result: cells, comparisons, streams, and the seeds to plan."""
    out = console.console()
    for place, title in titles(found).items():
        made = console.table(title, *COLUMNS)
        for cell in found["cells"]:
            made.add_row(*row(cell, place, found["metric"]))
        out.print(made)
    for line in lines(found):
        out.print(line, soft_wrap=True)


def titles(found: dict[str, Any]) -> dict[str, str]:
    """Returns {place: title of its table} for the split of the headline."""
    metric, role = found["metric"], found["headline"].partition("_")[0]
    return {
        place: f"{metric} on {title}"
        for place, title in PLACES.items()
        if place.startswith(role)
        and any(metric in cell["figures"].get(place, {}) for cell in found["cells"])
    }


def lines(found: dict[str, Any]) -> list[str]:
    """Returns the lines that follow the tables of a study."""
    place, metric = found["headline"], found["metric"]
    said = lost(found)
    for cell in found["cells"]:
        figure = cell["figures"].get(place, {}).get(metric)
        if figure and figure["n"] > 1:
            words = [*(["BCa"] if _has_bca(figure) else []), "median", "IQM"]
            each = (f"{_OF[word]} {bootstrapped(figure, word)}" for word in words)
            ends = f"95% is meant, and n={figure['n']}"
            said.append(f"{cell['name']}, by bootstrap: {', '.join(each)}; {ends}")
    said += [*compared(found), *chosen(found)]
    for streams, share in found["streams"].get(place, {}).items():
        if share["value"] is not None:
            within = f"{share['low']:.0%} to {share['high']:.0%}"
            is_share = not {FRACTION, SPLIT} & {*streams.split(",")}
            said.append(
                f"of the variance, {streams} alone makes {share['value']:.0%} ({within})"
                if is_share
                else f"beside the variance of all streams, {streams} by itself has"
                f" {share['value']:.0%} ({within})"
            )
    if found["runs_needed"]:
        each = (f"{difference}: {seeds}" for difference, seeds in needed(found).items())
        said.append(f"seeds to see a difference of {', '.join(each)} ({needed_by(found)})")
    return said


def lost(found: dict[str, Any]) -> list[str]:
    """Returns a line for each cell with diverged runs, and for each with missing runs."""
    said = []
    for cell in found["cells"]:
        seeds = {
            state: [run["seed"] for run in cell["runs"] if run["state"] == state]
            for state in STATES
        }
        done, diverged, missing = (seeds[state] for state in STATES)
        if diverged:
            rate = intervals.proportion(len(done), len(done) + len(diverged))
            said.append(
                f"diverged: {cell['name']}, seed {listed(diverged)}; not in its figures:"
                f" {rate.value:.0%} of its runs succeed ({rate.low:.0%} to {rate.high:.0%})"
            )
        if missing:
            said.append(f"missing: {cell['name']}, seed {listed(missing)}; not ended yet")
    return said


_OF = {"BCa": "mean (BCa)", "median": "median", "IQM": "IQM"}


def _has_bca(figure: dict[str, Any]) -> bool:
    """Returns whether a mean has a BCa interval; older versions wrote none."""
    return figure.get("bca", {}).get("low") is not None


def bootstrapped(figure: dict[str, Any], word: str) -> str:
    """Returns the bootstrap interval of "BCa", "median" or "IQM" with its coverage."""
    key = word.lower()
    low, high = figure[key]["low"], figure[key]["high"]
    if low is None:
        return ""
    return f"{as_text(low)} to {as_text(high)} (holds {figure[f'coverage_{key}']:.0%})"


def compared(found: dict[str, Any]) -> list[str]:
    """Returns a line for each cell against the baseline, at the headline's place."""
    said = []
    for name, one in found["comparisons"].get(found["headline"], {}).items():
        apart = f" ({one['unpaired']} seeds without a pair)" if one["unpaired"] else ""
        said.append(
            f"{name} against {found['baseline']}:"
            f" {one['words']}{apart}{_by_bca(one)}{_superior(one)}"
        )
    return said


def _by_bca(one: dict[str, Any]) -> str:
    """Returns the BCa interval of the differences; "" without one."""
    if not _has_bca(one):
        return ""
    low, high = one["bca"]["low"], one["bca"]["high"]
    return f"; BCa {low:+.3g} to {high:+.3g} (holds {spread.coverage_of_bca(one['n']):.0%})"


def _superior(one: dict[str, Any]) -> str:
    """Returns the probability that a recipe is better at a seed; "" without one."""
    share = one.get("superiority")  # A study of an older version has none.
    if not share or share["value"] is None:
        return ""
    value, low, high = (f"{share[key]:.2f}" for key in ("value", "low", "high"))
    return f"; P(better at a seed) = {value} ({low} to {high})"


def chosen(found: dict[str, Any]) -> list[str]:
    """Returns a line that names the best cell by data.eval; [] without a selection."""
    best = found["selected"]
    if not best:
        return []
    mean = f"{best['mean']:.4g}"
    return [f"chosen by {best['metric']} on data.eval alone: {best['cell']} (mean {mean})"]


def needed(found: dict[str, Any]) -> dict[str, str]:
    """Returns {difference: the number of seeds that show it}."""
    return {
        f"{difference}{_unit(found)}": str(seeds or "over 100,000")
        for difference, seeds in found["runs_needed"]["seeds"].items()
    }


def needed_by(found: dict[str, Any]) -> str:
    """Returns the assumptions of the needed seeds: power, comparisons and deviation."""
    by = found["runs_needed"]
    deviation = f"{by['deviation']:.3g}{_unit(found)}"
    made = by.get("comparisons", 1)
    among = f" in each of {made} comparisons" if made > 1 else ""
    return f"80% power{among}; from the deviation of {by['of']}, {deviation}"


def _unit(found: dict[str, Any]) -> str:
    return f" {found['unit']}" if found["unit"] else ""


def closing(found: dict[str, Any]) -> str:
    """Returns the last line of a study: counts of its cells and runs."""
    counts = " ".join(f"{name}={found[name]}" for name in STATES)
    word = "not all runs are there yet" if found["missing"] else "done"
    return f"{word}: cells={len(found['cells'])} {counts}"


def row(cell: dict[str, Any], place: str, metric: str) -> list[str]:
    """Returns the figures of a cell, one for each of `COLUMNS`.

    n is "8 of 10" if 2 of 10 runs diverged: the figures are of the other 8 only.
    """
    diverged = sum(run["state"] == "diverged" for run in cell["runs"])
    figure = cell["figures"].get(place, {}).get(metric)
    if figure is None:
        return [cell["name"], _of(0, diverged), *["-"] * (len(COLUMNS) - 2)]
    ends = [figure["t"]["low"], figure["t"]["high"]]
    return [
        cell["name"],
        _of(figure["n"], diverged),
        as_text(figure["mean"]),
        "-" if None in ends else f"{as_text(ends[0])} to {as_text(ends[1])}",
        *(as_text(figure[name]) for name in ("deviation", "least", "most")),
        *(as_text(figure[name]["value"]) for name in ("median", "iqm")),
    ]


def _of(n: int, diverged: int) -> str:
    return f"{n} of {n + diverged}" if diverged else str(n)
