"""Every model by its name in a config: ``(num_classes, dtype, **options) -> nn.Module``.

A model is ``__call__(images [B, H, W, C] float32, train) -> logits [B, K] float32``;
adding one is a file here and a line in MODELS.
"""

from collections.abc import Callable

import flax.linen as nn

from jaxcls.models.alexnet import AlexNet
from jaxcls.models.cnn import CNN
from jaxcls.models.resnet import RESNETS
from jaxcls.models.vgg import VGGS

MODELS: dict[str, Callable[..., nn.Module]] = {
    "alexnet": AlexNet,
    "cnn": CNN,
    **RESNETS,
    **VGGS,
}
