"""The same weights give the same logits here and in torchvision's and timm's own models.

Needs torch, torchvision and timm (Python 3.11: ``pip install -e ".[parity]"``, then
``pip install --no-deps torchvision==0.28.0 timm==1.0.31``); .ci/run installs them.
"""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls import experiment
from jaxcls.config import loading
from jaxcls.data import sources
from jaxcls.export import writing
from jaxcls.export.formats import safetensors
from jaxcls.export.formats.model import Asked
from jaxcls.learning import losses
from jaxcls.models import MODELS, naming
from jaxcls.models.weights import transfer
from jaxcls.models.wide_resnet import WideResNet
from tests.modules import built

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]


@pytest.fixture(scope="session")
def reference(torchvision):
    """``reference(library, name, **options)`` -> its model, as it starts there."""

    def make(library, name, **options):
        torch.manual_seed(0)
        if library == "torchvision":
            return getattr(torchvision.models, name)(**options)
        return pytest.importorskip("timm").create_model(name, **options)

    return make


def randomised(model):
    """A model of torch's in evaluation mode, with nothing left at 0 or 1."""
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        is_scale = tensor.ndim == 1 and name.endswith(".weight")  # Of a normalisation.
        if name.endswith("running_var"):
            torch.nn.init.uniform_(tensor, 0.5, 2.0)
        elif is_scale or name.endswith(("layer_scale", "gamma")):
            torch.nn.init.uniform_(tensor.data, 0.5, 1.5)
        elif tensor.ndim == 1:
            torch.nn.init.normal_(tensor.data, std=0.1)
        elif tensor.ndim > 1:
            gain = 1.0 if tensor.ndim == 3 else np.sqrt(2 / tensor[0].numel())
            torch.nn.init.normal_(tensor.data, std=gain)
    return model.eval()


def tensors_of(model):
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def variables_of(model, ours, library, images):
    """Our variables with the weights of theirs, every tensor accounted for."""
    like = jax.eval_shape(lambda x: ours.init(jax.random.key(0), x, False), images)
    fit = naming.fit(tensors_of(model), ours.namings()[library], like)
    assert (fit.missing, fit.extra, fit.shapes) == ({}, [], {})
    leaves, structure = jax.tree.flatten(like)
    assert len(leaves) == len(fit.found)
    return structure.unflatten([fit.found[path] for path in naming.flatten(like)])


# Of other depths the shapes are compared in test_model_table.
CASES = [
    ("torchvision", "alexnet", "alexnet", 224),
    ("torchvision", "alexnet", "alexnet", 130),
    ("torchvision", "vgg11", "vgg11", 224),
    ("torchvision", "vgg19_bn", "vgg19_bn", 64),
    ("timm", "vgg11_bn", "vgg11_bn", 224),
    ("torchvision", "resnet18", "resnet18", 64),
    ("torchvision", "resnet50", "resnet50", 97),
    ("torchvision", "resnext50_32x4d", "resnext50_32x4d", 64),
    ("torchvision", "wide_resnet50_2", "wide_resnet50_2", 64),
    ("timm", "resnet34", "resnet34", 64),
    ("timm", "resnet50", "resnet50", 64),
    ("torchvision", "vit_b_32", "vit_b_32", 224),
    ("timm", "vit_tiny_patch16_224", "vit_ti_16", 224),
    ("timm", "vit_small_patch32_224", "vit_s_32", 224),
    ("torchvision", "convnext_tiny", "convnext_tiny", 65),
    ("timm", "convnext_tiny", "convnext_tiny", 64),
    ("timm", "mixer_s16_224", "mixer_s_16", 224),
    ("timm", "mixer_b32_224", "mixer_b_32", 224),
    ("torchvision", "efficientnet_b0", "efficientnet_b0", 65),
    ("timm", "efficientnet_b0", "efficientnet_b0", 64),
    ("torchvision", "mobilenet_v2", "mobilenet_v2", 65),
    ("timm", "mobilenetv2_100", "mobilenet_v2", 64),
    ("timm", "efficientnet_lite0", "efficientnet_lite0", 64),
]


