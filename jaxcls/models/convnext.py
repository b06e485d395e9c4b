"""ConvNeXt (Liu et al., arXiv:2201.03545) and V2 (Woo et al., arXiv:2301.00808)."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models import initializers, layers, naming
from jaxcls.models.layers import Dtype, Output, conv, drop_path
from jaxcls.models.naming import Entry, Naming

NORMAL = initializers.normal(0.02)
# The stem and three stages divide the image by 32.
MIN_SIZE = 32


class GRN(nn.Module):
    """Global response normalisation of x [B, H, W, C], of Woo et al.

    A channel's response is its norm over the positions, divided by the mean over the
    channels. It is float32, and starts as the identity.
    """

    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias = (
            self.param(name, nn.initializers.zeros, x.shape[-1:]).reshape(1, 1, 1, -1)
            for name in ("scale", "bias")
        )
        wide = x.astype(jnp.float32)
        squares = jnp.square(wide).sum((1, 2), keepdims=True)
        # The root of 0 has no derivative.
        norms = jnp.sqrt(jnp.maximum(squares, 1e-30))
        response = norms / (norms.mean(-1, keepdims=True) + 1e-6)
        return (wide * (1 + scale * response) + bias).astype(self.dtype)


class Block(nn.Module):
    """A 7x7 depthwise convolution and two dense layers; with a shortcut.

    layer_scale: 0 leaves it out. grn: normalise the responses between the dense layers.
    """

    layer_scale: float
    drop_path: float
    dtype: Dtype
    rescale: bool = True
    grn: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1]
        spatial = partial(conv, width, 7, groups=width, bias=True, kernel_init=NORMAL)
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=NORMAL)
        y = spatial(dtype=self.dtype, name="conv")(x)
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(y)
        y = layers.gelu(dense(4 * width, name="dense1")(y))
        if self.grn:
            y = GRN(self.dtype, name="grn")(y)
        y = dense(width, name="dense2")(y)
        if self.layer_scale:
            start = nn.initializers.constant(self.layer_scale)
            scale = self.param("layer_scale", start, (width,))
            y = y * scale.astype(self.dtype).reshape(1, 1, 1, width)
        return x + drop_path(y, self.drop_path, train, self.rescale)


class ConvNeXt(nn.Module):
    """Maps images [B, H, W, C] float32 to logits [B, K] and embed [B, D].

    H and W are at least 32. drop_path: the rate of the last block; rates rise linearly from
    0, or with drop_path_mode="constant" each block has it. The sizes in CONVNEXTS have the
    papers' rates for ImageNet-1k. drop_path_rescale: whether branches that are kept are
    divided by 1 - rate. layer_scale: its initial value; 0: no such parameters. grn: V2's
    `GRN`. conv_mlp: whether timm's file has the dense layers of blocks as 1x1 convolutions.
    decay_blocks: how many blocks are one group of `decay_groups`.
    """

    num_classes: int
    stages: tuple[int, ...]
    width: int
    drop_path: float
    dtype: Dtype = jnp.float32
    layer_scale: float = 1e-6
    drop_path_mode: str = "rising"
    drop_path_rescale: bool = True
    grn: bool = False
    conv_mlp: bool = False
    decay_blocks: int = 3

    def __post_init__(self) -> None:
        layers.check_known(layers.DROP_PATH_MODES, drop_path_mode=self.drop_path_mode)
        layers.check_depth(sum(self.stages), "stages", "stages=(3, 3, 9, 3)")
        layers.check_shares(drop_path=self.drop_path)
        for name, least, value in (
            ("layer_scale", 0, self.layer_scale),
            ("decay_blocks", 1, self.decay_blocks),
        ):
            if not value >= least:
                raise ValueError(f"{name}={value} must be at least {least}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        layers.check_size(images, MIN_SIZE, "convnext")
        norm = partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        cut = partial(conv, padding=[(0, 0)] * 2, bias=True, kernel_init=NORMAL)
        x = images.astype(self.dtype)
        x = cut(self.width, 4, 4, dtype=self.dtype, name="stem_conv")(x)
        x = norm(name="stem_norm")(x)
        rates = layers.drop_rates(self.drop_path, sum(self.stages), self.drop_path_mode)
        options = self.dtype, self.drop_path_rescale, self.grn
        for (name, stage, i), rate in zip(self._blocks(), rates, strict=True):
            if stage and i == 0:
                width, before = self.width * 2**stage, f"stage{stage + 1}"
                x = norm(name=f"{before}_norm")(x)
                x = cut(width, 2, 2, dtype=self.dtype, name=f"{before}_conv")(x)
            x = Block(self.layer_scale, rate, *options, name=name)(x, train)
        x = nn.LayerNorm(epsilon=1e-6, name="norm")(layers.global_mean(x))
        return layers.head(x, self.num_classes, NORMAL)

    def _blocks(self) -> list[tuple[str, int, int]]:
        """Returns (name, stage, index in the stage) of every block."""
        return layers.block_names(self.stages)

    def groups(self) -> list[tuple[str, ...]]:
        """Returns the layers by depth, input first, for layer-wise decay of the rate."""
        found: list[tuple[str, ...]] = [("stem_conv", "stem_norm")]
        for name, stage, i in self._blocks():
            if stage and i == 0:
                found.append((f"stage{stage + 1}_norm", f"stage{stage + 1}_conv"))
            found.append((name,))
        return [*found, ("norm", "head")]

    def decay_groups(self) -> list[tuple[str, ...]]:
        """Returns the groups by depth among which the rate decays, as Meta's code does.

        A group is up to `decay_blocks` consecutive blocks of a stage, with the convolution
        before them; stem and head are groups of their own. V1 has three, and from "small"
        on 14 groups. V2 has one up to "tiny", and there the stem is in the first group.
        """
        found: list[tuple[str, ...]] = [("stem_conv", "stem_norm")]
        for name, stage, i in self._blocks():
            before = f"stage{stage + 1}"
            cut = (f"{before}_norm", f"{before}_conv") if stage and i == 0 else ()
            if i % self.decay_blocks == 0:
                found.append((*cut, name))
            else:
                found[-1] += (name,)
        if self.decay_blocks == 1:
            found[:2] = [found[0] + found[1]]
        return [*found, ("norm", "head")]

    def namings(self) -> dict[str, Naming]:
        """Returns the names of our layers in timm, and in torchvision if it has them."""
        rows: list[tuple[str, str | Entry, str | Entry]] = [
            ("stem_conv", "features.0.0", "stem.0"),
            ("stem_norm", "features.0.1", "stem.1"),
            ("norm", "classifier.0", "head.norm"),
            ("head", "classifier.2", "head.fc"),
        ]
        for name, stage, i in self._blocks():
            for n, kind in enumerate(("norm", "conv")):
                vision, timm = f"features.{2 * stage}.{n}", f"stages.{stage}.downsample.{n}"
                rows.append((f"stage{stage + 1}_{kind}", vision, timm))
            vision, timm = f"features.{2 * stage + 1}.{i}", f"stages.{stage}.blocks.{i}"
            width = self.width * 2**stage
            scale = Entry(f"{vision}.layer_scale", shape=(width, 1, 1))
            fc1, fc2 = Entry(f"{timm}.mlp.fc1"), Entry(f"{timm}.mlp.fc2")
            if self.conv_mlp:
                fc1 = fc1._replace(view=(1, 1, width, 4 * width))
                fc2 = fc2._replace(view=(1, 1, 4 * width, width))
            rows += [
                (f"{name}/conv", f"{vision}.block.0", f"{timm}.conv_dw"),
                (f"{name}/norm", f"{vision}.block.2", f"{timm}.norm"),
                (f"{name}/dense1", f"{vision}.block.3", fc1),
                (f"{name}/grn", "", f"{timm}.mlp.grn"),
                (f"{name}/dense2", f"{vision}.block.5", fc2),
                (f"{name}/layer_scale", scale, f"{timm}.gamma"),
            ]
        namings = naming.of_both(rows)
        is_v1 = self.layer_scale and not self.grn
        return namings if is_v1 else {"timm": namings["timm"]}


_V2 = partial(ConvNeXt, layer_scale=0.0, grn=True)
# timm has the smaller ones with 1x1 convolutions.
_MINI = partial(_V2, stages=(2, 2, 6, 2), drop_path=0.1, conv_mlp=True, decay_blocks=1)
_SMALL, _LARGE = (3, 3, 9, 3), (3, 3, 27, 3)
CONVNEXTS: dict[str, Callable[..., ConvNeXt]] = {
    "convnext_tiny": partial(ConvNeXt, stages=_SMALL, width=96, drop_path=0.1),
    "convnext_small": partial(ConvNeXt, stages=_LARGE, width=96, drop_path=0.4),
    "convnext_base": partial(ConvNeXt, stages=_LARGE, width=128, drop_path=0.5),
    "convnext_large": partial(ConvNeXt, stages=_LARGE, width=192, drop_path=0.5),
    "convnextv2_atto": partial(_MINI, width=40),
    "convnextv2_femto": partial(_MINI, width=48),
    "convnextv2_pico": partial(_MINI, width=64),
    "convnextv2_nano": partial(_MINI, stages=(2, 2, 8, 2), width=80),
    "convnextv2_tiny": partial(_V2, stages=_SMALL, width=96, drop_path=0.2, decay_blocks=1),
    "convnextv2_base": partial(_V2, stages=_LARGE, width=128, drop_path=0.1),
}
