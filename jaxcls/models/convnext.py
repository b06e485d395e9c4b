"""ConvNeXt (Liu et al., arXiv:2201.03545)."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models import initializers, layers
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

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1]
        spatial = partial(conv, width, 7, groups=width, bias=True, kernel_init=NORMAL)
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=NORMAL)
        y = spatial(dtype=self.dtype, name="conv")(x)
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(y)
        y = nn.gelu(dense(4 * width, name="dense1")(y), approximate=False)
        y = dense(width, name="dense2")(y)
        start = nn.initializers.constant(self.layer_scale)
        scale = self.param("layer_scale", start, (width,))
        y = y * scale.astype(self.dtype).reshape(1, 1, 1, width)
        return x + drop_path(y, self.drop_path, train)


class ConvNeXt(nn.Module):
    """Maps images [B, H, W, C] float32 to logits [B, K] and embed [B, D].

    H and W are at least 32. drop_path: the rate of the last block; rates rise linearly from
    0. The sizes in CONVNEXTS have the paper's rates for ImageNet-1k. layer_scale: its
    initial value.
    """

    num_classes: int
    stages: tuple[int, ...]
    width: int
    drop_path: float
    dtype: Dtype = jnp.float32
    layer_scale: float = 1e-6

    def __post_init__(self) -> None:
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
        rates = iter(layers.drop_rates(self.drop_path, sum(self.stages)))
        for stage, blocks in enumerate(self.stages, 1):
            if stage > 1:
                width = self.width * 2 ** (stage - 1)
                x = norm(name=f"stage{stage}_norm")(x)
                x = cut(width, 2, 2, dtype=self.dtype, name=f"stage{stage}_conv")(x)
            for i in range(1, blocks + 1):
                name = f"stage{stage}_block{i}"
                x = Block(self.layer_scale, next(rates), self.dtype, name=name)(x, train)
        x = nn.LayerNorm(epsilon=1e-6, name="norm")(layers.global_mean(x))
        return layers.head(x, self.num_classes, NORMAL)

    def groups(self) -> list[tuple[str, ...]]:
        """Returns the layers by depth, input first, for layer-wise decay of the rate."""
        found: list[tuple[str, ...]] = [("stem_conv", "stem_norm")]
        for stage, blocks in enumerate(self.stages, 1):
            if stage > 1:
                found.append((f"stage{stage}_norm", f"stage{stage}_conv"))
            found += [(f"stage{stage}_block{i}",) for i in range(1, blocks + 1)]
        return [*found, ("norm", "head")]

    def namings(self) -> dict[str, Naming]:
        """Returns the names of our layers in files of torchvision and timm."""
        vision: dict[str, str | Entry] = {
            "stem_conv": "features.0.0",
            "stem_norm": "features.0.1",
        }
        timm: dict[str, str | Entry] = {"stem_conv": "stem.0", "stem_norm": "stem.1"}
        for stage, blocks in enumerate(self.stages):
            if stage:
                for n, kind in enumerate(("norm", "conv")):
                    ours = f"stage{stage + 1}_{kind}"
                    vision[ours] = f"features.{2 * stage}.{n}"
                    timm[ours] = f"stages.{stage}.downsample.{n}"
            for i in range(blocks):
                ours = f"stage{stage + 1}_block{i + 1}"
                theirs = f"features.{2 * stage + 1}.{i}"
                scale = Entry(f"{theirs}.layer_scale", shape=(-1, 1, 1))
                vision[f"{ours}/conv"] = f"{theirs}.block.0"
                vision[f"{ours}/norm"] = f"{theirs}.block.2"
                vision[f"{ours}/dense1"] = f"{theirs}.block.3"
                vision[f"{ours}/dense2"] = f"{theirs}.block.5"
                vision[f"{ours}/layer_scale"] = scale
                theirs = f"stages.{stage}.blocks.{i}"
                timm[f"{ours}/conv"] = f"{theirs}.conv_dw"
                timm[f"{ours}/norm"] = f"{theirs}.norm"
                timm[f"{ours}/dense1"] = f"{theirs}.mlp.fc1"
                timm[f"{ours}/dense2"] = f"{theirs}.mlp.fc2"
                timm[f"{ours}/layer_scale"] = f"{theirs}.gamma"
        vision |= {"norm": "classifier.0", "head": "classifier.2"}
        timm |= {"norm": "head.norm", "head": "head.fc"}
        return {"torchvision": Naming(vision), "timm": Naming(timm)}


_SMALL, _LARGE = (3, 3, 9, 3), (3, 3, 27, 3)
CONVNEXTS: dict[str, Callable[..., ConvNeXt]] = {
    "convnext_tiny": partial(ConvNeXt, stages=_SMALL, width=96, drop_path=0.1),
    "convnext_small": partial(ConvNeXt, stages=_LARGE, width=96, drop_path=0.4),
    "convnext_base": partial(ConvNeXt, stages=_LARGE, width=128, drop_path=0.5),
    "convnext_large": partial(ConvNeXt, stages=_LARGE, width=192, drop_path=0.5),
}