@pytest.mark.parametrize(("library", "theirs", "name", "size"), CASES)
def test_logits_are_theirs_and_what_we_write_loads_there(
    reference, library, theirs, name, size
):
    with torch.device("meta"):  # `randomised` draws all arrays.
        model = reference(library, theirs, num_classes=10)
    model = randomised(model.to_empty(device="cpu"))
    check(model, MODELS[name](num_classes=10), library, size)


FOUR = (1, 1, 1, 1)
VISION = {"patch_size": [4, 4], "window_size": [7, 7]}
# With fewer blocks: (library, theirs, their options, ours, our options, size).
FEWER = [
    *(
        (
            "timm",
            f"convnextv2_{n}",
            {"depths": FOUR},
            f"convnextv2_{n}",
            {"stages": FOUR},
            32,
        )
        for n in ("atto", "femto", "pico", "nano", "tiny", "base")
    ),
    *(
        (
            "torchvision",
            "SwinTransformer",
            {**VISION, "embed_dim": width, "depths": [*stages], "num_heads": [*heads]},
            name,
            {"stages": stages, "heads": heads},
            size,
        )
        for name, width, heads, stages, size in (
            ("swin_t", 96, (3, 6, 12, 24), (2, 1, 2, 1), (75, 65)),
            ("swin_s", 96, (3, 6), (2, 2), (50, 113)),
            ("swin_b", 128, (4,), (2,), 56),
        )
    ),
    *(
        (
            "timm",
            f"swin_{theirs}_patch4_window7_224",
            {"depths": stages, "num_heads": heads},
            ours,
            {"stages": stages, "heads": heads},
            224,
        )
        for theirs, ours, heads, stages in (
            ("tiny", "swin_t", (3, 6), (2, 1)),
            ("small", "swin_s", (3,), (2,)),
            ("base", "swin_b", (4,), (2,)),
        )
    ),
]


@pytest.mark.parametrize(("library", "theirs", "options", "name", "ours", "size"), FEWER)
def test_logits_of_fewer_blocks_are_theirs(
    reference, library, theirs, options, name, ours, size
):
    model = randomised(reference(library, theirs, num_classes=10, **options))
    check(model, MODELS[name](num_classes=10, **ours), library, size)


@functools.partial(jax.jit, static_argnums=0)
def logits(ours, variables, images):
    return ours.apply(variables, images, False).logits


def check(model, ours, library, size, channels=3, scale=1):
    """Logits agree within 1e-4 of the largest; our file is theirs, tensor for tensor.

    size: a side, or (height, width). scale: the deviation of the images' values.
    """
    height, width = (size, size) if isinstance(size, int) else size
    shape = (2, height, width, channels)
    images = scale * np.random.default_rng(0).standard_normal(shape, np.float32)
    variables = variables_of(model, ours, library, jnp.asarray(images))
    with torch.no_grad():
        expected = model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    got = logits(ours, variables, images)
    assert np.abs(expected).max() > 0.1
    assert expected.std(axis=0).max() > 1e-3 * np.abs(expected).max()
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
    written = naming.to_theirs(variables, ours.namings()[library])
    there = tensors_of(model)
    for key, tensor in written.items():
        if not np.array_equal(tensor, there[key]):  # Most are, which is found faster.
            np.testing.assert_allclose(tensor, there[key], atol=1e-6)
    model.load_state_dict(
        {key: torch.from_numpy(tensor) for key, tensor in written.items()}, strict=True
    )


