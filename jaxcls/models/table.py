"""MODELS: every model by its name in a config; see `jaxcls.models`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import jax

from jaxcls.models.alexnet import AlexNet
from jaxcls.models.cnn import CNN
from jaxcls.models.convnext import CONVNEXTS
from jaxcls.models.efficientnet import EFFICIENTNETS
from jaxcls.models.layers import Output
from jaxcls.models.mixer import MIXERS
from jaxcls.models.mobilenet import MOBILENETS
from jaxcls.models.naming import Naming
from jaxcls.models.resnet import RESNETS
from jaxcls.models.swin import SWINS
from jaxcls.models.towers import TOWERS
from jaxcls.models.vgg import VGGS
from jaxcls.models.vit import VITS
from jaxcls.models.wide_resnet import WIDE_RESNETS


class Classifier(Protocol):
    """A model: a Flax module with these methods.

    Its last layer has the name "head". It raises `InputError` for images that it cannot
    take.
    """

    def __call__(self, images: jax.Array, train: bool) -> Output:
        """Maps images [B, H, W, C] float32 to logits [B, K] and embed [B, D], float32."""

    def groups(self) -> list[tuple[str, ...]]:
        """Returns the outermost layers by depth, input first, the head in the last."""

    def namings(self) -> dict[str, Naming]:
        """Returns the names of the layers in other libraries, by library."""

    @property
    def init(self) -> Callable[..., Any]:
        """Flax's `init`: (rngs, images, train) -> variables."""

    @property
    def apply(self) -> Callable[..., Any]:
        """Flax's `apply`: (variables, images, train, ...) -> Output."""


MODELS: Mapping[str, Callable[..., Classifier]] = MappingProxyType(
    {
        "alexnet": AlexNet,
        "cnn": CNN,
        **CONVNEXTS,
        **EFFICIENTNETS,
        **MIXERS,
        **MOBILENETS,
        **RESNETS,
        **SWINS,
        **TOWERS,
        **VGGS,
        **VITS,
        **WIDE_RESNETS,
    }
)
