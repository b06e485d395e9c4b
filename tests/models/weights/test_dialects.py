"""Names of transformers, of the JAX authors and of Keras give the weights they stand for.

The tests of parity need transformers or keras beside torch: they skip without.
"""

import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxcls import models
from jaxcls.errors import InputError
from jaxcls.models import naming, weights
from jaxcls.models.weights import Preprocessing, architectures, dialects, transfer
from tests.modules import built, shapes

MODELS = {
    "vit": "vit_ti_16(depth=2, width=12)",
    "dinov2": "vit_ti_16(depth=2, width=12, layer_scale=1e-5)",
    "resnet": "resnet50(width=8, stages=(1, 2))",
    "convnext": "convnext_tiny(width=8, stages=(1, 2))",
    "mixer": "mixer_s_16(depth=2, width=12)",
    "mobilenet": "mobilenet_v2(padding='same', norm_epsilon=1e-3)",
}


@functools.cache
def made(kind):
    """(module, its shapes, random variables, the same by timm's names)."""
    module = built(MODELS[kind], num_classes=5)
    like = shapes(module, 32)[1]
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), like)
    return module, like, variables, naming.to_theirs(variables, module.namings()["timm"])


def check(tensors, kind, notes):
    """Tensors by other names are those of the model, every one."""
    module, like, variables, _ = made(kind)
    start = transfer.adapt(tensors, module.namings(), like)
    expected = naming.flatten(variables)
    assert start.arrays.keys() == expected.keys()
    for path, values in expected.items():
        np.testing.assert_array_equal(start.arrays[path], values, path)
    n, library = len(expected), "torchvision" if kind == "resnet" else "timm"
    assert start.notes == [*notes, f"{n} of {n} arrays, by {library}'s names"]
    assert transfer.classes_of(tensors, module.namings()) == 5


def renamed(tensors, rows):
    """Tensors by the first row whose pattern is the whole name without its suffix."""
    found = {}
    for name, values in tensors.items():
        for pattern, new in rows:
            match = re.fullmatch(pattern, name)
            if match:
                found[match.expand(new) if isinstance(new, str) else new(match)] = values
                break
        else:
            raise AssertionError(name)
    return found


def cut(tensors, sign="qkv", names=("query", "key", "value")):
    """Tensors with each qkv in three."""
    found = {}
    for name, values in tensors.items():
        if f".{sign}." not in name:
            found[name] = values
            continue
        for part, third in zip(names, np.split(values, 3), strict=True):
            found[name.replace(f".{sign}.", f".{part}.")] = third
    return found


W = r"\.(weight|bias)"
VIT_HEAD = [
    ("cls_token", "vit.embeddings.cls_token"),
    ("pos_embed", "vit.embeddings.position_embeddings"),
    (r"patch_embed\.proj" + W, r"vit.embeddings.patch_embeddings.projection.\1"),
    (r"norm" + W, r"vit.layernorm.\1"),
    (r"head" + W, r"classifier.\1"),
]
B = r"blocks\.(\d+)\."
# As transformers up to 4 has them, and 5 in its files.
VIT = [
    *VIT_HEAD,
    (B + r"norm1" + W, r"vit.encoder.layer.\1.layernorm_before.\2"),
    (B + r"norm2" + W, r"vit.encoder.layer.\1.layernorm_after.\2"),
    (B + r"attn\.(query|key|value)" + W, r"vit.encoder.layer.\1.attention.attention.\2.\3"),
    (B + r"attn\.proj" + W, r"vit.encoder.layer.\1.attention.output.dense.\2"),
    (B + r"mlp\.fc1" + W, r"vit.encoder.layer.\1.intermediate.dense.\2"),
    (B + r"mlp\.fc2" + W, r"vit.encoder.layer.\1.output.dense.\2"),
]
# As 5 has them in a program.
VIT_5 = [
    *VIT_HEAD,
    (B + r"norm1" + W, r"vit.layers.\1.layernorm_before.\2"),
    (B + r"norm2" + W, r"vit.layers.\1.layernorm_after.\2"),
    (B + r"attn\.([qkv])" + W, r"vit.layers.\1.attention.\2_proj.\3"),
    (B + r"attn\.proj" + W, r"vit.layers.\1.attention.o_proj.\2"),
    (B + r"mlp\.(fc[12])" + W, r"vit.layers.\1.mlp.\2.\3"),
]
DINOV2 = [
    *((pattern, new.replace("vit.", "dinov2.")) for pattern, new in VIT_HEAD),
    (B + r"(norm[12])" + W, r"dinov2.encoder.layer.\1.\2.\3"),
    (
        B + r"attn\.(query|key|value)" + W,
        r"dinov2.encoder.layer.\1.attention.attention.\2.\3",
    ),
    (B + r"attn\.proj" + W, r"dinov2.encoder.layer.\1.attention.output.dense.\2"),
    (B + r"mlp\.(fc[12])" + W, r"dinov2.encoder.layer.\1.mlp.\2.\3"),
    (B + r"ls([12])\.gamma", r"dinov2.encoder.layer.\1.layer_scale\2.lambda1"),
]
TRANSFORMERS = ["transformers' names, read as timm's"]


