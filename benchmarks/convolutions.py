"""The faster library of convolutions on a CPU: ``python -m benchmarks.convolutions``.

A train step of each model under both values of `compile.convolution`, in turns in one
process, after one that is not timed. A ratio above 1 is how many times as fast eigen is.
"""

import argparse
import statistics

import jax

from benchmarks import measuring, step
from jaxcls.runs import provenance

# Model, pixels and batch.
MODELS = (
    ("resnet18(stem='small')", 32, 64),
    ("wrn16_4", 32, 64),
    ("cnn", 32, 64),
    ("resnet50", 224, 8),
)


def ratios(args: argparse.Namespace, segments: int) -> list[float]:
    """Returns the seconds of a step with ynnpack over those with eigen, of each turn."""
    sides = []
    for library in ("eigen", "ynnpack"):
        exp = step.built(args, {"compile.convolution": library})
        sides.append(step.Ours(exp, step.random_batch(args, exp)))
        sides[-1].run(1)
    found = []
    for _ in range(segments):
        eigen, ynnpack = (measuring.paced(side.run, args.steps).clock for side in sides)
        found.append(ynnpack / eigen)
    return found


def main() -> None:
    """Prints a ratio a model, and what it was measured on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of a segment")
    parser.add_argument("--model", default="", help="of MODELS, in place of the list")
    parser.add_argument("--size", type=int, default=32, help="pixels of --model")
    parser.add_argument("--batch", type=int, default=64, help="of --model")
    given = parser.parse_args()
    chosen = [(given.model, given.size, given.batch)] if given.model else MODELS
    vector = provenance.cpu()["instructions"]
    widest = next((name for name in ("avx512f", "avx2") if name in vector), "no AVX2")
    print(f"on {measuring.machine(jax.devices()[0])}, {widest}")
    for model, size, batch in chosen:
        args = argparse.Namespace(
            model=model, size=size, batch=batch, classes=10, precision="float32"
        )
        args.steps = given.steps
        found = ratios(args, given.segments)
        text = f"{statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})"
        print(f"{model}, {size} pixels, batch {batch}: eigen / ynnpack {text}", flush=True)


if __name__ == "__main__":
    main()
