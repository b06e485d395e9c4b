"""Tensors by other libraries' names, renamed to timm's, which the models know.

The dialects are those of Hugging Face's transformers (ViT, DINOv2, DINOv3, the images' side
of CLIP and SigLIP, ResNet, ConvNeXt), of
the JAX code of ViT and Mixer (the first one, and big_vision), and of Keras (MobileNetV2).
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxcls.errors import InputError
from jaxcls.models.weights import architectures

Tensors = dict[str, np.ndarray]


class Translated(NamedTuple):
    """Tensors by timm's names.

    dialect: whose names they had. architecture: what else is known of the model: a key of
    `architectures.FORMS`, or "".
    """

    tensors: Tensors
    dialect: str
    architecture: str = ""


def translated(tensors: Mapping[str, np.ndarray]) -> Translated | None:
    """Returns the tensors by timm's names, or None for names of no known dialect.

    Raises `InputError` for a model of a known dialect that is none of ours.
    """
    for translate in (_transformers, _authors, _keras):
        found = translate(tensors)
        if found:
            return found
    return None


# Of transformers: a name that tells the family, and rows of (pattern, timm's name).
Rows = Sequence[tuple[str, str]]
_LAYER = r"(?:(?:encoder\.|model\.)?layers?)\.(\d+)\."
_VIT: Rows = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (_LAYER + r"(?:layernorm_before|norm1)", r"blocks.\1.norm1"),
    (_LAYER + r"attention\.(?:attention\.)?(query|key|value)", r"blocks.\1.attn.\2"),
    (_LAYER + r"attention\.([qkv])_proj", r"blocks.\1.attn.\2"),
    (_LAYER + r"attention\.(?:output\.dense|o_proj)", r"blocks.\1.attn.proj"),
    (_LAYER + r"(?:layernorm_after|norm2)", r"blocks.\1.norm2"),
    (_LAYER + r"(?:intermediate\.dense|mlp\.fc1)", r"blocks.\1.mlp.fc1"),
    (_LAYER + r"(?:output\.dense|mlp\.fc2)", r"blocks.\1.mlp.fc2"),
    (_LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"layernorm", "norm"),
    (r"classifier", "head"),
)
_DINOV3: Rows = (
    (r"embeddings\.patch_embeddings", "patch_embed.proj"),
    (_LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.gamma_\2"),
    (_LAYER + r"mlp\.up_proj", r"blocks.\1.mlp.fc1"),
    (_LAYER + r"mlp\.down_proj", r"blocks.\1.mlp.fc2"),
    *_VIT,
)
_CLIP: Rows = (
    (r"embeddings\.class_embedding", "cls_token"),
    (r"embeddings\.position_embedding\.weight", "pos_embed"),
    (r"embeddings\.patch_embedding", "patch_embed.proj"),
    (r"pre_layrnorm", "norm_pre"),
    (_LAYER + r"layer_norm([12])", r"blocks.\1.norm\2"),
    (_LAYER + r"self_attn\.([qkv])_proj", r"blocks.\1.attn.\2"),
    (_LAYER + r"self_attn\.out_proj", r"blocks.\1.attn.proj"),
    (_LAYER + r"mlp\.fc([12])", r"blocks.\1.mlp.fc\2"),
    (r"post_layernorm", "norm"),
    (r"head\.probe", "attn_pool.latent"),
    (r"head\.attention\.in_proj", "attn_pool.in_proj"),
    (r"head\.attention\.out_proj", "attn_pool.proj"),
    (r"head\.layernorm", "attn_pool.norm"),
    (r"head\.mlp\.fc([12])", r"attn_pool.mlp.fc\1"),
)
_STAGE = r"encoder\.stages\.(\d+)\."
_RESNET: Rows = (
    (r"embedder\.embedder\.convolution", "conv1"),
    (r"embedder\.embedder\.normalization", "bn1"),
    (_STAGE + r"layers\.(\d+)\.layer\.(\d+)\.convolution", r"layer\1+.\2.conv\3+"),
    (_STAGE + r"layers\.(\d+)\.layer\.(\d+)\.normalization", r"layer\1+.\2.bn\3+"),
    (_STAGE + r"layers\.(\d+)\.shortcut\.convolution", r"layer\1+.\2.downsample.0"),
    (_STAGE + r"layers\.(\d+)\.shortcut\.normalization", r"layer\1+.\2.downsample.1"),
    (r"classifier\.1", "fc"),
)
_CONVNEXT: Rows = (
    (r"embeddings\.patch_embeddings", "stem.0"),
    (r"embeddings\.layernorm", "stem.1"),
    (_STAGE + r"downsampling_layer\.([01])", r"stages.\1.downsample.\2"),
    (_STAGE + r"layers\.(\d+)\.dwconv", r"stages.\1.blocks.\2.conv_dw"),
    (_STAGE + r"layers\.(\d+)\.layernorm", r"stages.\1.blocks.\2.norm"),
    (_STAGE + r"layers\.(\d+)\.pwconv([12])", r"stages.\1.blocks.\2.mlp.fc\3"),
    (_STAGE + r"layers\.(\d+)\.layer_scale_parameter", r"stages.\1.blocks.\2.gamma"),
    (r"layernorm", "head.norm"),
    (r"classifier", "head.fc"),
)
_TRANSFORMERS: Mapping[str, Rows] = {
    "embeddings.patch_embeddings.projection.weight": _VIT,
    "embeddings.register_tokens": _DINOV3,  # DINOv2 has the first name too.
    "embeddings.patch_embedding.weight": _CLIP,
    "embedder.embedder.convolution.weight": _RESNET,
    "embeddings.patch_embeddings.weight": _CONVNEXT,
}
_PREFIX = re.compile(r"(vit|deit|dinov2|resnet|convnext|vision_model)\.")
# Parts that no logits of a classifier read.
_UNREAD = re.compile(
    r"pooler\.dense\..*|embeddings\.(mask_token|position_ids)|text_model\..*"
    r"|(text|visual)_projection\.weight|logit_(scale|bias)"
)


def _transformers(tensors: Mapping[str, np.ndarray]) -> Translated | None:
    """Reads names of transformers; query, key and value become one tensor."""
    bare = {_PREFIX.sub("", name, count=1): name for name in tensors}
    rows = next((_TRANSFORMERS[each] for each in _TRANSFORMERS if each in bare), None)
    if rows is None:
        return None
    found: Tensors = {}
    parts: dict[str, Tensors] = {}
    for name, given in bare.items():
        if _UNREAD.fullmatch(name):
            continue
        layer, _, leaf = name.rpartition(".")
        if layer.endswith(_PARTS_OF_ONE) or leaf in _LEAVES:
            layer, leaf = name, ""
        elif leaf.startswith("in_proj_"):
            layer, leaf = f"{layer}.in_proj", leaf.removeprefix("in_proj_")
        ours = _renamed(layer, rows)
        block, _, part = ours.rpartition(".")
        if block.endswith(".attn") and part[:1] in tuple("qkv"):
            parts.setdefault(f"{block}.qkv.{leaf}", {})[part[:1]] = tensors[given]
        else:
            found[f"{ours}.{leaf}" if leaf else ours] = tensors[given]
    if rows is _DINOV3:
        parts = dict(_with_key_bias(parts))
    found |= _fused(parts)
    _reform(found, rows)
    return Translated(found, "transformers'")


def _with_key_bias(parts: Mapping[str, Tensors]) -> Iterator[tuple[str, Tensors]]:
    """Yields query, key and value of each name; the released biases are 0, and are none."""
    for name, three in parts.items():
        if name.endswith(".bias") and three.keys() == set("qv"):
            if not any(each.any() for each in three.values()):
                continue
            three = {**three, "k": np.zeros_like(three["q"])}
        yield name, three


def _reform(tensors: Tensors, rows: Rows) -> None:
    """Changes tensors of transformers, by timm's names, to timm's form."""
    if rows is _CLIP:
        for name, shape in (("cls_token", (1, 1, -1)), ("pos_embed", (1, -1))):
            if name in tensors:
                width = tensors[name].shape[-1:]
                tensors[name] = tensors[name].reshape(*shape[:2], *width)
        for leaf in ("weight", "bias"):
            fused = tensors.pop(f"attn_pool.in_proj.{leaf}", None)
            if fused is not None:
                query, tensors[f"attn_pool.kv.{leaf}"] = np.split(fused, [len(fused) // 3])
                tensors[f"attn_pool.q.{leaf}"] = query
    elif rows is _VIT and {"reg_token", "pos_embed", "cls_token"} <= tensors.keys():
        first, rest = np.split(tensors["pos_embed"], [1], axis=1)
        tensors["cls_token"], tensors["pos_embed"] = tensors["cls_token"] + first, rest


def _fused(parts: Mapping[str, Tensors]) -> Tensors:
    """Returns one tensor for the query, key and value of each name."""
    for name, three in parts.items():
        if three.keys() != set("qkv"):
            raise InputError(f"lacks the query, key or value of {name}; get it again")
    return {
        name: np.concatenate([three[each] for each in "qkv"])
        for name, three in parts.items()
    }


# Names of single tensors, not of layers.
_LEAVES = (
    *("cls_token", "position_embeddings", "layer_scale_parameter", "register_tokens"),
    *("class_embedding", "probe"),
)
_PARTS_OF_ONE = (".layer_scale1", ".layer_scale2", ".position_embedding")


def _renamed(name: str, rows: Rows) -> str:
    """Returns timm's name by the first row that fits, or the name; "3+" is "4"."""
    for pattern, template in rows:
        match = re.fullmatch(pattern, name)
        if match:
            made = match.expand(template)
            return re.sub(r"(\d+)\+", lambda found: str(int(found[1]) + 1), made)
    return name


