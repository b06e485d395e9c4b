"""A training step beside PyTorch's: ``python -m benchmarks.step``.

The step of `experiment.build`, compiled, on one batch that lies on the device: how long it
takes to compile and to run, the arithmetic a second, as a share too of what products of
large matrices reach here in the same dtype (MFU), memory, and what the time goes into.
Where torch and the model's own library are installed, the same model, batch and
precision there, in turns in one process, since machines are noisy; ratios are of
images/s. A step is forward, cross-entropy, backward, and SGD with momentum 0.9 and weight
decay. The arithmetic is three forward passes' multiplications and additions.

On a CPU that does other work, only one core compares fairly, ``taskset -c 0 python -m
benchmarks.step``: of two threads, PyTorch's spin while they wait for one that is kept
from running. At load 15 that doubled its processor time for ResNet-18 at 32 pixels, and
changed nothing of XLA's.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measuring, ops
from benchmarks.flops import multiply_adds
from jaxcls import experiment
from jaxcls.config import calls, loading
from jaxcls.data import sources
from jaxcls.data.batch import Batch
from jaxcls.devices import memory, mesh
from jaxcls.training import profiling

if TYPE_CHECKING:
    from benchmarks.reference import Reference

RATE, DECAY = 0.01, 5e-4
# Steps that are traced, after what is timed.
TRACED = 3


class Measured(NamedTuple):
    """What alternating segments gave: the paces of a step of each side, and of a product.

    product: its multiplications and additions.
    """

    ours: list[measuring.Pace]
    theirs: list[measuring.Pace]
    products: list[measuring.Pace]
    product: float


def built(
    args: argparse.Namespace, more: Mapping[str, Any] | None = None
) -> experiment.Experiment:
    """An experiment of the step that is measured; more: further config values."""
    classes = tuple(f"class{i}" for i in range(args.classes))
    shape = (args.size, args.size, 3)
    splits = {"train": args.batch}
    facts = sources.Facts("synthetic", "1.0.0", shape, len(classes), classes, splits)
    values = {
        "data.name": "synthetic",
        "batch_size": args.batch,
        "length": "1000000 steps",
        "model.name": args.model,
        "model.dtype": args.precision,
        "optim.name": "sgd(momentum=0.9, nesterov=False)",
        "optim.lr": RATE,
        "optim.schedule": "constant",
        "optim.weight_decay": DECAY,
        "optim.decay_on": "",  # Matches all, as PyTorch decays them.
        "mesh.devices": 1,
        **(more or {}),
    }
    return experiment.build(loading.from_flat(values), facts)


def random_batch(args: argparse.Namespace, exp: experiment.Experiment) -> Batch:
    """A batch of noise."""
    rng = np.random.default_rng(0)
    rows = np.arange(args.batch, dtype=np.int32)
    shape = (args.batch, *exp.data.train_shape)
    return Batch(
        image=rng.integers(0, 256, shape).astype(np.uint8),
        label=rng.integers(0, args.classes, args.batch).astype(np.int32),
        index=rows,
        epoch=np.zeros_like(rows),
    )


class Ours:
    """Our side: the compiled step, its state and one batch on the device."""

    def __init__(self, exp: experiment.Experiment, batch: Batch) -> None:
        began = time.perf_counter()
        _ = exp.programs.lowered_train_step
        self.trace_seconds = time.perf_counter() - began
        self.program = exp.programs.compiled_train_step
        self.compile_seconds = time.perf_counter() - began - self.trace_seconds
        self.step = exp.programs.train_step
        self.state = exp.init()
        self.batch = mesh.put(exp.mesh, batch)
        self.parameters = sum(x.size for x in jax.tree.leaves(self.state.params))
        self.steps = 0

    def run(self, steps: int) -> None:
        """So many steps, to their end."""
        for _ in range(steps):
            self.state, scores = self.step(self.state, self.batch)
        self.steps += steps
        jax.block_until_ready((self.state.params, scores))

    def digest(self) -> str:
        """A digest of the params: equal bits, equal digest."""
        digest = hashlib.sha256()
        for array in jax.tree.leaves(self.state.params):
            digest.update(np.asarray(array).tobytes())
        return digest.hexdigest()[:16]

    def profile(self, folder: pathlib.Path) -> ops.Profile | None:
        """What steps that are traced into `folder` went into."""
        with profiling.trace(folder):
            self.run(TRACED)
        return ops.read(folder, self.program.as_text() or "", TRACED)


def flop(exp: experiment.Experiment) -> int:
    """Multiplications and additions of a step: three forward passes'."""
    shapes = exp.programs.state_shapes
    variables = {"params": shapes.params, "batch_stats": shapes.batch_stats}
    image = exp.programs.batch_like.image
    return 3 * 2 * multiply_adds(exp.recipe.logits_step(), variables, image)


def products(precision: str, side: int) -> Callable[[int], None]:
    """Returns what does so many products of matrices of `side` by `side`, compiled."""
    rows, columns = jax.random.normal(jax.random.key(0), (2, side, side), jnp.float32)
    left, right = (x.astype(precision) for x in (rows, columns / np.sqrt(side)))
    product = jax.jit(jnp.matmul)

    def run(count: int) -> None:
        x = left
        for _ in range(count):
            x = product(x, right)
        jax.block_until_ready(x)

    run(1)
    return run