# Neighbours share a program. {} is of timm without arguments, or torchvision.
MOBILES = [
    ("torchvision", "mobilenet_v3_large", {}, "mobilenet_v3_large", 4),
    ("timm", "mobilenetv3_large_100", {"bn_eps": 1e-3}, "mobilenet_v3_large", 4),
    ("torchvision", "mobilenet_v3_small", {}, "mobilenet_v3_small", 4),
    ("torchvision", "efficientnet_b1", {}, "efficientnet_b1", 1),
    ("timm", "efficientnet_b1", {}, "efficientnet_b1", 1),
    ("torchvision", "efficientnet_b2", {}, "efficientnet_b2", 1),
    ("timm", "efficientnet_b2", {}, "efficientnet_b2", 1),
    ("torchvision", "efficientnet_b3", {}, "efficientnet_b3", 1),
    ("timm", "efficientnet_b3", {}, "efficientnet_b3", 1),
    ("torchvision", "efficientnet_b4", {}, "efficientnet_b4", 1),
    ("timm", "efficientnet_b4", {}, "efficientnet_b4", 1),
    ("torchvision", "efficientnet_v2_s", {}, "efficientnet_v2_s", 2),
    ("timm", "efficientnetv2_s", {"bn_eps": 1e-3}, "efficientnet_v2_s", 2),
    ("timm", "tf_efficientnetv2_s", {}, "efficientnet_v2_s(padding='same')", 1),
    ("torchvision", "efficientnet_v2_m", {}, "efficientnet_v2_m", 1),
    ("timm", "efficientnetv2_m", {"bn_eps": 1e-3}, "efficientnet_v2_m", 1),
]


@pytest.mark.parametrize(("library", "theirs", "options", "text", "blocks"), MOBILES)
def test_logits_of_the_first_blocks_of_each_stage_are_theirs(
    reference, library, theirs, options, text, blocks
):
    with torch.device("meta"):
        model = reference(library, theirs, num_classes=10, **options)
    if "efficientnet" in theirs:
        stages = model.blocks if library == "timm" else model.features
        for i, stage in enumerate(stages):
            if isinstance(stage[0], torch.nn.Conv2d):
                continue  # torchvision's first and last convolution.
            stages[i] = stage[:blocks]
    model = randomised(model.to_empty(device="cpu"))
    ours = built(text, num_classes=10)
    net = ours.net._replace(stages=tuple(each[:blocks] for each in ours.net.stages))
    # Without shortcuts a signal of 1 would be lost among the biases.
    check(model, ours.clone(net=net), library, 32, scale=10)


@pytest.mark.parametrize(
    ("theirs", "options", "name", "ours"),
    [
        (
            "vit_tiny_patch16_224",
            {"class_token": False, "global_pool": "avg", "fc_norm": False, "depth": 2},
            "vit_ti_16",
            {"depth": 2, "pool": "mean", "position": "sincos"},
        ),
        (
            "deit3_small_patch16_224",
            {},
            "vit_s_16",
            {"layer_scale": 1e-4, "token_position": False},
        ),
        (
            "vit_tiny_patch16_224",
            {"global_pool": "avg", "depth": 2},
            "vit_ti_16",
            {"pool": "patch_mean", "depth": 2},
        ),
    ],
)
def test_a_vit_of_another_form_is_timms(reference, theirs, options, name, ours):
    model = randomised(reference("timm", theirs, num_classes=10, **options))
    check(model, MODELS[name](num_classes=10, **ours), "timm", 224)


