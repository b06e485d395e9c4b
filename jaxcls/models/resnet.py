"""Residual networks (He et al., arXiv:1512.03385), v1.5: the stride is on the 3x3.

Padding and epsilon, 1e-5, are torchvision's. With `zero_init` the last normalisation of
every block starts at 0 (Goyal et al., arXiv:1706.02677). With groups the network is
ResNeXt (Xie et al., arXiv:1611.05431), and with wider bottlenecks Wide ResNet (Zagoruyko
and Komodakis, arXiv:1605.07146). With `blur`, convolutions with a stride read smoothed
inputs (Zhang, arXiv:1904.11486), as in fast ImageNet recipes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models import layers
from jaxcls.models.layers import BatchNorm, Dtype, Output, conv, drop_path
from jaxcls.models.naming import Naming


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: ResNet-18 and 34."""

    width: int
    stride: int
    dtype: Dtype
    zero_init: bool
    drop_path: float = 0.0
    blur: bool = False
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(BatchNorm, dtype=self.dtype)
        y = _smooth(x, self.stride, self.blur)
        y = conv(self.width, 3, self.stride, dtype=self.dtype, name="conv1")(y)
        y = nn.relu(norm(name="norm1")(y, train))
        y = conv(self.width, 3, dtype=self.dtype, name="conv2")(y)
        y = norm(name="norm2", scale_init=_last(self.zero_init))(y, train)
        y = drop_path(y, self.drop_path, train)
        return nn.relu(y + _shortcut(x, y, self.stride, self.blur, self.dtype, train))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut: ResNet-50 and deeper.

    groups: groups of the 3x3. base: filters of a group for each 64 of `width`.
    """

    width: int
    stride: int
    dtype: Dtype
    zero_init: bool
    drop_path: float = 0.0
    groups: int = 1
    base: int = 64
    blur: bool = False
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(BatchNorm, dtype=self.dtype)
        inner = self.width * self.base // 64 * self.groups
        y = conv(inner, 1, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y, train))
        middle = partial(conv, inner, 3, self.stride, groups=self.groups)
        y = _smooth(y, self.stride, self.blur)
        y = middle(dtype=self.dtype, name="conv2")(y)
        y = nn.relu(norm(name="norm2")(y, train))
        y = conv(self.width * self.expansion, 1, dtype=self.dtype, name="conv3")(y)
        y = norm(name="norm3", scale_init=_last(self.zero_init))(y, train)
        y = drop_path(y, self.drop_path, train)
        return nn.relu(y + _shortcut(x, y, self.stride, self.blur, self.dtype, train))


class ResNet(nn.Module):
    """Maps images [B, H, W, C] float32 to logits [B, K] and embed [B, D].

    stem: "imagenet" (7x7 stride 2, then a 3x3 maximum of stride 2) or "small" (one 3x3, for
    images of about 32 pixels). width: filters of the first stage. drop_path: the rate of
    the last block; rates rise linearly from 0. dropout: the rate before the head. blur:
    blur the input of each convolution with a stride and at least 16 input channels, as
    ffcv's recipe does.
    """

    num_classes: int
    stages: tuple[int, ...]
    block: Any
    dtype: Dtype = jnp.float32
    stem: str = "imagenet"
    width: int = 64
    zero_init: bool = True
    dropout: float = 0.0
    drop_path: float = 0.0
    blur: bool = False

    def __post_init__(self) -> None:
        if self.stem not in ("imagenet", "small"):
            raise ValueError(f"stem={self.stem!r} must be 'imagenet' or 'small'")
        layers.check_shares(dropout=self.dropout, drop_path=self.drop_path)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        x = images.astype(self.dtype)
        kernel, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        x = conv(self.width, kernel, stride, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="norm1")(x, train))
        if self.stem == "imagenet":
            x = layers.max_pool(x, window=3, stride=2, padding=1)
        rates = layers.drop_rates(self.drop_path, len(self._blocks()))
        for (name, stage, i), rate in zip(self._blocks(), rates, strict=True):
            x = self.block(
                width=self.width * 2**stage,
                stride=2 if stage and i == 0 else 1,
                dtype=self.dtype,
                zero_init=self.zero_init,
                drop_path=rate,
                blur=self.blur,
                name=name,
            )(x, train)
        x = layers.global_mean(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return layers.head(x, self.num_classes)

    def _blocks(self) -> list[tuple[str, int, int]]:
        """Returns (name, stage, index in the stage) of every block."""
        return layers.block_names(self.stages)

    def groups(self) -> list[tuple[str, ...]]:
        """Returns the layers by depth, input first, for layer-wise decay of the rate."""
        blocks = [(name,) for name, _, _ in self._blocks()]
        return [("conv1", "norm1"), *blocks, ("head",)]

    def namings(self) -> dict[str, Naming]:
        """Returns the names of our layers in files of torchvision and timm, which agree."""
        table = {"conv1": "conv1", "norm1": "bn1"}
        for name, stage, i in self._blocks():
            theirs = f"layer{stage + 1}.{i}"
            for n in (1, 2, 3):
                table[f"{name}/conv{n}"] = f"{theirs}.conv{n}"
                table[f"{name}/norm{n}"] = f"{theirs}.bn{n}"
            table[f"{name}/shortcut_conv"] = f"{theirs}.downsample.0"
            table[f"{name}/shortcut_norm"] = f"{theirs}.downsample.1"
        naming = Naming(table | {"head": "fc"})
        return {"torchvision": naming, "timm": naming}


def _last(zero_init: bool) -> nn.initializers.Initializer:
    return nn.initializers.zeros if zero_init else nn.initializers.ones


def _smooth(x: jax.Array, stride: int, blur: bool) -> jax.Array:
    """Blurs x [B, H, W, C] before a convolution with a stride, if `blur`; see `ResNet`."""
    return layers.blur(x) if blur and stride > 1 and x.shape[-1] >= 16 else x


def _shortcut(
    x: jax.Array, y: jax.Array, stride: int, blur: bool, dtype: Dtype, train: bool
) -> jax.Array:
    """Returns x, or its projection if the shape changes. Call it within a block."""
    if x.shape == y.shape:
        return x
    x = _smooth(x, stride, blur)
    x = conv(y.shape[-1], 1, stride, dtype=dtype, name="shortcut_conv")(x)
    return BatchNorm(dtype=dtype, name="shortcut_norm")(x, train)


_NEXT50 = partial(Bottleneck, groups=32, base=4)
_NEXT101 = partial(Bottleneck, groups=32, base=8)
_WIDE = partial(Bottleneck, base=128)

RESNETS: dict[str, Callable[..., ResNet]] = {
    "resnet18": partial(ResNet, stages=(2, 2, 2, 2), block=BasicBlock),
    "resnet34": partial(ResNet, stages=(3, 4, 6, 3), block=BasicBlock),
    "resnet50": partial(ResNet, stages=(3, 4, 6, 3), block=Bottleneck),
    "resnet101": partial(ResNet, stages=(3, 4, 23, 3), block=Bottleneck),
    "resnet152": partial(ResNet, stages=(3, 8, 36, 3), block=Bottleneck),
    "resnext50_32x4d": partial(ResNet, stages=(3, 4, 6, 3), block=_NEXT50),
    "resnext101_32x8d": partial(ResNet, stages=(3, 4, 23, 3), block=_NEXT101),
    "wide_resnet50_2": partial(ResNet, stages=(3, 4, 6, 3), block=_WIDE),
    "wide_resnet101_2": partial(ResNet, stages=(3, 4, 23, 3), block=_WIDE),
}