def test_a_vit_of_transformers_old_and_new():
    tensors = made("vit")[3]
    old = renamed(cut(tensors), VIT)
    assert "vit.encoder.layer.1.attention.attention.query.weight" in old
    check(old, "vit", TRANSFORMERS)
    check(renamed(cut(tensors, names="qkv"), VIT_5), "vit", TRANSFORMERS)
    bare = {name.removeprefix("vit."): values for name, values in old.items()}
    pooler = {"pooler.dense.weight": np.zeros((12, 12)), "pooler.dense.bias": np.zeros(12)}
    check(bare | pooler, "vit", TRANSFORMERS)
    within = {f"module.model.{name}": values for name, values in old.items()}
    check(within, "vit", ["all names without their prefix 'module.model.'", *TRANSFORMERS])
    del old["vit.encoder.layer.1.attention.attention.key.bias"]
    module, like, *_ = made("vit")
    with pytest.raises(InputError, match=r"query, key or value of blocks.1.attn.qkv.bias"):
        transfer.adapt(old, module.namings(), like)


def test_a_dinov2_of_transformers():
    tensors = renamed(cut(made("dinov2")[3]), DINOV2)
    mask = {"dinov2.embeddings.mask_token": np.zeros((1, 12), np.float32)}
    check(tensors | mask, "dinov2", TRANSFORMERS)


def test_a_dinov2_by_its_authors_names_has_a_mask_that_nothing_reads():
    mask = {"mask_token": np.zeros((1, 12), np.float32)}
    check(made("dinov2")[3] | mask, "dinov2", [])


ANY = r"\.(weight|bias|running_mean|running_var)"
RESNET = [
    ("conv1" + ANY, r"resnet.embedder.embedder.convolution.\1"),
    ("bn1" + ANY, r"resnet.embedder.embedder.normalization.\1"),
    (
        r"layer(\d)\.(\d)\.(conv|bn)(\d)" + ANY,
        lambda m: (
            f"resnet.encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.layer.{int(m[4]) - 1}."
            f"{'convolution' if m[3] == 'conv' else 'normalization'}.{m[5]}"
        ),
    ),
    (
        r"layer(\d)\.(\d)\.downsample\.(\d)" + ANY,
        lambda m: (
            f"resnet.encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.shortcut."
            f"{('convolution', 'normalization')[int(m[3])]}.{m[4]}"
        ),
    ),
    ("fc" + ANY, r"classifier.1.\1"),
]
CONVNEXT = [
    (r"stem\.0" + ANY, r"convnext.embeddings.patch_embeddings.\1"),
    (r"stem\.1" + ANY, r"convnext.embeddings.layernorm.\1"),
    (
        r"stages\.(\d)\.downsample\.(\d)" + ANY,
        r"convnext.encoder.stages.\1.downsampling_layer.\2.\3",
    ),
    (
        r"stages\.(\d)\.blocks\.(\d)\.conv_dw" + ANY,
        r"convnext.encoder.stages.\1.layers.\2.dwconv.\3",
    ),
    (
        r"stages\.(\d)\.blocks\.(\d)\.norm" + ANY,
        r"convnext.encoder.stages.\1.layers.\2.layernorm.\3",
    ),
    (
        r"stages\.(\d)\.blocks\.(\d)\.mlp\.fc(\d)" + ANY,
        r"convnext.encoder.stages.\1.layers.\2.pwconv\3.\4",
    ),
    (
        r"stages\.(\d)\.blocks\.(\d)\.gamma",
        r"convnext.encoder.stages.\1.layers.\2.layer_scale_parameter",
    ),
    (r"head\.norm" + ANY, r"convnext.layernorm.\1"),
    (r"head\.fc" + ANY, r"classifier.\1"),
]


