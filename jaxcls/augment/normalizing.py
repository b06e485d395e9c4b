"""Normalisation on the device: ``images [B, H, W, C] uint8 -> float32``."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp

from jaxcls.errors import InputError

Normalization = Callable[[jax.Array], jax.Array]


def mean_std(mean: Sequence[float], std: Sequence[float]) -> Normalization:
    """Normalises uint8 -> float32: ``(image / 255 - mean) / std``, one of each a channel.

    A single mean and std apply to any number of channels. Raises `ValueError` for lengths
    that differ or a std that is not above 0. The normalisation raises `InputError` for
    images with another number of channels.
    """
    if not mean or len(mean) != len(std) or min(std) <= 0:
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


def per_image() -> Normalization:
    """Returns ``(x - mean) / max(std, 1 / sqrt(N))`` over the N levels of each image.

    This is TensorFlow's per_image_standardization over all channels together. The deviation
    is the population's. An image of one colour becomes 0.
    """

    def apply(images: jax.Array) -> jax.Array:
        levels = images.astype(jnp.float32)
        around = levels - levels.mean((1, 2, 3), keepdims=True)
        # Subtracts the mean again: the least deviation would amplify rounding errors.
        around -= around.mean((1, 2, 3), keepdims=True)
        std = jnp.sqrt(jnp.square(around).mean((1, 2, 3), keepdims=True))
        return around / jnp.maximum(std, 1.0 / math.sqrt(math.prod(images.shape[1:])))

    return apply


NORMALIZATIONS: Mapping[str, Callable[..., Normalization]] = MappingProxyType(
    {
        # The mean and deviation a channel of the training pixels.
        "cifar10": partial(mean_std, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "cifar100": partial(mean_std, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        "imagenet": partial(mean_std, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "mean_std": mean_std,
        "per_image": per_image,
        "symmetric": partial(mean_std, (0.5,), (0.5,)),  # Levels of -1..1.
        "unit": partial(mean_std, (0.0,), (1.0,)),  # Levels of 0..1.
    }
)
