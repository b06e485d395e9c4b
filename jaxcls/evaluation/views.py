"""The views of an image over which test-time augmentation averages probabilities.

``"flip | crops(5)"`` combines each view of flip with each view of crops. With mirror
images, these are the ten crops of Krizhevsky et al. (NeurIPS 2012).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcls.config import calls

# images uint8 [B, H, W, C] -> another view of them, of the same shape.
View = Callable[[jax.Array], jax.Array]


def flip() -> list[View]:
    """Views the image as it is, and its mirror image."""
    return [lambda images: images, lambda images: images[:, :, ::-1]]


def crops(count: int = 5, share: float = 0.875) -> list[View]:
    """Views the four corners and the centre (5) of an image, or a 3x3 grid of crops (9).

    share: the crop's fraction of the height and of the width. Each crop is scaled back,
    bilinear, to the size of the image, so every model takes it.
    """
    if count not in (5, 9):
        raise ValueError(f"count={count} must be 5 or 9")
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must be above 0 and at most 1, such as 0.875")
    places = [(y, x) for y in (0.0, 0.5, 1.0) for x in (0.0, 0.5, 1.0)]
    if count == 5:
        places = [(y, x) for y, x in places if (y == 0.5) == (x == 0.5)]

    def at(y: float, x: float) -> View:
        def view(images: jax.Array) -> jax.Array:
            _, height, width, _ = images.shape
            h, w = max(1, round(height * share)), max(1, round(width * share))
            top, left = round((height - h) * y), round((width - w) * x)
            cut = images[:, top : top + h, left : left + w].astype(jnp.float32)
            scaled = jax.image.resize(cut, images.shape, "bilinear")
            return jnp.clip(jnp.round(scaled), 0, 255).astype(jnp.uint8)

        return view

    return [at(y, x) for y, x in places]


VIEWS: dict[str, Callable[..., list[View]]] = {"flip": flip, "crops": crops}


def build(text: str, key: str) -> list[View]:
    """Parses ``"flip | crops(5)"`` into ten views.

    Raises `InputError`, which names `key`, for an unknown view or option.
    """
    views: list[View] = [lambda images: images]
    for more in calls.build(text, VIEWS, key):
        views = [_after(first, then) for first in views for then in more]
    return views


def _after(first: View, then: View) -> View:
    return lambda images: then(first(images))