@pytest.mark.parametrize(("kind", "rows"), [("resnet", RESNET), ("convnext", CONVNEXT)])
def test_a_resnet_and_a_convnext_of_transformers(kind, rows):
    check(renamed(made(kind)[3], rows), kind, TRANSFORMERS)


def flat(tensors, rows, heads=0):
    """Tensors by names and in layouts of the authors' JAX code."""
    found = {}
    for name, values in renamed(tensors, rows).items():
        layer, _, leaf = name.rpartition("/")
        part = layer.rpartition("/")[2]
        if part in ("query", "key", "value"):
            values = values.T.reshape(*values.T.shape[:-1], heads, -1)
        elif part == "out" and leaf == "weight":
            values = values.T.reshape(heads, -1, len(values))
        elif values.ndim == 4:
            values = values.transpose(2, 3, 1, 0)
        elif values.ndim == 2 and leaf == "weight":
            values = values.T
        is_scale = values.ndim == 1 and part.startswith(("LayerNorm", "encoder_", "pre_"))
        kernel = "scale" if is_scale else "kernel"
        found[f"{layer}/{kernel}" if leaf == "weight" else name.lstrip("/")] = values
    return found


def vit_rows(attention, norm2, mlp, position):
    block = r"Transformer/encoderblock_\1"
    return [
        ("cls_token", "cls"),
        ("pos_embed", position),
        (r"patch_embed\.proj" + W, r"embedding/\1"),
        (r"norm" + W, r"Transformer/encoder_norm/\1"),
        (r"head" + W, r"head/\1"),
        (B + "norm1" + W, block + r"/LayerNorm_0/\2"),
        (B + "norm2" + W, block + rf"/LayerNorm_{norm2}/\2"),
        (
            B + r"attn\.(query|key|value)" + W,
            block + rf"/MultiHeadDotProductAttention_{attention}/\2/\3",
        ),
        (
            B + r"attn\.proj" + W,
            block + rf"/MultiHeadDotProductAttention_{attention}/out/\2",
        ),
        (B + r"mlp\.fc1" + W, block + rf"/MlpBlock_{mlp}/Dense_0/\2"),
        (B + r"mlp\.fc2" + W, block + rf"/MlpBlock_{mlp}/Dense_1/\2"),
    ]


AUTHORS = ["the authors' names, read as timm's"]
AUGREG = vit_rows(1, 2, 3, "Transformer/posembed_input/pos_embedding")
BIG_VISION = vit_rows(0, 1, 0, "pos_embedding")
MIXER = [
    (r"stem\.proj" + W, r"stem/\1"),
    (B + "norm1" + W, r"MixerBlock_\1/LayerNorm_0/\2"),
    (B + "norm2" + W, r"MixerBlock_\1/LayerNorm_1/\2"),
    (B + r"mlp_tokens\.fc1" + W, r"MixerBlock_\1/token_mixing/Dense_0/\2"),
    (B + r"mlp_tokens\.fc2" + W, r"MixerBlock_\1/token_mixing/Dense_1/\2"),
    (B + r"mlp_channels\.fc1" + W, r"MixerBlock_\1/channel_mixing/Dense_0/\2"),
    (B + r"mlp_channels\.fc2" + W, r"MixerBlock_\1/channel_mixing/Dense_1/\2"),
    (r"norm" + W, r"pre_head_layer_norm/\1"),
    (r"head" + W, r"head/\1"),
]