TWO, DRY = {"depth": 2}, {"dropout": 0.0}
NARROW = {"depth": 2, "embed_dim": 192, "num_heads": 3}
OURS = {"depth": 2, "width": 192, "heads": 3}
# Options, sizes and channels of no recipe: (theirs, their options, ours, size, channels).
OPTIONS = [
    ("resnet18", {"in_chans": 1}, "resnet18", {}, (50, 71), 1),
    ("resnext50_32x4d", {"in_chans": 4}, "resnext50_32x4d", {}, 33, 4),
    (
        "convnext_tiny",
        {"in_chans": 1, "depths": (1, 1, 2, 1)},
        "convnext_tiny",
        {"stages": (1, 1, 2, 1)},
        (96, 64),
        1,
    ),
    (
        "convnextv2_tiny",
        {"in_chans": 4, "depths": (1, 1, 2, 1), "conv_mlp": True, "ls_init_value": 0.5},
        "convnextv2_tiny",
        {"stages": (1, 1, 2, 1), "conv_mlp": True, "layer_scale": 0.5},
        (33, 70),
        4,
    ),
    (
        "swin_tiny_patch4_window7_224",
        {
            **{"in_chans": 1, "img_size": (96, 128), "window_size": 4},
            **{"depths": (2, 2), "num_heads": (2, 4)},
        },
        "swin_t",
        {"stages": (2, 2), "heads": (2, 4), "window": 4},
        (96, 128),
        1,
    ),
    ("mobilenetv2_100", {"in_chans": 1}, "mobilenet_v2", {}, (51, 80), 1),
    (
        "tf_mobilenetv3_small_100",
        {"in_chans": 4, "bn_eps": 1e-4},
        "mobilenet_v3_small",
        {"padding": "same", "norm_epsilon": 1e-4},
        (47, 66),
        4,
    ),
    (
        "tf_efficientnet_b0",
        {"in_chans": 1},
        "efficientnet_b0",
        {"padding": "same", "norm_epsilon": 1e-3},
        (81, 64),
        1,
    ),
    (
        "vit_small_patch16_224",
        {"img_size": (160, 256), "depth": 2},
        "vit_s_16",
        {"depth": 2},
        (160, 256),
        3,
    ),
    (
        "vit_tiny_patch16_384",
        {"img_size": (96, 48), "depth": 2, "global_pool": "avg", "in_chans": 1},
        "vit_ti_16",
        {"depth": 2, "pool": "patch_mean"},
        (96, 48),
        1,
    ),
    ("vit_small_patch14_dinov2", {**TWO, "img_size": 56}, "dinov2_s_14", TWO, 56, 3),
    (
        "vit_small_patch14_reg4_dinov2",
        {**TWO, "img_size": (56, 84), "in_chans": 1},
        "dinov2_s_14_reg4",
        TWO,
        (56, 84),
        1,
    ),
    (
        "vit_small_patch16_dinov3",
        {**TWO, "global_pool": "token"},
        "dinov3_s_16",
        TWO,
        64,
        3,
    ),
    (
        "vit_small_patch16_dinov3",
        TWO,
        "dinov3_s_16",
        {**TWO, "pool": "norm_patch_mean"},
        (48, 112),
        3,
    ),
    (
        "vit_base_patch16_dinov3",
        {**NARROW, "use_fc_norm": True, "num_reg_tokens": 2, "in_chans": 4},
        "dinov3_b_16",
        {**OURS, "pool": "patch_mean", "reg_tokens": 2},
        (80, 32),
        4,
    ),
    ("vit_base_patch32_clip_224", {**NARROW, "img_size": 64}, "clip_b_32", OURS, 64, 3),
    (
        "vit_base_patch16_clip_quickgelu_224",
        {**NARROW, "img_size": (64, 96)},
        "clip_b_16",
        {**OURS, "gelu": "quick"},
        (64, 96),
        3,
    ),
    ("vit_base_patch16_siglip_224", {**NARROW, "img_size": 64}, "siglip_b_16", OURS, 64, 3),
    (
        "vit_base_patch16_siglip_224",
        {**NARROW, "img_size": (32, 96), "act_layer": "gelu_tanh", "reg_tokens": 2},
        "siglip_b_16",
        {**OURS, "gelu": "tanh", "reg_tokens": 2},
        (32, 96),
        3,
    ),
    (
        "vit_base_patch32_siglip_gap_256",
        {"depth": 2},
        "vit_b_32",
        {"depth": 2, "pool": "mean"},
        256,
        3,
    ),
    (
        "flexivit_small",
        {"depth": 2},
        "vit_s_16",
        {"depth": 2, "token_position": False},
        240,
        3,
    ),
    ("mixer_s32_224", {"img_size": 96, "in_chans": 1}, "mixer_s_32", {}, 96, 1),
]  # fmt: skip


