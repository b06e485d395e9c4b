"""The runs of a study: each cell is a recipe, and each cell runs with every seed."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxcls.config.knobs import KNOBS, STREAMS
from jaxcls.errors import InputError, did_you_mean

EACH = "each"
# The most seeds of a study, and cells of a search. A larger number is a typing error.
_MOST_SEEDS, _MOST_CELLS = 10_000, 10_000
# Draws for each cell of a search. After these, the space has too few different cells.
_TRIES = 20


class Cell(NamedTuple):
    """One recipe of a study.

    overrides: {config key: value as text}, as on a command line. streams: the random
    streams whose seed varies while `seed` is constant; (): `seed` itself varies.
    """

    name: str
    overrides: dict[str, str]
    streams: tuple[str, ...]

    def seeds(self, seed: int) -> dict[str, int]:
        """Returns {config key: seed} for the run of `seed`."""
        if not self.streams:
            return {"seed": seed}
        return {f"seeds.{stream}": seed for stream in self.streams}


def make(
    grid: Sequence[str], spaces: Sequence[str], count: int, search_seed: int, vary: str
) -> list[Cell]:
    """Returns the cells of a study, in order.

    grid: keys with their values, such as ``"optim.lr=0.1,0.2"``; every combination is a
    cell. spaces: keys with their search space: ``"optim.lr=log(1e-4..0.1)"``,
    ``"optim.warmup_from=0..0.5"``, ``"augment=flip,randaugment(2, 10)"``; `search_seed`
    draws `count` cells from them. vary: "all"; or names of streams; or "each", which
    makes one cell that varies all streams, and one cell for each stream.
    Raises `InputError` for a bad text or combination.
    """
    if bool(spaces) != bool(count):
        given, lacks = ("--random", "--cells=20") if spaces else ("--cells", "--random")
        raise InputError(f"{given} says nothing without {lacks}; give both")
    if grid and spaces:
        raise InputError(
            "--grid and --random are two searches; give one, or a list to --random:"
            " --random 'optim.lr=0.1,0.2'"
        )
    found = _drawn(spaces, count, search_seed) if spaces else _combined(grid)
    all_streams = [(), *((stream,) for stream in STREAMS)]
    varied = all_streams if vary == EACH else [streams_of(vary)]
    if len(varied) > 1 and (grid or spaces):
        raise InputError(
            f"--vary={EACH} makes cells of its own; give it without --grid and --random"
        )
    cells: list[Cell] = []
    for overrides, streams in itertools.product(found, varied):
        name = _name(overrides, streams if vary == EACH else ())
        taken = [cell.name for cell in cells]
        same = sum(name == other.partition("~")[0] for other in taken)
        cells.append(Cell(f"{name}~{same + 1}" if same else name, overrides, streams))
    return cells


def seeds(text: str) -> list[int]:
    """Returns the seeds of ``"10"`` (0 to 9), ``"5-9"`` or ``"3,8"``.

    Raises `InputError` for any other text, a repeat, or a seed of 2**32 or more.
    """
    found: list[int] = []
    if re.fullmatch(r"\d+", text):
        found = list(range(min(int(text), _MOST_SEEDS + 1)))
    elif match := re.fullmatch(r"(\d+)-(\d+)", text):
        first, last = int(match[1]), int(match[2])
        found = list(range(first, min(last, first + _MOST_SEEDS) + 1))
    elif re.fullmatch(r"\d+(,\d+)+,?|\d+,", text):
        found = [int(part) for part in text.split(",") if part]
    is_good = 0 < len(found) <= _MOST_SEEDS and len(set(found)) == len(found)
    if not is_good or max(found) >= 2**32:
        raise InputError(
            f"--seeds={text} must be how many there are (10: seeds 0 to 9), from-to (5-9)"
            f" or a list without repeats (3,8); at most {_MOST_SEEDS:,}, below 2**32"
        )
    return found


def streams_of(vary: str) -> tuple[str, ...]:
    """Returns the streams of ``"init,order"`` in the order of STREAMS.

    Returns () for "all" and "each". Raises `InputError` for an unknown name or a repeat.
    """
    if vary in ("all", EACH):
        return ()
    names = tuple(name.strip() for name in vary.split(","))
    unknown = [name for name in names if name not in STREAMS]
    if unknown or len(set(names)) < len(names):
        near = did_you_mean(unknown[0], STREAMS) if unknown else ""
        raise InputError(
            f"--vary={vary}{near} must be all, {EACH}, or streams of randomness without"
            f" repeats: {','.join(STREAMS)}"
        )
    return tuple(name for name in STREAMS if name in names)


def _combined(grid: Sequence[str]) -> list[dict[str, str]]:
    """Returns every combination of the values; the last key changes fastest."""
    axes = _axes(grid, "--grid", "optim.lr=0.01,0.1")
    if math.prod(len(values) for values in axes.values()) > _MOST_CELLS:
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
    try:
        low, high = float(span[2]), float(span[3])
    except ValueError:
        low, high = math.nan, math.nan
    if not low < high or (span[1] and low <= 0):
        raise InputError(
            f"--random {key}={values[0]} must go from a number to a larger one (above 0 in"
            " log); try 'optim.lr=log(1e-4..0.1)'"
        )
    if type(KNOBS[key].default) is not int:
        return f"{_at(low, high, at, bool(span[1])):.3g}"
    if not (low.is_integer() and high.is_integer()):
        raise InputError(
            f"--random {key}={values[0]} must go from a whole number to another, as"
            f" {key} is one; try '{key}={math.ceil(low)}..{math.ceil(high)}'"
        )
    # The ends widen by 0.5, so that the first and last integer get a full share.
    return str(round(min(high, max(low, _at(low - 0.5, high + 0.5, at, bool(span[1]))))))


def _at(low: float, high: float, at: float, in_log: bool) -> float:
    """Returns the number at the fraction `at` from low to high, linear or in log."""
    return low * (high / low) ** at if in_log else low + at * (high - low)


def _axes(texts: Sequence[str], flag: str, example: str) -> dict[str, list[str]]:
    """Returns {config key: values} of texts ``"key=value,value"``.

    Raises `InputError` for a bad text, an unknown key, or a repeat.
    """
    axes: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip().removeprefix("--").removeprefix("config.")
        if not equals:
            raise InputError(f"{flag} {text!r} has no '='; try {flag} {example}")
        if key not in KNOBS:
            near = did_you_mean(key, KNOBS)
            raise InputError(f"{flag} {text!r}: unknown config key {key!r}{near}")
        if key in axes:
            raise InputError(f"{flag} gives {key} twice; give it once, with all values")
        if key.partition(".")[0] in ("seed", "seeds"):
            raise InputError(f"{flag} {text!r}: seeds are what --seeds and --vary vary")
        axes[key] = split(values)
        if len(set(axes[key])) < len(axes[key]):
            raise InputError(f"{flag} {text!r} names a value twice; give each once")
    return axes


def split(text: str) -> list[str]:
    """Splits a list at its commas, except within brackets and quotes."""
    values, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0 and not quote:
            values.append("")
        else:
            values[-1] += character
    return [value.strip() for value in values]


def _name(overrides: Mapping[str, str], streams: tuple[str, ...]) -> str:
    """Returns the name of a cell, which is also a valid folder name."""
    parts = [f"{key}={value}" for key, value in overrides.items()]
    parts += [f"vary={','.join(streams)}"] if streams else []
    return re.sub(r"[^\w=.,+-]+", "_", ",".join(parts))[:100].strip("_") or "base"
