"""Mixing of each example with another of the batch, after augmentation and normalisation.

A mix is ``(key, share, images [B, H, W, C] float32, targets [B, K]) -> (images, targets)``;
`share` [] float32 is how much of the run is done. The partner is the reversed batch: a
random permutation would gather the whole batch on every device. One weight and one box a
batch, as timm's and torchvision's do.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcls.augment.checks import check_alpha, check_share
from jaxcls.augment.crops import box
from jaxcls.augment.rows import Amount, at

Mix = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def mixup(alpha: Amount = 0.2, probability: float = 1.0, until: float = 1.0) -> Mix:
    """``weight * own + (1 - weight) * partner``, the weight of Beta(alpha, alpha).

    Zhang et al., arXiv:1710.09412. The alpha of a pair goes linearly from its first to its
    second over the run; where it is 0, nothing is mixed. probability: of a batch to be
    mixed. until: the share of the run after which none is.
    """
    check_alpha("alpha", alpha)
    return _mix(alpha, 0.0, 0.0, probability, until)


def cutmix(alpha: Amount = 1.0, probability: float = 1.0, until: float = 1.0) -> Mix:
    """A box of the partner pasted over each image, targets by the area that it covers.

    Yun et al., arXiv:1905.04899: a weight of Beta(alpha, alpha), a box of the image's shape
    and of ``1 - weight`` of its area, centred anywhere; the targets' weight is that of the
    pixels left after clipping. alpha, probability, until: as of `mixup`.
    """
    check_alpha("alpha", alpha)
    return _mix(0.0, alpha, 1.0, probability, until)


def mixup_or_cutmix(
    mixup: Amount = 0.8,
    cutmix: Amount = 1.0,
    cutmix_share: float = 0.5,
    probability: float = 1.0,
    until: float = 1.0,
) -> Mix:
    """One of the two for each batch, as timm and DeiT (arXiv:2012.12877) do.

    mixup, cutmix: the alpha of each. cutmix_share: of the mixed batches. probability,
    until: as of `mixup`.
    """
    check_alpha("mixup", mixup)
    check_alpha("cutmix", cutmix)
    check_share("cutmix_share", cutmix_share)
    return _mix(mixup, cutmix, cutmix_share, probability, until)


def _mix(
    mixup: Amount, cutmix: Amount, cutmix_share: float, probability: float, until: float
) -> Mix:
    check_share("probability", probability)
    check_share("until", until)

    def apply(
        key: jax.Array, share: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        weight_key, draw_key = jax.random.split(key)
        drawn = jax.random.uniform(draw_key, (4,))
        is_boxed = drawn[0] < cutmix_share
        alpha = jnp.where(is_boxed, at(cutmix, share), at(mixup, share))
        is_mixed = (drawn[1] < probability) & (alpha > 0)
        if until < 1:
            is_mixed &= share < until
        weight = _beta(weight_key, jnp.where(alpha > 0, alpha, 1.0))
        weight = jnp.where(is_mixed, weight, 1.0)
        inside = _box(drawn[2:], 1.0 - weight, images.shape[1:3])
        covered = inside.sum() / inside.size
        inside = (is_boxed & inside)[None, :, :, None]
        other = 1.0 - jnp.where(is_boxed, 1.0, weight)
        pasted = jnp.where(inside, images[::-1], _blend(images, other))
        return pasted, _blend(targets, jnp.where(is_boxed, covered, other))

    return apply


def _beta(key: jax.Array, alpha: jax.Array) -> jax.Array:
    """[] of Beta(alpha, alpha): a gamma's share of two, drawn in one loop."""
    logs = jax.random.loggamma(key, alpha, (2,))
    return jax.nn.sigmoid(logs[0] - logs[1])


def _box(center: jax.Array, area: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """bool [H, W]: a box of the image's shape and a share of its area, then clipped.

    center [2]: of 0..1, a share of the height and of the width.
    """
    sides = jnp.array(shape)
    half = (sides * jnp.sqrt(area) / 2).astype(int)
    middle = (center * sides).astype(int)
    return box(middle - half, middle + half, shape)


def _blend(rows: jax.Array, other: jax.Array) -> jax.Array:
    # One product, so that fusing it with the sum rounds the same on any devices.
    return rows + other * (rows[::-1] - rows)


MIXES: dict[str, Callable[..., Mix]] = {
    "cutmix": cutmix,
    "mixup": mixup,
    "mixup_or_cutmix": mixup_or_cutmix,
}