@pytest.mark.parametrize(("rows", "root"), [(AUGREG, ""), (BIG_VISION, "params/")])
def test_a_vit_of_the_authors_in_a_npz(tmp_path, rows, root):
    arrays = flat(cut(made("vit")[3]), rows, heads=3)
    kernel = next(x for name, x in arrays.items() if name.endswith("query/kernel"))
    assert kernel.shape == (12, 3, 4)
    np.savez(tmp_path / "a.npz", **{f"{root}{name}": x for name, x in arrays.items()})
    check(weights.read(str(tmp_path / "a.npz"), "x").tensors, "vit", AUTHORS)


def test_the_heads_of_the_authors_are_those_of_one_product():
    """query(x) = x . kernel[D, heads, D / heads], by hand and as our qkv gives it."""
    arrays = flat(cut(made("vit")[3]), AUGREG, heads=3)
    module, like, *_ = made("vit")
    start = transfer.adapt(arrays, module.namings(), like)
    x = np.random.default_rng(1).standard_normal((4, 12)).astype(np.float32)
    root = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"
    parts = [
        np.einsum("nd,dhk->nhk", x, arrays[f"{root}/{part}/kernel"])
        + arrays[f"{root}/{part}/bias"]
        for part in ("query", "key", "value")
    ]
    ours = "params/block2/attention/qkv"
    got = x @ start.arrays[f"{ours}/kernel"] + start.arrays[f"{ours}/bias"]
    got = got.reshape(4, 3, 3, 4)  # Part, head, feature.
    np.testing.assert_allclose(got, np.stack(parts, 1), rtol=1e-4, atol=1e-5)


def test_a_mixer_of_the_authors_in_a_npz(tmp_path):
    np.savez(tmp_path / "a.npz", **flat(made("mixer")[3], MIXER))
    check(weights.read(str(tmp_path / "a.npz"), "x").tensors, "mixer", AUTHORS)


def test_bfloat16_in_a_npz_comes_back(tmp_path):
    values = np.array([1.5, -2, 3e9], np.float32).astype(jnp.bfloat16)
    np.savez(tmp_path / "a.npz", w=values)
    found = weights.read(str(tmp_path / "a.npz"), "x").tensors["w"]
    np.testing.assert_array_equal(found, values.astype(np.float32), strict=True)


# The layers of Keras's MobileNetV2 in their order, by hand from its summary.
def keras_layers():
    rows = [("Conv1", "bn_Conv1", "conv_stem", "bn1")]
    timm = iter(
        [f"blocks.{s}.{i}" for s, n in enumerate((1, 2, 3, 4, 3, 3, 1)) for i in range(n)]
    )
    block = next(timm)
    rows += [
        (
            "expanded_conv_depthwise",
            "expanded_conv_depthwise_BN",
            f"{block}.conv_dw",
            f"{block}.bn1",
        ),
        (
            "expanded_conv_project",
            "expanded_conv_project_BN",
            f"{block}.conv_pw",
            f"{block}.bn2",
        ),
    ]
    for n, block in enumerate(timm, 1):
        rows += [
            (
                f"block_{n}_expand",
                f"block_{n}_expand_BN",
                f"{block}.conv_pw",
                f"{block}.bn1",
            ),
            (
                f"block_{n}_depthwise",
                f"block_{n}_depthwise_BN",
                f"{block}.conv_dw",
                f"{block}.bn2",
            ),
            (
                f"block_{n}_project",
                f"block_{n}_project_BN",
                f"{block}.conv_pwl",
                f"{block}.bn3",
            ),
        ]
    return [*rows, ("Conv_1", "Conv_1_bn", "conv_head", "bn2")]


