"""What an augmentation adds to a train step: ``python -m benchmarks.augment``.

Times three compiled functions in one process, in turns, since machines are noisy: the
augmentation and normalisation alone, the model's loss and gradient alone on images that
are ready, and both as one. Images are random; weights as they start. A last line says
how much arithmetic both sides are, which no machine changes.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measuring
from benchmarks.flops import multiply_adds
from jaxcls.augment import AUGMENTATIONS, NORMALIZATIONS, Rows, chain, row_keys
from jaxcls.config import calls
from jaxcls.models import MODELS

CLASSES = 1000
Gradient = Callable[[Any, jax.Array, jax.Array], Any]


def gradient_of(model: Any) -> Gradient:
    """gradient(variables, images float32, labels) -> (loss, gradient of the params)."""

    def loss(params: Any, rest: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        output, _ = model.apply(
            {"params": params, **rest},
            images,
            True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        chosen = jax.nn.log_softmax(output.logits)
        return -jnp.take_along_axis(chosen, labels[:, None], axis=1).mean()

    def gradient(variables: Any, images: jax.Array, labels: jax.Array) -> Any:
        rest = {name: tree for name, tree in variables.items() if name != "params"}
        return jax.value_and_grad(loss)(variables["params"], rest, images, labels)

    return gradient


def seconds(function: Callable[..., Any], *arguments: Any, steps: int) -> float:
    """Seconds a call, of `steps` calls one after the other."""
    began = time.perf_counter()
    for _ in range(steps):
        done = function(*arguments)
    jax.block_until_ready(done)
    return (time.perf_counter() - began) / steps


def rows_of(count: int) -> Rows:
    """The rows of one batch."""
    key, zeros = jax.random.key(0), jnp.zeros(count, jnp.int32)
    return Rows(row_keys(key, count), key, jnp.arange(count), zeros, jnp.float32(0.5))


def main() -> None:
    """Print the segments, their medians, and the cost of the augmentation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--augment", default="randaugment(2, 10)")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1, help="of a segment")
    parser.add_argument("--segments", type=int, default=5)
    parser.add_argument("--dtype", default="float32", help="of the model")
    args = parser.parse_args()
    augment = chain(calls.build(args.augment, AUGMENTATIONS, "augment"))
    normalize = NORMALIZATIONS["imagenet"]()
    dtype = jnp.dtype(args.dtype)
    model = calls.build_one(args.model, MODELS, "model", num_classes=CLASSES, dtype=dtype)
    shape = (args.batch_size, args.size, args.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    pixels, labels = jnp.asarray(images), jnp.arange(args.batch_size) % CLASSES
    rows, gradient = rows_of(args.batch_size), gradient_of(model)
    ready = normalize(pixels)
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, False))(ready[:1])

    alone = jax.jit(lambda rows, pixels: normalize(augment(rows, pixels)))
    without = jax.jit(lambda v, x, y: gradient(v, normalize(x), y))
    both = jax.jit(lambda v, rows, x, y: gradient(v, normalize(augment(rows, x)), y))
    jax.block_until_ready((alone(rows, pixels), without(variables, pixels, labels)))
    jax.block_until_ready(both(variables, rows, pixels, labels))
    timed = []
    for _ in range(args.segments):
        timed.append(
            (
                seconds(alone, rows, pixels, steps=args.steps),
                seconds(without, variables, pixels, labels, steps=args.steps),
                seconds(both, variables, rows, pixels, labels, steps=args.steps),
            )
        )
        rates = [args.batch_size / each for each in timed[-1]]
        print("augment {:.1f}, step {:.1f}, both {:.1f} images/s".format(*rates))
    report(args, timed)
    forward = multiply_adds(lambda x: model.apply(variables, x, False), ready[:1])
    one = multiply_adds(augment, rows_of(1), pixels[:1])
    print(
        f"products of an image: augmentation {2e-9 * one:.3f} GFLOP, step"
        f" {6e-9 * forward:.1f} GFLOP (three forward passes): {one / (3 * forward):.4f}"
    )


def report(args: argparse.Namespace, timed: list[tuple[float, float, float]]) -> None:
    """Print medians of the segments, and the shares with their spread."""
    medians = [1e3 * statistics.median(each) for each in zip(*timed, strict=True)]
    shares = [alone / step for alone, step, _ in timed]
    added = [both / step - 1 for _, step, both in timed]
    print(
        f"{args.augment} for {args.model} at {args.size}, batch {args.batch_size} on"
        f" {measuring.machine(jax.devices()[0])}: augmentation {medians[0]:.1f} ms, step"
        f" {medians[1]:.1f} ms, both {medians[2]:.1f} ms; alone it is"
        f" {measuring.spread(shares)} of a step, together it adds"
        f" {measuring.spread(added, '+.3f')}"
    )


if __name__ == "__main__":
    main()
