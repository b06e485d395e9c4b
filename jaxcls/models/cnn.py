"""The convolutional network of a first tutorial, for images of 8 to 64 pixels."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models import initializers, layers
from jaxcls.models.layers import BatchNorm, Dtype, Output, conv
from jaxcls.models.naming import Naming


class CNN(nn.Module):
    """Stages of 3x3 convolutions and pooling, then a dense layer and the head.

    Maps images [B, H, W, C] float32 to logits [B, K] and embed [B, dense]. widths: filters
    of each stage. convs: convolutions a stage. pool: "max" or "mean"; each stage ends in
    2x2 pooling if its feature map has at least 2 x 2 positions.
    """

    num_classes: int
    dtype: Dtype = jnp.float32
    widths: tuple[int, ...] = (32, 64)
    convs: int = 1
    dense: int = 128
    dropout: float = 0.0
    batch_norm: bool = False
    pool: str = "max"

    def __post_init__(self) -> None:
        sizes = (*self.widths, self.convs, self.dense)
        if not self.widths or min(sizes) < 1:
            raise ValueError("widths, convs and dense must be at least 1")
        if self.pool not in ("max", "mean"):
            raise ValueError(f"pool={self.pool!r} must be 'max' or 'mean'")
        layers.check_depth(
            len(self.widths) * self.convs, "widths with convs", "widths=(32, 64)"
        )
        layers.check_shares(dropout=self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        x = images.astype(self.dtype)
        init = initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
        layer = partial(conv, dtype=self.dtype, kernel_init=init)
        for width, names in zip(self.widths, self._convs(), strict=True):
            for name in names:
                x = layer(width, 3, bias=not self.batch_norm, name=name)(x)
                if self.batch_norm:
                    x = BatchNorm(dtype=self.dtype, name=f"{name}_norm")(x, train)
                x = nn.relu(x)
            x = layers.FeatureMap()(x)
            if min(x.shape[1:3]) < 2:
                continue
            if self.pool == "max":
                x = layers.max_pool(x, window=2, stride=2)
            else:
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.Dense(self.dense, dtype=self.dtype, kernel_init=init, name="dense")(x)
        x = nn.relu(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return layers.head(x, self.num_classes)

    def _convs(self) -> list[list[str]]:
        """Returns the names of the convolutions of each stage."""
        return [
            [f"stage{stage + 1}_conv{i + 1}" for i in range(self.convs)]
            for stage in range(len(self.widths))
        ]

    def groups(self) -> list[tuple[str, ...]]:
        """Returns the layers by depth, input first, for layer-wise decay of the rate."""
        convs = [name for names in self._convs() for name in names]
        layers = [(n, f"{n}_norm") if self.batch_norm else (n,) for n in convs]
        return [*layers, ("dense",), ("head",)]

    def namings(self) -> dict[str, Naming]:
        """Returns our names with PyTorch's axes; no other library has this model."""
        names = [name for group in self.groups() for name in group]
        return {"pytorch": {name: name for name in names}}
