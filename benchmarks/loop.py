"""The real loop against its own bare step: ``python -m benchmarks.loop``.

Trains a ResNet-18 on 32-pixel images through `train.run` (records from disk, decoding,
augmentation, logging, checkpoints), and in the same process times the same compiled
step on one batch that lies on the device. The images are made here: noise as JPEG, in
ArrayRecord, as many as an epoch of the run needs. Segments of both alternate, since
machines are noisy; the ratio is of medians.

With ``--images=TAR`` (or a folder) it is photographs instead, read again and again:
random resized crops of 224 pixels, such as ``--model=resnet50 --batch=16``.
"""

import argparse
import contextlib
import io
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from benchmarks import input as photographs
from benchmarks import measuring
from jaxcls import experiment
from jaxcls.config import loading
from jaxcls.data.batch import Batch
from jaxcls.learning.step import State
from jaxcls.runs import checkpoint
from jaxcls.training import train

# What differs in a run on photographs.
OF_PHOTOGRAPHS = {
    "data.name": "photographs",
    "data.train_ops": f"decode | random_resized_crop({photographs.SIZE})",
    "data.eval_ops": f"decode | resize_short(256) | center_crop({photographs.SIZE})",
    "augment": "flip",
}


class Noise(tfds.core.GeneratorBasedBuilder):
    """Smooth random 32-pixel images with labels of ten classes."""

    VERSION = tfds.core.Version("1.0.0")
    examples = 0

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Noise.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        rng = np.random.default_rng(0)
        for i in range(self.examples):
            small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            jpeg = io.BytesIO()
            small.resize((32, 32), Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=95)
            yield f"{i:06d}", {"image": jpeg.getvalue(), "label": i % 10}


class Timed(experiment.Experiment):
    """Notes when each batch was asked for; the loop itself is the product's."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.asked: list[float] = []

    def train_batches(self, start: int = 0) -> Iterator[Batch]:
        for batch in super().train_batches(start):
            self.asked.append(time.perf_counter())
            yield batch
        self.asked.append(time.perf_counter())


def bare(exp: experiment.Experiment, state: State, steps: int) -> tuple[float, State]:
    """(seconds a step of the compiled step alone on one resident batch, state)."""
    batch = next(exp.train_batches())
    jax.block_until_ready(batch)
    began = time.perf_counter()
    for _ in range(steps):
        state, scores = exp.programs.train_step(state, batch)
    jax.block_until_ready((state.params, scores))
    return (time.perf_counter() - began) / steps, state


def prepare(folder: pathlib.Path, examples: int) -> None:
    """Prepare `Noise` of so many examples in `folder`."""
    Noise.examples = examples
    builder = Noise(data_dir=str(folder), file_format="array_record")
    tfds.disable_progress_bar()
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        builder.download_and_prepare()


def experiment_of(folder: pathlib.Path, **changes: Any) -> Timed:
    """The experiment of a run on the `Noise` in `folder`; changes: of config keys."""
    values = {
        "data.name": "noise",
        "data.dir": str(folder),
        "data.resident": "off",
        "augment": "random_crop(4) | flip",
        "optim.lr": 0.01,
        "log.every": "5 steps",
        **changes,
    }
    return Timed(loading.from_flat(values), None)


def train_quietly(exp: Timed, folder: pathlib.Path) -> None:
    """`train.run` without what it prints."""
    exp.asked.clear()
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        train.run(exp, str(folder))


def loop(exp: Timed, folder: pathlib.Path) -> float:
    """Seconds a step of `train.run`, saves, records and evaluation of nothing included."""
    train_quietly(exp, folder)
    # From the first batch asked for to the last step done: compilation, which both
    # sides need, and reading the final checkpoint are not the loop.
    return (exp.asked[-1] - exp.asked[0]) / (len(exp.asked) - 1)


def main() -> None:
    """Print the segments, their medians, and loop over bare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18(stem='small')")
    parser.add_argument("--images", default="", help="a tar or a folder of JPEG files")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16, help="of a segment")
    parser.add_argument("--segments", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        given = {"batch_size": args.batch, "length": f"{args.steps} steps"}
        if args.images:
            files = photographs.photographs(args.images)
            photographs.prepare(folder, files, args.batch * args.steps)
            given |= OF_PHOTOGRAPHS
        else:
            prepare(folder, args.batch * args.steps)
        exp = experiment_of(folder, **given, **{"model.name": args.model})
        state = exp.init()
        _, state = bare(exp, state, 2)  # Warm, as is what a save compiles.
        checkpoint.digests(state)
        ratios, rates = [], []
        for segment in range(args.segments):
            seconds, state = bare(exp, state, args.steps)
            ours = loop(exp, folder / f"run{segment}")
            rates.append((args.batch / seconds, args.batch / ours))
            ratios.append(seconds / ours)
            print(f"bare {rates[-1][0]:.1f} images/s, loop {rates[-1][1]:.1f} images/s")
    medians = [statistics.median(column) for column in zip(*rates, strict=True)]
    print(
        f"{args.model} batch {args.batch} on {exp.mesh.size} x"
        f" {measuring.machine(exp.mesh.devices.flat[0])}: bare {medians[0]:.1f}, loop"
        f" {medians[1]:.1f} images/s; loop / bare {measuring.spread(ratios)}"
    )


if __name__ == "__main__":
    main()
