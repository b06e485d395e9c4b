"""Vision Transformers (Dosovitskiy et al., arXiv:2010.11929).

The initialisation follows the authors' code. pool="mean" with position="sincos" is the
plain form of Beyer et al. (arXiv:2205.01580). layer_scale=1e-4, token_position=False,
drop_path_mode="constant" and weight_init="deit" are DeiT III (Touvron et al.,
arXiv:2204.07118).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeParamShapeError

from jaxcls.errors import InputError
from jaxcls.models import initializers, layers, naming, positions
from jaxcls.models.attention import attend, of_heads
from jaxcls.models.layers import Dtype, Output, conv, drop_path
from jaxcls.models.naming import Entry, Naming

POOLS = ("token", "mean", "patch_mean", "norm_patch_mean", "map")
POSITIONS = ("learned", "sincos", "rope")
XAVIER = initializers.variance_scaling(1.0, "fan_avg", "uniform")
# Gives each of three concatenated matrices the variance of XAVIER.
XAVIER_OF_THREE = initializers.variance_scaling(2.0, "fan_avg", "uniform")


class Start(NamedTuple):
    """The initializers of a ViT; position: a function of the width."""

    qkv: nn.initializers.Initializer
    dense: nn.initializers.Initializer
    bias: nn.initializers.Initializer
    patch: nn.initializers.Initializer
    token: nn.initializers.Initializer
    position: Callable[[int], nn.initializers.Initializer]
    head: nn.initializers.Initializer


_ZEROS = nn.initializers.zeros
# PyTorch's `trunc_normal_(std=0.02)` cuts at 2, which is never.
_NORMAL = initializers.normal(0.02)
# By the names of `weight_init`.
STARTS = {
    "xavier": Start(
        qkv=XAVIER_OF_THREE,
        dense=XAVIER,
        bias=initializers.normal(1e-6),
        patch=layers.LECUN,
        token=_ZEROS,
        position=lambda width: initializers.normal(1 / np.sqrt(width)),
        head=_ZEROS,
    ),
    "deit": Start(
        qkv=_NORMAL,
        dense=_NORMAL,
        bias=_ZEROS,
        patch=initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
        token=_NORMAL,
        position=lambda width: _NORMAL,
        head=_NORMAL,
    ),
}


class Attention(nn.Module):
    """Self-attention with several heads over tokens x [B, N, D]; the softmax is float32.

    qkv_bias: whether query, key and value have biases. grid: as `of_heads` takes it.
    """

    heads: int
    dtype: Dtype
    weight_init: str = "xavier"
    qkv_bias: bool = True
    grid: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features, start = x.shape[-1], STARTS[self.weight_init]
        dense = partial(nn.Dense, dtype=self.dtype)
        fused = partial(dense, kernel_init=start.qkv, use_bias=self.qkv_bias)
        qkv = fused(3 * features, name="qkv")(x)
        parts = of_heads(qkv, self.heads, grid=self.grid)
        y = attend(*(each.swapaxes(1, 2) for each in parts))
        y = y.swapaxes(1, 2)
        return dense(features, kernel_init=start.dense, name="out")(y.reshape(x.shape))


class AttentionPool(nn.Module):
    """Maps tokens x [B, N, D] to [B, D]: a learned query attends to them, then an MLP.

    It is the MAP head of Zhai et al. (arXiv:2106.04560).
    """

    heads: int
    dtype: Dtype
    gelu: str = "exact"
    norm_epsilon: float = 1e-6
    weight_init: str = "xavier"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, _, features = x.shape
        start = STARTS[self.weight_init]
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=start.dense)
        latent = self.param("latent", start.position(features), (1, 1, features))
        query = dense(features, name="query")(latent.astype(self.dtype))
        query = jnp.broadcast_to(query, (batch, 1, features))
        both = dense(2 * features, name="kv")(x)
        parts = of_heads(query, self.heads, parts=1) + of_heads(both, self.heads, parts=2)
        y = attend(*(each.swapaxes(1, 2) for each in parts))
        x = dense(features, name="out")(y.reshape(batch, features))
        y = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="norm")(x)
        dense = partial(dense, bias_init=start.bias)
        y = layers.GELUS[self.gelu](dense(4 * features, name="dense1")(y))
        return x + dense(features, name="dense2")(y)


class Block(nn.Module):
    """Attention, then a two-layer MLP on each token, each with a shortcut.

    qkv_bias, grid: as of `Attention`.
    """

    heads: int
    dtype: Dtype
    dropout: float
    drop_path: float
    layer_scale: float = 0.0
    gelu: str = "exact"
    rescale: bool = True
    weight_init: str = "xavier"
    qkv_bias: bool = True
    norm_epsilon: float = 1e-6
    grid: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(nn.LayerNorm, epsilon=self.norm_epsilon, dtype=self.dtype)
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        start = STARTS[self.weight_init]
        dense = partial(
            nn.Dense, dtype=self.dtype, kernel_init=start.dense, bias_init=start.bias
        )
        options = self.weight_init, self.qkv_bias, self.grid
        attention = Attention(self.heads, self.dtype, *options, name="attention")
        y = attention(norm(name="norm1")(x))
        y = self._scaled(dropout(y), "layer_scale1")
        x = x + drop_path(y, self.drop_path, train, self.rescale)
        y = dense(4 * x.shape[-1], name="dense1")(norm(name="norm2")(x))
        y = dropout(layers.GELUS[self.gelu](y))
        y = self._scaled(dropout(dense(x.shape[-1], name="dense2")(y)), "layer_scale2")
        return x + drop_path(y, self.drop_path, train, self.rescale)

    def _scaled(self, y: jax.Array, name: str) -> jax.Array:
        """Scales the features of a branch y [B, N, D], if layer_scale is above 0."""
        if not self.layer_scale:
            return y
        start = nn.initializers.constant(self.layer_scale)
        scale = self.param(name, start, (y.shape[-1],))
        return y * scale.astype(self.dtype).reshape(1, 1, -1)


class ViT(nn.Module):
    """Maps images [B, H, W, C] float32 to logits [B, K] and embed [B, width].

    H and W are multiples of `patch`. pool: one of POOLS. "token" is a class token.
    "patch_mean" is the mean over the patches, then the last normalisation, beside a class
    token that they attend to, as timm's global_pool="avg"; "norm_patch_mean" normalises
    first. "mean" normalises, then takes the mean over the patches, and has no class token;
    nor has "map", `AttentionPool`. position: "learned", "sincos" or "rope", which rotates
    queries and keys. drop_path: the rate of the last block; rates rise linearly from 0, or
    with drop_path_mode="constant" each block has it. drop_path_rescale: whether branches
    that are kept are divided by 1 - rate.
    layer_scale: the initial value of learned factors of each branch's features (CaiT,
    Touvron et al., arXiv:2103.17239); 0: no such parameters. reg_tokens: the number of
    registers, further tokens that no pool reads (Darcet et al., arXiv:2309.16588).
    token_position: whether the class token and the registers have positions too. pre_norm:
    a normalisation before the blocks, and patches without a bias (CLIP). gelu: "exact",
    "tanh" or "quick", its approximations. weight_init: "xavier", as the authors', or
    "deit": dense layers, positions and tokens normal with a deviation of 0.02.
    """

    num_classes: int
    patch: int
    width: int
    depth: int
    heads: int
    dtype: Dtype = jnp.float32
    pool: str = "token"
    position: str = "learned"
    dropout: float = 0.0
    drop_path: float = 0.0
    layer_scale: float = 0.0
    token_position: bool = True
    gelu: str = "exact"
    drop_path_mode: str = "rising"
    drop_path_rescale: bool = True
    weight_init: str = "xavier"
    reg_tokens: int = 0
    pre_norm: bool = False
    qkv_bias: bool = True
    norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        layers.check_known(POOLS, pool=self.pool)
        layers.check_known(POSITIONS, position=self.position)
        if self.position == "rope" and self.width % (4 * self.heads):
            raise ValueError(
                f"position='rope' needs heads of a multiple of 4 features, and gets"
                f" width={self.width} in heads={self.heads}; try width={64 * self.heads}"
            )
        if self.layer_scale < 0:
            raise ValueError(
                f"layer_scale={self.layer_scale} must be at least 0, such as 1e-4"
            )
        if self.reg_tokens < 0:
            raise ValueError(f"reg_tokens={self.reg_tokens} must be at least 0, such as 4")
        layers.check_known(layers.GELUS, gelu=self.gelu)
        layers.check_known(layers.DROP_PATH_MODES, drop_path_mode=self.drop_path_mode)
        layers.check_known(STARTS, weight_init=self.weight_init)
        layers.check_depth(self.depth, f"depth={self.depth}", "depth=12")
        layers.check_shares(dropout=self.dropout, drop_path=self.drop_path)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        start, cut = STARTS[self.weight_init], (self.width, self.patch, "vit", self.dtype)
        cutting = partial(patches, kernel_init=start.patch, bias=not self.pre_norm)
        x = cutting(images, *cut, name="patch")
        height, width = x.shape[1:3]
        x = self._with_tokens(x.reshape(x.shape[0], -1, self.width), height, width)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        norm = partial(nn.LayerNorm, epsilon=self.norm_epsilon, dtype=self.dtype)
        if self.pre_norm:
            x = norm(name="pre_norm")(x)
        options = self.layer_scale, self.gelu, self.drop_path_rescale, self.weight_init
        grid = (height, width) if self.position == "rope" else None
        of_block = *options, self.qkv_bias, self.norm_epsilon, grid
        rates = layers.drop_rates(self.drop_path, self.depth, self.drop_path_mode)
        for i, rate in enumerate(rates, 1):
            block = partial(Block, self.heads, self.dtype, self.dropout, rate)
            x = block(*of_block, name=f"block{i}")(x, train)
        if self.pool == "patch_mean":
            x = _mean(x, height * width)
        x = norm(name="norm")(x)
        if self.pool == "token":
            x = x[:, 0]
        elif self.pool == "map":
            of_pool = self.gelu, self.norm_epsilon, self.weight_init
            pool = AttentionPool(self.heads, self.dtype, *of_pool, name="pool")
            x = pool(x[:, -height * width :])
        elif self.pool != "patch_mean":
            x = _mean(x, height * width)
        return layers.head(x, self.num_classes, start.head)

    def _with_tokens(self, x: jax.Array, height: int, width: int) -> jax.Array:
        """Adds positions, class token and registers to patches x [B, height * width, D]."""
        start = STARTS[self.weight_init].token
        tokens: list[jax.Array] = []
        counts = {"token": int(self._has_token()), "registers": self.reg_tokens}
        for name, count in counts.items():
            if count:
                token = self.param(name, start, (1, count, self.width))
                shape = (x.shape[0], count, self.width)
                tokens.append(jnp.broadcast_to(token.astype(x.dtype), shape))
        if self.token_position:
            x, tokens = jnp.concatenate([*tokens, x], axis=1), []
        if self.position != "rope":
            x = x + self._positions(height, width).astype(self.dtype)
        return jnp.concatenate([*tokens, x], axis=1)

    def _positions(self, height: int, width: int) -> jax.Array:
        """Returns [1, N, width]; those of the class token and the registers come first."""
        tokens = self._prefix()
        if self.position == "sincos":
            # No step changes this variable. It exists because files of weights have it.
            table = positions.sincos(height, width, self.width)
            table = np.pad(table, ((0, 0), (tokens, 0), (0, 0)))
            kept = self.variable("batch_stats", "position", jnp.asarray, table).value
            if kept.shape != table.shape:  # `self.param` raises this error.
                raise ScopeParamShapeError("position", "", kept.shape, table.shape)
            return kept
        init = STARTS[self.weight_init].position(self.width)
        shape = (1, tokens + height * width, self.width)
        return self.param("position", init, shape)

    def _has_token(self) -> bool:
        return self.pool not in ("mean", "map")

    def _prefix(self) -> int:
        """Returns the number of positions that belong to no patch."""
        return (self._has_token() + self.reg_tokens) if self.token_position else 0

    def groups(self) -> list[tuple[str, ...]]:
        """Returns the layers by depth, input first, for layer-wise decay of the rate."""
        has = {
            "token": self._has_token(),
            "registers": self.reg_tokens,
            "position": self.position != "rope",
            "pre_norm": self.pre_norm,
        }
        blocks = [(f"block{i}",) for i in range(1, self.depth + 1)]
        last = ("norm", "pool", "head") if self.pool == "map" else ("norm", "head")
        return [("patch", *(name for name in has if has[name])), *blocks, last]

    def namings(self) -> dict[str, Naming]:
        """Returns the names of our layers in timm, and in torchvision if it has them."""
        prefix = self._prefix()
        learned = Entry("encoder.pos_embedding", grid=prefix)
        rows: list[tuple[str, str | Entry, str | Entry]] = [
            ("patch", "conv_proj", "patch_embed.proj"),
            ("token", "class_token", "cls_token"),
            ("registers", "", "reg_token"),
            ("position", learned, Entry("pos_embed", grid=prefix)),
            ("pre_norm", "", "norm_pre"),
            ("norm", "encoder.ln", "fc_norm" if self.pool == "patch_mean" else "norm"),
            ("pool/latent", "", "attn_pool.latent"),
            ("pool/query", "", "attn_pool.q"),
            ("pool/kv", "", "attn_pool.kv"),
            ("pool/out", "", "attn_pool.proj"),
            ("pool/norm", "", "attn_pool.norm"),
            ("pool/dense1", "", "attn_pool.mlp.fc1"),
            ("pool/dense2", "", "attn_pool.mlp.fc2"),
            ("head", "heads.head", "head"),
        ]
        # timm's networks with rotary positions are of another class.
        scale = "gamma_{}" if self.position == "rope" else "ls{}.gamma"
        for i in range(self.depth):
            ours, timm = f"block{i + 1}", f"blocks.{i}"
            vision = f"encoder.layers.encoder_layer_{i}"
            qkv, attention = f"{ours}/attention/qkv", f"{vision}.self_attention"
            rows += [
                (f"{ours}/norm1", f"{vision}.ln_1", f"{timm}.norm1"),
                (f"{qkv}/kernel", f"{attention}.in_proj_weight", f"{timm}.attn.qkv.weight"),
                (f"{qkv}/bias", f"{attention}.in_proj_bias", f"{timm}.attn.qkv.bias"),
                (f"{ours}/attention/out", f"{attention}.out_proj", f"{timm}.attn.proj"),
                (f"{ours}/norm2", f"{vision}.ln_2", f"{timm}.norm2"),
                (f"{ours}/dense1", f"{vision}.mlp.0", f"{timm}.mlp.fc1"),
                (f"{ours}/dense2", f"{vision}.mlp.3", f"{timm}.mlp.fc2"),
                (f"{ours}/layer_scale1", "", f"{timm}.{scale.format(1)}"),
                (f"{ours}/layer_scale2", "", f"{timm}.{scale.format(2)}"),
            ]
        namings = naming.of_both(rows)
        is_plain = self.pool == "token" and self.token_position and self.position != "rope"
        is_plain = is_plain and self.qkv_bias
        is_other = not is_plain or self.layer_scale or self.reg_tokens or self.pre_norm
        return {"timm": namings["timm"]} if is_other else namings


def _mean(x: jax.Array, patches: int) -> jax.Array:
    """Returns the mean [B, D] float32 over the last tokens of x [B, N, D], the patches."""
    return x[:, -patches:].astype(jnp.float32).mean(axis=1)


def patches(
    images: jax.Array,
    features: int,
    patch: int,
    model: str,
    dtype: Dtype,
    name: str,
    kernel_init: nn.initializers.Initializer = layers.LECUN,
    bias: bool = True,
) -> jax.Array:
    """Maps images [B, H, W, C] to tokens [B, H / patch, W / patch, features].

    It is one dense layer on each patch. Call it within a model. Raises `InputError` unless
    H and W are multiples of `patch`.
    """
    height, width = images.shape[1:3]
    if height % patch or width % patch:
        near = max(1, round(min(height, width) / patch)) * patch
        raise InputError(
            f"{model} cuts images into patches of {patch} pixels, and gets"
            f" {width}x{height}; end data.train_ops and data.eval_ops in a multiple, such"
            f" as resize({near})"
        )
    cut = partial(conv, features, patch, patch, padding=[(0, 0)] * 2, bias=bias)
    return cut(kernel_init=kernel_init, dtype=dtype, name=name)(images.astype(dtype))


# By the letters of the names: width, depth and heads.
SIZES: dict[str, Mapping[str, Any]] = {
    "ti": {"width": 192, "depth": 12, "heads": 3},
    "s": {"width": 384, "depth": 12, "heads": 6},
    "b": {"width": 768, "depth": 12, "heads": 12},
    "l": {"width": 1024, "depth": 24, "heads": 16},
}
VITS: dict[str, Callable[..., ViT]] = {
    f"vit_{name}_{patch}": partial(ViT, patch=patch, **size)
    for name, size in SIZES.items()
    for patch in (16, 32)
}