# Of the authors' code in JAX, old and new.
_AUTHORS: Rows = (
    (r"cls", "cls_token"),
    (r"(?:Transformer/posembed_input/)?pos_embedding", "pos_embed"),
    (r"embedding", "patch_embed.proj"),
    (r"Transformer/encoderblock_(\d+)/LayerNorm_0", r"blocks.\1.norm1"),
    (
        r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_[01]/(query|key|value)",
        r"blocks.\1.attn.\2",
    ),
    (
        r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_[01]/out",
        r"blocks.\1.attn.proj",
    ),
    (r"Transformer/encoderblock_(\d+)/LayerNorm_[12]", r"blocks.\1.norm2"),
    (r"Transformer/encoderblock_(\d+)/MlpBlock_[03]/Dense_0", r"blocks.\1.mlp.fc1"),
    (r"Transformer/encoderblock_(\d+)/MlpBlock_[03]/Dense_1", r"blocks.\1.mlp.fc2"),
    (r"Transformer/encoder_norm", "norm"),
    (r"stem", "stem.proj"),
    (r"MixerBlock_(\d+)/LayerNorm_0", r"blocks.\1.norm1"),
    (r"MixerBlock_(\d+)/LayerNorm_1", r"blocks.\1.norm2"),
    (r"MixerBlock_(\d+)/token_mixing/Dense_0", r"blocks.\1.mlp_tokens.fc1"),
    (r"MixerBlock_(\d+)/token_mixing/Dense_1", r"blocks.\1.mlp_tokens.fc2"),
    (r"MixerBlock_(\d+)/channel_mixing/Dense_0", r"blocks.\1.mlp_channels.fc1"),
    (r"MixerBlock_(\d+)/channel_mixing/Dense_1", r"blocks.\1.mlp_channels.fc2"),
    (r"pre_head_layer_norm", "norm"),
    (r"head", "head"),
)
_ROOT = re.compile(r"(params|opt/target|target|model)/")


