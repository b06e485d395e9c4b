"""MobileNetV2 (Sandler et al., arXiv:1801.04381), MobileNetV3 (Howard et al.,
arXiv:1905.02244), and `Mobile`, the network that `jaxcls.models.efficientnet` shares.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models import initializers, layers, naming
from jaxcls.models.layers import BatchNorm, Dtype, Output, conv
from jaxcls.models.naming import Entry, Naming

Activation = Callable[[jax.Array], jax.Array]
Layer = Callable[..., Any]
# By the names of the option `padding`. A stride shifts TensorFlow's by up to one pixel.
PADDINGS = {"symmetric": None, "same": "SAME"}


class Block(NamedTuple):
    """The sizes of one block.

    hidden: channels after the expansion; 0: no expansion. kernel, stride: those of the
    depthwise convolution. width: channels of the output. squeeze: hidden filters of the
    squeeze-and-excitation (Hu et al., arXiv:1709.01507); 0: none. is_fused: one square
    convolution stands for the expansion and the depthwise convolution.
    """

    activation: Activation
    hidden: int
    kernel: int
    stride: int
    width: int
    squeeze: int = 0
    is_fused: bool = False


class Stage(NamedTuple):
    """Blocks of one width. The first has the stride. `expand` multiplies the channels."""

    expand: int
    kernel: int
    stride: int
    width: int
    blocks: int
    is_fused: bool = False


class Net(NamedTuple):
    """An architecture: what no option of `Mobile` changes.

    stem: filters of the first convolution. last: those of the last one, which is 1x1.
    dense: features of a dense layer before the head; 0: none. activation: of those layers.
    excite: the two functions of squeeze-and-excitation. momentum: of every BatchNorm.
    head_init: of the kernels of the head and of the dense layer. libraries: those of
    `namings`. place: torchvision's name of a block, of its stage, its index i within the
    stage and its number n in the network.
    """

    stages: tuple[tuple[Block, ...], ...]
    head_init: nn.initializers.Initializer
    activation: Activation
    stem: int = 32
    last: int = 1280
    dense: int = 0
    excite: tuple[Activation, Activation] = (nn.relu, nn.hard_sigmoid)
    momentum: float = 0.9
    libraries: tuple[str, ...] = ("torchvision", "timm")
    place: str = "features.{n}.block"


def unrolled(
    inputs: int, stages: Sequence[Stage], activation: Activation, squeeze: int = 0
) -> tuple[tuple[Block, ...], ...]:
    """Returns the blocks of each stage, for a stem of `inputs` filters.

    squeeze: above 0, a block that is not fused has squeeze-and-excitation with one hidden
    filter for every `squeeze` channels of its input.
    """
    built = []
    for stage in stages:
        blocks = []
        for i in range(stage.blocks):
            hidden = inputs * stage.expand if stage.expand > 1 else 0
            filters = max(1, inputs // squeeze) if squeeze and not stage.is_fused else 0
            sizes = hidden, stage.kernel, 1 if i else stage.stride, stage.width, filters
            blocks.append(Block(activation, *sizes, stage.is_fused))
            inputs = stage.width
        built.append(tuple(blocks))
    return tuple(built)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; a shortcut if shapes agree.

    conv, norm: make layers with the options of the network. excite: as in `Net`.
    """

    block: Block
    conv: Layer
    norm: Layer
    excite: tuple[Activation, Activation]
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        block, y = self.block, x
        width = block.hidden or x.shape[-1]
        if block.hidden:
            y = self.conv(width, 1, name="conv1")(y)
            y = block.activation(self.norm(name="norm1")(y, train))
        y = self.conv(width, block.kernel, block.stride, groups=width, name="conv2")(y)
        y = block.activation(self.norm(name="norm2")(y, train))
        if block.squeeze:
            activation, gate = self.excite
            means = layers.global_mean(y).astype(y.dtype)[:, None, None]
            means = self.conv(block.squeeze, 1, bias=True, name="squeeze1")(means)
            means = self.conv(width, 1, bias=True, name="squeeze2")(activation(means))
            y = y * gate(means)
        y = self.norm(name="norm3")(self.conv(block.width, 1, name="conv3")(y), train)
        return _joined(block, x, y, self.drop_path, train)


