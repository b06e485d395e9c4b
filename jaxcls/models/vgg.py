"""VGG networks (Simonyan and Zisserman, arXiv:1409.1556), as torchvision builds them."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import BatchNorm, Dtype, adaptive_mean, check_size, conv, max_pool

WIDTHS = (64, 128, 256, 512, 512)
# Each of the five stages halves the image.
MIN_SIZE = 32


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each ending in a 2x2 maximum; three dense layers.

    images [B, H, W, C] float32, H and W at least 32 -> logits [B, K] float32.
    convs: 3x3 convolutions of each stage.
    """

    num_classes: int
    convs: tuple[int, ...]
    batch_norm: bool
    dtype: Dtype = jnp.float32
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be in 0..1")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        check_size(images, MIN_SIZE, "vgg")
        x = images.astype(self.dtype)
        for stage, (width, convs) in enumerate(zip(WIDTHS, self.convs, strict=True), 1):
            for i in range(1, convs + 1):
                name = f"stage{stage}_conv{i}"
                x = conv(width, 3, dtype=self.dtype, bias=True, name=name)(x)
                if self.batch_norm:
                    x = BatchNorm(dtype=self.dtype, name=f"{name}_norm")(x, train)
                x = nn.relu(x)
            x = max_pool(x, window=2, stride=2)
        x = adaptive_mean(x, 7).reshape(x.shape[0], -1)
        init = nn.initializers.normal(0.01)
        for i in (1, 2):
            x = nn.Dense(4096, dtype=self.dtype, kernel_init=init, name=f"dense{i}")(x)
            x = nn.relu(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        head = nn.Dense(self.num_classes, kernel_init=init, name="head")
        return head(x.astype(jnp.float32))


VGGS: dict[str, Callable[..., VGG]] = {
    f"vgg{depth}{suffix}": partial(VGG, convs=convs, batch_norm=bool(suffix))
    for depth, convs in {
        11: (1, 1, 2, 2, 2),
        13: (2, 2, 2, 2, 2),
        16: (2, 2, 3, 3, 3),
        19: (2, 2, 4, 4, 4),
    }.items()
    for suffix in ("", "_bn")
}