def _authors(tensors: Mapping[str, np.ndarray]) -> Translated | None:
    """Reads names of the JAX code of ViT and Mixer, whose kernels are as ours."""
    bare = {_ROOT.sub("", name, count=1): name for name in tensors}
    is_vit = {"embedding/kernel", "Transformer/encoder_norm/scale"} <= bare.keys()
    if not is_vit and not {"stem/kernel", "pre_head_layer_norm/scale"} <= bare.keys():
        return None
    found: Tensors = {}
    parts: dict[str, Tensors] = {}
    for name, given in bare.items():
        layer, _, leaf = name.rpartition("/")
        tensor = tensors[given]
        if leaf in ("cls", "pos_embedding"):
            found[_renamed(name, _AUTHORS)] = tensor
            continue
        ours = _renamed(layer, _AUTHORS)
        suffix = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
        block, _, part = ours.rpartition(".")
        if part in ("query", "key", "value"):  # Kernels [D, heads, D / heads].
            is_kernel = leaf == "kernel"
            flat = tensor.reshape(len(tensor), -1).T if is_kernel else tensor.reshape(-1)
            parts.setdefault(f"{block}.qkv.{suffix}", {})[part[:1]] = flat
            continue
        if leaf == "kernel" and tensor.ndim == 4:
            tensor = tensor.transpose(3, 2, 0, 1)
        elif leaf == "kernel":  # Of the attention's output: [heads, D / heads, D].
            tensor = tensor.reshape(-1, tensor.shape[-1]).T
        found[f"{ours}.{suffix}"] = tensor
    return Translated(found | _fused(parts), "the authors'")


