"""CIFAR-10 to 94 % by the clock: ``python -m benchmarks.speedrun --config.data.dir=DIR``.

`configs/cifar10_fast.py`, once a seed, on one device that holds all images. The clock is
airbench's: it starts when everything is compiled, and ends after the test images were
scored, a quarter of them, the least confident of each batch, through six views; whitening
counts, and here so does decoding its 5,000 images.
Nothing is recorded or saved. ``--airbench=FILE``, a script of Jordan's that you downloaded,
is run by ``--airbench_python`` afterwards on the same device, and its table is read. A run
that it calls "warmup" is left out; without one its first run pays for cuDNN's search.
"""

import argparse
import itertools
import math
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import figures, measuring
from jaxcls import experiment
from jaxcls.commands import cli
from jaxcls.config import loading
from jaxcls.config.plugins import Plugins
from jaxcls.data.batch import Batch
from jaxcls.devices import mesh
from jaxcls.errors import DONE, InputError
from jaxcls.learning.step import State
from jaxcls.training import stepping

# What the record is about: the share of the test images that is right.
GOAL = 0.94
# The share of a batch, of the lowest confidence, that is scored through six views.
UNCERTAIN = 0.25
# (variables, batch) -> whether each example is right, seen once and with six views.
Hits = Callable[[dict[str, Any], Batch], tuple[jax.Array, jax.Array]]


class Run(NamedTuple):
    """One seed: seconds of its three parts, and accuracies without and with views."""

    start: float
    training: float
    scoring: float
    plain: float
    views: float


class Timed(NamedTuple):
    """A run by airbench's clock: its accuracy with views, and seconds."""

    accuracy: float
    seconds: float


def six_views(images: jax.Array) -> list[jax.Array]:
    """Images of airbench: shifted by (0, 0), (-1, -1), (1, 1), and mirrored.

    images uint8 [B, H, W, C]; what a shift brings in is reflected.
    """
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    shifted = [images, padded[:, :-2, :-2], padded[:, 2:, 2:]]
    return [each[:, :, ::step] for each in shifted for step in (1, -1)]


def scorer(exp: experiment.Experiment) -> Hits:
    """What tells of a batch on the mesh which examples are right."""

    logits_step = exp.recipe.logits_step()

    @exp.programs.jit
    def hits(variables: dict[str, Any], batch: Batch) -> tuple[jax.Array, jax.Array]:
        logits = logits_step(variables, batch.image)
        # Rows of padding are the most confident, so that they take no place.
        confidence = jnp.where(batch.mask, jax.nn.softmax(logits).max(-1), 2.0)
        uncertain = jnp.argsort(confidence)[: math.ceil(UNCERTAIN * len(logits))]
        views = six_views(batch.image[uncertain])
        mean = sum(logits_step(variables, images) for images in views) / len(views)
        few = jnp.arange(len(uncertain)) < UNCERTAIN * batch.mask.sum()
        seen = jnp.where(few[:, None], mean, logits[uncertain])
        both = logits, logits.at[uncertain].set(seen)
        plain, viewed = (each.argmax(-1) == batch.label for each in both)
        return plain & batch.mask, viewed & batch.mask

    return hits


def once(exp: experiment.Experiment, hits: Hits) -> Run:
    """Train and score one seed; what compiles does so in the first of an experiment."""
    began = time.perf_counter()
    stepper = stepping.choose(exp)
    stepper.compile()
    state = jax.block_until_ready(exp.init())
    started = time.perf_counter()
    state = train(stepper, state)
    trained = time.perf_counter()
    variables = exp.recipe.variables(state._asdict())
    batches = exp.eval_batches(exp.config.data.eval, "data.eval")
    found = jax.device_get([hits(variables, batch) for batch in batches])
    scored = time.perf_counter()
    n = exp.data.examples("eval")
    plain, views = (
        int(np.sum([each.sum() for each in x])) / n for x in zip(*found, strict=True)
    )
    return Run(started - began, trained - started, scored - trained, plain, views)


def train(stepper: stepping.Stepper, state: State) -> State:
    """The state after all steps; one block is begun while another is under way."""
    batches, before = stepper.batches(0), None
    while block := [*itertools.islice(batches, stepper.most)]:
        state, scores = stepper.advance(state, block)
        jax.block_until_ready(before)
        before = scores
    return jax.block_until_ready(state)


