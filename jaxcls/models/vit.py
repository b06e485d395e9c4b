"""Vision Transformers (Dosovitskiy et al., arXiv:2010.11929).

The initialisation follows the authors' code. pool="mean" with position="sincos" is the
plain form of Beyer et al. (arXiv:2205.01580). layer_scale=1e-4, token_position=False,
drop_path_mode="constant" and weight_init="deit" are DeiT III (Touvron et al.,
arXiv:2204.07118).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeParamShapeError

from jaxcls.errors import InputError
from jaxcls.models import initializers, layers, naming
from jaxcls.models.layers import Dtype, Output, conv, drop_path
from jaxcls.models.naming import Entry, Naming

POOLS = ("token", "mean", "patch_mean")
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


def sincos(height: int, width: int, features: int) -> np.ndarray:
    """Returns fixed positions [1, height * width, features]: sines and cosines of x and y.

    They are float32. The frequencies go from 1 to 1 / 10000, as in MoCo v3 and big_vision.
    """
    y, x = np.mgrid[:height, :width].reshape(2, -1, 1)
    omega = 10_000.0 ** -np.linspace(0, 1, features // 4)
    parts = [np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)]
    return np.concatenate(parts, axis=1, dtype=np.float32)[None]


def of_heads(qkv: jax.Array, heads: int) -> list[jax.Array]:
    """Splits qkv [B, N, 3 D] into query, key and value, each [B, N, heads, D / heads]."""
    batch, tokens, features = qkv.shape
    split = qkv.reshape(batch, tokens, 3 * heads, features // (3 * heads))
    return jnp.split(split, 3, axis=2)


@jax.custom_vjp
def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """Returns softmax(query key^T / sqrt(D) + bias) value, for heads [B, H, N, D].

    bias: float32 [1, H, N, N]; None is 0.
    The softmax is float32, of products in the dtype of `query`. The gradient keeps its
    result in the dtype of `value`, which it multiplies: float32 scores, as JAX has them,
    are a third of the memory traffic of a bfloat16 step. It is XLA's on every machine:
    cuDNN's backward pass is deterministic only on some GPUs, and does not support float32.
    """
    return _attend_forward(query, key, value, bias)[0]


Kept = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None]


def _attend_forward(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, Kept]:
    scores = jnp.einsum("bhqd,bhkd->bhqk", query * _scale(query), key)
    scores = scores.astype(jnp.float32)
    if bias is not None:
        scores += bias
    shares = jax.nn.softmax(scores).astype(value.dtype)
    found = jnp.einsum("bhqk,bhkd->bhqd", shares, value)
    return found, (query, key, value, shares, bias)


def _attend_backward(
    kept: Kept, grads: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    query, key, value, shares, bias = kept
    of_shares = jnp.einsum("bhqd,bhkd->bhqk", grads, value).astype(jnp.float32)
    wide = shares.astype(jnp.float32)
    around = of_shares - (of_shares * wide).sum(-1, keepdims=True)
    of_scores = (wide * around).astype(query.dtype)
    return (
        jnp.einsum("bhqk,bhkd->bhqd", of_scores, key) * _scale(query),
        jnp.einsum("bhqk,bhqd->bhkd", of_scores, query * _scale(query)),
        jnp.einsum("bhqk,bhqd->bhkd", shares, grads),
        None if bias is None else (wide * around).sum(0, keepdims=True),
    )


def _scale(query: jax.Array) -> jax.Array:
    return jnp.asarray(query.shape[-1] ** -0.5, query.dtype)


attend.defvjp(_attend_forward, _attend_backward)


class Attention(nn.Module):
    """Self-attention with several heads over tokens x [B, N, D]; the softmax is float32."""

    heads: int
    dtype: Dtype
    weight_init: str = "xavier"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features, start = x.shape[-1], STARTS[self.weight_init]
        dense = partial(nn.Dense, dtype=self.dtype)
        qkv = dense(3 * features, kernel_init=start.qkv, name="qkv")(x)
        y = attend(*(each.swapaxes(1, 2) for each in of_heads(qkv, self.heads)))
        y = y.swapaxes(1, 2)
        return dense(features, kernel_init=start.dense, name="out")(y.reshape(x.shape))


class Block(nn.Module):
    """Attention, then a two-layer MLP on each token, each with a shortcut."""

    heads: int
    dtype: Dtype
    dropout: float
    drop_path: float
    layer_scale: float = 0.0
    gelu: str = "exact"
    rescale: bool = True
    weight_init: str = "xavier"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        start = STARTS[self.weight_init]
        dense = partial(
            nn.Dense, dtype=self.dtype, kernel_init=start.dense, bias_init=start.bias
        )
        attention = Attention(self.heads, self.dtype, self.weight_init, name="attention")
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

    H and W are multiples of `patch`. pool: "token" (a class token), "mean" (over all
    tokens, and no class token) or "patch_mean" (over the patches, then a normalisation,
    beside a class token that they attend to, as timm's global_pool="avg"). position:
    "learned" or "sincos". drop_path: the rate of the last block; rates rise linearly from
    0, or with drop_path_mode="constant" each block has it. drop_path_rescale: whether
    branches that are kept are divided by 1 - rate.
    layer_scale: the initial value of learned factors of each branch's features (CaiT,
    Touvron et al., arXiv:2103.17239); 0: no such parameters. token_position: whether the
    class token has a position too. gelu: "exact" or "tanh", its approximation. weight_init:
    "xavier", as the authors', or "deit": dense layers, positions and token normal with a
    deviation of 0.02.
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

    def __post_init__(self) -> None:
        layers.check_known(POOLS, pool=self.pool)
        if self.position not in ("learned", "sincos"):
            raise ValueError(f"position={self.position!r} must be 'learned' or 'sincos'")
        if self.layer_scale < 0:
            raise ValueError(
                f"layer_scale={self.layer_scale} must be at least 0, such as 1e-4"
            )
        layers.check_known(layers.GELUS, gelu=self.gelu)
        layers.check_known(layers.DROP_PATH_MODES, drop_path_mode=self.drop_path_mode)
        layers.check_known(STARTS, weight_init=self.weight_init)
        layers.check_depth(self.depth, f"depth={self.depth}", "depth=12")
        layers.check_shares(dropout=self.dropout, drop_path=self.drop_path)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        start, cut = STARTS[self.weight_init], (self.width, self.patch, "vit", self.dtype)
        x = patches(images, *cut, name="patch", kernel_init=start.patch)
        grid = x.shape[1:3]
        x = x.reshape(x.shape[0], -1, self.width)
        tokens = []
        if self.pool != "mean":
            token = self.param("token", start.token, (1, 1, self.width))
            tokens = [jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.width))]
        if self.token_position:
            x, tokens = jnp.concatenate([*tokens, x], axis=1), []
        x = x + self._positions(*grid).astype(self.dtype)
        x = jnp.concatenate([*tokens, x], axis=1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        rates = layers.drop_rates(self.drop_path, self.depth, self.drop_path_mode)
        options = self.layer_scale, self.gelu, self.drop_path_rescale, self.weight_init
        for i, rate in enumerate(rates, 1):
            block = partial(Block, self.heads, self.dtype, self.dropout, rate)
            x = block(*options, name=f"block{i}")(x, train)
        if self.pool == "patch_mean":
            x = x[:, 1:].astype(jnp.float32).mean(axis=1)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        if self.pool == "token":
            x = x[:, 0]
        elif self.pool == "mean":
            x = x.astype(jnp.float32).mean(axis=1)
        return layers.head(x, self.num_classes, start.head)

    def _positions(self, height: int, width: int) -> jax.Array:
        """Returns [1, N, width]; the class token's position, if any, comes first."""
        tokens = self._prefix()
        if self.position == "sincos":
            # No step changes this variable. It exists because files of weights have it.
            table = np.pad(sincos(height, width, self.width), ((0, 0), (tokens, 0), (0, 0)))
            kept = self.variable("batch_stats", "position", jnp.asarray, table).value
            if kept.shape != table.shape:  # `self.param` raises this error.
                raise ScopeParamShapeError("position", "", kept.shape, table.shape)
            return kept
        init = STARTS[self.weight_init].position(self.width)
        shape = (1, tokens + height * width, self.width)
        return self.param("position", init, shape)

    def _prefix(self) -> int:
        """Returns the number of positions that belong to no patch."""
        return int(self.pool != "mean" and self.token_position)

    def groups(self) -> list[tuple[str, ...]]:
        """Returns the layers by depth, input first, for layer-wise decay of the rate."""
        blocks = [(f"block{i}",) for i in range(1, self.depth + 1)]
        return [("patch", "token", "position"), *blocks, ("norm", "head")]

    def namings(self) -> dict[str, Naming]:
        """Returns the names of our layers in timm, and in torchvision if it has them."""
        prefix = self._prefix()
        learned = Entry("encoder.pos_embedding", grid=prefix)
        rows: list[tuple[str, str | Entry, str | Entry]] = [
            ("patch", "conv_proj", "patch_embed.proj"),
            ("token", "class_token", "cls_token"),
            ("position", learned, Entry("pos_embed", grid=prefix)),
            ("norm", "encoder.ln", "fc_norm" if self.pool == "patch_mean" else "norm"),
            ("head", "heads.head", "head"),
        ]
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
                (f"{ours}/layer_scale1", "", f"{timm}.ls1.gamma"),
                (f"{ours}/layer_scale2", "", f"{timm}.ls2.gamma"),
            ]
        namings = naming.of_both(rows)
        is_plain = prefix and self.pool == "token" and not self.layer_scale
        return namings if is_plain else {"timm": namings["timm"]}


def patches(
    images: jax.Array,
    features: int,
    patch: int,
    model: str,
    dtype: Dtype,
    name: str,
    kernel_init: nn.initializers.Initializer = layers.LECUN,
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
    cut = partial(conv, features, patch, patch, padding=[(0, 0)] * 2, bias=True)
    return cut(kernel_init=kernel_init, dtype=dtype, name=name)(images.astype(dtype))


VITS: dict[str, Callable[..., ViT]] = {
    f"vit_{name}_{patch}": partial(ViT, patch=patch, width=width, depth=depth, heads=heads)
    for name, width, depth, heads in (
        ("ti", 192, 12, 3),
        ("s", 384, 12, 6),
        ("b", 768, 12, 12),
        ("l", 1024, 24, 16),
    )
    for patch in (16, 32)
}
