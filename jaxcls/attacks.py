"""Images that are changed so as to be mistaken, each level by at most epsilon.

White-box attacks on the loss of an evaluation. They are on floating-point levels 0..255
as a model gets them, before normalisation, and what comes out is not rounded to whole
levels: epsilon is in levels of 255, and the largest change of any (L-infinity).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Of the random starts: the same for every run, so that runs can be compared.
SEED = 0

# Images float32 [B, H, W, C] of 0..255 -> losses [B], and whether each is right, bool [B].
Objective = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
# logits [B, K], labels [B] -> the same.
Judge = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Attack(NamedTuple):
    """kind: "fgsm" or "pgd"; name: that with every option.

    make: (objective, a key for each example [B], images) -> images of the same shape.
    """

    kind: str
    epsilon: float
    name: str
    make: Callable[[Objective, jax.Array, jax.Array], jax.Array]


def fgsm(epsilon: float) -> Attack:
    """A step of epsilon along the gradient's sign (Goodfellow et al., arXiv:1412.6572)."""
    _check(epsilon)

    def make(objective: Objective, keys: jax.Array, images: jax.Array) -> jax.Array:
        _, gradient = _seen(objective, images)
        return _moved(images, gradient, images, epsilon, epsilon)

    return Attack("fgsm", epsilon, f"fgsm({epsilon:g})", make)


def pgd(epsilon: float, steps: int = 10, step_size: float | None = None) -> Attack:
    """Steps along the gradient's sign from a random start (Madry et al., arXiv:1706.06083).

    Each is followed by the projection into epsilon. Of all that it meets, the image itself
    and `fgsm`'s included, it keeps for each example what is mistaken, and of those, or
    where none is, what has the largest loss: so it is never weaker than `fgsm`.
    step_size: in levels; 2.5 epsilon / steps where None.
    """
    _check(epsilon)
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1, such as 10")
    size = 2.5 * epsilon / steps if step_size is None else step_size
    if not 0 < size <= 255:
        raise ValueError(f"step_size={size} must be above 0 and at most 255, such as 0.5")

    def make(objective: Objective, keys: jax.Array, images: jax.Array) -> jax.Array:
        def noise(key: jax.Array) -> jax.Array:
            return jax.random.uniform(
                key, images.shape[1:], minval=-epsilon, maxval=epsilon
            )

        def step(_: Any, carry: tuple[jax.Array, _Met]) -> tuple[jax.Array, _Met]:
            current, worst = carry
            met, gradient = _seen(objective, current)
            moved = _moved(current, gradient, images, size, epsilon)
            return moved, _worse(worst, met)

        def last(worst: _Met, images: jax.Array) -> _Met:
            return _worse(worst, _Met(images, *objective(images)))

        itself, gradient = _seen(objective, images)
        worst = last(itself, _moved(images, gradient, images, epsilon, epsilon))
        start = jnp.clip(images + jax.vmap(noise)(keys), 0.0, 255.0)
        end, worst = jax.lax.fori_loop(0, steps, step, (start, worst))
        return last(worst, end).images

    return Attack(
        "pgd", epsilon, f"pgd({epsilon:g}, steps={steps}, step_size={size:g})", make
    )


ATTACKS: dict[str, Callable[..., Attack]] = {"fgsm": fgsm, "pgd": pgd}


def make_attacked_step(
    predict: Callable[[Any, jax.Array], jax.Array], judge: Judge, attack: Attack
) -> Callable[[Any, Mapping[str, jax.Array]], jax.Array]:
    """Returns step(variables, batch) -> logits [B, K] of the images that an attack makes.

    predict: (variables, images of 0..255) -> logits [B, K]. batch: image uint8
    [B, H, W, C]; label and index int32 [B]. An example's random start is by its index.
    """

    def step(variables: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
        keys = fold(jax.random.key(SEED), batch["index"])

        def objective(images: jax.Array) -> tuple[jax.Array, jax.Array]:
            return judge(predict(variables, images), batch["label"])

        images = batch["image"].astype(jnp.float32)
        return predict(variables, attack.make(objective, keys, images))

    return step


class _Met(NamedTuple):
    """Images on the way, their losses [B], and whether each is right [B]."""

    images: jax.Array
    losses: jax.Array
    hits: jax.Array


def _worse(a: _Met, b: _Met) -> _Met:
    """Of each example the worse of two: mistaken before right, then the larger loss."""
    is_b = jnp.where(a.hits == b.hits, b.losses > a.losses, a.hits)
    return _Met(
        jnp.where(is_b[:, None, None, None], b.images, a.images),
        jnp.where(is_b, b.losses, a.losses),
        jnp.where(is_b, b.hits, a.hits),
    )


def _seen(objective: Objective, images: jax.Array) -> tuple[_Met, jax.Array]:
    """What is found of images, and the gradient of their losses."""

    def total(images: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        losses, hits = objective(images)
        return losses.sum(), (losses, hits)

    gradient, (losses, hits) = jax.grad(total, has_aux=True)(images)
    return _Met(images, losses, hits), gradient


def _moved(
    current: jax.Array,
    gradient: jax.Array,
    images: jax.Array,
    size: float,
    epsilon: float,
) -> jax.Array:
    """One step up from `current`, at most epsilon from `images`, within 0..255."""
    moved = current + size * jnp.sign(gradient)
    moved = jnp.clip(moved, images - epsilon, images + epsilon)
    return jnp.clip(moved, 0.0, 255.0)


def _check(epsilon: float) -> None:
    if not 0 < epsilon <= 255:
        raise ValueError(
            f"epsilon={epsilon} must be above 0 and at most 255 levels, such as 2"
        )
