"""Predicts the classes of images, for ``jaxcls predict`` and `jaxcls.load`.

Needs the run's folder, but not its dataset. Threads read and decode the images a batch or
two ahead of the device. Predictions are yielded as soon as they are computed.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from PIL import Image

from jaxcls import experiment
from jaxcls.data import batches, clean, decode, files
from jaxcls.data.files import Bad
from jaxcls.devices import mesh

BATCH_SIZE = 64

# (variables, images uint8 [B, H, W, C]) -> probabilities [B, K] and features [B, D].
Outs = tuple[Any, Any]
Step = Callable[[dict[str, Any], jax.Array], Outs]
# A path, an image of Pillow, or pixels as `clean.pixels_of` takes them.
Source: TypeAlias = str | Image.Image | np.ndarray


class Prediction(NamedTuple):
    """The prediction for an image: probabilities [K] and features [D], float32.

    path is "" if the image is no file. embed is empty if no features were requested.
    """

    path: str
    probabilities: np.ndarray
    embed: np.ndarray


def read(exp: experiment.Experiment, image: Source) -> np.ndarray:
    """Returns one image as the model input, uint8 [H, W, C].

    Raises `decode.DecodeError` if it cannot be decoded, an op cannot take it, or it has
    another size.
    """
    shape, (first, *rest) = exp.data.eval_shape, exp.data.eval_ops
    assert isinstance(first, decode.Decode)  # eval_shape requires it.
    if isinstance(image, str):
        pixels = clean.pixels(files.read(image), first)
    else:
        pixels = clean.pixels_of(image, first)
    pixels = batches.transform(rest, pixels, batches.example_rng(0, 0))
    if pixels.shape != shape:
        raise decode.DecodeError(
            f"{pixels.shape[1]}x{pixels.shape[0]} pixels after data.eval_ops, and the"
            f" model takes {shape[1]}x{shape[0]}; give images of that size"
        )
    return pixels


def predict(
    exp: experiment.Experiment,
    weights: dict[str, Any],
    images: Iterable[Source | Bad],
    *,
    batch_size: int = BATCH_SIZE,
    threads: int = 0,
    embed: bool = False,
    step: Step | None = None,
) -> Iterator[Prediction | Bad]:
    """Yields a `Prediction` for each image, in order; for an unreadable one, `Bad`.

    weights: from `scoring.load`. images: taken as needed, some three batches ahead.
    threads: to read and decode; 0 is one a core. embed: whether to compute features. step:
    from `make_step`, for several calls that compile once. Pillow may warn in the threads:
    see `clean.quiet`.
    """
    variables, step = exp.recipe.variables(weights), step or make_step(exp, embed)

    def read_one(image: Source | Bad) -> tuple[str, np.ndarray] | Bad:
        if isinstance(image, Bad):
            return image
        path = image if isinstance(image, str) else ""
        try:
            return path, read(exp, image)
        except ValueError as error:
            return Bad(path, str(error))

    found = batches.in_order(read_one, images, threads, ahead=batch_size)

    def asked() -> Iterator[tuple[list[tuple[str, np.ndarray] | Bad], Outs]]:
        size = 0
        while chunk := list(itertools.islice(found, batch_size)):
            size = size or mesh.round_up(len(chunk), exp.mesh)  # Few files: a small batch.
            pixels = np.zeros((size, *exp.data.eval_shape), np.uint8)
            for row, each in enumerate(chunk):
                if not isinstance(each, Bad):
                    pixels[row] = each[1]
            yield chunk, step(variables, mesh.put(exp.mesh, {"image": pixels})["image"])

    for chunk, outs in mesh.one_behind(asked()):
        answers = zip(chunk, *map(np.asarray, outs), strict=False)
        for each, probabilities, features in answers:
            if isinstance(each, Bad):
                yield each
            else:
                yield Prediction(each[0], probabilities, features)


def width(exp: experiment.Experiment, weights: dict[str, Any]) -> int:
    """Returns the number of features of an image; computes none."""
    image = jax.ShapeDtypeStruct((1, *exp.data.eval_shape), np.uint8)
    made = jax.eval_shape(exp.recipe.embed_step(), exp.recipe.variables(weights), image)
    return int(made.shape[1])


def make_step(exp: experiment.Experiment, embed: bool) -> Step:
    """Returns the step of `predict`; embed: whether it computes features, too.

    XLA computes the layers that both outputs share once.
    """
    likely_of, embed_of = exp.recipe.probabilities_step(), exp.recipe.embed_step()

    def step(variables: dict[str, Any], images: jax.Array) -> Outs:
        likely = likely_of(variables, images)
        return likely, embed_of(variables, images) if embed else likely[:, :0]

    rows, everywhere = mesh.by_example(exp.mesh), mesh.replicated(exp.mesh)
    shardings = exp.programs.variables_sharding, rows
    return exp.programs.jit(step, in_shardings=shardings, out_shardings=everywhere)
