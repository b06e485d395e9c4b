"""Which runs a study is made of: cells, each a recipe, and the seeds of each."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxcls.config.knobs import KNOBS, STREAMS
from jaxcls.errors import InputError, did_you_mean

EACH = "each"
# Seeds of one study, and cells of one search: more of them is a slip of the finger.
_MOST_SEEDS, _MOST_CELLS = 10_000, 10_000
# Draws for each cell of a search before it is said that there are no more.
_TRIES = 20


class Cell(NamedTuple):
    """One recipe of a study.

    overrides: config keys with their values as on a command line. streams: those whose
    seed varies while `seed` and with it the others stay; (): `seed` itself varies.
    """

    name: str
    overrides: dict[str, str]
    streams: tuple[str, ...]

    def seeds(self, seed: int) -> dict[str, int]:
        """The config keys that make the run of `seed`."""
        if not self.streams:
            return {"seed": seed}
        return {f"seeds.{stream}": seed for stream in self.streams}


def make(
    grid: Sequence[str], spaces: Sequence[str], count: int, search_seed: int, vary: str
) -> list[Cell]:
    """The cells of a study, in order.

    grid: ``"optim.lr=0.1,0.2"``, of which every combination is a cell. spaces: where
    `count` cells are drawn from by `search_seed`: ``"optim.lr=log(1e-4..0.1)"``,
    ``"optim.warmup_from=0..0.5"``, ``"augment=flip,randaugment(2, 10)"``. vary: "all",
    streams by name, or "each": all, and each stream in a cell of its own.
    Raises `InputError`.
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
    """The seeds that ``"10"`` (0 to 9), ``"5-9"`` or ``"3,8"`` name.

    Raises `InputError`.
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
    """The streams that ``"init,order"`` names, in their order; () of "all" and "each".

    Raises `InputError`.
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
    """Every combination of the values of each key, the last key changing first."""
    axes = _axes(grid, "--grid", "optim.lr=0.01,0.1")
    if math.prod(len(values) for values in axes.values()) > _MOST_CELLS:
        raise InputError(f"--grid makes more than {_MOST_CELLS:,} cells; give fewer values")
    return [
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    ]


def _drawn(spaces: Sequence[str], count: int, search_seed: int) -> list[dict[str, str]]:
    """`count` cells, each value drawn by itself, without repeats.

    The first k of more are the same.
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
    """The value at the share `at` of what `values` spans, of three digits if a number."""
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
    # Each whole number has the numbers that round to it.
    return str(round(min(high, max(low, _at(low - 0.5, high + 0.5, at, bool(span[1]))))))


def _at(low: float, high: float, at: float, in_log: bool) -> float:
    """The number at the share `at` of the way from low to high."""
    return low * (high / low) ** at if in_log else low + at * (high - low)


def _axes(texts: Sequence[str], flag: str, example: str) -> dict[str, list[str]]:
    """{config key: its values} of ``"key=value,value"``; raises `InputError`."""
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
    """The values of a list, at those commas that stand in no bracket and no quotes."""
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
    """What a cell is called: a name for a folder too."""
    parts = [f"{key}={value}" for key, value in overrides.items()]
    parts += [f"vary={','.join(streams)}"] if streams else []
    return re.sub(r"[^\w=.,+-]+", "_", ",".join(parts))[:100].strip("_") or "base"
