"""Our models as timm's: an architecture, and the arguments that make it ours."""

import re
from typing import Any, NamedTuple

from jaxcls.config import calls
from jaxcls.errors import InputError
from jaxcls.models.weights import architectures


class Counterpart(NamedTuple):
    """A model of timm: its architecture, and the arguments beside the classes."""

    architecture: str
    args: dict[str, Any]


def counterpart(name: str, image_shape: tuple[int, int, int]) -> Counterpart:
    """Returns timm's model that equals ours on images of a shape.

    name: ours, with options, as in a config. image_shape: (H, W, C).

    Raises `InputError` if no architecture of timm is known to equal it.
    """
    call = calls.parse(name, "model.name", "resnet50")[0]
    height, width, channels = image_shape
    args: dict[str, Any] = {"in_chans": channels} if channels != 3 else {}
    # timm's DINOv2 and DINOv3 begin with other sizes.
    is_sized = re.match("dino", call.name) or (height, width) != (224, 224)
    if re.match("vit|mixer|swin|dino|clip|siglip", call.name) and is_sized:
        args["img_size"] = [height, width]
    architecture, more, lacking = architectures.of_timm(call.name, call.kwargs)
    is_apart = call.name.startswith("vgg") and (height, width) != (224, 224)
    if call.name.startswith("swin"):
        # timm pads after it shifts, and has windows no larger than a stage's map.
        stages, window = call.kwargs.get("stages", (1,) * 4), call.kwargs.get("window", 7)
        whole = 4 * window * 2 ** (len(stages) - 1)
        is_apart = bool(height % whole or width % whole)
    if not architecture or lacking or call.args or is_apart:
        at = f" at {width}x{height} pixels" if is_apart else ""
        raise InputError(
            f"--format=hub needs a model that timm has, and no architecture of timm's is"
            f" known to equal model.name={name}{at}; try --format=safetensors"
        )
    return Counterpart(architecture, args | more)
