"""A grid of training images exactly as the model sees them, with their labels."""

import pathlib
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxcls import experiment
from jaxcls.data import pictures
from jaxcls.devices import mesh
from jaxcls.errors import InputError

IMAGES = 64


def draw(exp: experiment.Experiment, path: str) -> None:
    """Writes `grid` as a picture; raises `InputError` if `path` cannot be written."""
    if not pathlib.Path(path).suffix:
        raise InputError(f"--show={path} has no suffix; try --show={path}.png")
    picture = Image.fromarray(grid(exp))
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--show={path} cannot be written ({error}); try --show=batch.png"
        ) from None
    print(f"training images as the model sees them: {pathlib.Path(path)}")


def grid(exp: experiment.Experiment) -> np.ndarray:
    """Draws the first training batch, at most 64 images, with captions: uint8 [H, W, 3].

    The images have passed all host ops, augmentation and mixing; their normalisation is
    inverted for display. Every process of a run must call it.
    """
    images, targets = pixels(exp)
    names = exp.selection.class_names
    return pictures.grid(images, [caption(target, names) for target in targets])


def pixels(exp: experiment.Experiment) -> tuple[np.ndarray, np.ndarray]:
    """Returns images [n, H, W, C] in 0..1 and targets [n, K] of the first training batch.

    Both are float32; n is at most 64. Every process of a run must call it.
    """
    batch = next(iter(exp.train_batches()))
    first = jax.jit(
        lambda *arrays: [array[:IMAGES] for array in arrays],
        out_shardings=mesh.replicated(exp.mesh),
    )
    images, targets = map(np.asarray, first(*exp.model_inputs(0, batch)))
    # Normalisation is a scale and a shift of each channel: black and white give both.
    shape = (1, 1, 1, images.shape[3])
    black = np.asarray(exp.recipe.normalize(jnp.zeros(shape, jnp.uint8)))
    white = np.asarray(exp.recipe.normalize(jnp.full(shape, 255, jnp.uint8)))
    if not (white > black).all():  # Use each image's darkest and brightest values.
        black, white = (
            extreme(images, axis=(1, 2, 3), keepdims=True) for extreme in (np.min, np.max)
        )
    seen = (images - black) / np.maximum(white - black, 1e-6)
    return seen.clip(0, 1).astype(np.float32), targets.astype(np.float32)


def caption(target: np.ndarray, class_names: tuple[str, ...]) -> str:
    """Returns ``"cat"``, or ``"0.7 cat 0.3 dog"`` for a mixed image; target [K]."""
    top = np.argsort(-target, kind="stable")[:2].tolist()
    names = [class_names[k] for k in top]
    floor = target.min()  # The share of label smoothing in every class.
    shares = [
        (target[k] - floor) / max(1e-9, target.sum() - floor * len(target)) for k in top
    ]
    if len(top) == 1 or shares[1] < 0.005:
        return textwrap.shorten(names[0], 24)
    return "\n".join(
        f"{share:.2f} {textwrap.shorten(name, 18)}"
        for share, name in zip(shares, names, strict=True)
    )
