"""White-box attacks: images changed by at most epsilon, to raise an evaluation's loss.

Images have floating-point levels 0..255, before normalisation. Attacked images are not
rounded to whole levels. epsilon is the L-infinity bound, in levels of 255.

Python runs the steps of an attack one after the other. The same steps in a loop of XLA took
six times as long (a small CNN on CPU), with the same bits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.config import calls
from jaxcls.data.batch import Batch
from jaxcls.errors import InputError

# Seeds the random starts: equal for every run, so that runs are comparable.
SEED = 0

# logits [B, K], labels [B] -> losses [B] and hits, bool [B].
Judge = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Met(NamedTuple):
    """Images [B, H, W, C], losses [B], and hits, bool [B]: whether the class is correct."""

    images: jax.Array
    losses: jax.Array
    hits: jax.Array


class Path(NamedTuple):
    """The state of an attack on a batch; images are float32 of 0..255.

    noise: the random start of each example, in -1..1. worst: the worst image so far of each
    example.
    """

    images: jax.Array
    labels: jax.Array
    noise: jax.Array
    current: jax.Array
    worst: Met


class Moves(NamedTuple):
    """The two moves of an attack: see `make_advance` and `scatter`."""

    advance: Callable[[Path, np.float32, np.float32], Path]
    scatter: Callable[[Path, np.float32], Path]


class Attack(NamedTuple):
    """An attack. kind: "fgsm" or "pgd". name: the kind with every option.

    make: (moves, a path at its start) -> images [B, H, W, C] float32.
    """

    kind: str
    epsilon: float
    name: str
    make: Callable[[Moves, Path], jax.Array]


def fgsm(epsilon: float) -> Attack:
    """Steps once along the gradient's sign (Goodfellow et al., arXiv:1412.6572).

    The step is of epsilon levels.
    """
    limit = _levels(epsilon, "epsilon")

    def make(moves: Moves, path: Path) -> jax.Array:
        return moves.advance(path, limit, limit).current

    return Attack("fgsm", epsilon, f"fgsm({epsilon:g})", make)


def pgd(epsilon: float, steps: int = 10, step_size: float | None = None) -> Attack:
    """Steps along the gradient's sign from a random start (Madry et al., arXiv:1706.06083).

    Each step is projected into the epsilon ball. The attack also tries the image itself and
    `fgsm`'s image, and keeps the worst image of each example: a misclassified image before
    a correct one, then the larger loss. So it is never weaker than `fgsm`. step_size: in
    levels; None is 2.5 epsilon / steps.
    """
    limit = _levels(epsilon, "epsilon")
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1, such as 10")
    chosen = 2.5 * epsilon / steps if step_size is None else step_size
    size = _levels(chosen, "step_size")

    def make(moves: Moves, path: Path) -> jax.Array:
        path = moves.advance(path, limit, limit)
        path = moves.scatter(moves.advance(path, size, limit), limit)
        for _ in range(steps):
            path = moves.advance(path, size, limit)
        return moves.advance(path, size, limit).worst.images

    name = f"pgd({epsilon:g}, steps={steps}, step_size={chosen:g})"
    return Attack("pgd", epsilon, name, make)


ATTACKS: dict[str, Callable[..., Attack]] = {"fgsm": fgsm, "pgd": pgd}


def named(text: str, key: str) -> list[Attack]:
    """Parses ``"fgsm(2) | pgd(2)"`` into attacks.

    Raises `InputError`, which names `key`, for an unknown or repeated attack.
    """
    made = calls.build(text, ATTACKS, key)
    called = [each.name for each in made]
    twice = next((name for name in called if called.count(name) > 1), "")
    if twice:
        raise InputError(f"{key}={text!r} has {twice} twice; name it once")
    return made


def begin(batch: Batch) -> Path:
    """Returns the path of a batch at its start; needs image, label and index.

    The noise of an example depends only on its index.
    """
    images = batch.image.astype(jnp.float32)
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys = fold(jax.random.key(SEED), batch.index)
    noise = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], minval=-1.0))
    none = jnp.full(len(images), -jnp.inf), jnp.ones(len(images), bool)
    return Path(images, batch.label, noise(keys), images, Met(images, *none))


def scatter(path: Path, epsilon: jax.Array) -> Path:
    """Moves to a random place within epsilon of the images."""
    return path._replace(current=jnp.clip(path.images + epsilon * path.noise, 0.0, 255.0))


def make_advance(
    predict: Callable[[Any, jax.Array], jax.Array], judge: Judge
) -> Callable[[Any, Path, jax.Array, jax.Array], Path]:
    """Returns advance(variables, path, size, epsilon): scores the images and makes a step.

    predict: (variables, images of 0..255) -> logits [B, K]. judge: -> losses and hits. The
    step goes `size` levels up along the gradient's sign. The result is clipped to within
    epsilon of the images, and to 0..255.
    """

    def advance(variables: Any, path: Path, size: jax.Array, epsilon: jax.Array) -> Path:
        def total(images: jax.Array) -> tuple[jax.Array, Met]:
            found = judge(predict(variables, images), path.labels)
            return found[0].sum(), Met(images, *found)

        gradient, met = jax.grad(total, has_aux=True)(path.current)
        moved = path.current + size * jnp.sign(gradient)
        moved = jnp.clip(moved, path.images - epsilon, path.images + epsilon)
        return path._replace(
            current=jnp.clip(moved, 0.0, 255.0), worst=_worse(path.worst, met)
        )

    return advance


def _worse(a: Met, b: Met) -> Met:
    """Returns the worse of two images: misclassified, then by the larger loss."""
    is_b = jnp.where(a.hits == b.hits, b.losses > a.losses, a.hits)
    return Met(
        jnp.where(is_b[:, None, None, None], b.images, a.images),
        jnp.where(is_b, b.losses, a.losses),
        jnp.where(is_b, b.hits, a.hits),
    )


def _levels(value: float, name: str) -> np.float32:
    if not 0 < value <= 255:
        raise ValueError(f"{name}={value} must be above 0 and at most 255, such as 2")
    return np.float32(value)
