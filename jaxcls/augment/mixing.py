"""Mixing of each example with another of the batch, after augmentation and normalisation.

A mix is ``(key, share, images [B, H, W, C] float32, targets [B, K]) -> (images, targets)``.
`share` [] float32 is the fraction of the run that is done. The partners are the reversed
batch: a random permutation would gather the whole batch on every device. A batch has one
weight and one box, as in timm and torchvision on one device.

Many originals train on several devices, each of which mixes its own part of the batch.
``groups=8`` mixes as 8 devices there: row r is in group r % 8, as PyTorch's
`DistributedSampler` deals examples and as model.batch_norm_groups counts. Each group draws
for itself, and reverses its own rows. ``each=True`` draws for each row, as timm's mode
"elem". What a row becomes depends on its place in the global batch, and never on the
devices here.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.augment.crops import box
from jaxcls.augment.rows import Amount, at, row_keys
from jaxcls.config.calls import check_range
from jaxcls.errors import InputError

Mix = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def mixup(
    alpha: Amount = 0.2,
    probability: float = 1.0,
    until: float = 1.0,
    groups: int = 1,
    each: bool = False,
) -> Mix:
    """Mixes ``weight * image + (1 - weight) * partner``, with weight ~ Beta(alpha, alpha).

    Zhang et al., arXiv:1710.09412. The partner of row i is row B - 1 - i of the batch; one
    weight serves the whole batch. Raises `ValueError` for an option out of range.

    - alpha: a number, or a pair that is interpolated linearly over the run. At 0 nothing
      is mixed.
    - probability: the probability that a batch is mixed.
    - until: the fraction of the run after which no batch is mixed.
    - groups: the parts of the batch that are mixed by themselves. Row r is in part
      r % groups, and its partner is the same row of its part, reversed.
    - each: whether each row draws for itself, in place of each part.
    """
    _check_alphas(alpha=alpha)
    return _mix(alpha, 0.0, 0.0, probability, until, groups, each)


def cutmix(
    alpha: Amount = 1.0,
    probability: float = 1.0,
    until: float = 1.0,
    groups: int = 1,
    each: bool = False,
) -> Mix:
    """Pastes a box of the partner into each image, and mixes targets by the box's area.

    Yun et al., arXiv:1905.04899. With weight ~ Beta(alpha, alpha), the box has the image's
    aspect ratio and ``1 - weight`` of its area, and is centred anywhere. The box is
    clipped, and the targets use its clipped area. alpha, probability, until, groups, each:
    see `mixup`. Raises `ValueError` for an option out of range.
    """
    _check_alphas(alpha=alpha)
    return _mix(0.0, alpha, 1.0, probability, until, groups, each)


def mixup_or_cutmix(
    mixup: Amount = 0.8,
    cutmix: Amount = 1.0,
    cutmix_share: float = 0.5,
    probability: float = 1.0,
    until: float = 1.0,
    groups: int = 1,
    each: bool = False,
) -> Mix:
    """Applies mixup or cutmix to each batch, as timm and DeiT (arXiv:2012.12877) do.

    mixup, cutmix: the alpha of each. cutmix_share: the fraction of mixed batches that use
    cutmix. probability, until, groups, each: see `mixup`; a group, or a row, draws which of
    the two it uses. Raises `ValueError` for an option out of range.
    """
    _check_alphas(mixup=mixup, cutmix=cutmix)
    check_range("[0, 1]", 0.5, cutmix_share=cutmix_share)
    return _mix(mixup, cutmix, cutmix_share, probability, until, groups, each)


def _mix(
    mixup: Amount,
    cutmix: Amount,
    cutmix_share: float,
    probability: float,
    until: float,
    groups: int,
    each: bool,
) -> Mix:
    check_range("[0, 1]", 0.5, probability=probability, until=until)
    check_range("[1, inf)", 8, groups=groups)

    def draw(key: jax.Array, share: jax.Array, shape: tuple[int, ...]) -> _Drawn:
        weight_key, draw_key = jax.random.split(key)
        drawn = jax.random.uniform(draw_key, (4,))
        is_boxed = drawn[0] < cutmix_share
        alpha = jnp.where(is_boxed, at(cutmix, share), at(mixup, share))
        is_mixed = (drawn[1] < probability) & (alpha > 0)
        if until < 1:
            is_mixed &= share < until
        weight = _beta(weight_key, jnp.where(alpha > 0, alpha, 1.0))
        weight = jnp.where(is_mixed, weight, 1.0)
        inside = _box(drawn[2:], 1.0 - weight, shape)
        covered = inside.sum() / inside.size
        other = 1.0 - jnp.where(is_boxed, 1.0, weight)
        return _Drawn(is_boxed & inside, other, jnp.where(is_boxed, covered, other))

    def apply(
        key: jax.Array, share: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        rows = len(images)
        if rows % groups:
            raise InputError(
                f"groups={groups} of the mix must divide batch_size={rows}, such as"
                f" groups={math.gcd(groups, rows)}"
            )
        shape = images.shape[1:3]
        if each or groups > 1:
            keys = row_keys(key, rows if each else groups)
            of = jax.vmap(draw, in_axes=(0, None, None))(keys, share, shape)
            of = jax.tree.map(
                lambda x: jnp.tile(x, (rows // len(x), *[1] * (x.ndim - 1))), of
            )
        else:
            of = jax.tree.map(lambda x: x[None], draw(key, share, shape))
        paste, other, of_target = of
        mixed = _blend(images, other[:, None, None, None], groups)
        pasted = jnp.where(paste[..., None], _partners(images, groups), mixed)
        return pasted, _blend(targets, of_target[:, None], groups)

    return apply


class _Drawn(NamedTuple):
    """What a group or a row draws.

    paste [H, W]: where the partner's pixels are. other, of_target []: the partner's weight
    in the other pixels, and in the target.
    """

    paste: jax.Array
    other: jax.Array
    of_target: jax.Array


def _partners(rows: jax.Array, groups: int) -> jax.Array:
    """Returns the partner of each row: the same row of its group in reverse order."""
    if groups == 1:
        return rows[::-1]
    # Groups are strided, so that rows stay on their devices in this reshape.
    return rows.reshape(-1, groups, *rows.shape[1:])[::-1].reshape(rows.shape)


def _check_alphas(**alphas: Amount) -> None:
    check_range("[0, inf)", "0.2 or (0.0, 0.2)", **alphas)
    for name, alpha in alphas.items():
        if not np.any(alpha):
            raise ValueError(f"{name}={alpha} mixes nothing; give 0.2 or (0.0, 0.2)")


def _beta(key: jax.Array, alpha: jax.Array) -> jax.Array:
    """Draws [] from Beta(alpha, alpha) as g1 / (g1 + g2); one loop draws both gammas."""
    logs = jax.random.loggamma(key, alpha, (2,))
    return jax.nn.sigmoid(logs[0] - logs[1])


def _box(center: jax.Array, area: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns bool [H, W]: a box of the image's aspect ratio and of this area, clipped.

    area is a share of the image's area. center [2] is (y, x), in shares of height and
    width.
    """
    sides = jnp.array(shape)
    half = (sides * jnp.sqrt(area) / 2).astype(int)
    middle = (center * sides).astype(int)
    return box(middle - half, middle + half, shape)


def _blend(rows: jax.Array, other: jax.Array, groups: int) -> jax.Array:
    """Returns rows mixed with their partners, whose weight is `other`."""
    # With one product, a fused multiply-add rounds the same on any devices.
    return rows + other * (_partners(rows, groups) - rows)


MIXES: Mapping[str, Callable[..., Mix]] = MappingProxyType(
    {
        "cutmix": cutmix,
        "mixup": mixup,
        "mixup_or_cutmix": mixup_or_cutmix,
    }
)
