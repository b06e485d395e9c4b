"""Residual networks (He et al., arXiv:1512.03385), v1.5: the stride is on the 3x3.

As torchvision builds them: padding, epsilon 1e-5, and, where `zero_init`, the last
normalisation of every block starts at 0 (Goyal et al., arXiv:1706.02677).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import BatchNorm, Dtype, conv, global_mean, max_pool


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around the shortcut: ResNet-18 and 34."""

    width: int
    stride: int
    dtype: Dtype
    zero_init: bool
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(BatchNorm, dtype=self.dtype)
        y = conv(self.width, 3, self.stride, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y, train))
        y = conv(self.width, 3, dtype=self.dtype, name="conv2")(y)
        y = norm(name="norm2", scale_init=_last(self.zero_init))(y, train)
        return nn.relu(y + _shortcut(x, y, self.stride, self.dtype, train))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around the shortcut: ResNet-50 and deeper."""

    width: int
    stride: int
    dtype: Dtype
    zero_init: bool
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(BatchNorm, dtype=self.dtype)
        y = conv(self.width, 1, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y, train))
        y = conv(self.width, 3, self.stride, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(norm(name="norm2")(y, train))
        y = conv(self.width * self.expansion, 1, dtype=self.dtype, name="conv3")(y)
        y = norm(name="norm3", scale_init=_last(self.zero_init))(y, train)
        return nn.relu(y + _shortcut(x, y, self.stride, self.dtype, train))


class ResNet(nn.Module):
    """images [B, H, W, C] float32 -> logits [B, K] float32.

    stem: "imagenet" (7x7 stride 2, then a 3x3 maximum of stride 2) or "small" (one 3x3,
    for images of about 32 pixels). width: filters of the first stage.
    """

    num_classes: int
    stages: tuple[int, ...]
    block: Any
    dtype: Dtype = jnp.float32
    stem: str = "imagenet"
    width: int = 64
    zero_init: bool = True

    def __post_init__(self) -> None:
        if self.stem not in ("imagenet", "small"):
            raise ValueError(f"stem={self.stem!r} must be 'imagenet' or 'small'")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = images.astype(self.dtype)
        kernel, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        x = conv(self.width, kernel, stride, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="norm1")(x, train))
        if self.stem == "imagenet":
            x = max_pool(x, window=3, stride=2, padding=1)
        for stage, blocks in enumerate(self.stages):
            for i in range(blocks):
                x = self.block(
                    width=self.width * 2**stage,
                    stride=2 if stage and i == 0 else 1,
                    dtype=self.dtype,
                    zero_init=self.zero_init,
                    name=f"stage{stage + 1}_block{i + 1}",
                )(x, train)
        x = global_mean(x)
        return nn.Dense(self.num_classes, name="head")(x)


def _last(zero_init: bool) -> nn.initializers.Initializer:
    return nn.initializers.zeros if zero_init else nn.initializers.ones


def _shortcut(
    x: jax.Array, y: jax.Array, stride: int, dtype: Dtype, train: bool
) -> jax.Array:
    """x itself, or projected where the shape changes; called within a block."""
    if x.shape == y.shape:
        return x
    x = conv(y.shape[-1], 1, stride, dtype=dtype, name="shortcut_conv")(x)
    return BatchNorm(dtype=dtype, name="shortcut_norm")(x, train)


RESNETS: dict[str, Callable[..., ResNet]] = {
    "resnet18": partial(ResNet, stages=(2, 2, 2, 2), block=BasicBlock),
    "resnet34": partial(ResNet, stages=(3, 4, 6, 3), block=BasicBlock),
    "resnet50": partial(ResNet, stages=(3, 4, 6, 3), block=Bottleneck),
    "resnet101": partial(ResNet, stages=(3, 4, 23, 3), block=Bottleneck),
    "resnet152": partial(ResNet, stages=(3, 8, 36, 3), block=Bottleneck),
}
