"""The runs of a study: each cell is a recipe, and each cell runs with every seed."""

import collections
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcls.config.knobs import KNOBS, STREAMS
from jaxcls.errors import InputError, did_you_mean

EACH = "each"
# Choices of examples, which have a seed of their own and do not follow `seed`: of
# data.fraction, and of data.train and data.eval.
FRACTION, SPLIT = "fraction", "split"
SEED_OF = {
    **{stream: f"seeds.{stream}" for stream in STREAMS},
    FRACTION: "data.fraction_seed",
    SPLIT: "data.split_seed",
}
# The most seeds of a study, and cells of a random search.
_MOST_SEEDS, _MOST_CELLS = 10_000, 10_000
# Draws for each cell of a search. After these, the space has too few different cells.
_TRIES = 20


class Cell(NamedTuple):
    """One recipe of a study.

    overrides: {config key: value as text}, as on a command line. streams: the random
    streams (or `FRACTION`, `SPLIT`) whose seed varies while `seed` is constant; ():
    `seed` itself varies.
    """

    name: str
    overrides: dict[str, str]
    streams: tuple[str, ...]

    def seeds(self, seed: int) -> dict[str, int]:
        """Returns {config key: seed} for the run of `seed`."""
        keys = [SEED_OF[stream] for stream in self.streams]
        return dict.fromkeys(keys or ["seed"], seed)


def make(
    grid: Sequence[str],
    spaces: Sequence[str],
    count: int,
    search_seed: int,
    vary: str,
    sources: Sequence[str] = STREAMS,
) -> list[Cell]:
    """Returns the cells of a study, in order.

    grid: keys with their values, such as ``"optim.lr=0.1,0.2"``; every combination is a
    cell. spaces: keys with their search space: ``"optim.lr=log(1e-4..0.1)"``,
    ``"optim.warmup_from=0..0.5"``, ``"augment=flip,randaugment(2, 10)"``; `search_seed`
    draws `count` cells from them. vary: "all"; or names of streams; or "each", which
    makes one cell that varies all streams, and one cell for each of `sources`.
    Raises `InputError` for a bad text or combination.
    """
    if [bool(grid), bool(spaces), vary == EACH].count(True) > 1:
        raise InputError(
            f"--grid, --random and --vary={EACH} each make cells; give one of them, or a"
            " list to --random: --random 'optim.lr=0.1,0.2'"
        )
    if vary == EACH:
        alone = [Cell(f"vary={stream}", {}, (stream,)) for stream in sources]
        return [Cell("base", {}, ()), *alone]
    cells: list[Cell] = []
    taken: collections.Counter[str] = collections.Counter()
    for overrides in _drawn(spaces, count, search_seed) if spaces else _combined(grid):
        name = _name(overrides)
        taken[name] += 1
        unique = f"{name}~{taken[name]}" if taken[name] > 1 else name
        cells.append(Cell(unique, overrides, streams_of(vary)))
    return cells


def seeds(text: str) -> list[int]:
    """Returns the seeds of ``"10"`` (0 to 9), ``"5-9"`` or ``"3,8"``.

    Raises `InputError` for any other text, a repeat, or a seed of 2**32 or more.
    """
    try:
        if "," in text:
            found: Sequence[int] = [int(part) for part in text.split(",") if part]
        else:
            first, dash, last = text.partition("-")
            found = range(int(first), int(last) + 1) if dash else range(int(text))
        is_good = 0 < len(found) <= _MOST_SEEDS and len(set(found)) == len(found)
        is_good = is_good and min(found) >= 0 and max(found) < 2**32
    except (ValueError, OverflowError):
        is_good = False
    if not is_good:
        raise InputError(
            f"--seeds={text} must be how many there are (10: seeds 0 to 9), from-to (5-9)"
            f" or a list without repeats (3,8); at most {_MOST_SEEDS:,}, below 2**32"
        )
    return [*found]


def streams_of(vary: str) -> tuple[str, ...]:
    """Returns the streams of ``"init,order"`` in the order of STREAMS; choices are last.

    Returns () for "all" and "each". Raises `InputError` for an unknown name.
    """
    names = [] if vary in ("all", EACH) else [name.strip() for name in vary.split(",")]
    for name in names:
        if name not in SEED_OF:
            raise InputError(
                f"--vary={vary}{did_you_mean(name, SEED_OF)} must be all, {EACH}, or"
                f" streams of randomness: {','.join(SEED_OF)}"
            )
    return tuple(name for name in SEED_OF if name in names)


