"""Predicts the classes of image files, for ``jaxcls predict``.

Needs the run's folder, but not its dataset. Threads read and decode the files a batch or
two ahead of the device. Predictions are yielded as soon as they are computed.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcls import experiment
from jaxcls.data import batches, clean, decode, files
from jaxcls.data.files import Bad
from jaxcls.devices import mesh

BATCH_SIZE = 64

# (variables, images uint8 [B, H, W, C]) -> probabilities [B, K] and features [B, D].
Outs = tuple[Any, Any]
Step = Callable[[dict[str, Any], jax.Array], Outs]


class Prediction(NamedTuple):
    """The prediction for a file: probabilities [K] and features [D], float32.

    embed is empty if no features were requested.
    """

    path: str
    probabilities: np.ndarray
    embed: np.ndarray


def read(exp: experiment.Experiment, path: str) -> np.ndarray:
    """Returns one file as the model input, uint8 [H, W, C].

    Raises `decode.DecodeError` if it cannot be decoded or has another size.
    """
    shape, (first, *rest) = exp.data.eval_shape, exp.data.eval_ops
    assert isinstance(first, decode.Decode)  # eval_shape requires it.
    pixels, rng = clean.pixels(files.read(path), first), batches.example_rng(0, 0)
    for op in rest:
        pixels = op(pixels, rng)
    if pixels.shape != shape:
        raise decode.DecodeError(
            f"{pixels.shape[1]}x{pixels.shape[0]} pixels after data.eval_ops, and the"
            f" model takes {shape[1]}x{shape[0]}"
        )
    return pixels


def predict(
    exp: experiment.Experiment,
    weights: dict[str, Any],
    paths: Iterable[str | Bad],
    *,
    batch_size: int = BATCH_SIZE,
    threads: int = 0,
    embed: bool = False,
) -> Iterator[Prediction | Bad]:
    """Yields a `Prediction` for each path, in order; for an unreadable file, `Bad`.

    weights: from `scoring.load`. paths: taken as needed, some three batches ahead. threads:
    to read and decode; 0 is one a core. embed: whether to compute features. Pillow may warn
    in the threads: see `clean.quiet`.
    """
    variables, step = exp.recipe.variables(weights), _step(exp, embed)

    def read_one(path: str | Bad) -> tuple[str, np.ndarray] | Bad:
        if isinstance(path, Bad):
            return path
        try:
            return path, read(exp, path)
        except ValueError as error:
            return Bad(path, str(error))

    found = batches.in_order(read_one, paths, threads, ahead=batch_size)

    def asked() -> Iterator[tuple[list[tuple[str, np.ndarray] | Bad], Outs]]:
        size = 0
        while chunk := list(itertools.islice(found, batch_size)):
            size = size or mesh.round_up(len(chunk), exp.mesh)  # Few files: a small batch.
            images = np.zeros((size, *exp.data.eval_shape), np.uint8)
            for row, each in enumerate(chunk):
                if not isinstance(each, Bad):
                    images[row] = each[1]
            yield chunk, step(variables, mesh.put(exp.mesh, {"image": images})["image"])

    for chunk, outs in mesh.one_behind(asked()):
        answers = zip(chunk, *map(np.asarray, outs), strict=False)
        for each, probabilities, features in answers:
            if isinstance(each, Bad):
                yield each
            else:
                yield Prediction(each[0], probabilities, features)


def _step(exp: experiment.Experiment, embed: bool) -> Step:
    """Returns a step with both outputs; XLA computes their shared layers once."""

    likely_of, embed_of = exp.recipe.probabilities_step(), exp.recipe.embed_step()

    def step(variables: dict[str, Any], images: jax.Array) -> Outs:
        likely = likely_of(variables, images)
        return likely, embed_of(variables, images) if embed else likely[:, :0]

    rows, everywhere = mesh.by_example(exp.mesh), mesh.replicated(exp.mesh)
    shardings = exp.programs.variables_sharding, rows
    return exp.programs.jit(step, in_shardings=shardings, out_shardings=everywhere)
