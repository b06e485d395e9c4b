"""EfficientNet (Tan and Le, arXiv:1905.11946), EfficientNetV2 (arXiv:2104.00298), and
EfficientNet-Lite, without squeeze-and-excitation: models/official/efficientnet/lite of
github.com/tensorflow/tpu. All are a `jaxcls.models.mobilenet.Mobile`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn

from jaxcls.models import initializers
from jaxcls.models.mobilenet import Mobile, Net, Stage, unrolled

_B0 = (
    Stage(expand=1, kernel=3, stride=1, width=16, blocks=1),
    Stage(expand=6, kernel=3, stride=2, width=24, blocks=2),
    Stage(expand=6, kernel=5, stride=2, width=40, blocks=2),
    Stage(expand=6, kernel=3, stride=2, width=80, blocks=3),
    Stage(expand=6, kernel=5, stride=1, width=112, blocks=3),
    Stage(expand=6, kernel=5, stride=2, width=192, blocks=4),
    Stage(expand=6, kernel=3, stride=1, width=320, blocks=1),
)
_V2_S = (
    Stage(expand=1, kernel=3, stride=1, width=24, blocks=2, is_fused=True),
    Stage(expand=4, kernel=3, stride=2, width=48, blocks=4, is_fused=True),
    Stage(expand=4, kernel=3, stride=2, width=64, blocks=4, is_fused=True),
    Stage(expand=4, kernel=3, stride=2, width=128, blocks=6),
    Stage(expand=6, kernel=3, stride=1, width=160, blocks=9),
    Stage(expand=6, kernel=3, stride=2, width=256, blocks=15),
)
_V2_M = (
    Stage(expand=1, kernel=3, stride=1, width=24, blocks=3, is_fused=True),
    Stage(expand=4, kernel=3, stride=2, width=48, blocks=5, is_fused=True),
    Stage(expand=4, kernel=3, stride=2, width=80, blocks=5, is_fused=True),
    Stage(expand=4, kernel=3, stride=2, width=160, blocks=7),
    Stage(expand=6, kernel=3, stride=1, width=176, blocks=14),
    Stage(expand=6, kernel=3, stride=2, width=304, blocks=18),
    Stage(expand=6, kernel=3, stride=1, width=512, blocks=5),
)
# Uniform within +-1 / sqrt(num_classes).
_HEAD = initializers.variance_scaling(1 / 3, "fan_out", "uniform")


def _swish(
    stem: int, stages: Sequence[Stage], last: int, libraries: tuple[str, ...]
) -> Net:
    """Returns a network of SiLU with squeeze-and-excitation."""
    return Net(
        unrolled(stem, stages, nn.silu, squeeze=4),
        _HEAD,
        nn.silu,
        stem,
        last,
        excite=(nn.silu, nn.sigmoid),
        libraries=libraries,
        place="features.{stage}.{i}.block",
    )


def _scaled(width: float, depth: float) -> Net:
    """Returns B0 with factors of its channels and of its blocks."""
    stages = [
        stage._replace(
            width=_channels(stage.width * width), blocks=math.ceil(stage.blocks * depth)
        )
        for stage in _B0
    ]
    libraries = ("torchvision", "timm", "efficientnet_pytorch")
    return _swish(_channels(32 * width), stages, _channels(1280 * width), libraries)


def _lite(width: float, depth: float) -> Net:
    """Returns a Lite with factors of B0's channels and blocks.

    The stem and the last convolution keep their channels, and the first and the last stage
    their depth.
    """
    stages = [stage._replace(width=_channels(stage.width * width)) for stage in _B0]
    stages[1:-1] = [
        stage._replace(blocks=math.ceil(stage.blocks * depth)) for stage in stages[1:-1]
    ]
    libraries = ("timm", "efficientnet_pytorch")
    return Net(unrolled(32, stages, nn.relu6), _HEAD, nn.relu6, libraries=libraries)


def _v2(stages: Sequence[Stage]) -> Net:
    """Returns an EfficientNetV2, whose stem has the channels of the first stage."""
    return _swish(stages[0].width, stages, 1280, ("torchvision", "timm"))


def _channels(wanted: float) -> int:
    """Returns the nearest multiple of 8 that is at least 0.9 of what is wanted."""
    near = int(wanted + 4) // 8 * 8
    return near if near >= 0.9 * wanted else near + 8


# Beside the network: torchvision's dropout, stochastic depth and epsilon.
_model = partial(Mobile, drop_path=0.2)
EFFICIENTNETS: dict[str, Callable[..., Mobile]] = {
    "efficientnet_b0": partial(_model, _scaled(1.0, 1.0)),
    "efficientnet_b1": partial(_model, _scaled(1.0, 1.1)),
    "efficientnet_b2": partial(_model, _scaled(1.1, 1.2), dropout=0.3),
    "efficientnet_b3": partial(_model, _scaled(1.2, 1.4), dropout=0.3),
    "efficientnet_b4": partial(_model, _scaled(1.4, 1.8), dropout=0.4),
    "efficientnet_lite0": partial(_model, _lite(1.0, 1.0)),
    "efficientnet_lite1": partial(_model, _lite(1.0, 1.1)),
    "efficientnet_lite2": partial(_model, _lite(1.1, 1.2), dropout=0.3),
    "efficientnet_lite3": partial(_model, _lite(1.2, 1.4), dropout=0.3),
    "efficientnet_lite4": partial(_model, _lite(1.4, 1.8), dropout=0.3),
    "efficientnet_v2_m": partial(_model, _v2(_V2_M), dropout=0.3, norm_epsilon=1e-3),
    "efficientnet_v2_s": partial(_model, _v2(_V2_S), norm_epsilon=1e-3),
}
