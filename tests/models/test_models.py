"""Every variant: its published size, what it gives, its names elsewhere, and learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcls.errors import InputError
from jaxcls.learning import param_groups
from jaxcls.models import MODELS, attention, convnext, layers, mobilenet, naming, swin
from tests.modules import KEY, built, count, dtypes, shapes

# Parameters for 1000 classes (10 for wrn*) and the features before the head.
# torchvision's documentation; timm's for mixer, vit_ti, vit_s and towers; the paper and its
# PyTorch port for wrn. vit_ti_32 has no weights anywhere: 12 * 444864 + 595624 + 200,...
PUBLISHED = {
    "alexnet": (61_100_840, 4096),
    "vgg11": (132_863_336, 4096),
    "vgg13": (133_047_848, 4096),
    "vgg16": (138_357_544, 4096),
    "vgg19": (143_667_240, 4096),
    "vgg11_bn": (132_868_840, 4096),
    "vgg13_bn": (133_053_736, 4096),
    "vgg16_bn": (138_365_992, 4096),
    "vgg19_bn": (143_678_248, 4096),
    "resnet18": (11_689_512, 512),
    "resnet34": (21_797_672, 512),
    "resnet50": (25_557_032, 2048),
    "resnet101": (44_549_160, 2048),
    "resnet152": (60_192_808, 2048),
    "resnext50_32x4d": (25_028_904, 2048),
    "resnext101_32x8d": (88_791_336, 2048),
    "wide_resnet50_2": (68_883_240, 2048),
    "wide_resnet101_2": (126_886_696, 2048),
    "wrn16_4": (2_748_890, 256),
    "wrn28_10": (36_479_194, 640),
    "wrn40_2": (2_243_546, 128),
    "vit_ti_16": (5_717_416, 192),
    "vit_s_16": (22_050_664, 384),
    "vit_s_32": (22_878_952, 384),
    "vit_b_16": (86_567_656, 768),
    "vit_b_32": (88_224_232, 768),
    "vit_l_16": (304_326_632, 1024),
    "vit_l_32": (306_535_400, 1024),
    "dinov2_s_14": (22_013_800, 384),
    "dinov2_b_14": (86_493_928, 768),
    "dinov2_l_14": (304_252_904, 1024),
    "dinov2_s_14_reg4": (22_014_952, 384),
    "dinov2_b_14_reg4": (86_496_232, 768),
    "dinov2_l_14_reg4": (304_255_976, 1024),
    "dinov3_s_16": (21_971_944, 384),
    "dinov3_b_16": (86_410_216, 768),
    "clip_b_32": (88_225_000, 768),
    "clip_b_16": (86_568_424, 768),
    "clip_l_14": (304_204_776, 1024),
    "siglip_b_16": (93_653_224, 768),
    "convnext_tiny": (28_589_128, 768),
    "convnext_small": (50_223_688, 768),
    "convnext_base": (88_591_464, 1024),
    "convnext_large": (197_767_336, 1536),
    "convnextv2_atto": (3_708_400, 320),
    "convnextv2_femto": (5_233_240, 384),
    "convnextv2_pico": (9_066_280, 512),
    "convnextv2_nano": (15_623_800, 640),
    "convnextv2_tiny": (28_635_496, 768),
    "convnextv2_base": (88_717_800, 1024),
    "swin_t": (28_288_354, 768),
    "swin_s": (49_606_258, 768),
    "swin_b": (87_768_224, 1024),
    "mixer_s_32": (19_104_624, 512),
    "mixer_s_16": (18_528_264, 512),
    "mixer_b_32": (60_293_428, 768),
    "mixer_b_16": (59_880_472, 768),
    "efficientnet_b0": (5_288_548, 1280),
    "efficientnet_b1": (7_794_184, 1280),
    "efficientnet_b2": (9_109_994, 1408),
    "efficientnet_b3": (12_233_232, 1536),
    "efficientnet_b4": (19_341_616, 1792),
    "efficientnet_lite0": (4_652_008, 1280),
    "efficientnet_lite1": (5_416_680, 1280),
    "efficientnet_lite2": (6_092_072, 1280),
    "efficientnet_lite3": (8_197_096, 1280),
    "efficientnet_lite4": (13_006_568, 1280),
    "efficientnet_v2_m": (54_139_356, 1280),
    "efficientnet_v2_s": (21_458_488, 1280),
    "mobilenet_v2": (3_504_872, 1280),
    "mobilenet_v3_large": (5_483_032, 1280),
    "mobilenet_v3_small": (2_542_856, 1024),
}


def variants(names):
    """Marks those of many blocks as slow: to trace one takes seconds."""
    deep = (
        "101",
        "152",
        "lite1",
        "lite3",
        "lite4",
        "efficientnet_b1",
        "efficientnet_b2",
        "efficientnet_b3",
        "efficientnet_b4",
        "efficientnet_v2",
        "mobilenet_v3_large",
        "convnext_s",
        "convnext_b",
        "convnext_l",
        "convnextv2",
        "swin_s",
        "swin_b",
        "vit_l",
        "dinov2",
        "dinov3_b",
        "clip_",
    )
    deep = {name for name in names if any(part in name for part in deep)}
    slow = [pytest.mark.slow]
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=slow if name in deep else []) for name in names]
    )


def natural_size(name):
    return 32 if name.startswith(("wrn", "cnn")) else 224


@functools.cache
def whole(name):
    """(module, output, variables) of a variant, as shapes."""
    module = built(name, num_classes=10 if natural_size(name) == 32 else 1000)
    return module, *shapes(module, natural_size(name))


def test_every_variant_has_a_published_size_here():
    # The tutorial's net is nobody's; a ViT-Ti of patch 32 follows from that of 16.
    assert set(MODELS) - {"cnn", "vit_ti_32"} == set(PUBLISHED)
    _, made = shapes(built("vit_ti_32"), 224)
    more_pixels, fewer_tokens = 192 * 3 * (32**2 - 16**2), 192 * (14**2 - 7**2)
    assert count(made["params"]) == 5_717_416 + more_pixels - fewer_tokens


@variants(PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    _, output, made = whole(name)
    parameters, features = PUBLISHED[name]
    assert count(made["params"]) == parameters
    assert output.embed.shape == (2, features)
    assert output.logits.shape == (2, made["params"]["head"]["kernel"].shape[1])
    assert dtypes((output, made)) == {"float32"}


@pytest.mark.parametrize(
    ("name", "size"), [("alexnet", 63), ("alexnet", 256), ("vgg11", 32), ("vgg11", 250)]
)
def test_any_size_gives_the_same_parameters(name, size):
    _, made = shapes(built(name), size)
    assert count(made["params"]) == PUBLISHED[name][0]


@variants(MODELS)
def test_groups_hold_every_layer_once_and_end_with_the_head(name):
    module, _, made = whole(name)
    layers = [layer for group in module.groups() for layer in group]
    assert sorted(layers) == sorted(made["params"])
    assert module.groups()[-1][-1] == "head"


@variants(MODELS)
def test_every_parameter_has_one_name_of_its_own_elsewhere(name):
    module, _, made = whole(name)
    paths = naming.flatten(made)
    assert module.namings()
    for table in module.namings().values():
        there = naming.names(made, table)
        assert set(there) == set(paths)
        assert len(set(there.values())) == len(paths)


# Large ones with fewer or narrower layers: the names follow from the same loops.
SMALL = {
    "alexnet": "alexnet",
    "cnn": "cnn(batch_norm=True)",
    "cnn_mean": "cnn(pool='mean')",
    "deit3": "vit_s_16(layer_scale=1e-4, token_position=False, depth=2)",
    "dinov3": "dinov3_s_16(depth=1, width=48)",
    "siglip": "siglip_b_16(depth=1, width=48, gelu='quick', pre_norm=True)",
    "convnext_tiny": "convnext_tiny(stages=(1, 1, 2, 1))",
    "convnextv2_atto": "convnextv2_atto(stages=(1, 1), width=16)",
    "swin_t": "swin_t(stages=(1, 2), heads=(1, 2), width=16, window=3)",
    "efficientnet_b0": "efficientnet_b0",
    "efficientnet_lite2": "efficientnet_lite2",
    "mixer_s_32": "mixer_s_32(depth=2)",
    "mobilenet_v3_small": "mobilenet_v3_small",
    "resnet18": "resnet18(width=16)",
    "resnet50": "resnet50(width=16)",
    "resnet18_blur": "resnet18(width=16, blur=True)",
    "resnext50_32x4d": "resnext50_32x4d(width=16)",
    "vit_ti_16": "vit_ti_16(depth=2)",
    "vit_s_16": "vit_s_16(pool='mean', position='sincos', depth=2)",
    "wrn16_4": "wrn16_4",
}


@pytest.mark.parametrize("text", [text for text in SMALL.values() if text != "alexnet"])
def test_there_and_back_through_foreign_names_is_the_identity(text):
    module = built(text, num_classes=10)
    _, made = shapes(module, 64)
    # No two numbers of an array are the same (up to 2**24).
    variables = jax.tree.map(
        lambda x: np.arange(x.size, dtype=np.float32).reshape(x.shape), made
    )
    for table in module.namings().values():
        back = naming.fit(naming.to_theirs(variables, table), table, made)
        assert (back.missing, back.extra, back.shapes) == ({}, [], {})
        jax.tree.map(np.testing.assert_array_equal, back.found, naming.flatten(variables))


@pytest.mark.parametrize("text", SMALL.values())
def test_one_channel_and_bfloat16_keep_float32_parameters_logits_and_features(text):
    module = built(text, num_classes=7, dtype=jnp.bfloat16)
    output, made = shapes(module, 64, channels=1)
    assert dtypes((output, made)) == {"float32"}
    assert output.logits.shape == (2, 7)
    hlo = jax.jit(lambda v, x: module.apply(v, x, False).logits).lower(
        made, jax.ShapeDtypeStruct((2, 64, 64, 1), jnp.float32)
    )
    products = [
        line
        for line in hlo.as_text().splitlines()
        if "stablehlo.convolution" in line or "stablehlo.dot_general" in line
    ]
    # All but the head's.
    assert sum("bf16" in line for line in products) >= len(products) - 1 > 0


# One of each family but the largest, with a block of each kind.
TRAINED = [
    *("resnet18(stages=(1, 1))", "resnext50_32x4d(stages=(1, 1))", "wrn16_4(depth=10)"),
    *("convnext_tiny(stages=(1, 1))", "efficientnet_b0", "mobilenet_v2"),
    *("vit_ti_16(depth=2)", "mixer_s_32(depth=2)"),
    "dinov3_s_16(depth=1, width=96)",
    "siglip_b_16(depth=1, width=96, gelu='quick')",
    "swin_t(stages=(2,), heads=(1,), width=32, window=3)",
]


@pytest.mark.slow
@pytest.mark.parametrize("text", TRAINED)
def test_one_training_step_lowers_the_loss_of_each_family(text):
    module = built(text, num_classes=10)
    if hasattr(module, "net"):  # Their later stages have no other blocks.
        module = module.clone(net=module.net._replace(stages=module.net.stages[:3]))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((8, 64, 64, 3), np.float32))
    targets = jax.nn.one_hot(rng.integers(0, 10, 8), 10)
    made = jax.jit(lambda: module.init(KEY, images, False))()

    def loss(params):
        options = {"mutable": ["batch_stats"], "rngs": {"dropout": KEY}}
        out, _ = module.apply({**made, "params": params}, images, True, **options)
        return optax.softmax_cross_entropy(out.logits, targets).mean()

    @jax.jit
    def step(params):
        value, grads = jax.value_and_grad(loss)(params)
        size = 0.005 / optax.tree.norm(grads)
        return value, jax.tree.map(lambda p, g: p - size * g, params, grads)

    before, params = step(made["params"])
    assert step(params)[0] < before


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        ("vgg11", 31, "vgg needs images of at least 32 pixels, and gets 31x31"),
        ("alexnet", 62, "at least 63 pixels"),
        ("convnext_tiny", 31, "at least 32 pixels"),
        ("swin_t", 3, "swin needs images of at least 4 pixels, and gets 3x3"),
        ("vit_s_16", 100, "patches of 16 pixels, and gets 100x100; .* resize\\(96"),
        ("mixer_s_32", 20, "patches of 32 pixels, and gets 20x20; .* resize\\(32"),
    ],
)
def test_an_image_that_a_model_cannot_take_is_refused_with_what_works(text, size, message):
    with pytest.raises(InputError, match=message):
        shapes(built(text), size)


@pytest.mark.parametrize(
    "text",
    [
        "alexnet(dropout=1.0)",
        "alexnet(weight_init='xavier')",
        "vgg11(dropout=-0.1)",
        "resnet18(drop_path=1.0)",
        "resnet18(stem='cifar')",
        "vit_s_16(pool='max')",
        "vit_s_16(position='rotary')",
        "vit_s_16(position='rope', width=36)",
        "vit_s_16(reg_tokens=-1)",
        "vit_s_16(drop_path=2.0)",
        "vit_s_16(layer_scale=-1e-4)",
        "vit_s_16(gelu='erf')",
        "vit_s_16(drop_path_mode='linear')",
        "vit_s_16(weight_init='timm')",
        "mixer_s_16(gelu='erf')",
        "mixer_s_16(drop_path_mode='linear')",
        "convnext_tiny(drop_path_mode='linear')",
        "resnet18(weight_init='fan_avg')",
        "wrn28_10(weight_init='fan_avg')",
        "cnn(pool='min')",
        "mixer_s_16(dropout=1.5)",
        "convnext_tiny(drop_path=1.0)",
        "convnext_tiny(layer_scale=-1.0)",
        "convnextv2_atto(decay_blocks=0)",
        "swin_t(heads=(3, 6))",
        "swin_t(heads=(3, 6, 12, 25))",
        "swin_t(window=0)",
        "swin_t(drop_path=1.0)",
        "swin_t(drop_path_mode='linear')",
        "efficientnet_b0(dropout=1.0)",
        "mobilenet_v2(drop_path=-1.0)",
        "wrn28_10(depth=27)",
        "wrn28_10(dropout=1.0)",
        "cnn(dropout=1.0)",
    ],
)
def test_an_option_out_of_range_is_refused_by_name(text):
    option = text.partition("(")[2].partition("=")[0]
    with pytest.raises(InputError, match=f"model.name: .*{option}="):
        built(text)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["alexnet(dropout=0.9)", "cnn(dropout=0.5, dense=32)"])
def test_dropout_is_of_training_alone_and_of_its_key(text):
    module = built(text, num_classes=5)
    images, rng = jax.random.normal(KEY, (1, 63, 63, 3)), np.random.default_rng(0)
    made = jax.tree.map(
        lambda like: 0.1 * rng.standard_normal(like.shape, np.float32),
        jax.eval_shape(lambda: module.init(KEY, images, False)),
    )

    @functools.partial(jax.jit, static_argnums=1)
    def logits(made, train, key):
        return module.apply(made, images, train, rngs={"dropout": key}).logits

    apply = functools.partial(logits, made)
    one, other = jax.random.split(KEY)
    np.testing.assert_array_equal(apply(False, one), apply(False, other))
    np.testing.assert_array_equal(apply(True, one), apply(True, one))
    assert (apply(True, one) != apply(True, other)).any()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variance"), [("torch", 1 / 3), ("lecun", 1.0)])
def test_kernels_of_alexnet_start_with_the_variance_of_their_initialisation(name, variance):
    module = built("alexnet", weight_init=name)

    @jax.jit  # So that no other layer is made.
    def kernels():
        made = module.init(KEY, jnp.zeros((1, 64, 64, 3)), False)["params"]
        return made["dense2"]["kernel"], made["conv3"]["kernel"]

    for kernel in map(np.asarray, kernels()):
        fan_in = kernel.size / kernel.shape[-1]
        assert kernel.var() * fan_in == pytest.approx(variance, rel=0.02)


# Small, of one block: alone, a rising rate leaves it whole.
ONE_BLOCK = {
    "vit": "vit_s_16(patch=4, depth=1, width=16, heads=2, layer_scale=1.0, {})",
    "mixer": "mixer_s_16(patch=4, depth=1, width=16, {})",
    "convnext": "convnext_tiny(stages=(1,), width=16, layer_scale=1.0, {})",
}


@pytest.mark.slow
@pytest.mark.parametrize("family", ONE_BLOCK)
def test_stochastic_depth_is_of_every_block_and_rescaled_where_asked(family):
    def embeds(options):
        """The features of 64 equal rows: {those in training}, and in evaluation."""
        module = built(ONE_BLOCK[family].format(f"drop_path=0.5, {options}"), num_classes=2)
        images = jnp.broadcast_to(jax.random.normal(KEY, (1, 32, 32, 3)), (64, 32, 32, 3))
        made = jax.jit(lambda: module.init(KEY, images[:1], False))()

        def forward(train):
            rngs = {"dropout": jax.random.key(7)}
            return np.asarray(module.apply(made, images, train, rngs=rngs).embed)

        return forward(True), forward(False)[0]

    def kinds(rows):
        return len(np.unique(rows.round(4), axis=0))

    def as_evaluated(rows, whole):
        return np.isclose(rows, whole, atol=1e-4).all(1)

    rising, whole = embeds("drop_path_mode='rising'")
    assert as_evaluated(rising, whole).all()
    branches = 1 if family == "convnext" else 2
    constant, whole = embeds("drop_path_mode='constant'")
    assert kinds(constant) == 2**branches
    assert not as_evaluated(constant, whole).any()  # Those that are kept are doubled.
    unscaled, whole = embeds("drop_path_mode='constant', drop_path_rescale=False")
    assert kinds(unscaled) == 2**branches
    assert 0 < as_evaluated(unscaled, whole).sum() < 64 * 0.8


@pytest.mark.parametrize("text", ["resnet18(stages=(1, 1), {})", "wrn16_4(depth=10, {})"])
@pytest.mark.parametrize("fan", ["fan_in", "fan_out"])
def test_convolutions_start_with_the_deviation_of_he(text, fan):
    module = built(text.format(f"weight_init='{fan}'"))
    made = jax.jit(lambda: module.init(KEY, jnp.zeros((1, 32, 32, 3)), False))()["params"]
    for path, kernel in jax.tree_util.tree_leaves_with_path(made):
        if kernel.ndim == 4:
            height, width, before, after = kernel.shape
            n = height * width * (before if fan == "fan_in" else after)
            apart = 5 / (2 * kernel.size) ** 0.5
            assert np.std(kernel) == pytest.approx((2 / n) ** 0.5, rel=apart), path


@pytest.mark.parametrize(
    "kind", [mobilenet.InvertedResidual, mobilenet.FusedInvertedResidual]
)
def test_a_block_with_a_stride_has_no_shortcut_even_where_shapes_agree(kind):
    sizes = mobilenet.Block(jax.nn.relu, 0, 3, 2, 4)
    norm = functools.partial(layers.BatchNorm, scale_init=jax.nn.initializers.zeros)
    make = functools.partial(layers.conv, dtype=jnp.float32)
    options = {"excite": ()} if kind is mobilenet.InvertedResidual else {}
    images = jnp.ones((1, 1, 1, 4))
    for stride, expected in ((1, 1.0), (2, 0.0)):
        block = kind(sizes._replace(stride=stride), make, norm, **options)
        out, _ = block.init_with_output(KEY, images, False)
        np.testing.assert_array_equal(out, np.full((1, 1, 1, 4), expected))


def metas_layer(name, last):
    """The layer of a parameter in Meta's code for [3, 3, n, 3] blocks; the head's is last.

    facebookresearch/ConvNeXt, optim_factory.py (4eddc6b), which has n = 27 and last = 13:
    stages 1 and 2 are a layer each, stage 3 one for every three blocks, stage 4 one.
    """
    if name.startswith(("stem", "norm", "head")):
        return 0 if name.startswith("stem") else last
    stage = int(name.removeprefix("stage").partition("_")[0])
    if stage == 3 and "block" in name:
        return 3 + (int(name.partition("block")[2]) - 1) // 3
    return {1: 1, 2: 2, 3: 3, 4: last - 1}[stage]


@pytest.mark.parametrize(
    ("name", "last"),
    [
        pytest.param("convnext_small", 13, marks=pytest.mark.slow),
        pytest.param("convnext_base", 13, marks=pytest.mark.slow),
        ("convnext_tiny", 7),
    ],
)
def test_a_convnext_decays_the_rate_by_metas_layers(name, last):
    module = built(name)
    params = shapes(module, 32)[1]["params"]
    found = param_groups.divide(params, module.decay_groups(), layer_decay=0.7)
    assert {path.partition("/")[0] for path in found} == set(params)
    for path, part in found.items():
        layer = metas_layer(path.partition("/")[0], last)
        assert part.scale == pytest.approx(0.7 ** (last - layer)), path
    # Blocks stay alone for model.remat.
    assert len(module.groups()) == 2 + sum(module.stages) + 3


# Of facebookresearch/ConvNeXt-V2, TRAINING.md and optim_factory.py (2553895): a layer each
# up to "tiny", and there the stem is with the first block; "base" is as V1's.
def test_a_convnext_v2_decays_the_rate_by_single_blocks():
    first, second, *rest, head = built("convnextv2_atto").decay_groups()
    assert first == ("stem_conv", "stem_norm", "stage1_block1")
    assert (second, head) == (("stage1_block2",), ("norm", "head"))
    assert rest[0] == ("stage2_norm", "stage2_conv", "stage2_block1")
    assert len(rest) == 2 + 6 + 2
    base = built("convnextv2_base(stages=(3, 3, 4, 3))").decay_groups()
    assert base == built("convnext_base(stages=(3, 3, 4, 3))").decay_groups()


def test_a_swin_decays_the_rate_by_simmims_layers():
    """get_swin_layer of microsoft/SimMIM: what merges is with the block before it."""
    groups = built("swin_t").groups()
    assert groups[0] == ("patch", "patch_norm")
    assert groups[1:3] == [
        ("stage1_block1",),
        ("stage1_block2", "stage2_norm", "stage2_reduce"),
    ]
    assert len(groups) == sum((2, 2, 6, 2)) + 2


def test_a_response_is_a_norm_over_the_positions_by_the_mean_over_the_channels():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    x[..., 1] = 0  # The root's derivative there would be NaN.
    scale, bias = np.float32([0.5, 2.0, -1.0, 3.0]), np.float32([0.1, 0.2, 0.3, 0.4])
    params = {"params": {"scale": scale, "bias": bias}}
    norms = np.sqrt((x.astype(np.float64) ** 2).sum((1, 2)))
    response = (norms / norms.mean(1, keepdims=True))[:, None, None]
    grn = convnext.GRN(jnp.float32)
    expected = scale * x * response + bias + x
    np.testing.assert_allclose(grn.apply(params, x), expected, rtol=1e-4)
    grads = jax.jit(jax.grad(lambda x: grn.apply(params, x).sum()))(x)
    assert np.isfinite(grads).all()


@pytest.mark.slow
def test_a_shifted_window_sees_no_positions_that_the_roll_has_joined():
    """One pixel changes only what lies in its window, however the windows wrap."""
    module = swin.Attention(heads=1, side=4, is_shifted=True, dtype=jnp.float32)
    x = jax.random.normal(KEY, (1, 8, 12, 8))
    made = jax.jit(module.init)(KEY, x)
    # The first rows and columns are alone: windows begin at 2.
    apply = jax.jit(lambda x: module.apply(made, x))
    seen = np.abs(apply(x.at[0, 0, 5].add(1.0)) - apply(x))[0].max(-1) > 1e-6
    expected = np.zeros((8, 12), bool)
    expected[:2, 2:6] = True
    np.testing.assert_array_equal(seen, expected)


def test_biases_of_pairs_are_the_tables_rows_by_the_libraries_index():
    table = np.arange(2 * 49, dtype=np.float32).reshape(49, 2)
    expected = table[naming.relative_index(4)].reshape(16, 16, 2).transpose(2, 0, 1)
    np.testing.assert_array_equal(swin.of_pairs(jnp.asarray(table), 4), expected)


@pytest.mark.slow
def test_the_gradient_of_an_attention_with_a_bias_is_that_of_its_formula():
    keys = jax.random.split(KEY, 4)
    parts = [jax.random.normal(key, (2, 3, 4, 8)) for key in keys[:3]]
    bias = jax.random.normal(keys[3], (1, 3, 4, 4))

    def plain(query, key, value, bias):
        scores = jnp.einsum("bhqd,bhkd->bhqk", query, key) / 8**0.5
        return jax.nn.softmax(scores + bias) @ value

    def loss(function):
        return lambda *given: jnp.square(function(*given)).sum()

    grads = [jax.jit(jax.grad(loss(each), range(4))) for each in (attention.attend, plain)]
    for ours, theirs in zip(*(grad(*parts, bias) for grad in grads), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
def test_a_swin_starts_as_its_authors_code():
    """PyTorch's own start of a convolution is uniform; all other kernels are normal."""
    module = built("swin_t(stages=(1, 1), heads=(3, 6))")
    made = jax.jit(lambda: module.init(KEY, jnp.zeros((1, 32, 32, 3)), False))()["params"]
    for path, leaf in naming.flatten(made).items():
        if path.endswith(("kernel", "position_bias")):
            expected = (1 / (3 * 4 * 4 * 3)) ** 0.5 if path == "patch/kernel" else 0.02
            apart = 5 / (2 * leaf.size) ** 0.5
            assert np.std(leaf) == pytest.approx(expected, rel=apart), path
        else:
            np.testing.assert_array_equal(leaf, float(path.endswith("scale")), path)
