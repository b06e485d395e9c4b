"""MobileNetV2 (Sandler et al., arXiv:1801.04381), and its block, which others use too."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models import initializers, layers
from jaxcls.models.layers import BatchNorm, Dtype, Output, conv
from jaxcls.models.naming import Naming

Activation = Callable[[jax.Array], jax.Array]


class Stage(NamedTuple):
    """Blocks of one width. The first has the stride. `expand` multiplies the channels."""

    expand: int
    kernel: int
    stride: int
    width: int
    blocks: int


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; a shortcut if shapes agree.

    squeeze: above 0, add squeeze-and-excitation (Hu et al., arXiv:1709.01507) with one
    hidden filter for every `squeeze` input channels of the block.
    """

    stage: Stage
    stride: int
    dtype: Dtype
    activation: Activation
    squeeze: int = 0
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        dtype, width = self.dtype, x.shape[-1] * self.stage.expand
        y = x
        if self.stage.expand > 1:
            y = conv(width, 1, dtype=dtype, name="conv1")(y)
            y = self.activation(BatchNorm(dtype=dtype, name="norm1")(y, train))
        kernel, stride = self.stage.kernel, self.stride
        y = conv(width, kernel, stride, groups=width, dtype=dtype, name="conv2")(y)
        y = self.activation(BatchNorm(dtype=dtype, name="norm2")(y, train))
        if self.squeeze:
            hidden = max(1, x.shape[-1] // self.squeeze)
            means = layers.global_mean(y).astype(dtype)[:, None, None]
            means = conv(hidden, 1, bias=True, dtype=dtype, name="squeeze1")(means)
            means = self.activation(means)
            means = conv(width, 1, bias=True, dtype=dtype, name="squeeze2")(means)
            y = y * nn.sigmoid(means)
        y = conv(self.stage.width, 1, dtype=dtype, name="conv3")(y)
        y = BatchNorm(dtype=dtype, name="norm3")(y, train)
        if x.shape != y.shape:
            return y
        return x + layers.drop_path(y, self.drop_path, train)


class Mobile(nn.Module):
    """A stem, stages of inverted residuals, a last 1x1 convolution of 1280 filters.

    Maps images [B, H, W, C] float32 to logits [B, K] and embed [B, 1280]. activation,
    squeeze: for every block. head_init: initializer of the head's kernel. dropout: the rate
    before the head. drop_path: rates of the blocks rise linearly from 0 towards it.
    """

    num_classes: int
    stages: tuple[Stage, ...]
    activation: Activation
    squeeze: int
    head_init: nn.initializers.Initializer
    dropout: float
    drop_path: float
    dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        layers.check_shares(dropout=self.dropout, drop_path=self.drop_path)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        x = images.astype(self.dtype)
        x = conv(32, 3, 2, dtype=self.dtype, name="conv1")(x)
        x = self.activation(BatchNorm(dtype=self.dtype, name="norm1")(x, train))
        blocks = self._blocks()
        for n, (name, stage, i) in enumerate(blocks):
            x = InvertedResidual(
                self.stages[stage],
                stride=self.stages[stage].stride if i == 0 else 1,
                dtype=self.dtype,
                activation=self.activation,
                squeeze=self.squeeze,
                drop_path=self.drop_path * n / len(blocks),
                name=name,
            )(x, train)
        x = conv(1280, 1, dtype=self.dtype, name="conv2")(x)
        x = self.activation(BatchNorm(dtype=self.dtype, name="norm2")(x, train))
        x = layers.FeatureMap()(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(layers.global_mean(x))
        return layers.head(x, self.num_classes, self.head_init)

    def _blocks(self) -> list[tuple[str, int, int]]:
        """Returns (name, stage, index in the stage) of every block."""
        return layers.block_names([stage.blocks for stage in self.stages])

    def groups(self) -> list[tuple[str, ...]]:
        """Returns the layers by depth, input first, for layer-wise decay of the rate."""
        blocks = [(name,) for name, _, _ in self._blocks()]
        return [("conv1", "norm1"), *blocks, ("conv2", "norm2", "head")]

    def _timm(self) -> dict[str, str]:
        """Returns the names of our layers in files of timm.

        In a block without an expansion, timm counts from the depthwise convolution.
        """
        table = {"conv1": "conv_stem", "norm1": "bn1"}
        for name, stage, i in self._blocks():
            theirs = f"blocks.{stage}.{i}"
            expands = self.stages[stage].expand > 1
            names = ("pw", "dw", "pwl") if expands else ("dw", "pw")
            for n, kind in enumerate(names):
                ours = n + (1 if expands else 2)
                table[f"{name}/conv{ours}"] = f"{theirs}.conv_{kind}"
                table[f"{name}/norm{ours}"] = f"{theirs}.bn{n + 1}"
            table[f"{name}/squeeze1"] = f"{theirs}.se.conv_reduce"
            table[f"{name}/squeeze2"] = f"{theirs}.se.conv_expand"
        return table | {"conv2": "conv_head", "norm2": "bn2", "head": "classifier"}


class MobileNetV2(Mobile):
    """MobileNetV2, see `Mobile`."""

    def namings(self) -> dict[str, Naming]:
        """Returns the names of our layers in files of torchvision and timm."""
        table = {"conv1": "features.0.0", "norm1": "features.0.1"}
        for n, (name, stage, _) in enumerate(self._blocks(), 1):
            theirs = f"features.{n}.conv"
            # Without an expansion, later layers have an index one lower.
            shift = int(self.stages[stage].expand > 1)
            if shift:
                table[f"{name}/conv1"] = f"{theirs}.0.0"
                table[f"{name}/norm1"] = f"{theirs}.0.1"
            table[f"{name}/conv2"] = f"{theirs}.{shift}.0"
            table[f"{name}/norm2"] = f"{theirs}.{shift}.1"
            table[f"{name}/conv3"] = f"{theirs}.{shift + 1}"
            table[f"{name}/norm3"] = f"{theirs}.{shift + 2}"
        end = len(self._blocks()) + 1
        table |= {"conv2": f"features.{end}.0", "norm2": f"features.{end}.1"}
        table["head"] = "classifier.1"
        return {"torchvision": Naming(table), "timm": Naming(self._timm())}


def mobilenet_v2(
    num_classes: int,
    dtype: Dtype = jnp.float32,
    dropout: float = 0.2,
    drop_path: float = 0.0,
) -> MobileNetV2:
    """Returns MobileNetV2 of width 1."""
    return MobileNetV2(
        num_classes,
        stages=(
            Stage(expand=1, kernel=3, stride=1, width=16, blocks=1),
            Stage(expand=6, kernel=3, stride=2, width=24, blocks=2),
            Stage(expand=6, kernel=3, stride=2, width=32, blocks=3),
            Stage(expand=6, kernel=3, stride=2, width=64, blocks=4),
            Stage(expand=6, kernel=3, stride=1, width=96, blocks=3),
            Stage(expand=6, kernel=3, stride=2, width=160, blocks=3),
            Stage(expand=6, kernel=3, stride=1, width=320, blocks=1),
        ),
        activation=nn.relu6,
        squeeze=0,
        head_init=initializers.normal(0.01),
        dropout=dropout,
        drop_path=drop_path,
        dtype=dtype,
    )


MOBILENETS: dict[str, Callable[..., MobileNetV2]] = {"mobilenet_v2": mobilenet_v2}