def table_of(output: str) -> list[Timed]:
    """The runs that airbench's table tells of; raises `InputError` where there is none."""
    rows = [
        [cell.strip() for cell in line.strip()[1:-1].split("|")]
        for line in output.splitlines()
        if line.startswith("|")
    ]
    wanted = ("tta_val_acc", "total_time_seconds")
    heads = [each for each in rows if {"run", *wanted} <= {*each}]
    found, run = [], ""
    for cells in (dict(zip(heads[0], each, strict=False)) for each in rows if heads):
        run = cells["run"] or run  # Said in the first row of a run alone.
        accuracy, seconds = (cells.get(name, "") for name in wanted)
        if accuracy not in ("", wanted[0]) and run != "warmup":
            found.append(Timed(float(accuracy), float(seconds)))
    if not found:
        raise InputError(
            "--airbench: its output has no row with tta_val_acc and total_time_seconds;"
            " give the path of airbench94.py"
        )
    return found


def airbench(file: str, python: str) -> list[Timed]:
    """The runs of the script in `file`; raises `InputError` where it fails."""
    path = pathlib.Path(file).expanduser().absolute()
    if not path.is_file():
        raise InputError(f"--airbench={file} is not a file; download airbench94.py first")
    command = [python, str(path)]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise InputError(
            f"--airbench={file} ended with status {done.returncode} ({last}); give a Python"
            " that has what it needs: --airbench_python=PYTHON"
        )
    return table_of(done.stdout)


def row(name: str, accuracies: Sequence[float], seconds: Sequence[float]) -> list[str]:
    """A row of the table that is printed."""

    def said(values: Sequence[float], form: str) -> str:
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{statistics.mean(values):{form}} ± {deviation:{form}}"

    reached = sum(each >= GOAL for each in accuracies) / len(accuracies)
    share = f"{100 * reached:.0f} %"
    return [name, str(len(seconds)), said(accuracies, ".4f"), share, said(seconds, ".3f")]


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/cifar10_fast.py")
    parser.add_argument("--seeds", type=int, default=25, help="runs that are timed")
    parser.add_argument("--steps", type=int, default=0, help="of a run; 0: the config's")
    parser.add_argument("--airbench", default="", metavar="FILE", help="to compare with")
    parser.add_argument("--airbench_python", default=sys.executable, metavar="PYTHON")
    rest, overrides = cli.split_overrides(argv)
    args = parser.parse_args(rest)
    if args.seeds < 1:
        raise InputError(f"--seeds={args.seeds} must be at least 1; try --seeds=25")
    if args.steps:
        overrides["length"] = f"{args.steps} steps"
    config = loading.load(args.config, {"mesh.devices": "1", **overrides})
    runs = made(config, loading.plugins_of(args.config, config), args.seeds)
    seconds = [run.start + run.training + run.scoring for run in runs]
    rows = [
        row("jaxcls, training alone", [r.views for r in runs], [r.training for r in runs]),
        row("jaxcls, airbench's clock", [r.views for r in runs], seconds),
        row("jaxcls, scored as they are", [r.plain for r in runs], seconds),
    ]
    if args.airbench:
        theirs = airbench(args.airbench, args.airbench_python)
        rows.append(row("airbench", *map(list, zip(*theirs, strict=True))))
    header = ("", "runs", "accuracy", "94 % or more", "seconds")
    print(figures.table(header, rows))
    if args.airbench:
        ratio = statistics.mean(t.seconds for t in theirs) / statistics.mean(seconds)
        print(f"airbench takes {ratio:.2f} times as long")
    print(f"{args.config} on {measuring.machine(jax.devices()[0])}")
    return DONE


def made(given: Any, plugins: Plugins, seeds: int) -> list[Run]:
    """The runs of seeds 0, 1, ...; one before them, of the next seed, compiles."""
    # What is scored stays on the device where it is data.eval.
    if given.data.test:
        given.data.eval, given.data.test = given.data.test, ""
    mesh.prefer_same_bits()  # As in a run of `jaxcls train`.
    exp = experiment.build(given, plugins=plugins)
    if not mesh.is_accelerator(exp.mesh):
        print("no accelerator here: the figures only show that the benchmark runs")
    hits = scorer(exp)
    exp = exp.reseeded({"seed": seeds})
    once(exp, hits)
    runs = []
    for seed in range(seeds):
        exp = exp.reseeded({"seed": seed})
        runs.append(once(exp, hits))
        said = f"{runs[-1].views:.4f} in {runs[-1].training:.3f} s of training"
        print(f"seed {seed}: {said}", flush=True)
    return runs


if __name__ == "__main__":
    cli.run(main)
