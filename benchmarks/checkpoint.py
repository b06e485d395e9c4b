"""What saving costs a run: ``python -m benchmarks.checkpoint``.

First the real loop on images of noise (see `benchmarks.loop`) with a save every few steps
and without any, in turn, since machines are noisy: the time that a save takes from
training, the writing behind it included. Then a state of random numbers as large as that of
``--state`` with AdamW, saved several times: how long a loop is kept waiting, for the
digests and for the save to begin, against all the time until it is on disk. Of ViT-L:

    python -m benchmarks.checkpoint --state=vit_l_16 --saves=3

While it is written a state is in memory two to three times: ViT-L's 3.4 GiB took 8.6.
"""

import argparse
import math
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import loop, measuring
from jaxcls import experiment
from jaxcls.config import loading
from jaxcls.data import sources
from jaxcls.devices import memory, mesh
from jaxcls.learning.step import State
from jaxcls.runs import checkpoint, saving


def seconds_a_step(exp: loop.Timed, folder: pathlib.Path) -> float:
    """Of a run, up to where the last batch is asked for: the last save waits for itself."""
    loop.train_quietly(exp, folder)
    asked = exp.asked[:-1]
    return (asked[-1] - asked[0]) / (len(asked) - 1)


def measure_loop(args: argparse.Namespace, folder: pathlib.Path) -> None:
    """Print what share of the time of training is lost to saves."""
    loop.prepare(folder, args.batch * args.steps)
    given = {
        "batch_size": args.batch,
        "length": f"{args.steps} steps",
        "model.name": args.model,
        "optim.name": "adamw",
        "log.tensorboard": False,
    }
    with_saves, without = (
        loop.experiment_of(folder, **given, **{"checkpoint.every": f"{every} steps"})
        for every in (args.every, 2 * args.steps)
    )
    saves = (args.steps - 1) // args.every
    seconds_a_step(without, folder / "warm")  # And with it what a save compiles.
    with_saves.programs.compile_train_step()
    shares, costs, pairs = [], [], []
    for segment in range(args.segments):
        base = seconds_a_step(without, folder / f"without{segment}")
        ours = seconds_a_step(with_saves, folder / f"with{segment}")
        shares.append((ours - base) / ours)
        costs.append((ours - base) * (args.steps - 1) / saves)
        pairs.append((base, ours))
        print(f"without saves {1e3 * base:.1f}, with {1e3 * ours:.1f} ms a step")
    base, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    size = memory.tree_bytes(checkpoint.to_tree(with_saves.programs.state_shapes))
    print(
        f"{args.model} batch {args.batch}, state {size / 2**20:.1f} MiB, a save every"
        f" {args.every} steps: {1e3 * base:.1f} and {1e3 * ours:.1f} ms a step; lost to"
        f" saves {measuring.spread(shares, '.3f')} of the time, a save"
        f" {measuring.spread(costs, '.2f')} s"
    )


def random_state(exp: experiment.Experiment) -> State:
    """A state of an experiment's shapes, its floats random: zeros would be compressed."""
    shapes = exp.programs.state_shapes
    sizes = [math.prod(x.shape) for x in jax.tree.leaves(shapes)]
    numbers = np.random.default_rng(0).standard_normal(max(sizes), np.float32)

    def made(like: jax.ShapeDtypeStruct) -> Any:
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            return jax.random.key(0, impl="threefry2x32")
        if not jnp.issubdtype(like.dtype, jnp.floating):
            return np.zeros(like.shape, like.dtype)
        return numbers[: math.prod(like.shape)].reshape(like.shape).astype(like.dtype)

    return jax.device_put(jax.tree.map(made, shapes), mesh.replicated(exp.mesh))


def measure_stall(args: argparse.Namespace, folder: pathlib.Path) -> None:
    """Print how long a save of a large state keeps the loop waiting."""
    values = {
        "batch_size": 8,
        "model.name": args.state,
        "data.name": "imagenet2012",
        "data.train_ops": f"decode | resize({args.size})",
        "data.eval_ops": f"decode | resize({args.size})",
        "optim.name": "adamw",
        "mesh.devices": 1,
    }
    facts = sources.published_facts("imagenet2012")
    exp = experiment.build(loading.from_flat(values), facts)
    state = random_state(exp)
    size = memory.tree_bytes(checkpoint.to_tree(state))
    rows: list[tuple[float, float, float]] = []
    with saving.Checkpoints(folder / "state", keep=1) as saves:
        for step in range(args.saves + 1):  # The first compiles.
            at = jax.device_put(np.int32(step), mesh.replicated(exp.mesh))
            state = state._replace(step=at)
            jax.block_until_ready(state)
            began = time.perf_counter()
            digests = checkpoint.digests(state)
            digested = time.perf_counter()
            saves.save(state, digests)
            begun = time.perf_counter()
            saves.wait()
            rows.append((digested - began, begun - digested, time.perf_counter() - began))
            if checkpoint.steps(folder / "state")[-1:] != [step]:
                raise SystemExit(f"step {step} was not saved: see above")
    rows = rows[1:]
    stalls = [(digest + save) / whole for digest, save, whole in rows]
    rates = [size / 2**30 / whole for *_, whole in rows]
    digest, save, whole = (
        measuring.spread(column, ".2f") for column in zip(*rows, strict=True)
    )
    print(
        f"{args.state} with AdamW, {size / 2**30:.2f} GiB: the loop waits for digests"
        f" {digest} s and for the save to begin {save} s; on disk after {whole} s"
        f" ({measuring.spread(rates, '.2f')} GiB/s); it is blocked for"
        f" {measuring.spread(stalls, '.3f')} of that; peak memory"
        f" {measuring.peak_rss() / 2**30:.1f} GiB"
    )


def main() -> None:
    """Print what saves take from a loop, and how long a large one blocks it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18(stem='small', width=16)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=33, help="of a segment")
    parser.add_argument("--every", type=int, default=8, help="steps from save to save")
    parser.add_argument("--segments", type=int, default=3)
    parser.add_argument("--state", default="vit_ti_16", help="the model of the large state")
    parser.add_argument("--size", type=int, default=224, help="pixels of its images")
    parser.add_argument("--saves", type=int, default=3, help="of the large state; 0: none")
    parser.add_argument("--folder", default=None, help="where to write; removed again")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = pathlib.Path(temporary)
        if args.segments:
            measure_loop(args, folder)
        if args.saves:
            measure_stall(args, folder)
    print(measuring.machine(jax.devices()[0]))


if __name__ == "__main__":
    main()
