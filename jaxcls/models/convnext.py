"""ConvNeXt (Liu et al., arXiv:2201.03545)."""

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


class Block(nn.Module):
    """A 7x7 depthwise convolution, two dense layers, a layer scale; with a shortcut."""

    layer_scale: float
    drop_path: float
    dtype: Dtype
    rescale: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1]
        spatial = partial(conv, width, 7, groups=width, bias=True, kernel_init=NORMAL)
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=NORMAL)
        y = spatial(dtype=self.dtype, name="conv")(x)
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(y)
        y = layers.gelu(dense(4 * width, name="dense1")(y))
        y = dense(width, name="dense2")(y)
        start = nn.initializers.constant(self.layer_scale)
        scale = self.param("layer_scale", start, (width,))
        y = y * scale.astype(self.dtype).reshape(1, 1, 1, width)
        return x + drop_path(y, self.drop_path, train, self.rescale)


class ConvNeXt(nn.Module):
    """Maps images [B, H, W, C] float32 to logits [B, K] and embed [B, D].

    H and W are at least 32. drop_path: the rate of the last block; rates rise linearly from
    0, or with drop_path_mode="constant" each block has it. The sizes in CONVNEXTS have the
    paper's rates for ImageNet-1k. drop_path_rescale: whether branches that are kept are
    divided by 1 - rate. layer_scale: its initial value.
    """

    num_classes: int
    stages: tuple[int, ...]
    width: int
    drop_path: float
    dtype: Dtype = jnp.float32
    layer_scale: float = 1e-6
    drop_path_mode: str = "rising"
    drop_path_rescale: bool = True

    def __post_init__(self) -> None:
        layers.check_known(layers.DROP_PATH_MODES, drop_path_mode=self.drop_path_mode)
        layers.check_depth(sum(self.stages), "stages", "stages=(3, 3, 9, 3)")
        layers.check_shares(drop_path=self.drop_path)
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
        block = partial(Block, self.layer_scale, dtype=self.dtype)
        for (name, stage, i), rate in zip(self._blocks(), rates, strict=True):
            if stage and i == 0:
                width, before = self.width * 2**stage, f"stage{stage + 1}"
                x = norm(name=f"{before}_norm")(x)
                x = cut(width, 2, 2, dtype=self.dtype, name=f"{before}_conv")(x)
            x = block(rate, rescale=self.drop_path_rescale, name=name)(x, train)
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

        A group is up to three consecutive blocks of a stage, with the convolution before
        them; stem and head are groups of their own. The sizes from "small" on have 14.
        """
        found: list[tuple[str, ...]] = [("stem_conv", "stem_norm")]
        for name, stage, i in self._blocks():
            before = f"stage{stage + 1}"
            cut = (f"{before}_norm", f"{before}_conv") if stage and i == 0 else ()
            if i % 3 == 0:
                found.append((*cut, name))
            else:
                found[-1] += (name,)
        return [*found, ("norm", "head")]

    def namings(self) -> dict[str, Naming]:
        """Returns the names of our layers in files of torchvision and timm."""
        rows: list[tuple[str, str | Entry, str]] = [
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
            shape = self.width * 2**stage, 1, 1
            scale = Entry(f"{vision}.layer_scale", shape=shape)
            rows += [
                (f"{name}/conv", f"{vision}.block.0", f"{timm}.conv_dw"),
                (f"{name}/norm", f"{vision}.block.2", f"{timm}.norm"),
                (f"{name}/dense1", f"{vision}.block.3", f"{timm}.mlp.fc1"),
                (f"{name}/dense2", f"{vision}.block.5", f"{timm}.mlp.fc2"),
                (f"{name}/layer_scale", scale, f"{timm}.gamma"),
            ]
        return naming.of_both(rows)


_SMALL, _LARGE = (3, 3, 9, 3), (3, 3, 27, 3)
CONVNEXTS: dict[str, Callable[..., ConvNeXt]] = {
    "convnext_tiny": partial(ConvNeXt, stages=_SMALL, width=96, drop_path=0.1),
    "convnext_small": partial(ConvNeXt, stages=_LARGE, width=96, drop_path=0.4),
    "convnext_base": partial(ConvNeXt, stages=_LARGE, width=128, drop_path=0.5),
    "convnext_large": partial(ConvNeXt, stages=_LARGE, width=192, drop_path=0.5),
}
