"""Residual networks (He et al., arXiv:1512.03385), v1.5: the stride is on the 3x3.

Padding and epsilon, 1e-5, are torchvision's. With `zero_init` the last normalisation of
every block starts at 0 (Goyal et al., arXiv:1706.02677). With groups the network is
ResNeXt (Xie et al., arXiv:1611.05431), and with wider bottlenecks Wide ResNet (Zagoruyko
and Komodakis, arXiv:1605.07146). With `blur`, convolutions with a stride read smoothed
inputs (Zhang, arXiv:1904.11486), as in fast ImageNet recipes.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models import layers
from jaxcls.models.layers import BatchNorm, Dtype, Output, conv
from jaxcls.models.naming import Naming


class Block(nn.Module):
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1; with a shortcut.

    cardinality: groups of the bottleneck's 3x3. base: filters of a group for each 64 of
    `width`.
    """

    width: int
    stride: int
    dtype: Dtype
    zero_init: bool
    drop_path: float = 0.0
    blur: bool = False
    bottleneck: bool = True
    cardinality: int = 1
    base: int = 64
    weight_init: str = "fan_out"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        # (filters, kernel, stride, groups) of each convolution.
        layout = [(self.width, 3, self.stride, 1), (self.width, 3, 1, 1)]
        if self.bottleneck:
            inner = self.width * self.base // 64 * self.cardinality
            middle = (inner, 3, self.stride, self.cardinality)
            layout = [(inner, 1, 1, 1), middle, (4 * self.width, 1, 1, 1)]
        y = x
        for n, sizes in enumerate(layout, 1):
            is_last = n == len(layout)
            is_zero = self.zero_init and is_last
            start = nn.initializers.zeros if is_zero else nn.initializers.ones
            y = self._conv(y, *sizes, name=f"conv{n}")
            y = BatchNorm(dtype=self.dtype, scale_init=start, name=f"norm{n}")(y, train)
            y = y if is_last else nn.relu(y)
        y = layers.drop_path(y, self.drop_path, train)
        if x.shape != y.shape:
            x = self._conv(x, y.shape[-1], 1, self.stride, 1, name="shortcut_conv")
            x = BatchNorm(dtype=self.dtype, name="shortcut_norm")(x, train)
        return nn.relu(y + x)

    def _conv(
        self, x: jax.Array, filters: int, kernel: int, stride: int, groups: int, name: str
    ) -> jax.Array:
        """Applies a convolution to x [B, H, W, C], blurred as `ResNet` says."""
        if self.blur and stride > 1 and x.shape[-1] >= 16:
            x = layers.blur(x)
        start = layers.HES[self.weight_init]
        layer = partial(conv, filters, kernel, stride, groups=groups, kernel_init=start)
        return layer(dtype=self.dtype, name=name)(x)


class ResNet(nn.Module):
    """Maps images [B, H, W, C] float32 to logits [B, K] and embed [B, D].

    stem: "imagenet" (7x7 stride 2, then a 3x3 maximum of stride 2) or "small" (one 3x3, for
    images of about 32 pixels). width: filters of the first stage. drop_path: the rate of
    the last block; rates rise linearly from 0. dropout: the rate before the head. blur:
    blur the input of each convolution with a stride and at least 16 input channels, as
    ffcv's recipe does. bottleneck, cardinality, base: see `Block`. weight_init: "fan_out"
    or "fan_in" of He's initialisation of convolutions.
    """

    num_classes: int
    stages: tuple[int, ...]
    dtype: Dtype = jnp.float32
    stem: str = "imagenet"
    width: int = 64
    zero_init: bool = True
    dropout: float = 0.0
    drop_path: float = 0.0
    blur: bool = False
    bottleneck: bool = True
    cardinality: int = 1
    base: int = 64
    weight_init: str = "fan_out"

    def __post_init__(self) -> None:
        layers.check_known(layers.HES, weight_init=self.weight_init)
        if self.stem not in ("imagenet", "small"):
            raise ValueError(f"stem={self.stem!r} must be 'imagenet' or 'small'")
        layers.check_depth(sum(self.stages), "stages", "stages=(3, 4, 6, 3)")
        layers.check_shares(dropout=self.dropout, drop_path=self.drop_path)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        x = images.astype(self.dtype)
        kernel, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        stem = partial(conv, self.width, kernel, stride, dtype=self.dtype)
        x = stem(kernel_init=layers.HES[self.weight_init], name="conv1")(x)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="norm1")(x, train))
        if self.stem == "imagenet":
            x = layers.max_pool(x, window=3, stride=2, padding=1)
        rates = layers.drop_rates(self.drop_path, len(self._blocks()))
        for (name, stage, i), rate in zip(self._blocks(), rates, strict=True):
            width, stride = self.width * 2**stage, 2 if stage and i == 0 else 1
            block = partial(
                Block, width, stride, self.dtype, self.zero_init, rate, self.blur
            )
            options = self.bottleneck, self.cardinality, self.base, self.weight_init
            x = block(*options, name=name)(x, train)
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
        table: Naming = {"conv1": "conv1", "norm1": "bn1"}
        for name, stage, i in self._blocks():
            theirs = f"layer{stage + 1}.{i}"
            for n in (1, 2, 3):
                table[f"{name}/conv{n}"] = f"{theirs}.conv{n}"
                table[f"{name}/norm{n}"] = f"{theirs}.bn{n}"
            table[f"{name}/shortcut_conv"] = f"{theirs}.downsample.0"
            table[f"{name}/shortcut_norm"] = f"{theirs}.downsample.1"
        table["head"] = "fc"
        return {"torchvision": table, "timm": table}


_50, _101 = (3, 4, 6, 3), (3, 4, 23, 3)
RESNETS: dict[str, Callable[..., ResNet]] = {
    "resnet18": partial(ResNet, stages=(2, 2, 2, 2), bottleneck=False),
    "resnet34": partial(ResNet, stages=(3, 4, 6, 3), bottleneck=False),
    "resnet50": partial(ResNet, stages=_50),
    "resnet101": partial(ResNet, stages=_101),
    "resnet152": partial(ResNet, stages=(3, 8, 36, 3)),
    "resnext50_32x4d": partial(ResNet, stages=_50, cardinality=32, base=4),
    "resnext101_32x8d": partial(ResNet, stages=_101, cardinality=32, base=8),
    "wide_resnet50_2": partial(ResNet, stages=_50, base=128),
    "wide_resnet101_2": partial(ResNet, stages=_101, base=128),
}
