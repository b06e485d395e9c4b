"""MLP-Mixer (Tolstikhin et al., arXiv:2105.01601)."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models import layers
from jaxcls.models.layers import Dtype, Output, drop_path
from jaxcls.models.naming import Naming
from jaxcls.models.vit import patches


class Mlp(nn.Module):
    """Two dense layers over the last axis, with GELU between them."""

    hidden: int
    dtype: Dtype
    dropout: float
    gelu: str = "exact"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        y = nn.Dense(self.hidden, dtype=self.dtype, name="dense1")(x)
        y = dropout(layers.GELUS[self.gelu](y))
        return dropout(nn.Dense(x.shape[-1], dtype=self.dtype, name="dense2")(y))


class Block(nn.Module):
    """An MLP over the tokens of x [B, N, D], then an MLP over the channels."""

    dtype: Dtype
    dropout: float
    drop_path: float
    gelu: str = "exact"
    rescale: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        mlp = partial(Mlp, dtype=self.dtype, dropout=self.dropout, gelu=self.gelu)
        y = norm(name="norm1")(x).swapaxes(1, 2)
        y = mlp(x.shape[-1] // 2, name="tokens")(y, train).swapaxes(1, 2)
        x = x + drop_path(y, self.drop_path, train, self.rescale)
        y = mlp(4 * x.shape[-1], name="channels")(norm(name="norm2")(x), train)
        return x + drop_path(y, self.drop_path, train, self.rescale)


class Mixer(nn.Module):
    """Maps images [B, H, W, C] float32 to logits [B, K] and embed [B, width].

    H and W are multiples of `patch`. A trained model accepts only its image size.
    drop_path: the rate of the last block; rates rise linearly from 0, or with
    drop_path_mode="constant" each block has it. drop_path_rescale: whether branches that
    are kept are divided by 1 - rate; the authors' are not. gelu: "exact" or "tanh", its
    approximation, as the authors'.
    """

    num_classes: int
    patch: int
    width: int
    depth: int
    dtype: Dtype = jnp.float32
    dropout: float = 0.0
    drop_path: float = 0.0
    gelu: str = "exact"
    drop_path_mode: str = "rising"
    drop_path_rescale: bool = True

    def __post_init__(self) -> None:
        layers.check_known(layers.GELUS, gelu=self.gelu)
        layers.check_known(layers.DROP_PATH_MODES, drop_path_mode=self.drop_path_mode)
        layers.check_depth(self.depth, f"depth={self.depth}", "depth=12")
        layers.check_shares(dropout=self.dropout, drop_path=self.drop_path)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        x = patches(images, self.width, self.patch, "mixer", self.dtype, name="patch")
        x = x.reshape(x.shape[0], -1, self.width)
        rates = layers.drop_rates(self.drop_path, self.depth, self.drop_path_mode)
        options = self.gelu, self.drop_path_rescale
        for i, rate in enumerate(rates, 1):
            x = Block(self.dtype, self.dropout, rate, *options, name=f"block{i}")(x, train)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        x = x.astype(jnp.float32).mean(axis=1)
        return layers.head(x, self.num_classes, nn.initializers.zeros)

    def groups(self) -> list[tuple[str, ...]]:
        """Returns the layers by depth, input first, for layer-wise decay of the rate."""
        blocks = [(f"block{i}",) for i in range(1, self.depth + 1)]
        return [("patch",), *blocks, ("norm", "head")]

    def namings(self) -> dict[str, Naming]:
        """Returns the names of our layers in files of timm."""
        table: Naming = {"patch": "stem.proj"}
        for i in range(self.depth):
            ours, theirs = f"block{i + 1}", f"blocks.{i}"
            for n in (1, 2):
                table[f"{ours}/norm{n}"] = f"{theirs}.norm{n}"
                table[f"{ours}/tokens/dense{n}"] = f"{theirs}.mlp_tokens.fc{n}"
                table[f"{ours}/channels/dense{n}"] = f"{theirs}.mlp_channels.fc{n}"
        return {"timm": table | {"norm": "norm", "head": "head"}}


MIXERS: dict[str, Callable[..., Mixer]] = {
    "mixer_s_32": partial(Mixer, patch=32, width=512, depth=8),
    "mixer_s_16": partial(Mixer, patch=16, width=512, depth=8),
    "mixer_b_32": partial(Mixer, patch=32, width=768, depth=12),
    "mixer_b_16": partial(Mixer, patch=16, width=768, depth=12),
}
