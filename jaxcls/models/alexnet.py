"""AlexNet, one column (Krizhevsky, arXiv:1404.5997), as torchvision builds it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import Dtype, adaptive_mean, check_size, max_pool

# Below this, some feature map would have no position left.
MIN_SIZE = 63


class AlexNet(nn.Module):
    """Five convolutions, three overlapping poolings, three dense layers.

    images [B, H, W, C] float32, H and W at least 63 -> logits [B, K] float32.
    Initialised as PyTorch's layers are, with biases at 0.
    """

    num_classes: int
    dtype: Dtype = jnp.float32
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be in 0..1")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        check_size(images, MIN_SIZE, "alexnet")
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        x = images.astype(self.dtype)
        for i, (width, kernel, stride, padding, is_pooled) in enumerate(
            [
                (64, 11, 4, 2, True),
                (192, 5, 1, 2, True),
                (384, 3, 1, 1, False),
                (256, 3, 1, 1, False),
                (256, 3, 1, 1, True),
            ]
        ):
            x = nn.Conv(
                width,
                (kernel, kernel),
                strides=(stride, stride),
                padding=((padding, padding), (padding, padding)),
                dtype=self.dtype,
                kernel_init=init,
                name=f"conv{i + 1}",
            )(x)
            x = nn.relu(x)
            if is_pooled:
                x = max_pool(x, window=3, stride=2)
        x = adaptive_mean(x, 6).reshape(x.shape[0], -1)
        for i in (1, 2):
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = nn.Dense(4096, dtype=self.dtype, kernel_init=init, name=f"dense{i}")(x)
            x = nn.relu(x)
        head = nn.Dense(self.num_classes, kernel_init=init, name="head")
        return head(x.astype(jnp.float32))
