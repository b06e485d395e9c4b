"""MobileNetV2 (Sandler et al., arXiv:1801.04381), EfficientNet-B0 (Tan and Le,
arXiv:1905.11946), whose blocks also have squeeze-and-excitation, and EfficientNet-Lite,
whose blocks have none: models/official/efficientnet/lite of github.com/tensorflow/tpu.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models import initializers, layers, naming
from jaxcls.models.layers import BatchNorm, Dtype, Output, conv
from jaxcls.models.naming import Naming

Activation = Callable[[jax.Array], jax.Array]
# By the names of the option `padding`. A stride shifts TensorFlow's by up to one pixel.
PADDINGS = {"symmetric": None, "same": "SAME"}


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
    hidden filter for every `squeeze` input channels of the block. padding, norm_epsilon:
    as in `Mobile`.
    """

    stage: Stage
    stride: int
    dtype: Dtype
    activation: Activation
    squeeze: int = 0
    drop_path: float = 0.0
    padding: str = "symmetric"
    norm_epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        dtype, width = self.dtype, x.shape[-1] * self.stage.expand
        norm = partial(BatchNorm, epsilon=self.norm_epsilon, dtype=dtype)
        deep = partial(conv, groups=width, padding=PADDINGS[self.padding], dtype=dtype)
        y = x
        if self.stage.expand > 1:
            y = conv(width, 1, dtype=dtype, name="conv1")(y)
            y = self.activation(norm(name="norm1")(y, train))
        y = deep(width, self.stage.kernel, self.stride, name="conv2")(y)
        y = self.activation(norm(name="norm2")(y, train))
        if self.squeeze:
            hidden = max(1, x.shape[-1] // self.squeeze)
            means = layers.global_mean(y).astype(dtype)[:, None, None]
            means = conv(hidden, 1, bias=True, dtype=dtype, name="squeeze1")(means)
            means = self.activation(means)
            means = conv(width, 1, bias=True, dtype=dtype, name="squeeze2")(means)
            y = y * nn.sigmoid(means)
        y = conv(self.stage.width, 1, dtype=dtype, name="conv3")(y)
        y = norm(name="norm3")(y, train)
        if x.shape != y.shape:
            return y
        return x + layers.drop_path(y, self.drop_path, train)


class Mobile(nn.Module):
    """A stem, stages of inverted residuals, a last 1x1 convolution of 1280 filters.

    Maps images [B, H, W, C] float32 to logits [B, K] and embed [B, 1280]. activation,
    squeeze: for every block. head_init: initializer of the head's kernel. dropout: the rate
    before the head. drop_path: rates of the blocks rise linearly from 0 towards it.
    padding: "symmetric" as PyTorch's, or "same" as TensorFlow's, of every convolution.
    norm_epsilon: of every BatchNorm; TensorFlow's is 1e-3. libraries: those of `namings`.
    """

    num_classes: int
    stages: tuple[Stage, ...]
    dtype: Dtype
    dropout: float
    drop_path: float
    activation: Activation
    squeeze: int
    head_init: nn.initializers.Initializer
    padding: str
    norm_epsilon: float
    libraries: tuple[str, ...] = ("torchvision", "timm")

    def __post_init__(self) -> None:
        layers.check_known(PADDINGS, padding=self.padding)
        if not self.norm_epsilon > 0:
            raise ValueError(f"norm_epsilon={self.norm_epsilon} must be above 0, as 1e-5")
        layers.check_shares(dropout=self.dropout, drop_path=self.drop_path)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        x = images.astype(self.dtype)
        norm = partial(BatchNorm, epsilon=self.norm_epsilon, dtype=self.dtype)
        stem = partial(conv, padding=PADDINGS[self.padding], dtype=self.dtype)
        x = stem(32, 3, 2, name="conv1")(x)
        x = self.activation(norm(name="norm1")(x, train))
        blocks = self._blocks()
        for n, (name, stage, i) in enumerate(blocks):
            sizes, rate = self.stages[stage], self.drop_path * n / len(blocks)
            stride = sizes.stride if i == 0 else 1
            block = partial(InvertedResidual, sizes, stride, self.dtype, self.activation)
            options = self.squeeze, rate, self.padding, self.norm_epsilon
            x = block(*options, name=name)(x, train)
        x = conv(1280, 1, dtype=self.dtype, name="conv2")(x)
        x = self.activation(norm(name="norm2")(x, train))
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

    def namings(self) -> dict[str, Naming]:
        """Returns the names of our layers in files of `libraries`.

        In a block without an expansion, later layers have an index one lower.
        """
        rows = [
            ("conv1", "features.0.0", "conv_stem"),
            ("norm1", "features.0.1", "bn1"),
        ]
        for n, (name, stage, i) in enumerate(self._blocks(), 1):
            shift = int(self.stages[stage].expand > 1)
            timm = f"blocks.{stage}.{i}"
            vision, last = f"features.{n}.conv", (f"{shift + 1}", f"{shift + 2}")
            if self.squeeze:
                vision = f"features.{stage + 1}.{i}.block"
                last = f"{shift + 2}.0", f"{shift + 2}.1"
            places = ("0.0", "0.1"), (f"{shift}.0", f"{shift}.1"), last
            kinds = ("pw", "dw", "pwl") if shift else ("", "dw", "pw")
            for k, (place, kind) in enumerate(zip(places, kinds, strict=True)):
                rows += [
                    (f"{name}/conv{k + 1}", f"{vision}.{place[0]}", f"{timm}.conv_{kind}"),
                    (
                        f"{name}/norm{k + 1}",
                        f"{vision}.{place[1]}",
                        f"{timm}.bn{k + shift}",
                    ),
                ]
            middle = f"{vision}.{shift + 1}"
            rows += [
                (f"{name}/squeeze1", f"{middle}.fc1", f"{timm}.se.conv_reduce"),
                (f"{name}/squeeze2", f"{middle}.fc2", f"{timm}.se.conv_expand"),
            ]
        end = len(self.stages if self.squeeze else self._blocks()) + 1
        rows += [
            ("conv2", f"features.{end}.0", "conv_head"),
            ("norm2", f"features.{end}.1", "bn2"),
            ("head", "classifier.1", "classifier"),
        ]
        tables = {**naming.of_both(rows), "efficientnet_pytorch": self._ported()}
        return {library: tables[library] for library in self.libraries}

    def _ported(self) -> Naming:
        """Returns the names of our layers in files of the package efficientnet_pytorch."""
        table: Naming = {"conv1": "_conv_stem", "norm1": "_bn0", "head": "_fc"}
        table |= {"conv2": "_conv_head", "norm2": "_bn1"}
        for n, (name, _, _) in enumerate(self._blocks()):
            place = f"_blocks.{n}"
            for k, kind in enumerate(("expand", "depthwise", "project")):
                table[f"{name}/conv{k + 1}"] = f"{place}._{kind}_conv"
                table[f"{name}/norm{k + 1}"] = f"{place}._bn{k}"
            table[f"{name}/squeeze1"] = f"{place}._se_reduce"
            table[f"{name}/squeeze2"] = f"{place}._se_expand"
        return table


_V2 = (
    Stage(expand=1, kernel=3, stride=1, width=16, blocks=1),
    Stage(expand=6, kernel=3, stride=2, width=24, blocks=2),
    Stage(expand=6, kernel=3, stride=2, width=32, blocks=3),
    Stage(expand=6, kernel=3, stride=2, width=64, blocks=4),
    Stage(expand=6, kernel=3, stride=1, width=96, blocks=3),
    Stage(expand=6, kernel=3, stride=2, width=160, blocks=3),
    Stage(expand=6, kernel=3, stride=1, width=320, blocks=1),
)
_B0 = (
    Stage(expand=1, kernel=3, stride=1, width=16, blocks=1),
    Stage(expand=6, kernel=3, stride=2, width=24, blocks=2),
    Stage(expand=6, kernel=5, stride=2, width=40, blocks=2),
    Stage(expand=6, kernel=3, stride=2, width=80, blocks=3),
    Stage(expand=6, kernel=5, stride=1, width=112, blocks=3),
    Stage(expand=6, kernel=5, stride=2, width=192, blocks=4),
    Stage(expand=6, kernel=3, stride=1, width=320, blocks=1),
)


def mobilenet_v2(
    num_classes: int,
    dtype: Dtype = jnp.float32,
    dropout: float = 0.2,
    drop_path: float = 0.0,
    padding: str = "symmetric",
    norm_epsilon: float = 1e-5,
) -> Mobile:
    """Returns MobileNetV2 of width 1; the options are those of `Mobile`."""
    init = initializers.normal(0.01)
    rest = nn.relu6, 0, init, padding, norm_epsilon
    return Mobile(num_classes, _V2, dtype, dropout, drop_path, *rest)


def efficientnet_b0(
    num_classes: int,
    dtype: Dtype = jnp.float32,
    dropout: float = 0.2,
    drop_path: float = 0.2,
    padding: str = "symmetric",
    norm_epsilon: float = 1e-5,
) -> Mobile:
    """Returns EfficientNet-B0, the smallest; the options are those of `Mobile`."""
    rest = nn.silu, 4, _HEAD, padding, norm_epsilon, ("torchvision", *_PORTED)
    return Mobile(num_classes, _B0, dtype, dropout, drop_path, *rest)


def _lite(
    num_classes: int,
    dtype: Dtype = jnp.float32,
    dropout: float = 0.2,
    drop_path: float = 0.2,
    padding: str = "symmetric",
    norm_epsilon: float = 1e-5,
    *,
    width: float,
    depth: float,
) -> Mobile:
    """Returns an EfficientNet-Lite; the options are those of `Mobile`.

    width, depth: factors of B0's channels and blocks. The stem and the last convolution
    keep their channels, and the first and the last stage their depth.
    """
    stages = [stage._replace(width=_channels(stage.width * width)) for stage in _B0]
    stages[1:-1] = [
        stage._replace(blocks=math.ceil(stage.blocks * depth)) for stage in stages[1:-1]
    ]
    rest = nn.relu6, 0, _HEAD, padding, norm_epsilon, _PORTED
    return Mobile(num_classes, tuple(stages), dtype, dropout, drop_path, *rest)


def _channels(wanted: float) -> int:
    """Returns the nearest multiple of 8 that is at least 0.9 of what is wanted."""
    near = int(wanted + 4) // 8 * 8
    return near if near >= 0.9 * wanted else near + 8


# Uniform within +-1 / sqrt(num_classes).
_HEAD = initializers.variance_scaling(1 / 3, "fan_out", "uniform")
_PORTED = ("timm", "efficientnet_pytorch")

MOBILENETS: dict[str, Callable[..., Mobile]] = {
    "efficientnet_b0": efficientnet_b0,
    "efficientnet_lite0": partial(_lite, width=1.0, depth=1.0),
    "efficientnet_lite1": partial(_lite, width=1.0, depth=1.1),
    "efficientnet_lite2": partial(_lite, width=1.1, depth=1.2, dropout=0.3),
    "efficientnet_lite3": partial(_lite, width=1.2, depth=1.4, dropout=0.3),
    "efficientnet_lite4": partial(_lite, width=1.4, depth=1.8, dropout=0.3),
    "mobilenet_v2": mobilenet_v2,
}
