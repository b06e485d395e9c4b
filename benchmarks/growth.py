"""How costs grow with the work: ``python -m benchmarks.growth --output=growth.png``.

Six curves of a small ViT on images of noise, 32 pixels (see `benchmarks.loop`), each a
table and a plot, with its exponent k of cost ~ size**k (1: linear, 0: flat):

    the time of a step against the batch, and against the depth, sizes in turn
    peak memory against the number of examples, and against the number of steps
    the time and the processor's time to the first step against the number of examples

What is measured against examples and steps is each in processes of their own, with a warm
cache of compiled programs; examples are streamed, not kept on the device.
"""

import argparse
import math
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from benchmarks import figures, loop, measuring, start

MODEL = "vit_ti_16(patch=8, width=64, depth={depth}, heads=2)"
# A run of noise from any config: what differs from configs/digits.py.
OF_NOISE = {
    "data.name": "noise",
    "data.train": "train",
    "data.eval": "",
    "data.test": "",
    "data.train_ops": "decode",
    "data.eval_ops": "decode",
    "data.resident": "off",
    "model.name": MODEL.format(depth=2),
    "augment": "",
    "batch_size": "32",
    "length": "100000 steps",
    "checkpoint.every": "100000 steps",
}


class Curve(NamedTuple):
    """A cost in a unit against a size: the values of several segments or processes."""

    cost: str
    size: str
    points: dict[int, list[float]]

    @property
    def exponent(self) -> float:
        """The k of cost ~ size**k, of the medians."""
        costs = [statistics.median(values) for values in self.points.values()]
        return figures.exponent(list(self.points), costs)


def steps_in_turn(
    made: Callable[[int], loop.Timed], sizes: Sequence[int], args: argparse.Namespace
) -> dict[int, list[float]]:
    """{size: milliseconds of a bare step in each segment} of each size's experiment."""
    exps = {size: made(size) for size in sizes}
    states = {size: exp.init() for size, exp in exps.items()}
    found: dict[int, list[float]] = {size: [] for size in sizes}
    for segment in range(args.segments + 1):
        for size, exp in exps.items():
            steps = args.turns if segment else 2  # The first warms up.
            seconds, states[size] = loop.bare(exp, states[size], steps)
            found[size] += [1e3 * seconds] if segment else []
    return found


def starts_of(
    folders: dict[int, pathlib.Path], untils: Sequence[int], cache: str, processes: int
) -> tuple[Curve, Curve, Curve, Curve]:
    """Memory and start-up against examples, and memory against steps."""
    whole: dict[int, list[float]] = {size: [] for size in folders}
    processor: dict[int, list[float]] = {size: [] for size in folders}
    memory: dict[int, list[float]] = {size: [] for size in folders}
    by_steps: dict[int, list[float]] = {until: [] for until in untils}

    def started(size: int, until: int) -> dict[str, float]:
        given = {**OF_NOISE, "data.dir": str(folders[size])}
        return start.start("configs/digits.py", cache, given, until)

    largest = max(folders)
    started(largest, 1)  # Fills the cache.
    for _ in range(processes):
        for size in folders:
            found = started(size, untils[0])
            whole[size].append(sum(found[phase] for phase in start.PHASES))
            processor[size].append(found["processor"])
            memory[size].append(found["memory"] / 2**20)
        for until in untils:
            by_steps[until].append(started(largest, until)["memory"] / 2**20)
    return (
        Curve("peak memory, MiB", "examples", memory),
        Curve("peak memory, MiB", "steps", by_steps),
        Curve("to the first step, s", "examples", whole),
        Curve("to the first step, processor s", "examples", processor),
    )


def draw(curves: Sequence[Curve], path: pathlib.Path) -> None:
    """Write a PNG with a plot of each curve, from least to most."""
    from matplotlib.figure import Figure

    rows = math.ceil(len(curves) / 2)
    picture = Figure(figsize=(9, 3 * rows), layout="constrained")
    for i, curve in enumerate(curves):
        axes = picture.add_subplot(rows, 2, i + 1)
        middle = [statistics.median(values) for values in curve.points.values()]
        below = [m - min(v) for m, v in zip(middle, curve.points.values(), strict=True)]
        above = [max(v) - m for m, v in zip(middle, curve.points.values(), strict=True)]
        sizes = list(curve.points)
        axes.errorbar(sizes, middle, yerr=(below, above), marker="o", capsize=3)
        axes.set(xscale="log", xlabel=curve.size, ylabel=curve.cost)
        axes.set_ylim(0, 1.1 * max(map(max, curve.points.values())))
        axes.set_title(f"{curve.cost} ~ {curve.size}^{curve.exponent:.2f}", fontsize=10)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
    picture.savefig(path, dpi=120)


def curves_of(args: argparse.Namespace, folder: pathlib.Path) -> list[Curve]:
    """All six, measured on noise in `folder`."""
    folders = {size: folder / f"of{size}" for size in args.examples}
    for size, where in folders.items():
        loop.prepare(where, size)
    few = folders[min(folders)]

    def of(batch: int, depth: int) -> loop.Timed:
        model = MODEL.format(depth=depth)
        given = {"batch_size": batch, "length": "100 steps", "model.name": model}
        return loop.experiment_of(few, **given)

    by_batch = steps_in_turn(lambda size: of(size, args.depths[0]), args.batches, args)
    by_depth = steps_in_turn(lambda size: of(args.batches[0], size), args.depths, args)
    return [
        Curve("a step, ms", "batch", by_batch),
        Curve("a step, ms", "depth", by_depth),
        *starts_of(folders, args.steps, str(folder / "cache"), args.processes),
    ]


def whole_numbers(text: str) -> list[int]:
    """ "1,2,4" -> [1, 2, 4], ascending."""
    return sorted(map(int, text.split(",")))


def main() -> None:
    """Print the tables, and draw the plots."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    lists = {
        "batches": "16,32,64,128",
        "depths": "2,4,8,16",
        "examples": "1000,4000,16000",
        "steps": "10,40,160",
    }
    for name, sizes in lists.items():
        parser.add_argument(f"--{name}", type=whole_numbers, default=whole_numbers(sizes))
    parser.add_argument("--turns", type=int, default=4, help="steps of a segment")
    parser.add_argument("--segments", type=int, default=5)
    parser.add_argument("--processes", type=int, default=3, help="of each size")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("growth.png"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        curves = curves_of(args, pathlib.Path(folder))
    for curve in curves:
        rows = [
            (f"{size:,}", measuring.spread(values, ",.1f"))
            for size, values in curve.points.items()
        ]
        print(figures.table((curve.size, curve.cost), rows))
        print(f"grows as {curve.size}^{curve.exponent:.2f}\n")
    draw(curves, args.output)
    print(f"{args.output}; {measuring.machine(jax.devices()[0])}")


if __name__ == "__main__":
    main()
