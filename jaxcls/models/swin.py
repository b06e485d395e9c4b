"""Swin Transformers (Liu et al., arXiv:2103.14030)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.models import initializers, layers, naming
from jaxcls.models.attention import attend, of_heads
from jaxcls.models.layers import Dtype, Output, conv, drop_path
from jaxcls.models.naming import Entry, Naming

# PyTorch's `trunc_normal_(std=0.02)` cuts at 2, which is never.
NORMAL = initializers.normal(0.02)
# PyTorch's own for a convolution, which the authors keep.
UNIFORM = initializers.variance_scaling(1 / 3, "fan_in", "uniform")
PATCH = 4


def windows(x: Any, side: int) -> Any:
    """Cuts x [B, H, W, C] into windows [B, M, side * side, C], row by row.

    side divides H and W.
    """
    batch, height, width, features = x.shape
    cut = x.reshape(batch, height // side, side, width // side, side, features)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, side * side, features)


def joined(x: jax.Array, height: int, width: int) -> jax.Array:
    """Joins windows [B, M, N, C] to [B, height, width, C]: the inverse of `windows`."""
    batch, _, positions, features = x.shape
    side = round(positions**0.5)
    cut = x.reshape(batch, height // side, width // side, side, side, features)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, features)


def mask(size: tuple[int, ...], side: int, shift: tuple[int, ...]) -> np.ndarray:
    """Returns [M, 1, N, N] float32: -100 for pairs that only the roll has joined, else 0.

    size, shift: (rows, columns) of the map, and of those which the roll moved to its end.
    """
    is_low = np.arange(size[0]) >= size[0] - shift[0]
    is_right = np.arange(size[1]) >= size[1] - shift[1]
    regions = 2 * is_low[:, None] + is_right
    each = windows(regions[None, :, :, None], side)[0, :, None, :, 0]
    return np.where(each[..., None] == each[..., None, :], 0, -100).astype(np.float32)


def of_pairs(table: jax.Array, side: int) -> jax.Array:
    """Returns biases [heads, N, N] of a table [(2 side - 1)**2, heads]: see `naming`.

    It takes slices, not `naming.relative_index`: the gradient of a lookup adds rows one
    after another.
    """
    table = table.reshape(2 * side - 1, 2 * side - 1, -1)
    for axis in (0, 2):  # Each becomes (of the key, of the query).
        starts = range(side - 1, -1, -1)
        parts = [jax.lax.slice_in_dim(table, i, i + side, axis=axis) for i in starts]
        table = jnp.stack(parts, axis)
    return table.transpose(4, 1, 3, 0, 2).reshape(-1, side * side, side * side)


class Attention(nn.Module):
    """Self-attention within windows of x [B, H, W, C], of `side` by `side` positions.

    x is padded with zeros, which are attended to, below and to the right. is_shifted: the
    windows begin at half a side; along an axis of one window they do not.
    """

    heads: int
    side: int
    is_shifted: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, features = x.shape
        side, dense = self.side, partial(nn.Dense, dtype=self.dtype, kernel_init=NORMAL)
        x = jnp.pad(x, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
        size = x.shape[1:3]
        down, across = (side // 2 * (self.is_shifted and n > side) for n in size)
        if down or across:
            x = jnp.roll(x, (-down, -across), (1, 2))
        x = windows(x, side)
        cut = x.shape
        qkv = dense(3 * features, name="qkv")(x).reshape(-1, side**2, 3 * features)
        # A window's heads are heads of the image.
        flat = batch, cut[1] * self.heads, side**2, features // self.heads
        parts = (each.swapaxes(1, 2).reshape(flat) for each in of_heads(qkv, self.heads))
        rows = ((2 * side - 1) ** 2, self.heads)
        bias = of_pairs(self.param("position_bias", NORMAL, rows), side)
        bias = bias[None] + mask(size, side, (down, across))
        bias = bias.reshape(1, *flat[1:3], side**2)
        y = attend(*parts, bias).reshape(-1, self.heads, *flat[2:]).swapaxes(1, 2)
        y = joined(dense(features, name="out")(y.reshape(cut)), *size)
        if down or across:
            y = jnp.roll(y, (down, across), (1, 2))
        return y[:, :height, :width]


class Block(nn.Module):
    """Attention in windows, then a two-layer MLP at each position; each with a shortcut."""

    heads: int
    side: int
    is_shifted: bool
    drop_path: float
    dtype: Dtype
    rescale: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=NORMAL)
        drop = partial(drop_path, rate=self.drop_path, train=train, rescale=self.rescale)
        attention = Attention(
            self.heads, self.side, self.is_shifted, self.dtype, name="attention"
        )
        x = x + drop(attention(norm(name="norm1")(x)))
        y = layers.gelu(dense(4 * x.shape[-1], name="dense1")(norm(name="norm2")(x)))
        return x + drop(dense(x.shape[-1], name="dense2")(y))


class Swin(nn.Module):
    """Maps images [B, H, W, C] float32 to logits [B, K] and embed [B, D].

    H and W are at least 4, and what 4 does not divide is left out at the right and below,
    as in torchvision. A map that `window` does not divide is padded: see `Attention`.
    heads: one number a stage. window: the side of the windows, in positions. drop_path: the
    rate of the last block; rates rise linearly from 0, or with drop_path_mode="constant"
    each block has it. The sizes in SWINS have the paper's. drop_path_rescale: whether
    branches that are kept are divided by 1 - rate.
    """

    num_classes: int
    stages: tuple[int, ...]
    width: int
    heads: tuple[int, ...]
    drop_path: float
    dtype: Dtype = jnp.float32
    window: int = 7
    drop_path_mode: str = "rising"
    drop_path_rescale: bool = True

    def __post_init__(self) -> None:
        layers.check_known(layers.DROP_PATH_MODES, drop_path_mode=self.drop_path_mode)
        layers.check_depth(sum(self.stages), "stages", "stages=(2, 2, 6, 2)")
        layers.check_shares(drop_path=self.drop_path)
        if len(self.heads) != len(self.stages):
            raise ValueError(
                f"heads={self.heads} must be one number for each of {len(self.stages)}"
                " stages, as heads=(3, 6, 12, 24) of four"
            )
        for stage, heads in enumerate(self.heads):
            width = self.width * 2**stage
            if heads < 1 or width % heads:
                raise ValueError(
                    f"heads={self.heads} must divide the widths of the stages, and"
                    f" {heads} does not divide {width}; try one head for 32 of the width"
                )
        if self.window < 1:
            raise ValueError(f"window={self.window} must be at least 1, such as 7")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        layers.check_size(images, PATCH, "swin")
        norm = partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        cut = partial(conv, padding=[(0, 0)] * 2, bias=True, kernel_init=UNIFORM)
        x = images.astype(self.dtype)
        x = cut(self.width, PATCH, PATCH, dtype=self.dtype, name="patch")(x)
        x = norm(name="patch_norm")(x)
        rates = layers.drop_rates(self.drop_path, sum(self.stages), self.drop_path_mode)
        for (name, stage, i), rate in zip(self._blocks(), rates, strict=True):
            if stage and i == 0:
                before = f"stage{stage + 1}"
                x = norm(name=f"{before}_norm")(merged(x))
                dense = partial(nn.Dense, use_bias=False, kernel_init=NORMAL)
                x = dense(x.shape[-1] // 2, dtype=self.dtype, name=f"{before}_reduce")(x)
            block = partial(Block, self.heads[stage], self.window, i % 2 == 1, rate)
            x = block(self.dtype, self.drop_path_rescale, name=name)(x, train)
        x = layers.global_mean(norm(name="norm")(x))
        return layers.head(x, self.num_classes, NORMAL)

    def _blocks(self) -> list[tuple[str, int, int]]:
        """Returns (name, stage, index in the stage) of every block."""
        return layers.block_names(self.stages)

    def groups(self) -> list[tuple[str, ...]]:
        """Returns the layers by depth, input first, for layer-wise decay of the rate.

        The merging after a stage is with its last block, as in the authors' SimMIM.
        """
        found: list[tuple[str, ...]] = [("patch", "patch_norm")]
        for name, stage, i in self._blocks():
            if stage and i == 0:
                found[-1] += (f"stage{stage + 1}_norm", f"stage{stage + 1}_reduce")
            found.append((name,))
        return [*found, ("norm", "head")]

    def namings(self) -> dict[str, Naming]:
        """Returns the names of our layers in files of torchvision and timm.

        timm has windows no larger than a stage's map: at 224 pixels, 7 in each stage.
        """
        rows: list[tuple[str, str | Entry, str | Entry]] = [
            ("patch", "features.0.0", "patch_embed.proj"),
            ("patch_norm", "features.0.2", "patch_embed.norm"),
            ("norm", "norm", "norm"),
            ("head", "head", "head.fc"),
        ]
        for name, stage, i in self._blocks():
            for kind, there in (("norm", "norm"), ("reduce", "reduction")):
                vision, timm = f"features.{2 * stage}", f"layers.{stage}.downsample"
                both = f"{vision}.{there}", f"{timm}.{there}"
                rows.append((f"stage{stage + 1}_{kind}", *both))
            vision, timm = f"features.{2 * stage + 1}.{i}", f"layers.{stage}.blocks.{i}"
            table = "attn.relative_position_bias_table"
            biases = Entry(f"{vision}.{table}", window=self.window)
            rows += [
                (f"{name}/attention/position_bias", biases, f"{timm}.{table}"),
                (f"{name}/dense1", f"{vision}.mlp.0", f"{timm}.mlp.fc1"),
                (f"{name}/dense2", f"{vision}.mlp.3", f"{timm}.mlp.fc2"),
            ]
            for ours, theirs in (
                ("attention/qkv", "attn.qkv"),
                ("attention/out", "attn.proj"),
                ("norm1", "norm1"),
                ("norm2", "norm2"),
            ):
                rows.append((f"{name}/{ours}", f"{vision}.{theirs}", f"{timm}.{theirs}"))
        return naming.of_both(rows)


def merged(x: jax.Array) -> jax.Array:
    """Joins squares of four positions: [B, H, W, C] to [B, ceil(H/2), ceil(W/2), 4 C].

    An odd side is padded with zeros. The lower left is the second, as in the authors' code.
    """
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    batch, height, width, features = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, features)
    return x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, height // 2, width // 2, -1)


_HEADS = (3, 6, 12, 24), (4, 8, 16, 32)
SWINS: dict[str, Callable[..., Swin]] = {
    name: partial(Swin, stages=stages, width=width, heads=heads, drop_path=rate)
    for name, stages, width, heads, rate in (
        ("swin_t", (2, 2, 6, 2), 96, _HEADS[0], 0.2),
        ("swin_s", (2, 2, 18, 2), 96, _HEADS[0], 0.3),
        ("swin_b", (2, 2, 18, 2), 128, _HEADS[1], 0.5),
    )
}
