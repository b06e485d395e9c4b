"""The predict command against decoding alone: ``python -m benchmarks.predict``.

A folder of photographs as JPEG files, written here: scikit-learn's two, or those of
--images, each as often as it takes. One side reads and decodes them as evaluation does
(`batches.decoded`, crops of 224 pixels) and stops there; the other is the command, from
the paths to its rows of CSV, with a model so small that decoding is what is measured. Both
have the same threads; on a CPU the model's work and the command's own compete with them.
Segments of both alternate in one process, since machines are noisy; ratios are of medians,
of images/s and of images per second of processor time.
"""

import argparse
import contextlib
import functools
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.input import photographs
from jaxcls import experiment
from jaxcls.commands import predict as printed
from jaxcls.config import loading
from jaxcls.data import batches, sources
from jaxcls.data.batch import Batch
from jaxcls.devices import mesh
from jaxcls.predict import inference

# Images/s, and images per second of processor time.
Pace = tuple[float, float]
OPS = "decode | resize_short(256) | center_crop(224)"


class Files:
    """Image files as `batches.decoded` reads records."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: np.ndarray) -> Iterator[tuple[bytes, int]]:
        for i in indices:
            yield pathlib.Path(self.paths[i]).read_bytes(), 0

    def where(self, index: int) -> str:
        return self.paths[index]


def built(model: str) -> experiment.Experiment:
    """An experiment of ten classes that sees crops of 224 pixels."""
    facts = sources.Facts(
        "photographs", "1.0.0", (None, None, 3), 10, tuple("abcdefghij"), {"train": 1}
    )
    values = {
        "data.name": "photographs",
        "data.train_ops": OPS,
        "data.eval_ops": OPS,
        "model.name": model,
        "mesh.devices": 1,
    }
    return experiment.build(loading.from_flat(values), facts)


def decoding(
    exp: experiment.Experiment, paths: list[str], batch_size: int, threads: int
) -> None:
    """Every file once through the ops of evaluation, into batches."""
    n = len(paths)
    rows = (np.arange(i, min(i + batch_size, n)) for i in range(0, n, batch_size))
    plans = (batches.BatchPlan(indices, Batch(index=indices)) for indices in rows)
    source, ops = Files(paths), exp.data.eval_ops
    for _ in batches.decoded(source, ops, plans, seed=0, threads=threads):
        pass


def predicting(
    weights: dict[str, Any],
    exp: experiment.Experiment,
    paths: list[str],
    batch_size: int,
    threads: int,
) -> None:
    """Every file once from its path to its row, which goes nowhere."""
    found = inference.predict(exp, weights, paths, batch_size=batch_size, threads=threads)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        counts = printed.write("csv", found, exp.selection.class_names, 3)
    assert counts["answered"] == len(paths), counts


def model_alone(
    exp: experiment.Experiment, weights: dict[str, Any], batch_size: int, steps: int = 10
) -> Pace:
    """The pace of the model on one batch that lies on the device."""
    images = np.zeros((batch_size, *exp.data.eval_shape), np.uint8)
    placed = mesh.put(exp.mesh, {"image": images})["image"]
    variables = exp.recipe.variables(weights)
    jax.block_until_ready(exp.programs.probabilities_step(variables, placed))

    def run() -> None:
        for _ in range(steps):
            jax.block_until_ready(exp.programs.probabilities_step(variables, placed))

    return timed(run, batch_size * steps)


def timed(run: Callable[[], None], images: int) -> Pace:
    """The pace of a call that handles so many images."""
    began, used = time.perf_counter(), time.process_time()
    run()
    seconds, used = time.perf_counter() - began, time.process_time() - used
    return images / seconds, images / used


def main() -> None:
    """Print the segments, their medians and spread, and predict over decoding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", default="", help="a tar or a folder of JPEG files")
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--model", default="vit_s_32(patch=112, width=8, depth=1, heads=1)")
    parser.add_argument("--batch", type=int, default=inference.BATCH_SIZE)
    parser.add_argument("--threads", type=int, default=0, help="0: one a core")
    parser.add_argument("--segments", type=int, default=5)
    args = parser.parse_args()
    jpegs, exp = photographs(args.images), built(args.model)
    weights = exp.init()._asdict()
    predicts = functools.partial(predicting, weights)
    sides: dict[str, Callable[..., None]] = {"decoding": decoding, "predict": predicts}
    paces: dict[str, list[Pace]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, f"{i:06d}.jpg") for i in range(args.files)]
        for i, path in enumerate(paths):
            pathlib.Path(path).write_bytes(jpegs[i % len(jpegs)])
        model = model_alone(exp, weights, args.batch)
        for segment in range(args.segments):
            # Which side is first alternates too.
            for name in sorted(sides, reverse=segment % 2 == 1):
                run = functools.partial(sides[name], exp, paths, args.batch, args.threads)
                paces[name].append(timed(run, args.files))
            pair = (f"{name} {paces[name][-1][0]:.0f} images/s" for name in sides)
            print(", ".join(pair))
    kilobytes = statistics.mean(map(len, jpegs)) / 1000
    print(
        f"{args.files} files of {len(jpegs)} photographs, mean {kilobytes:.0f} kB, on"
        f" {args.threads or batches.cores()} threads, batch {args.batch}; {args.model}"
        f" alone {model[0]:.0f} images/s, {model[1]:.0f} per second of a core:"
    )
    report(paces, model[1])


def report(paces: dict[str, list[Pace]], model: float) -> None:
    """The medians, their spread, and predict over decoding.

    model: images per second of processor time of the model alone.
    """
    for name, pairs in paces.items():
        (wall, core), walls = np.median(pairs, 0), [wall for wall, _ in pairs]
        print(
            f"{name} {wall:.0f} images/s ({min(walls):.0f} to {max(walls):.0f}),"
            f" {core:.0f} per second of a core"
        )
    decoding, predict = np.array(paces["decoding"]), np.array(paces["predict"])
    wall, core = np.median(predict, 0) / np.median(decoding, 0)
    elsewhere = 1 / (1 / np.median(predict[:, 1]) - 1 / model) / np.median(decoding[:, 1])
    low, high = min(predict[:, 0] / decoding[:, 0]), max(predict[:, 0] / decoding[:, 0])
    print(
        f"predict / decoding {wall:.3f} (segments {low:.3f} to {high:.3f}), by processor"
        f" time {core:.3f}, and {elsewhere:.3f} without the model's"
    )


if __name__ == "__main__":
    main()
