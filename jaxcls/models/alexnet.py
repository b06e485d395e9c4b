"""AlexNet, one column (Krizhevsky, arXiv:1404.5997), as torchvision builds it."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models import initializers, layers
from jaxcls.models.layers import Dtype, Output, conv
from jaxcls.models.naming import Entry, Naming

# Below this size a feature map would be empty.
MIN_SIZE = 63
INITIALIZERS = {
    "torch": initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    "lecun": layers.LECUN,
}


class AlexNet(nn.Module):
    """Five convolutions, three overlapping poolings, three dense layers.

    Maps images [B, H, W, C] float32, H and W at least 63, to logits [B, K] and embed [B,
    4096]. weight_init is "torch", PyTorch's default, or "lecun", variance 1 / fan-in. After
    eight layers "torch" scales the signal by 1/1000, "lecun" by 1/16. Without momentum a
    network of "torch" hardly begins to learn. Biases start at 0.
    """

    num_classes: int
    dtype: Dtype = jnp.float32
    dropout: float = 0.5
    weight_init: str = "torch"

    def __post_init__(self) -> None:
        layers.check_known(INITIALIZERS, weight_init=self.weight_init)
        layers.check_shares(dropout=self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        layers.check_size(images, MIN_SIZE, "alexnet")
        init = INITIALIZERS[self.weight_init]
        x = images.astype(self.dtype)
        layer = partial(conv, dtype=self.dtype, bias=True, kernel_init=init)
        for i, (width, kernel, stride, padding, is_pooled) in enumerate(
            [
                (64, 11, 4, 2, True),
                (192, 5, 1, 2, True),
                (384, 3, 1, 1, False),
                (256, 3, 1, 1, False),
                (256, 3, 1, 1, True),
            ]
        ):
            pads = [(padding, padding)] * 2
            x = layer(width, kernel, stride, padding=pads, name=f"conv{i + 1}")(x)
            x = layers.FeatureMap()(nn.relu(x))
            if is_pooled:
                x = layers.max_pool(x, window=3, stride=2)
        x = layers.adaptive_mean(x, 6).reshape(x.shape[0], -1)
        for i in (1, 2):
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = nn.Dense(4096, dtype=self.dtype, kernel_init=init, name=f"dense{i}")(x)
            x = nn.relu(x)
        return layers.head(x, self.num_classes, init)

    def groups(self) -> list[tuple[str, ...]]:
        """Returns the layers by depth, input first, for layer-wise decay of the rate."""
        names = [*(f"conv{i}" for i in range(1, 6)), "dense1", "dense2", "head"]
        return [(name,) for name in names]

    def namings(self) -> dict[str, Naming]:
        """Returns the names of our layers in files of torchvision."""
        places = enumerate((0, 3, 6, 8, 10), 1)
        table: Naming = {f"conv{i}": f"features.{n}" for i, n in places}
        # torchvision flattens channels before positions.
        table["dense1"] = Entry("classifier.1", (6, 6, 256, 4096), (4096, 6 * 6 * 256))
        return {"torchvision": table | {"dense2": "classifier.4", "head": "classifier.6"}}
