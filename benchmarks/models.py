"""The table of docs/reference/models.md; ``python -m benchmarks.models`` prints it.

Parameters and multiply-adds for one image follow from shapes, at the pixels of `SIZES` and
1,000 classes (wrn*: CIFAR's 32 and 10). No accuracy is measured: the top-1 is what
torchvision and timm state for the weights that they publish.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.flops import multiply_adds
from jaxcls.models import MODELS
from jaxcls.models.convnext import CONVNEXTS
from jaxcls.models.efficientnet import EFFICIENTNETS
from jaxcls.models.mixer import MIXERS
from jaxcls.models.mobilenet import MOBILENETS
from jaxcls.models.resnet import RESNETS
from jaxcls.models.swin import SWINS
from jaxcls.models.towers import TOWERS
from jaxcls.models.vgg import VGGS
from jaxcls.models.vit import VITS
from jaxcls.models.wide_resnet import WIDE_RESNETS

# Pixels of a side, where they are not 224: those of torchvision's weights.
SIZES = {
    **dict.fromkeys(WIDE_RESNETS, 32),
    "efficientnet_b1": 240,
    "efficientnet_b2": 288,
    "efficientnet_b3": 300,
    "efficientnet_b4": 380,
    "efficientnet_v2_m": 480,
    "efficientnet_v2_s": 384,
}
# Public weights of exactly this architecture for images of this size, and their top-1 in
# percent on ImageNet-1k's 50,000 validation images: the most accurate of torchvision's,
# as torchvision 0.28 states in their metadata (`_metrics`), without SWAG's, which learned
# from billions of tagged photographs first; where torchvision has no such model, the most
# accurate of timm's, from results/results-imagenet.csv of the GitHub repository
# huggingface/pytorch-image-models at commit aa4b5850. What is not here has none in either:
# vit_ti_32, mixer_s_32, mixer_s_16, mixer_b_32, and wrn*, for CIFAR; and
# efficientnet_lite1 to 4, which timm has for larger images and with TensorFlow's padding;
# and the towers dinov2_*, dinov3_* and siglip_*, which were published without a head.
PUBLISHED = {
    "alexnet": ("torchvision IMAGENET1K_V1", 56.522),
    "vgg11": ("torchvision IMAGENET1K_V1", 69.020),
    "vgg11_bn": ("torchvision IMAGENET1K_V1", 70.370),
    "vgg13": ("torchvision IMAGENET1K_V1", 69.928),
    "vgg13_bn": ("torchvision IMAGENET1K_V1", 71.586),
    "vgg16": ("torchvision IMAGENET1K_V1", 71.592),
    "vgg16_bn": ("torchvision IMAGENET1K_V1", 73.360),
    "vgg19": ("torchvision IMAGENET1K_V1", 72.376),
    "vgg19_bn": ("torchvision IMAGENET1K_V1", 74.218),
    "resnet18": ("torchvision IMAGENET1K_V1", 69.758),
    "resnet34": ("torchvision IMAGENET1K_V1", 73.314),
    "resnet50": ("torchvision IMAGENET1K_V2", 80.858),
    "resnet101": ("torchvision IMAGENET1K_V2", 81.886),
    "resnet152": ("torchvision IMAGENET1K_V2", 82.284),
    "resnext50_32x4d": ("torchvision IMAGENET1K_V2", 81.198),
    "resnext101_32x8d": ("torchvision IMAGENET1K_V2", 82.834),
    "wide_resnet50_2": ("torchvision IMAGENET1K_V2", 81.602),
    "wide_resnet101_2": ("torchvision IMAGENET1K_V2", 82.510),
    "vit_ti_16": ("hf:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", 75.452),
    "vit_s_16": ("hf:timm/vit_small_patch16_224.augreg_in21k_ft_in1k", 81.402),
    "vit_s_32": ("hf:timm/vit_small_patch32_224.augreg_in21k_ft_in1k", 76.010),
    "vit_b_16": ("torchvision IMAGENET1K_V1", 81.072),
    "vit_b_32": ("torchvision IMAGENET1K_V1", 75.912),
    "vit_l_16": ("torchvision IMAGENET1K_V1", 79.662),
    "vit_l_32": ("torchvision IMAGENET1K_V1", 76.972),
    "convnext_tiny": ("torchvision IMAGENET1K_V1", 82.520),
    "convnext_small": ("torchvision IMAGENET1K_V1", 83.616),
    "convnext_base": ("torchvision IMAGENET1K_V1", 84.062),
    "convnext_large": ("torchvision IMAGENET1K_V1", 84.414),
    "clip_b_32": ("hf:timm/vit_base_patch32_clip_224.laion2b_ft_in12k_in1k", 83.304),
    "clip_b_16": ("hf:timm/vit_base_patch16_clip_224.laion2b_ft_in12k_in1k", 86.204),
    "clip_l_14": ("hf:timm/vit_large_patch14_clip_224.openai_ft_in12k_in1k", 88.162),
    "convnextv2_atto": ("hf:timm/convnextv2_atto.fcmae_ft_in1k", 76.644),
    "convnextv2_femto": ("hf:timm/convnextv2_femto.fcmae_ft_in1k", 78.476),
    "convnextv2_pico": ("hf:timm/convnextv2_pico.fcmae_ft_in1k", 80.304),
    "convnextv2_nano": ("hf:timm/convnextv2_nano.fcmae_ft_in22k_in1k", 82.038),
    "convnextv2_tiny": ("hf:timm/convnextv2_tiny.fcmae_ft_in22k_in1k", 83.904),
    "convnextv2_base": ("hf:timm/convnextv2_base.fcmae_ft_in22k_in1k", 86.752),
    "swin_t": ("torchvision IMAGENET1K_V1", 81.474),
    "swin_s": ("torchvision IMAGENET1K_V1", 83.196),
    "swin_b": ("torchvision IMAGENET1K_V1", 83.582),
    "mixer_b_16": ("hf:timm/mixer_b16_224.miil_in21k_ft_in1k", 82.314),
    "efficientnet_b0": ("torchvision IMAGENET1K_V1", 77.692),
    "efficientnet_b1": ("torchvision IMAGENET1K_V2", 79.838),
    "efficientnet_b2": ("torchvision IMAGENET1K_V1", 80.608),
    "efficientnet_b3": ("torchvision IMAGENET1K_V1", 82.008),
    "efficientnet_b4": ("torchvision IMAGENET1K_V1", 83.384),
    "efficientnet_lite0": ("hf:timm/efficientnet_lite0.ra_in1k", 75.488),
    "efficientnet_v2_m": ("torchvision IMAGENET1K_V1", 85.112),
    "efficientnet_v2_s": ("torchvision IMAGENET1K_V1", 84.228),
    "mobilenet_v2": ("torchvision IMAGENET1K_V2", 72.154),
    "mobilenet_v3_large": ("torchvision IMAGENET1K_V2", 75.274),
    "mobilenet_v3_small": ("torchvision IMAGENET1K_V1", 67.668),
}

_FAMILIES = (
    *(VGGS, RESNETS, VITS, TOWERS, CONVNEXTS, SWINS, MIXERS, EFFICIENTNETS),
    MOBILENETS,
)
_CIFARS = (*WIDE_RESNETS,)
_ORDER = ("alexnet", *(name for family in _FAMILIES for name in family), *_CIFARS)
# What is in no family comes last; the tutorial's net has no size of its own.
NAMES = [name for name in dict.fromkeys((*_ORDER, *MODELS)) if name != "cnn"]


class Costs(NamedTuple):
    """Parameters of a model, and multiply-adds of its forward pass for one image.

    variables: their shapes.
    """

    parameters: int
    multiply_adds: int
    variables: Any


def costs(name: str) -> Costs:
    """What a variant of `MODELS` costs at its own size, computing nothing."""
    size, classes = SIZES.get(name, 224), 10 if name in _CIFARS else 1000
    model: Any = MODELS[name](num_classes=classes, dtype=jnp.float32)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)

    def forward(image: jax.Array) -> Any:
        return model.init_with_output(jax.random.key(0), image, train=False)

    # One function for both, so that JAX traces it once; drawing values takes no products.
    _, variables = jax.eval_shape(forward, image)
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(variables["params"]))
    return Costs(parameters, multiply_adds(forward, image), variables)


def row(name: str, cost: Costs) -> str:
    """A model's line of the table; empty where nothing is published."""
    weights, top1 = PUBLISHED.get(name, ("", None))
    pixels = f", {SIZES[name]} pixels" if weights and name in SIZES else ""
    cells = (
        f"`{name}`",
        f"{cost.parameters:,}",
        f"{cost.multiply_adds / 1e9:.2f}",
        "" if top1 is None else f"{top1:.2f}",
        f"`{weights}`" if weights.startswith("hf:") else weights + pixels,
    )
    return "| " + " | ".join(cells) + " |"


def table() -> str:
    """The table in Markdown, a line for each variant; it takes some seconds."""
    head = "| `model.name` | parameters | GFLOPs (multiply-adds) | top-1 (%) | weights |"
    lines = (row(name, costs(name)) for name in NAMES)
    return "\n".join([head, "|---|--:|--:|--:|---|", *lines])


def main() -> None:
    """Print the table."""
    print(table())


if __name__ == "__main__":
    main()