def keras_arrays():
    """{(layer, variable): array} of the model, in Keras's layouts."""
    tensors, found = made("mobilenet")[3], {}
    for conv, norm, timm, timm_norm in keras_layers():
        axes = (2, 3, 0, 1) if conv.endswith("depthwise") else (2, 3, 1, 0)
        found[conv, "kernel"] = tensors[f"{timm}.weight"].transpose(axes)
        for variable, leaf in zip(
            ("gamma", "beta", "moving_mean", "moving_variance"),
            ("weight", "bias", "running_mean", "running_var"),
            strict=True,
        ):
            found[norm, variable] = tensors[f"{timm_norm}.{leaf}"]
    found["predictions", "kernel"] = tensors["classifier.weight"].T
    found["predictions", "bias"] = tensors["classifier.bias"]
    return found


def by_class(arrays):
    """Paths of Keras 3's own files: layers by their classes, variables by their places."""
    counts, places = {}, {}
    found = {}
    for (layer, _), values in arrays.items():
        kind = "dense" if layer == "predictions" else "conv2d"
        kind = "depthwise_conv2d" if layer.endswith("depthwise") else kind
        kind = "batch_normalization" if "bn" in layer.lower().split("_") else kind
        if layer not in places:
            n = counts[kind] = counts.get(kind, -1) + 1
            places[layer] = [f"layers/{kind}_{n}" if n else f"layers/{kind}", 0]
        root, index = places[layer]
        found[f"{root}/vars/{index}"] = values
        places[layer][1] += 1
    return found


KERAS = ["Keras's names, read as timm's"]
FORMS = {
    "old": lambda arrays: {f"{a}/{a}/{b}:0": x for (a, b), x in arrays.items()},
    "whole": lambda arrays: {
        f"model_weights/{a}/{a}/{b}": x for (a, b), x in arrays.items()
    },
    "within": lambda arrays: {
        f"model_weights/mobilenetv2_1.00_224/{a.replace('predictions', 'dense')}/{b}:0": x
        for (a, b), x in arrays.items()
    },
    "three": by_class,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_mobilenet_of_keras(tmp_path, form):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        for name, values in FORMS[form](keras_arrays()).items():
            file[name] = values
        file["optimizer_weights/iteration"] = np.zeros((), np.int64)
    check(weights.read(str(path), "x").tensors, "mobilenet", KERAS)


@pytest.mark.slow
def test_a_mobilenet_of_keras_needs_its_padding_and_epsilon(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        for name, values in FORMS["old"](keras_arrays()).items():
            file[name] = values
    for text in ("mobilenet_v2", "mobilenet_v2(padding='same')"):
        with pytest.raises(InputError, match="is of Keras's MobileNetV2") as refused:
            models.create(text, 5, image_shape=(32, 32, 3), weights=str(path))
        right = "model.name=\"mobilenet_v2(padding='same', norm_epsilon=0.001)\""
        assert right in str(refused.value)
    text = "mobilenet_v2(padding='same', norm_epsilon=0.001)"
    _, variables = models.create(text, 5, image_shape=(32, 32, 3), weights=str(path))
    kernel = made("mobilenet")[2]["params"]["head"]["kernel"]
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], kernel)


def test_other_files_of_keras_are_named(tmp_path):
    h5py = pytest.importorskip("h5py")
    for told, shown in ((None, "layers such as block1_conv1"), ("vgg16", "'vgg16'")):
        path = tmp_path / "model.h5"
        with h5py.File(path, "w") as file:
            file["block1_conv1/block1_conv1/kernel:0"] = np.zeros((3, 3, 3, 64), np.float32)
            if told:
                config = {"class_name": "Functional", "config": {"name": told}}
                file.attrs["model_config"] = json.dumps(config)
        with pytest.raises(InputError, match=f"is a Keras file of {shown}, and of Keras"):
            weights.read(str(path), "x")


