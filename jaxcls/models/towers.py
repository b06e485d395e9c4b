"""Image towers: ViTs that were pretrained without ImageNet's labels, in timm's forms.

DINOv2 (Oquab et al., arXiv:2304.07193), also with registers (Darcet et al.,
arXiv:2309.16588); DINOv3 (Siméoni et al., arXiv:2508.10104); the images' side of CLIP
(Radford et al., arXiv:2103.00020; OpenAI's own weights take gelu="quick") and of SigLIP
(Zhai et al., arXiv:2303.15343).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jaxcls.models.vit import SIZES, ViT

_DINOV2: Mapping[str, Any] = {"layer_scale": 1e-5}
_REGISTERS: Mapping[str, Any] = {"reg_tokens": 4, "token_position": False}
_DINOV3: Mapping[str, Any] = {
    "layer_scale": 1e-5,
    "position": "rope",
    "reg_tokens": 4,
    "qkv_bias": False,
    "norm_epsilon": 1e-5,
}
_CLIP: Mapping[str, Any] = {"pre_norm": True, "norm_epsilon": 1e-5}


def _variants(
    name: str, sizes: str, patch: int, **options: Any
) -> dict[str, Callable[..., ViT]]:
    """Returns the models of a family; name: "dinov2_{}_14"; sizes: "s b"."""
    return {
        name.format(size): partial(ViT, patch=patch, **SIZES[size], **options)
        for size in sizes.split()
    }


TOWERS: dict[str, Callable[..., ViT]] = {
    **_variants("dinov2_{}_14", "s b l", 14, **_DINOV2),
    **_variants("dinov2_{}_14_reg4", "s b l", 14, **_DINOV2, **_REGISTERS),
    **_variants("dinov3_{}_16", "s b", 16, **_DINOV3),
    **_variants("clip_{}_32", "b", 32, **_CLIP),
    **_variants("clip_{}_16", "b", 16, **_CLIP),
    **_variants("clip_{}_14", "l", 14, **_CLIP),
    **_variants("siglip_{}_16", "b", 16, pool="map"),
}
