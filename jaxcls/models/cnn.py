"""The convolutional net of a first tutorial, for images of 8 to 64 pixels."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import BatchNorm, Dtype, max_pool


class CNN(nn.Module):
    """Convolutions and poolings, then a dense head.

    images [B, H, W, C] float32 -> logits [B, K] float32.
    widths: filters of each stage; convs: 3x3 convolutions a stage; every stage ends in
    a 2x2 maximum, while the image is at least 2 pixels wide.
    """

    num_classes: int
    dtype: Dtype = jnp.float32
    widths: tuple[int, ...] = (32, 64)
    convs: int = 1
    dense: int = 128
    dropout: float = 0.0
    batch_norm: bool = False

    def __post_init__(self) -> None:
        sizes = (*self.widths, self.convs, self.dense)
        if not self.widths or min(sizes) < 1 or not 0 <= self.dropout < 1:
            raise ValueError("widths, convs and dense must be at least 1, dropout in 0..1")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = images.astype(self.dtype)
        init = nn.initializers.he_normal()
        for stage, width in enumerate(self.widths):
            for i in range(self.convs):
                name = f"stage{stage + 1}_conv{i + 1}"
                x = nn.Conv(
                    width,
                    (3, 3),
                    use_bias=not self.batch_norm,
                    dtype=self.dtype,
                    kernel_init=init,
                    name=name,
                )(x)
                if self.batch_norm:
                    x = BatchNorm(dtype=self.dtype, name=f"{name}_norm")(x, train)
                x = nn.relu(x)
            if min(x.shape[1:3]) >= 2:
                x = max_pool(x, window=2, stride=2)
        x = x.reshape(x.shape[0], -1)
        x = nn.Dense(self.dense, dtype=self.dtype, kernel_init=init, name="dense")(x)
        x = nn.relu(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="head")(x.astype(jnp.float32))