class FusedInvertedResidual(nn.Module):
    """k x k expansion, 1x1 projection, the former alone if it does not expand; a shortcut.

    It is EfficientNetV2's FusedMBConv (Tan and Le, arXiv:2104.00298). conv, norm: as in
    `InvertedResidual`.
    """

    block: Block
    conv: Layer
    norm: Layer
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        block = self.block
        width = block.hidden or block.width
        y = self.conv(width, block.kernel, block.stride, name="conv1")(x)
        y = block.activation(self.norm(name="norm1")(y, train))
        if block.hidden:
            y = self.norm(name="norm2")(self.conv(block.width, 1, name="conv2")(y), train)
        return _joined(block, x, y, self.drop_path, train)


def _joined(
    block: Block, x: jax.Array, y: jax.Array, drop_path: float, train: bool
) -> jax.Array:
    """Adds the shortcut x to a branch y of a block that keeps size and channels."""
    if block.stride > 1 or block.width != x.shape[-1]:
        return y
    return x + layers.drop_path(y, drop_path, train)


class Mobile(nn.Module):
    """A stem, stages of inverted residuals, and a last 1x1 convolution.

    Maps images [B, H, W, C] float32 to logits [B, K] and embed [B, D]. dropout: the rate
    before the head. drop_path: rates of the blocks rise linearly from 0 towards it.
    padding: "symmetric" as PyTorch's, or "same" as TensorFlow's, of every convolution.
    norm_epsilon: of every BatchNorm; TensorFlow's is 1e-3.
    """

    net: Net
    num_classes: int
    dtype: Dtype = jnp.float32
    dropout: float = 0.2
    drop_path: float = 0.0
    padding: str = "symmetric"
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        layers.check_known(PADDINGS, padding=self.padding)
        if not self.norm_epsilon > 0:
            raise ValueError(f"norm_epsilon={self.norm_epsilon} must be above 0, as 1e-5")
        layers.check_shares(dropout=self.dropout, drop_path=self.drop_path)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        net, x = self.net, images.astype(self.dtype)
        norm = partial(BatchNorm, net.momentum, self.norm_epsilon, dtype=self.dtype)
        make = partial(conv, padding=PADDINGS[self.padding], dtype=self.dtype)
        x = make(net.stem, 3, 2, name="conv1")(x)
        x = net.activation(norm(name="norm1")(x, train))
        blocks = self._blocks()
        for n, (name, stage, i) in enumerate(blocks):
            sizes, rate = net.stages[stage][i], self.drop_path * n / len(blocks)
            block: nn.Module
            if sizes.is_fused:
                block = FusedInvertedResidual(sizes, make, norm, rate, name=name)
            else:
                block = InvertedResidual(sizes, make, norm, net.excite, rate, name=name)
            x = block(x, train)
        x = make(net.last, 1, name="conv2")(x)
        x = net.activation(norm(name="norm2")(x, train))
        x = layers.global_mean(layers.FeatureMap()(x))
        if net.dense:
            dense = partial(nn.Dense, dtype=self.dtype, kernel_init=net.head_init)
            x = net.activation(dense(net.dense, name="dense")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return layers.head(x, self.num_classes, net.head_init)

    def _blocks(self) -> list[tuple[str, int, int]]:
        """Returns (name, stage, index in the stage) of every block."""
        return layers.block_names([len(stage) for stage in self.net.stages])

    def groups(self) -> list[tuple[str, ...]]:
        """Returns the layers by depth, input first, for layer-wise decay of the rate."""
        blocks = [(name,) for name, _, _ in self._blocks()]
        dense = ("dense",) if self.net.dense else ()
        return [("conv1", "norm1"), *blocks, ("conv2", "norm2", *dense, "head")]

    def namings(self) -> dict[str, Naming]:
        """Returns the names of our layers in files of the architecture's libraries."""
        net, blocks = self.net, self._blocks()
        rows: list[Row] = [
            ("conv1", "features.0.0", "conv_stem"),
            ("norm1", "features.0.1", "bn1"),
        ]
        for n, (name, stage, i) in enumerate(blocks, 1):
            vision = net.place.format(stage=stage + 1, i=i, n=n)
            rows += _rows(name, net.stages[stage][i], vision, f"blocks.{stage}.{i}")
        last = (
            f"features.{(len(net.stages) if '{stage}' in net.place else len(blocks)) + 1}"
        )
        if net.dense:
            # timm counts the last convolution as a stage, and makes the dense layer a 1x1.
            block = f"blocks.{len(net.stages)}.0"
            rows += [
                ("conv2", f"{last}.0", f"{block}.conv"),
                ("norm2", f"{last}.1", f"{block}.bn1"),
                ("dense", "classifier.0", Entry("conv_head", (1, 1, net.last, net.dense))),
                ("head", "classifier.3", "classifier"),
            ]
        else:
            rows += [
                ("conv2", f"{last}.0", "conv_head"),
                ("norm2", f"{last}.1", "bn2"),
                ("head", "classifier.1", "classifier"),
            ]
        tables = {**naming.of_both(rows), "efficientnet_pytorch": self._ported()}
        return {library: tables[library] for library in net.libraries}

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


Row = tuple[str, str | Entry, str | Entry]


def _rows(name: str, block: Block, vision: str, timm: str) -> list[Row]:
    """Returns (our name, torchvision's, timm's) of a block's layers.

    vision, timm: the block's names there. Both count the layers that the block has.
    """
    kinds = {1: "_exp", 2: "_pwl"} if block.is_fused else {1: "_pw", 2: "_dw", 3: "_pwl"}
    if not block.hidden:
        kinds = {1: ""} if block.is_fused else {2: "_dw", 3: "_pw"}
    rows: list[Row] = []
    for i, (k, kind) in enumerate(kinds.items()):
        is_last = i == len(kinds) - 1
        at = f"{vision}.{i + 1 if block.squeeze and is_last else i}"
        pair = f"{at}.0", f"{at}.1"
        if is_last and vision.endswith(".conv"):  # Of MobileNetV2.
            pair = at, f"{vision}.{i + 1}"
        rows += [
            (f"{name}/conv{k}", pair[0], f"{timm}.conv{kind}"),
            (f"{name}/norm{k}", pair[1], f"{timm}.bn{i + 1}"),
        ]
    if block.squeeze:
        middle = f"{vision}.{len(kinds) - 1}"
        rows += [
            (f"{name}/squeeze1", f"{middle}.fc1", f"{timm}.se.conv_reduce"),
            (f"{name}/squeeze2", f"{middle}.fc2", f"{timm}.se.conv_expand"),
        ]
    return rows


_V2 = (
    Stage(expand=1, kernel=3, stride=1, width=16, blocks=1),
    Stage(expand=6, kernel=3, stride=2, width=24, blocks=2),
    Stage(expand=6, kernel=3, stride=2, width=32, blocks=3),
    Stage(expand=6, kernel=3, stride=2, width=64, blocks=4),
    Stage(expand=6, kernel=3, stride=1, width=96, blocks=3),
    Stage(expand=6, kernel=3, stride=2, width=160, blocks=3),
    Stage(expand=6, kernel=3, stride=1, width=320, blocks=1),
)
# Tables 1 and 2 of MobileNetV3's paper: hidden, kernel, stride, width, squeeze.
_relu, _hard = partial(Block, nn.relu), partial(Block, nn.hard_swish)
_LARGE = (
    (_relu(0, 3, 1, 16),),
    (_relu(64, 3, 2, 24), _relu(72, 3, 1, 24)),
    (_relu(72, 5, 2, 40, 24), *[_relu(120, 5, 1, 40, 32)] * 2),
    (_hard(240, 3, 2, 80), _hard(200, 3, 1, 80), *[_hard(184, 3, 1, 80)] * 2),
    (_hard(480, 3, 1, 112, 120), _hard(672, 3, 1, 112, 168)),
    (_hard(672, 5, 2, 160, 168), *[_hard(960, 5, 1, 160, 240)] * 2),
)
_SMALL = (
    (_relu(0, 3, 2, 16, 8),),
    (_relu(72, 3, 2, 24), _relu(88, 3, 1, 24)),
    (_hard(96, 5, 2, 40, 24), *[_hard(240, 5, 1, 40, 64)] * 2),
    (_hard(120, 5, 1, 48, 32), _hard(144, 5, 1, 48, 40)),
    (_hard(288, 5, 2, 96, 72), *[_hard(576, 5, 1, 96, 144)] * 2),
)
_INIT = initializers.normal(0.01)
_v3 = partial(Net, head_init=_INIT, activation=nn.hard_swish, stem=16, momentum=0.99)
_NET2 = Net(unrolled(32, _V2, nn.relu6), _INIT, nn.relu6, place="features.{n}.conv")

MOBILENETS: dict[str, Callable[..., Mobile]] = {
    "mobilenet_v2": partial(Mobile, _NET2),
    "mobilenet_v3_large": partial(
        Mobile, _v3(_LARGE, last=960, dense=1280), norm_epsilon=1e-3
    ),
    "mobilenet_v3_small": partial(
        Mobile, _v3(_SMALL, last=576, dense=1024), norm_epsilon=1e-3
    ),
}