def sources_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns all that a seed may vary of a flat config: streams and choices."""
    found = [*STREAMS]
    if config["data.fraction"] < 1:
        found.append(FRACTION)
    slices = [
        re.fullmatch(r"(\w+)\[[^+]*\]", config[f"data.{role}"])
        for role in ("train", "eval")
    ]
    if all(slices) and len({each[1] for each in slices if each}) == 1:
        found.append(SPLIT)
    return tuple(found)


def _combined(grid: Sequence[str]) -> list[dict[str, str]]:
    """Returns every combination of the values; the last key changes fastest."""
    axes = _axes(grid, "--grid", "optim.lr=0.01,0.1")
    if math.prod(map(len, axes.values())) > _MOST_CELLS:
        raise InputError(f"--grid makes more than {_MOST_CELLS:,} cells; give fewer values")
    return [
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    ]


def _drawn(spaces: Sequence[str], count: int, search_seed: int) -> list[dict[str, str]]:
    """Draws `count` different cells, each value independently.

    A larger `count` begins with the same cells. Raises `InputError`.
    """
    if count > _MOST_CELLS:
        raise InputError(f"--cells={count} must be at most {_MOST_CELLS:,}; try 20")
    axes = _axes(spaces, "--random", "'optim.lr=log(1e-4..0.1)'")
    rng = np.random.default_rng(search_seed)
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for _ in range(_TRIES * count):
        row = rng.random(len(axes))
        drawn = {key: _draw(key, axes[key], at) for key, at in zip(axes, row, strict=True)}
        found.setdefault(tuple(drawn.values()), drawn)
        if len(found) == count:
            return [*found.values()]
    raise InputError(
        f"--cells={count} are more than --random can make different: it made {len(found)};"
        f" give --cells={len(found)}"
    )


def _draw(key: str, values: list[str], at: float) -> str:
    """Returns the value at the fraction `at`, in [0, 1), of a list or a range.

    A float has three digits. Raises `InputError` for a bad range.
    """
    number = r"([-+.\deE]+)"
    span = re.fullmatch(rf"(log)?\(?{number}\.\.{number}\)?", values[0])
    if len(values) > 1 or not span:
        return values[int(at * len(values))]
    is_whole = type(KNOBS[key].default) is int
    try:
        low, high = float(span[2]), float(span[3])
    except ValueError:
        low, high = math.nan, math.nan
    is_wrong = is_whole and not (low.is_integer() and high.is_integer())
    if is_wrong or not low < high or (span[1] and low <= 0):
        raise InputError(
            f"--random {key}={values[0]} must go from a number to a larger one (above 0 in"
            f" log{', both whole' if is_whole else ''}); try 'optim.lr=log(1e-4..0.1)'"
        )
    # The ends of integers widen by 0.5, so that the first and last get a full share.
    first, last = (low - 0.5, high + 0.5) if is_whole else (low, high)
    drawn = first * (last / first) ** at if span[1] else first + at * (last - first)
    return str(round(min(high, max(low, drawn)))) if is_whole else f"{drawn:.3g}"


def _axes(texts: Sequence[str], flag: str, example: str) -> dict[str, list[str]]:
    """Returns {config key: values} of texts ``"key=value,value"``.

    Raises `InputError` for a bad text, an unknown key, or a repeat.
    """
    axes: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip().removeprefix("--").removeprefix("config.")
        wrong = ""
        if not equals:
            wrong = f"it has no '='; try {flag} {example}"
        elif key not in KNOBS:
            wrong = f"unknown config key {key!r}{did_you_mean(key, KNOBS)}"
        elif key in axes:
            wrong = f"{key} is given twice; give it once, with all values"
        elif key.partition(".")[0] in ("seed", "seeds"):
            wrong = "seeds are what --seeds and --vary vary"
        if wrong:
            raise InputError(f"{flag} {text!r}: {wrong}")
        axes[key] = split(values)
        if len(set(axes[key])) < len(axes[key]):
            raise InputError(f"{flag} {text!r} names a value twice; give each once")
    return axes


def split(text: str) -> list[str]:
    """Splits a list at its commas, except within brackets and quotes."""
    values: list[list[str]] = []
    depth, quotes = 0, collections.Counter[str]()
    for part in text.split(","):
        is_open = depth > 0 or any(count % 2 for count in quotes.values())
        if not values or not is_open:
            values.append([])
            depth, quotes = 0, collections.Counter[str]()
        values[-1].append(part)
        opened, closed = (sum(map(part.count, brackets)) for brackets in ("([{", ")]}"))
        depth += opened - closed
        quotes.update({quote: part.count(quote) for quote in "'\""})
    return [",".join(parts).strip() for parts in values]


def _name(overrides: Mapping[str, str]) -> str:
    """Returns the name of a cell, which is also a valid folder name."""
    text = ",".join(f"{key}={value}" for key, value in overrides.items())
    return re.sub(r"[^\w=.,+-]+", "_", text)[:100].strip("_") or "base"
