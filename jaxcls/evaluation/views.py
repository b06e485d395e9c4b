"""Test-time augmentation: the views of an image over which probabilities are averaged.

``"flip | crops(5)"`` is each of the first's views through each of the second's: with the
mirror images, Krizhevsky et al.'s ten crops (NeurIPS 2012).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcls.config import calls

# images uint8 [B, H, W, C] -> the same images seen another way, of the same shape.
View = Callable[[jax.Array], jax.Array]


def flip() -> list[View]:
    """As it is, and its mirror image."""
    return [lambda images: images, lambda images: images[:, :, ::-1]]


def crops(count: int = 5, share: float = 0.875) -> list[View]:
    """The four corners and the middle (5), or three by three places (9), of each image.

    share: of the height and width that a crop has. It is scaled back to the size of the
    image, bilinear, so that every model takes it.
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
    """``"flip | crops(5)"`` -> ten views; raises `InputError`, naming `key`."""
    views: list[View] = [lambda images: images]
    for more in calls.build(text, VIEWS, key):
        views = [_after(first, then) for first in views for then in more]
    return views


def _after(first: View, then: View) -> View:
    return lambda images: then(first(images))