@pytest.mark.parametrize(("theirs", "options", "name", "ours", "size", "channels"), OPTIONS)
def test_options_sizes_and_channels_of_no_recipe_are_timms(
    reference, theirs, options, name, ours, size, channels
):
    model = randomised(reference("timm", theirs, num_classes=7, **options))
    check(model, MODELS[name](num_classes=7, **ours), "timm", size, channels)


@pytest.mark.parametrize(
    ("theirs", "name"),
    [
        ("vit_base_patch14_dinov2", "dinov2_b_14"),
        ("vit_base_patch14_reg4_dinov2", "dinov2_b_14_reg4"),
        ("vit_base_patch16_siglip_224", "siglip_b_16"),
    ],
)
def test_positions_at_another_size_are_resampled_as_timm_does(reference, theirs, name):
    ours = MODELS[name](num_classes=10, **OURS)
    options, patch = {**NARROW, "num_classes": 10}, ours.patch
    model = randomised(reference("timm", theirs, img_size=5 * patch, **options))
    shape = (4 * patch, 9 * patch, 3)
    images = np.random.default_rng(0).standard_normal((2, *shape), np.float32)
    like = jax.eval_shape(lambda x: ours.init(jax.random.key(0), x, False), images)
    tables = tensors_of(model), ours.namings(), like
    start = transfer.adapt(*tables, image_shape=shape)
    assert "positions resampled from 5x5 to 9x4" in start.notes
    variables = jax.tree.structure(like).unflatten(
        [start.arrays[path] for path in naming.flatten(like)]
    )
    model.set_input_size(shape[:2])
    with torch.no_grad():
        expected = model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    got = jax.jit(lambda v, x: ours.apply(v, x, False).logits)(variables, images)
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize(
    ("theirs", "name", "size"),
    [
        ("tf_efficientnet_b0", "efficientnet_b0", 64),
        ("tf_efficientnet_b0", "efficientnet_b0", 97),
        ("mobilenetv2_100", "mobilenet_v2", 64),
        ("tf_efficientnet_lite2", "efficientnet_lite2", 64),
    ],
)
def test_same_padding_and_its_epsilon_are_tensorflows_as_timm_has_them(
    reference, theirs, name, size
):
    options = {} if theirs.startswith("tf_") else {"pad_type": "same", "bn_eps": 1e-3}
    model = randomised(reference("timm", theirs, num_classes=10, **options))
    ours = MODELS[name](num_classes=10, padding="same", norm_epsilon=1e-3)
    check(model, ours, "timm", size)


def test_a_vit_with_tanh_is_timms(reference):
    options = {"depth": 2, "act_layer": "gelu_tanh", "num_classes": 10}
    model = randomised(reference("timm", "vit_tiny_patch16_224", **options))
    ours = MODELS["vit_ti_16"](num_classes=10, depth=2, gelu="tanh")
    check(model, ours, "timm", 224)


def test_a_mixer_with_tanh_is_timms(reference):
    act = functools.partial(torch.nn.GELU, approximate="tanh")
    options = {"act_layer": act, "num_classes": 10}
    model = randomised(reference("timm", "mixer_s16_224", **options))
    ours = MODELS["mixer_s_16"](num_classes=10, gelu="tanh")
    check(model, ours, "timm", 224)


