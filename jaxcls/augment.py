"""On-device augmentation, normalisation and mixing: pure JAX, inside the step.

An augmentation is ``(keys [B], images [B, H, W, C] uint8) -> images``: one key an
example of the *global* batch, so no example's randomness depends on its neighbours or
on how many devices there are.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxcls.errors import InputError

Augmentation = Callable[[jax.Array, jax.Array], jax.Array]
Normalization = Callable[[jax.Array], jax.Array]
Mix = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def row_keys(key: jax.Array, rows: int) -> jax.Array:
    """One key for each row of the global batch, [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))


def chain(augmentations: Sequence[Augmentation]) -> Augmentation:
    """One after the other; the i-th sees each example's key folded with i."""

    def apply(keys: jax.Array, images: jax.Array) -> jax.Array:
        for i, augmentation in enumerate(augmentations):
            own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, i)
            images = augmentation(own, images)
        return images

    return apply


def flip(probability: float = 0.5) -> Augmentation:
    """Left to right, with a probability."""
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability} must be from 0 to 1, such as 0.5")
    share = float(probability)

    def apply(keys: jax.Array, images: jax.Array) -> jax.Array:
        flipped = jax.vmap(lambda key: jax.random.bernoulli(key, share))(keys)
        return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)

    return apply


def random_crop(padding: int, mode: str = "zero") -> Augmentation:
    """Pad every side by `padding` pixels, crop back at a random place.

    `mode`: "zero" (He et al., arXiv:1512.03385, section 4.2) or "reflect".
    """
    if padding < 0 or mode not in ("zero", "reflect"):
        raise ValueError(f"padding={padding}, mode={mode!r}: at least 0; zero or reflect")
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))

    def place(key: jax.Array) -> jax.Array:
        return jax.random.randint(key, (2,), 0, 2 * padding + 1)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        height, width = image.shape[0] - 2 * padding, image.shape[1] - 2 * padding
        start = (corner[0], corner[1], 0)
        return jax.lax.dynamic_slice(image, start, (height, width, image.shape[2]))

    def apply(keys: jax.Array, images: jax.Array) -> jax.Array:
        padded = jnp.pad(images, sides, mode="constant" if mode == "zero" else mode)
        return jax.vmap(cut)(padded, jax.vmap(place)(keys))

    return apply


def mixup(alpha: float = 0.2) -> Mix:
    """Convex mixture with the reversed batch, one Beta(alpha, alpha) weight a batch.

    Zhang et al., arXiv:1710.09412. Reversed, not permuted: a random permutation would
    gather the whole batch on every device.
    """
    if alpha <= 0:
        raise ValueError(f"alpha={alpha} must be above 0")

    def apply(
        key: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        weight = jax.random.beta(key, alpha, alpha)
        images = weight * images + (1.0 - weight) * images[::-1]
        return images, weight * targets + (1.0 - weight) * targets[::-1]

    return apply


def mean_std(mean: Sequence[float], std: Sequence[float]) -> Normalization:
    """uint8 -> float32: ``(image / 255 - mean) / std``, one of each a channel."""
    if len(mean) != len(std) or min(std) <= 0:
        raise ValueError(f"mean={mean}, std={std} must be as long, std above 0")

    def apply(images: jax.Array) -> jax.Array:
        if images.shape[-1] != len(mean) != 1:
            raise InputError(
                f"normalize has {len(mean)} channels and the images have"
                f" {images.shape[-1]}; try 'unit', or decode({len(mean)})"
            )
        center = jnp.asarray(mean, jnp.float32).reshape(1, 1, 1, -1)
        scale = 1.0 / jnp.asarray(std, jnp.float32).reshape(1, 1, 1, -1)
        return (images.astype(jnp.float32) / 255.0 - center) * scale

    return apply


def unit() -> Normalization:
    """0..255 -> 0..1."""
    return mean_std((0.0,), (1.0,))


def symmetric() -> Normalization:
    """0..255 -> -1..1."""
    return mean_std((0.5,), (0.5,))


def imagenet() -> Normalization:
    """ImageNet-1k's mean and deviation a channel, as torchvision states them."""
    return mean_std((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def cifar10() -> Normalization:
    """The mean and deviation of CIFAR-10's training pixels a channel."""
    return mean_std((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {
    "flip": flip,
    "random_crop": random_crop,
}

MIXES: dict[str, Callable[..., Mix]] = {
    "mixup": mixup,
}

NORMALIZATIONS: dict[str, Callable[..., Normalization]] = {
    "cifar10": cifar10,
    "imagenet": imagenet,
    "mean_std": mean_std,
    "symmetric": symmetric,
    "unit": unit,
}
