"""VGG networks (Simonyan and Zisserman, arXiv:1409.1556), as torchvision builds them."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models import initializers, layers, naming
from jaxcls.models.layers import BatchNorm, Dtype, Output, conv
from jaxcls.models.naming import Entry, Naming

WIDTHS = (64, 128, 256, 512, 512)
# Each of the five stages halves the image.
MIN_SIZE = 32


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each with a 2x2 maximum at its end; three dense layers.

    Maps images [B, H, W, C] float32, H and W at least 32, to logits [B, K] and embed
    [B, 4096]. convs: the number of convolutions of each stage.
    """

    num_classes: int
    convs: tuple[int, ...]
    batch_norm: bool
    dtype: Dtype = jnp.float32
    dropout: float = 0.5

    def __post_init__(self) -> None:
        layers.check_depth(sum(self.convs), "convs", "convs=(1, 1, 2, 2, 2)")
        layers.check_shares(dropout=self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        layers.check_size(images, MIN_SIZE, "vgg")
        x = images.astype(self.dtype)
        for width, names in zip(WIDTHS, self._convs(), strict=True):
            for name in names:
                x = conv(width, 3, dtype=self.dtype, bias=True, name=name)(x)
                if self.batch_norm:
                    x = BatchNorm(dtype=self.dtype, name=f"{name}_norm")(x, train)
                x = nn.relu(x)
            x = layers.FeatureMap()(x)
            x = layers.max_pool(x, window=2, stride=2)
        x = layers.adaptive_mean(x, 7).reshape(x.shape[0], -1)
        init = initializers.normal(0.01)
        for i in (1, 2):
            x = nn.Dense(4096, dtype=self.dtype, kernel_init=init, name=f"dense{i}")(x)
            x = nn.relu(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return layers.head(x, self.num_classes, init)

    def _convs(self) -> list[list[str]]:
        """Returns the names of the convolutions of each stage."""
        return [
            [f"stage{stage}_conv{i + 1}" for i in range(convs)]
            for stage, convs in enumerate(self.convs, 1)
        ]

    def groups(self) -> list[tuple[str, ...]]:
        """Returns the layers by depth, input first, for layer-wise decay of the rate."""
        convs = [name for names in self._convs() for name in names]
        end = (("dense1",), ("dense2",), ("head",))
        return [*((n, f"{n}_norm") if self.batch_norm else (n,) for n in convs), *end]

    def namings(self) -> dict[str, Naming]:
        """Returns the names of our layers in files of torchvision and timm."""
        rows: list[tuple[str, str | Entry, str | Entry]] = []
        place = 0  # The index in `features`, which counts ReLU and pooling too.
        for names in self._convs():
            for name in names:
                conv, norm = f"features.{place}", f"features.{place + 1}"
                rows += [(name, conv, conv), (f"{name}_norm", norm, norm)]
                place += 3 if self.batch_norm else 2
            place += 1
        # torchvision flattens channels before positions; timm has a 7x7 convolution.
        view, flat = (7, 7, WIDTHS[-1], 4096), (4096, 7 * 7 * WIDTHS[-1])
        vision, timm = Entry("classifier.0", view, flat), Entry("pre_logits.fc1", view)
        second = Entry("pre_logits.fc2", view=(1, 1, 4096, 4096))
        rows += [
            ("dense1", vision, timm),
            ("dense2", "classifier.3", second),
            ("head", "classifier.6", "head.fc"),
        ]
        return naming.of_both(rows)


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
