"""A grid of training images exactly as the model sees them, with their labels."""

import pathlib
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxcls import atomic
from jaxcls.config.loading import flat, from_flat
from jaxcls.data import pictures, told
from jaxcls.devices import mesh
from jaxcls.errors import InputError
from jaxcls.experiment import Experiment, recipe
from jaxcls.experiment.recipe import Recipe

IMAGES = 64


def draw(exp: Experiment, path: str) -> None:
    """Writes `grid` as a picture; raises `InputError` if `path` cannot be written."""
    file = pathlib.Path(path)
    if not file.suffix:
        raise InputError(f"--show={path} has no suffix; try --show={path}.png")
    form = Image.registered_extensions().get(file.suffix.lower(), "")
    if form not in Image.SAVE:
        raise InputError(
            f"--show={path} cannot be written (unknown suffix {file.suffix}); try"
            " --show=batch.png"
        )
    picture = Image.fromarray(grid(exp))
    with atomic.writing(file, "wb", "try --show=batch.png") as out:
        picture.save(out, form)
    print(f"training images as the model sees them: {file}")
    print(f"eval images: {told.preprocessing(exp.config)}")


def grid(exp: Experiment) -> np.ndarray:
    """Draws the first training batch, at most 64 images, with captions: uint8 [H, W, 3].

    The images have passed all host ops, augmentation and mixing; their normalisation is
    left out. Every process of a run must call it.
    """
    images, targets = pixels(exp)
    names = exp.selection.class_names
    return pictures.grid(images, [caption(target, names) for target in targets])


def pixels(exp: Experiment) -> tuple[np.ndarray, np.ndarray]:
    """Returns images [n, H, W, C] in 0..1 and targets [n, K] of the first training batch.

    Both are float32; n is at most 64. Every process of a run must call it.
    """
    # The targets and images of the train step, which `unit` leaves in 0..1.
    config = from_flat({**flat(exp.config), "normalize": "unit"})
    inputs = Recipe(config, exp.data, exp.plugins).inputs
    key = recipe.keys(config)[1]["augment"]
    drawn = jax.jit(
        lambda batch: [array[:IMAGES] for array in inputs(key, jnp.int32(0), batch)],
        out_shardings=mesh.replicated(exp.mesh),
    )
    images, targets = map(np.asarray, drawn(next(exp.train_batches())))
    return images.clip(0, 1), targets


def caption(target: np.ndarray, class_names: tuple[str, ...]) -> str:
    """Returns ``"cat"``, or ``"0.7 cat 0.3 dog"`` for a mixed image; target [K]."""
    above = target - target.min()  # Without the share of label smoothing in every class.
    shares = above / max(1e-9, above.sum())
    top = np.argsort(-shares, kind="stable")[:2].tolist()
    if shares[top[-1]] < 0.005 or len(top) == 1:
        return textwrap.shorten(class_names[top[0]], 24)
    return "\n".join(f"{shares[k]:.2f} {textwrap.shorten(class_names[k], 18)}" for k in top)
