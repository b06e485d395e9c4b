"""EfficientNet-B0 (Tan and Le, arXiv:1905.11946)."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from jaxcls.models import initializers
from jaxcls.models.layers import Dtype
from jaxcls.models.mobilenet import Mobile, Stage
from jaxcls.models.naming import Naming


class EfficientNet(Mobile):
    """A `Mobile` with swish, and squeeze-and-excitation in every block."""

    def namings(self) -> dict[str, Naming]:
        """Returns the names of our layers in files of torchvision and timm."""
        table = {"conv1": "features.0.0", "norm1": "features.0.1"}
        for name, stage, i in self._blocks():
            theirs = f"features.{stage + 1}.{i}.block"
            # Without an expansion, later layers have an index one lower.
            shift = int(self.stages[stage].expand > 1)
            for ours, place in ((1, 0), (2, shift), (3, shift + 2)):
                if ours > 1 or shift:
                    table[f"{name}/conv{ours}"] = f"{theirs}.{place}.0"
                    table[f"{name}/norm{ours}"] = f"{theirs}.{place}.1"
            table[f"{name}/squeeze1"] = f"{theirs}.{shift + 1}.fc1"
            table[f"{name}/squeeze2"] = f"{theirs}.{shift + 1}.fc2"
        end = len(self.stages) + 1
        table |= {"conv2": f"features.{end}.0", "norm2": f"features.{end}.1"}
        table["head"] = "classifier.1"
        return {"torchvision": Naming(table), "timm": Naming(self._timm())}


def efficientnet_b0(
    num_classes: int,
    dtype: Dtype = jnp.float32,
    dropout: float = 0.2,
    drop_path: float = 0.2,
) -> EfficientNet:
    """Returns EfficientNet-B0, the smallest EfficientNet."""
    return EfficientNet(
        num_classes,
        stages=(
            Stage(expand=1, kernel=3, stride=1, width=16, blocks=1),
            Stage(expand=6, kernel=3, stride=2, width=24, blocks=2),
            Stage(expand=6, kernel=5, stride=2, width=40, blocks=2),
            Stage(expand=6, kernel=3, stride=2, width=80, blocks=3),
            Stage(expand=6, kernel=5, stride=1, width=112, blocks=3),
            Stage(expand=6, kernel=5, stride=2, width=192, blocks=4),
            Stage(expand=6, kernel=3, stride=1, width=320, blocks=1),
        ),
        activation=nn.silu,
        squeeze=4,
        # Uniform within +-1 / sqrt(num_classes).
        head_init=initializers.variance_scaling(1 / 3, "fan_out", "uniform"),
        dropout=dropout,
        drop_path=drop_path,
        dtype=dtype,
    )


EFFICIENTNETS: dict[str, Callable[..., EfficientNet]] = {"efficientnet_b0": efficientnet_b0}