def test_a_vit_starts_as_deit_does(reference):
    torch.manual_seed(1)
    model = reference("timm", "deit3_small_patch16_224", depth=2, num_classes=100)
    form = {"layer_scale": 1e-6, "token_position": False, "depth": 2}
    ours = MODELS["vit_s_16"](num_classes=100, weight_init="deit", **form)
    image = jnp.zeros((1, 224, 224, 3))
    made = jax.jit(lambda: ours.init(jax.random.key(0), image, False))()
    written = naming.to_theirs(made, ours.namings()["timm"])
    theirs = tensors_of(model)
    assert set(written) == set(theirs)
    for name, tensor in written.items():
        spread, expected = np.std(tensor), np.std(theirs[name])
        if name == "cls_token":
            expected = 0.02  # Of DeiT III's own code; timm's is 1e-6.
        if name == "patch_embed.proj.bias":
            expected = 0.0  # There as wide as the kernel.
        apart = 5 / (2 * np.size(tensor)) ** 0.5
        assert spread == pytest.approx(expected, rel=2 * apart, abs=1e-7), name
    kernel = written["patch_embed.proj.weight"]
    assert np.abs(kernel).max() == pytest.approx(768**-0.5, rel=1e-3)  # Uniform.


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_that_blurs_is_torchvisions_with_a_blur_before_each_stride(
    reference, name
):
    model = randomised(reference("torchvision", name, num_classes=10))
    kernel = torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 2, 1])) / 16

    def blur(module, given):
        (x,) = given
        weight = kernel.expand(x.shape[1], 1, 3, 3)
        return torch.nn.functional.conv2d(x, weight, padding=1, groups=x.shape[1])

    strided = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Conv2d)
        and max(module.stride) > 1
        and module.in_channels >= 16
    ]
    assert len(strided) == 6  # Three stages, each with its shortcut; not the stem.
    for module in strided:
        module.register_forward_pre_hook(blur)
    check(model, MODELS[name](num_classes=10, blur=True), "torchvision", 64)


class Port(torch.nn.Module):
    """A wide residual network in PyTorch, with the names of the common port."""

    def __init__(self, depth, widen, classes):
        super().__init__()
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = torch.nn.Conv2d(3, 16, 3, padding=1, bias=False)
        for i in (1, 2, 3):
            blocks = []
            for n in range((depth - 4) // 6):
                before = widths[i - 1] if n == 0 else widths[i]
                blocks.append(PortBlock(before, widths[i], 1 if i == 1 or n else 2))
            stage = torch.nn.Module()
            stage.layer = torch.nn.Sequential(*blocks)
            setattr(self, f"block{i}", stage)
        self.bn1 = torch.nn.BatchNorm2d(widths[3])
        self.fc = torch.nn.Linear(widths[3], classes)

    def forward(self, x):
        x = self.conv1(x)
        for stage in (self.block1, self.block2, self.block3):
            x = stage.layer(x)
        return self.fc(torch.relu(self.bn1(x)).mean(dim=(2, 3)))


class PortBlock(torch.nn.Module):
    def __init__(self, before, width, stride):
        super().__init__()
        self.bn1 = torch.nn.BatchNorm2d(before)
        self.conv1 = torch.nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(width)
        self.conv2 = torch.nn.Conv2d(width, width, 3, 1, 1, bias=False)
        if before != width:
            self.convShortcut = torch.nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x):
        y = torch.relu(self.bn1(x))
        shortcut = self.convShortcut(y) if hasattr(self, "convShortcut") else x
        return shortcut + self.conv2(torch.relu(self.bn2(self.conv1(y))))


def test_a_wide_resnet_is_the_papers():
    torch.manual_seed(0)
    theirs = randomised(Port(depth=16, widen=2, classes=10))
    check(theirs, WideResNet(num_classes=10, depth=16, widen=2), "robustbench", 32)


def loss_of(model, images, labels):
    """The mean cross-entropy of a training step of torch's; its gradients are kept."""
    loss = torch.nn.functional.cross_entropy(model(images.permute(0, 3, 1, 2)), labels)
    loss.backward()
    return loss


