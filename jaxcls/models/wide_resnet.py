"""Wide residual networks for small images (Zagoruyko and Komodakis, arXiv:1605.07146).

Normalisation and ReLU come before each convolution, as in the paper's networks for CIFAR.
Names in files follow the common PyTorch port, which RobustBench uses.
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
    """Two 3x3 convolutions with dropout between them, and a shortcut."""

    width: int
    stride: int
    dtype: Dtype
    dropout: float
    weight_init: str = "fan_out"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(BatchNorm, dtype=self.dtype)
        start = layers.HES[self.weight_init]
        layer = partial(conv, self.width, dtype=self.dtype, kernel_init=start)
        y = nn.relu(norm(name="norm1")(x, train))
        if x.shape[-1] != self.width:  # A projection reads the normalised input.
            x = layer(1, self.stride, name="shortcut_conv")(y)
        y = layer(3, self.stride, name="conv1")(y)
        y = nn.relu(norm(name="norm2")(y, train))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return x + layer(3, name="conv2")(y)


class WideResNet(nn.Module):
    """Maps images [B, H, W, C] float32 to logits [B, K] and embed [B, D].

    depth: 6 n + 4, for n blocks in each of three stages. widen: the stages have 16, 32 and
    64 times this many filters. dropout: the rate within the blocks; the paper uses 0 or
    0.3. weight_init: "fan_out" or "fan_in" of He's initialisation of convolutions.
    """

    num_classes: int
    depth: int
    widen: int
    dtype: Dtype = jnp.float32
    dropout: float = 0.0
    weight_init: str = "fan_out"

    def __post_init__(self) -> None:
        layers.check_known(layers.HES, weight_init=self.weight_init)
        if self.depth % 6 != 4 or self.depth < 10 or self.widen < 1:
            raise ValueError(
                f"depth={self.depth}, widen={self.widen}: depth must be 6 n + 4, such as"
                " 28, and widen at least 1"
            )
        layers.check_depth(self.depth // 2, f"depth={self.depth}", "depth=28")
        layers.check_shares(dropout=self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        start = layers.HES[self.weight_init]
        stem = conv(16, 3, dtype=self.dtype, kernel_init=start, name="conv1")
        x = stem(images.astype(self.dtype))
        for name, stage, i in self._blocks():
            width, stride = 16 * self.widen * 2**stage, 2 if stage and i == 0 else 1
            options = self.dropout, self.weight_init
            x = Block(width, stride, self.dtype, *options, name=name)(x, train)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="norm")(x, train))
        x = layers.FeatureMap()(x)
        return layers.head(layers.global_mean(x), self.num_classes)

    def _blocks(self) -> list[tuple[str, int, int]]:
        """Returns (name, stage, index in the stage) of every block."""
        return layers.block_names([(self.depth - 4) // 6] * 3)

    def groups(self) -> list[tuple[str, ...]]:
        """Returns the layers by depth, input first, for layer-wise decay of the rate."""
        return [("conv1",), *((name,) for name, _, _ in self._blocks()), ("norm", "head")]

    def namings(self) -> dict[str, Naming]:
        """Returns the names of our layers in files of the PyTorch port."""
        table: Naming = {"conv1": "conv1"}
        for name, stage, i in self._blocks():
            theirs = f"block{stage + 1}.layer.{i}"
            for n in (1, 2):
                table[f"{name}/norm{n}"] = f"{theirs}.bn{n}"
                table[f"{name}/conv{n}"] = f"{theirs}.conv{n}"
            table[f"{name}/shortcut_conv"] = f"{theirs}.convShortcut"
        return {"robustbench": table | {"norm": "bn1", "head": "fc"}}


WIDE_RESNETS: dict[str, Callable[..., WideResNet]] = {
    "wrn16_4": partial(WideResNet, depth=16, widen=4),
    "wrn28_10": partial(WideResNet, depth=28, widen=10),
    "wrn40_2": partial(WideResNet, depth=40, widen=2),
}