def theirs(args: argparse.Namespace, batch: Batch) -> "Reference | None":
    """PyTorch's side; None, saying why, where there is none."""
    (call,) = calls.parse(args.model, "--model")
    if args.reference == "none":
        return None
    if not importlib.util.find_spec("torch"):
        print("torch is not installed: our side alone")
        return None
    from benchmarks import reference

    try:
        return reference.reference(
            call.name,
            call.kwargs,
            batch.image,
            batch.label,
            classes=args.classes,
            precision=args.precision,
            learning_rate=RATE,
            weight_decay=DECAY,
            how=args.reference,
        )
    except (KeyError, ImportError) as error:
        print(f"no counterpart of {args.model} in PyTorch: {error}")
        return None


def measure(
    args: argparse.Namespace, ours: Ours, other: "Reference | None", is_cpu: bool
) -> Measured:
    """Segments of both sides in turns, with the products between them."""
    side, count = (2048, 2) if is_cpu else (8192, 20)
    product = products(args.precision, side)
    once = measuring.paced(ours.run, 1).clock
    steps = args.steps or max(1, round(args.seconds / once))
    found = Measured([], [], [], 2.0 * side**3)
    for _ in range(args.segments):
        found.products.append(measuring.paced(product, count))
        found.ours.append(measuring.paced(ours.run, steps))
        said = f"ours {args.batch / found.ours[-1].clock:,.1f} images/s"
        if other:
            found.theirs.append(measuring.paced(other.run, steps))
            said += f", PyTorch {args.batch / found.theirs[-1].clock:,.1f} images/s"
        rate = found.product / found.products[-1].clock
        print(f"{said}; products {rate / 1e9:,.1f} GFLOP/s", flush=True)
    return found


def report(
    args: argparse.Namespace,
    arithmetic: int,
    found: Measured,
    other: "Reference | None",
    column: str,
) -> None:
    """Print step times, arithmetic and the ratio, by one column of the paces."""
    ours, theirs, products = (
        [getattr(pace, column) for pace in paces]
        for paces in (found.ours, found.theirs, found.products)
    )
    unit = "s" if column == "clock" else "s of a core"
    peak, middle = found.product / min(products) / 1e9, statistics.median(ours)
    rate = arithmetic / middle / 1e9
    print(
        f"by the {column}: step {measuring.spread(ours)} {unit},"
        f" {args.batch / middle:,.1f} images/{unit}, {rate:,.1f} GFLOP/{unit}:"
        f" {rate / peak:.3f} of the {peak:,.1f} that products in {args.precision} reach"
    )
    if not other:
        return
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    middle = statistics.median(theirs)
    print(
        f"  PyTorch: step {measuring.spread(theirs)} {unit},"
        f" {args.batch / middle:,.1f} images/{unit},"
        f" {arithmetic / middle / 1e9:,.1f} GFLOP/{unit};"
        f" ours / PyTorch {measuring.spread(ratios)}"
    )


def memory_used(ours: Ours, device: jax.Device) -> str:
    """What our step takes of memory, in words; before torch is imported."""
    mebibyte = 2.0**20
    needs = memory.step_bytes(ours.program.memory_analysis()) / mebibyte
    stats = device.memory_stats() or {}
    peak = f"process peak {measuring.peak_rss() / mebibyte:,.0f} MiB, compilation included"
    if "peak_bytes_in_use" in stats:
        peak = f"device peak {stats['peak_bytes_in_use'] / mebibyte:,.0f} MiB"
    return f"memory: the compiled step {needs:,.0f} MiB; {peak}"


def main() -> None:
    """Print what was measured, of both sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18(stem='small')", help="of MODELS")
    parser.add_argument("--size", type=int, default=32, help="pixels, in each direction")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--reference",
        default="auto",
        choices=("auto", "compiled", "eager", "none"),
        help="PyTorch's step; auto: compiled on CUDA, eager on CPU, where compiling takes"
        " minutes",
    )
    parser.add_argument(
        "--steps", type=int, default=0, help="of a segment; 0: by --seconds"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of a segment, about")
    parser.add_argument("--segments", type=int, default=5)
    parser.add_argument("--profile", default="", help="folder for the trace of our steps")
    args = parser.parse_args()
    if (load := measuring.load()) > 0.5:
        print(f"note: the cores have other work (load {load:.1f}); see --help on taskset")
    # Both sides share the device, and JAX would take most of its memory at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    exp = built(args)
    device = exp.mesh.devices.flat[0]
    batch = random_batch(args, exp)
    ours = Ours(exp, batch)
    ours.run(1)
    print(
        f"{args.model}, {ours.parameters:,} parameters, {args.size} pixels, batch"
        f" {args.batch}, {args.precision}: traced in {ours.trace_seconds:.1f} s, compiled"
        f" in {ours.compile_seconds:.1f} s"
    )
    print(memory_used(ours, device), flush=True)
    other = theirs(args, batch)
    if other:
        print(f"{other.label}: first step in {other.first_seconds:.1f} s", flush=True)
        if other.parameters != ours.parameters:
            raise SystemExit(f"it has {other.parameters:,} parameters: another model")
    found = measure(args, ours, other, is_cpu=device.platform == "cpu")
    arithmetic = flop(exp)
    print(f"on {measuring.machine(device)}; a step is {arithmetic / 1e9:,.1f} GFLOP")
    print(f"digest of the params after {ours.steps} steps: {ours.digest()}")
    for column in ("clock", "processor") if device.platform == "cpu" else ("clock",):
        report(args, arithmetic, found, other, column)
    with contextlib.ExitStack() as stack:
        folder = args.profile or stack.enter_context(tempfile.TemporaryDirectory())
        profile = ours.profile(pathlib.Path(folder))
    if profile is None:
        print("the trace names no op of the step")
    elif args.profile:
        print(ops.table(profile), end="")
    else:
        print("\n".join(ops.table(profile).splitlines()[:3]))


if __name__ == "__main__":
    main()
