"""Every model by its name in a config: ``(num_classes, dtype, **options) -> Classifier``.

Adding one is a file here and a line in MODELS. A variant is one line in its family's
table; variants are named as torchvision names them, or as it would.
"""

from collections.abc import Callable
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
from jaxcls.models.speedrun import Airbench
from jaxcls.models.vgg import VGGS
from jaxcls.models.vit import VITS
from jaxcls.models.wide_resnet import WIDE_RESNETS


class Classifier(Protocol):
    """What a model is: a Flax module with these three methods.

    Its last layer is called "head". Raises `InputError` for images it cannot take.
    """

    def __call__(self, images: jax.Array, train: bool) -> Output:
        """images [B, H, W, C] float32 -> logits [B, K] and embed [B, D], float32."""

    def groups(self) -> list[tuple[str, ...]]:
        """Its outermost layers by depth, the input first, the head in the last group."""

    def namings(self) -> dict[str, Naming]:
        """What other libraries call its layers, by library."""

    @property
    def init(self) -> Callable[..., Any]:
        """Flax's: (rngs, images, train) -> variables."""

    @property
    def apply(self) -> Callable[..., Any]:
        """Flax's: (variables, images, train, ...) -> Output."""


MODELS: dict[str, Callable[..., Classifier]] = {
    "airbench": Airbench,
    "alexnet": AlexNet,
    "cnn": CNN,
    **CONVNEXTS,
    **EFFICIENTNETS,
    **MIXERS,
    **MOBILENETS,
    **RESNETS,
    **VGGS,
    **VITS,
    **WIDE_RESNETS,
}
