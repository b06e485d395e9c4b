"""Image files -> classes. ``jaxcls predict`` prints them.

Needs the run's folder only, not the dataset. Files are read and decoded on threads, a
batch or two ahead of the device, and answers are written as they come.
"""

import functools
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
    """What the model says of a file: probabilities [K] and features [D], float32.

    embed has no features where they were not asked for.
    """

    path: str
    probabilities: np.ndarray
    embed: np.ndarray


def read(exp: experiment.Experiment, path: str) -> np.ndarray:
    """One file as the model sees it, uint8 [H, W, C]; raises `decode.DecodeError`."""
    shape, (first, *rest) = exp.data.eval_shape, exp.data.eval_ops
    assert isinstance(first, decode.Decode)  # Else there were no eval_shape.
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
    """An answer for each path, in their order; for a bad file, why there is none.

    weights: as `evaluate.load` gives them. paths: taken as they are needed, some three
    batches ahead. threads: that read and decode; 0 is one a core. embed: whether
    features are wanted. Pillow may warn meanwhile: see `clean.quiet`.
    """
    variables, step = exp.recipe.variables(weights), _step(exp, embed)
    one = functools.partial(_read_or_bad, exp)
    found = batches.in_order(one, paths, threads, ahead=batch_size)

    def asked() -> Iterator[tuple[list[str | Bad], Outs]]:
        size = 0
        while chunk := list(itertools.islice(found, batch_size)):
            size = size or mesh.round_up(len(chunk), exp.mesh)  # Few files: a small batch.
            images = np.zeros((size, *exp.data.eval_shape), np.uint8)
            items: list[str | Bad] = []
            for row, each in enumerate(chunk):
                if isinstance(each, Bad):
                    items.append(each)
                else:
                    path, images[row] = each
                    items.append(path)
            yield items, step(variables, mesh.put(exp.mesh, {"image": images})["image"])

    for items, outs in mesh.one_behind(asked()):
        yield from _answers(items, outs)


def _read_or_bad(
    exp: experiment.Experiment, path: str | Bad
) -> tuple[str, np.ndarray] | Bad:
    if isinstance(path, Bad):
        return path
    try:
        return path, read(exp, path)
    except ValueError as error:
        return Bad(path, str(error))


def _step(exp: experiment.Experiment, embed: bool) -> Step:
    """Both outputs of one pass: XLA computes what they share once."""
    if not embed:
        return lambda variables, images: (
            exp.programs.probabilities_step(variables, images),
            np.empty((len(images), 0), np.float32),
        )
    return jax.jit(
        lambda variables, images: (
            exp.programs.probabilities_step(variables, images),
            exp.programs.embed_step(variables, images),
        )
    )


def _answers(items: list[str | Bad], outs: Outs) -> Iterator[Prediction | Bad]:
    probabilities, embed = map(np.asarray, outs)
    for row, item in enumerate(items):
        if isinstance(item, Bad):
            yield item
        else:
            yield Prediction(item, probabilities[row], embed[row])


def width(exp: experiment.Experiment, weights: dict[str, Any]) -> int:
    """How many features an image has."""
    like = jax.ShapeDtypeStruct((exp.mesh.size, *exp.data.eval_shape), np.uint8)
    return int(
        jax.eval_shape(exp.programs.embed_step, exp.recipe.variables(weights), like).shape[
            1
        ]
    )