@pytest.mark.parametrize(
    ("library", "theirs", "options", "name", "ours"),
    [
        ("torchvision", "resnet18", {}, "resnet18", {}),
        ("torchvision", "mobilenet_v3_small", DRY, "mobilenet_v3_small", DRY),
        ("timm", "vit_tiny_patch16_224", {**TWO, "img_size": 64}, "vit_ti_16", TWO),
    ],
)
def test_gradients_and_statistics_of_a_training_step_are_theirs(
    reference, library, theirs, options, name, ours
):
    model = reference(library, theirs, num_classes=10, **options).train()
    ours = MODELS[name](num_classes=10, **ours)
    rng = np.random.default_rng(1)
    images = rng.standard_normal((8, 64, 64, 3), np.float32)
    labels = rng.integers(0, 10, 8)
    variables = variables_of(model, ours, library, jnp.asarray(images))
    exact = copy.deepcopy(model).double()
    value = loss_of(model, torch.from_numpy(images), torch.from_numpy(labels))
    loss_of(exact, torch.from_numpy(images).double(), torch.from_numpy(labels))

    @jax.jit
    def objective(params, rest):
        out, new = ours.apply(
            {"params": params, **rest}, images, True, mutable=["batch_stats"]
        )
        targets = jax.nn.one_hot(labels, 10)
        return losses.LOSSES["softmax"]()(out.logits, targets).mean(), new

    rest = {k: v for k, v in variables.items() if k != "params"}
    gradient = jax.value_and_grad(objective, has_aux=True)
    (got, new), grads = gradient(variables["params"], rest)
    np.testing.assert_allclose(got, value.item(), rtol=1e-4)
    written = naming.to_theirs({"params": grads, **new}, ours.namings()[library])
    parameters = dict(model.named_parameters())
    truth = {key: tensor.grad.numpy() for key, tensor in exact.named_parameters()}
    mine = {key: np.linalg.norm(written[key] - truth[key]) for key in truth}
    torchs = [np.linalg.norm(parameters[key].grad.numpy() - truth[key]) for key in truth]
    sizes = {key: np.linalg.norm(truth[key]) for key in truth}
    whole = np.linalg.norm(list(sizes.values()))
    # Deep ReLU networks magnify rounding: about as near the truth as torch's own float32.
    assert np.linalg.norm(list(mine.values())) <= 5 * np.linalg.norm(torchs) + 1e-5 * whole
    for key, size in sizes.items():
        assert mine[key] <= 0.03 * size + 1e-4 * whole, key
    for key, tensor in model.named_buffers():
        if not key.endswith("num_batches_tracked"):
            scale = tensor.abs().max().item()
            np.testing.assert_allclose(
                written[key], tensor.numpy(), atol=1e-4 * scale + 1e-6, rtol=0, err_msg=key
            )


PHOTOS = sources.Facts("photos", "", (None, None, 3), 10, (), {"train": 80, "val": 16})


def config_of(name, size, weights):
    """A config on photographs that starts from weights."""
    ops = f"decode | resize_short({size}) | center_crop({size})"
    return loading.from_flat(
        {
            "data.name": "photos",
            "model.name": name,
            "init.weights": str(weights),
            "normalize": "imagenet",
            "data.train_ops": ops,
            "data.eval_ops": ops,
            "mesh.devices": 1,
        }
    )


@pytest.mark.parametrize(
    ("library", "theirs", "name", "is_legacy"),
    [
        ("torchvision", "resnet18", "resnet18", False),
        ("torchvision", "resnet18", "resnet18", True),
        ("timm", "vit_tiny_patch16_224", "vit_ti_16", False),
    ],
)
def test_a_file_that_torch_saved_predicts_as_there_and_goes_back(
    reference, tmp_path, library, theirs, name, is_legacy
):
    model = randomised(reference(library, theirs, num_classes=10))
    file = tmp_path / "model.pth"
    torch.save(model.state_dict(), file, _use_new_zipfile_serialization=not is_legacy)
    exp = experiment.build(config_of(name, 224, file), PHOTOS)
    state = exp.init()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    got = np.asarray(exp.programs.probabilities_step(variables, jnp.asarray(pixels)))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = torch.from_numpy((pixels / 255 - mean) / std).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        expected = model(images).softmax(dim=1).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-4)
    out = tmp_path / "back.safetensors"
    safetensors.write(writing.model_of(exp, state._asdict()), out, Asked(library))
    load_file = pytest.importorskip("safetensors.torch").load_file
    model.load_state_dict(load_file(out), strict=True)
    with torch.no_grad():
        np.testing.assert_allclose(model(images).softmax(dim=1), expected, atol=1e-6)