def test_a_keras_file_whose_arrays_lie_elsewhere_or_are_huge_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(bytes(16))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        outside = [(str(tmp_path / "secret"), 0, 16)]
        file.create_dataset("Conv1/kernel", (4,), np.float32, external=outside)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("Conv1/kernel", (10**10,), np.float32, chunks=(1000,))
    (tmp_path / "c.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    for name, reason in (("a", "lies in another file"), ("b", "have over"), ("c", "")):
        with pytest.raises(InputError, match=rf"as a Keras file \(.*{reason}"):
            weights.read(str(tmp_path / f"{name}.h5"), "x")


# What config.json and preprocessor_config.json of transformers tell.

HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
BOTH = ((0.5,) * 3, (0.5,) * 3)
CONVNEXT_OF = {"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875}
CONVNEXT_OF["resample"] = 3
SMALL = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
SMALL |= {"image_size": 64, "num_hidden_layers": 2}


def told(folder, preprocessor, config=None):
    config = {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification"],
        **(config or {}),
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    ones = {"w": np.ones(2, np.float32)}
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(ones))
    return weights.read(str(folder / "model.safetensors"), "x")


@pytest.mark.parametrize(
    ("preprocessor", "expected"),
    [
        # google/vit-base-patch16-224, old and new.
        ({"size": 224, "resample": 2}, (224, 1.0, "bilinear", "squash")),
        (
            {"size": {"height": 224, "width": 224}, "rescale_factor": 1 / 255},
            (224, 1.0, "bilinear", "squash"),
        ),
        # facebook/deit-base-patch16-224.
        (
            {"size": 256, "resample": 3, "do_center_crop": True, "crop_size": 224},
            (224, 224 / 256, "bicubic", "squash"),
        ),
        # microsoft/resnet-50 and facebook/convnext-tiny-224.
        (
            {**CONVNEXT_OF, "size": 224},
            (224, 0.875, "bicubic", "center"),
        ),
        (
            {**CONVNEXT_OF, "size": {"shortest_edge": 384}},
            (384, 1.0, "bicubic", "squash"),
        ),
        # facebook/dinov2-base.
        (
            {
                "image_processor_type": "BitImageProcessor",
                "size": {"shortest_edge": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
                "resample": 3,
            },
            (224, 224 / 256, "bicubic", "center"),
        ),
        ({"size": 224, "resample": 0}, None),
        ({"size": 224, "do_resize": False}, None),
        ({"size": 224, "rescale_factor": 1 / 127.5}, None),
        ({"size": {"height": 224, "width": 256}}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_the_preprocessor_of_transformers_is_ours(tmp_path, preprocessor, expected):
    found = told(tmp_path, {**HALF, **preprocessor})
    assert found.preprocessing == (expected and Preprocessing(*BOTH, *expected))
    assert found.architecture == "transformers_vit"


def test_every_size_of_a_crop_comes_back_whole(tmp_path):
    for crop in range(100, 600, 7):
        size = {"shortest_edge": crop + 32}
        rest = {"do_center_crop": True, "crop_size": crop, "resample": 3}
        found = told(tmp_path, {**HALF, "size": size, **rest}).preprocessing
        assert math.floor(found.size / found.crop) == crop + 32


def test_labels_of_transformers_are_class_names_unless_they_are_numbers(tmp_path):
    labels = {"1": "dog", "0": "cat"}
    assert told(tmp_path, {}, {"id2label": labels}).class_names == ("cat", "dog")
    labels = {"0": "LABEL_0", "1": "LABEL_1"}
    assert told(tmp_path, {}, {"id2label": labels}).class_names == ()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new', and must be 'gelu'"),
        (
            {"model_type": "resnet", "downsample_in_bottleneck": True},
            "downsample_in_bottleneck is 'True', and must be False",
        ),
        ({"layer_norm_eps": 0.1}, "layer_norm_eps is '0.1', and must be at most 1e-5"),
        ({"model_type": "convnext", "layer_norm_eps": 1e-3}, "must be at most 1e-5"),
        ({"layer_norm_eps": "1e-6"}, "must be at most 1e-5, as of our models"),
        ({"model_type": "deit", "hidden_act": "relu"}, "must be 'gelu', as of our models"),
    ],
)
def test_a_network_of_transformers_that_is_another_is_refused(tmp_path, config, reason):
    with pytest.raises(InputError, match=reason):
        told(tmp_path, {}, config)


def test_the_heads_and_a_small_epsilon_of_transformers_are_known(tmp_path):
    """1e-12 and 1e-5 give the logits of 1e-6 within their rounding."""
    for eps in (1e-12, 1e-6, 1e-5):
        config = {"num_attention_heads": 12, "layer_norm_eps": eps}
        found = told(tmp_path, HALF, config).architecture
        assert found == "transformers_vit(num_attention_heads=12)"


# Parity.


def logits_of(text, file, images, classes):
    module, variables = models.create(
        text, classes, image_shape=images.shape[1:], weights=str(file)
    )
    apply = jax.jit(lambda x: module.apply(variables, x, False).logits)
    return np.asarray(apply(images))


def pixels(size):
    return np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)


def randomised(model, torch):
    """A model of torch's in evaluation mode, with nothing left at 0 or 1."""
    torch.manual_seed(0)
    stored = model.state_dict().keys()  # Other buffers follow from the options.
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name not in stored:
            continue
        if name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
            torch.nn.init.uniform_(tensor.data, 0.5, 1.5)
        elif tensor.ndim == 1:
            torch.nn.init.normal_(tensor.data, std=0.3)
        elif tensor.ndim > 1:
            torch.nn.init.normal_(tensor.data, std=(2 / tensor[0].numel()) ** 0.5)
    return model.eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize(
    ("kind", "options", "text", "size"),
    [
        (
            "ViT",
            SMALL,
            "vit_ti_16(depth=2)",
            64,
        ),
        ("ResNet", {"depths": [1, 2, 1, 1]}, "resnet50(stages=(1, 2, 1, 1))", 65),
        (
            "ResNet",
            {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2] * 4},
            "resnet18",
            64,
        ),
        ("ConvNext", {"depths": [1, 1, 2, 1]}, "convnext_tiny(stages=(1, 1, 2, 1))", 64),
    ],
)  # fmt: skip
def test_logits_are_those_of_transformers(tmp_path, kind, options, text, size):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(num_labels=10, **options)
    model = getattr(transformers, f"{kind}ForImageClassification")(config)
    randomised(model, torch).save_pretrained(tmp_path)
    images = pixels(size)
    with torch.no_grad():
        expected = model(torch.from_numpy(images).permute(0, 3, 1, 2)).logits.numpy()
    got = logits_of(text, tmp_path / "model.safetensors", images, 10)
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


# Towers of transformers: their class, options, our model, and the side of an image.
SIDES = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 1}
MLP = {"intermediate_size": 1536}
S = "depth=1, width=384, heads=6"
TOWERS_THERE = [
    ("Dinov2", SIDES, "dinov2_s_14(depth=1)", 56),
    ("Dinov2WithRegisters", {**SIDES, "patch_size": 14}, "dinov2_s_14_reg4(depth=1)", 56),
    (
        "DINOv3ViT",
        {**SIDES, **MLP, "num_register_tokens": 4, "layer_norm_eps": 1e-5},
        "dinov3_s_16(depth=1, qkv_bias=True)",
        48,
    ),
    ("CLIPVision", {**SIDES, **MLP}, f"clip_b_32({S}, gelu='quick')", 64),
    ("SiglipVision", {**SIDES, **MLP}, f"siglip_b_16({S}, gelu='tanh')", 48),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize(("kind", "options", "text", "size"), TOWERS_THERE)
def test_the_features_of_a_tower_are_those_of_transformers(
    tmp_path, kind, options, text, size
):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**options, image_size=size)
    model = randomised(getattr(transformers, f"{kind}Model")(config), torch)
    model.save_pretrained(tmp_path)
    images = pixels(size)
    with torch.no_grad():
        out = model(torch.from_numpy(images).permute(0, 3, 1, 2))
    expected = out.pooler_output.numpy()
    module, variables = models.create(
        text, 10, image_shape=images.shape[1:], weights=str(tmp_path / "model.safetensors")
    )
    got = jax.jit(lambda x: module.apply(variables, x, False).embed)(images)
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_zero_biases_of_dinov3_are_none():
    x, one = np.zeros((4, 4), np.float32), np.ones(4, np.float32)
    names = [f"layer.0.attention.{part}_proj" for part in "qkv"]
    given = {
        "embeddings.register_tokens": x[None],
        **{f"{name}.weight": x for name in names},
        **{f"{name}.bias": 0 * one for name in (names[0], names[2])},
    }
    found = dialects.translated(given).tensors
    assert set(found) == {"reg_token", "blocks.0.attn.qkv.weight"}
    found = dialects.translated(given | {f"{names[2]}.bias": one}).tensors
    assert found["blocks.0.attn.qkv.bias"].tolist() == [0.0] * 8 + [1.0] * 4


@pytest.mark.parametrize(
    ("config", "here", "reason"),
    [
        ({"model_type": "clip_vision_model"}, "clip_b_32(gelu='quick')", ""),
        (
            {"model_type": "clip", "vision_config": {"hidden_act": "gelu"}},
            "clip_b_32(gelu='quick')",
            "hidden_act='gelu', and model.name=clip_b_32(gelu='quick') has gelu='quick';"
            " give its option gelu='exact'",
        ),
        ({"model_type": "siglip"}, "siglip_b_16", "give its option gelu='tanh'"),
        (
            {"model_type": "siglip_vision_model", "num_attention_heads": 16},
            "siglip_b_16(gelu='tanh')",
            "16 heads",
        ),
        (
            {"model_type": "clip_vision_model", "hidden_act": "relu"},
            "clip_b_32",
            "no model here has it",
        ),
    ],
)
def test_the_activation_of_a_tower_of_transformers_is_told(tmp_path, config, here, reason):
    architecture = told(tmp_path, HALF, config).architecture
    if not reason:
        assert architectures.check(architecture, here, built(here)) == ""
        return
    with pytest.raises(InputError) as refused:
        architectures.check(architecture, here, built(here))
    assert reason in str(refused.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_logits_are_those_of_keras(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    pytest.importorskip("h5py")
    keras = pytest.importorskip("keras")
    images, rng = pixels(65), np.random.default_rng(0)
    with jax.numpy_rank_promotion("allow"):
        model = keras.applications.MobileNetV2(
            weights=None,
            classes=10,
            input_shape=images.shape[1:],
            classifier_activation=None,
        )
        for each in model.weights:
            is_scale = each.path.endswith(("gamma", "moving_variance"))
            spread = (2 / np.prod(each.shape[:-1])) ** 0.5 if len(each.shape) > 1 else 0.1
            drawn = rng.uniform(0.5, 1.5, each.shape)
            each.assign(drawn if is_scale else rng.standard_normal(each.shape) * spread)
        model.save(tmp_path / "m.h5")
        model.save(tmp_path / "m.keras")
        model.save_weights(tmp_path / "m.weights.h5")
        expected = np.asarray(jax.jit(lambda x: model(x, training=False))(images))
    text = "mobilenet_v2(padding='same', norm_epsilon=1e-3)"
    got = logits_of(text, tmp_path / "m.h5", images, 10)
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
    module, like, *_ = made("mobilenet")
    arrays = [
        transfer.adapt(
            weights.read(str(tmp_path / name), "x").tensors,
            module.namings(),
            like,
            is_head_fresh=True,
        ).arrays
        for name in ("m.h5", "m.keras", "m.weights.h5")
    ]
    for others in arrays[1:]:
        jax.tree.map(np.testing.assert_array_equal, others, arrays[0])