# Of Keras's MobileNetV2: blocks of each stage, as timm counts them.
_STAGES = (1, 2, 3, 4, 3, 3, 1)
_LEAVES_OF_KERAS = {
    "kernel": "weight",
    "depthwise_kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def _keras(tensors: Mapping[str, np.ndarray]) -> Translated | None:
    """Reads names of Keras's MobileNetV2, by its layers' names or, of Keras 3, classes."""
    layers = _layers_of_keras()
    by_class = {classed: named for named, classed, _ in layers}
    given = {name.partition("/")[0] for name in tensors}
    if by_class.keys() <= given:
        tensors = {
            f"{by_class.get(layer, layer)}/{leaf}": tensor
            for name, tensor in tensors.items()
            for layer, _, leaf in [name.partition("/")]
        }
    elif not {named for named, _, _ in layers} <= given:
        return None
    names = {named: timm for named, _, timm in layers}
    rest = {name for name in tensors if name.partition("/")[0] not in names}
    heads = [name for name in rest if tensors[name].ndim == 2]
    if len(heads) == 1:  # "predictions", or another name in a user's own model.
        names[heads[0].partition("/")[0]] = "classifier"
    found: Tensors = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.partition("/")
        if layer in names and leaf in _LEAVES_OF_KERAS:
            name = f"{names[layer]}.{_LEAVES_OF_KERAS[leaf]}"
        if name.endswith(".weight") and tensor.ndim == 2:
            tensor = tensor.T
        elif name.endswith(".weight") and tensor.ndim == 4:
            # HWIO, or of a depthwise convolution HWO1.
            is_deep = "_dw." in name
            tensor = tensor.transpose((2, 3, 0, 1) if is_deep else (3, 2, 0, 1))
        found[name] = tensor
    return Translated(found, "Keras's", architectures.KERAS)


def _layers_of_keras() -> list[tuple[str, str, str]]:
    """Returns (name, name by its class in Keras 3, timm's name) of each layer."""
    rows = [("Conv1", "conv2d", "conv_stem"), ("bn_Conv1", "batch_normalization", "bn1")]
    counts: dict[str, itertools.count[int]] = {
        "conv2d": itertools.count(1),
        "batch_normalization": itertools.count(1),
        "depthwise_conv2d": itertools.count(),
    }

    def add(layer: str, kind: str, timm: str) -> None:
        n = next(counts[kind])
        rows.append((layer, f"{kind}_{n}" if n else kind, timm))

    places = [(stage, i) for stage, blocks in enumerate(_STAGES) for i in range(blocks)]
    for n, (stage, i) in enumerate(places):
        block = f"block_{n}" if n else "expanded_conv"
        timm = f"blocks.{stage}.{i}"
        kinds = ("expand", "depthwise", "project") if n else ("depthwise", "project")
        convs = ("conv_pw", "conv_dw", "conv_pwl") if n else ("conv_dw", "conv_pw")
        for k, (kind, conv) in enumerate(zip(kinds, convs, strict=True), 1):
            of = "depthwise_conv2d" if kind == "depthwise" else "conv2d"
            add(f"{block}_{kind}", of, f"{timm}.{conv}")
            add(f"{block}_{kind}_BN", "batch_normalization", f"{timm}.bn{k}")
    add("Conv_1", "conv2d", "conv_head")
    add("Conv_1_bn", "batch_normalization", "bn2")
    return rows
