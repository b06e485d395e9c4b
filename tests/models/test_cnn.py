"""The small convolutional net: shapes, parameters, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.models import MODELS

KEY = jax.random.key(0)


def shapes(module, *image):
    return jax.eval_shape(lambda x: module.init(KEY, x, False), images(*image))


def images(*image):
    return jax.ShapeDtypeStruct((2, *image), jnp.float32)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 15, 28, 32, 64])
def test_it_classifies_images_of_8_to_64_pixels(size, channels):
    module = MODELS["cnn"](num_classes=10)
    x = images(size, size, channels)
    (logits, embed), variables = jax.eval_shape(
        lambda x: module.init_with_output(KEY, x, False), x
    )
    assert embed.shape == (2, 128)
    assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)
    side = size // 4
    counts = {k: sum(x.size for x in v.values()) for k, v in variables["params"].items()}
    assert counts == {
        "stage1_conv1": 9 * channels * 32 + 32,
        "stage2_conv1": 9 * 32 * 64 + 64,
        "dense": side * side * 64 * 128 + 128,
        "head": 128 * 10 + 10,
    }


def test_pooling_stops_where_the_image_is_one_pixel_wide():
    made = shapes(MODELS["cnn"](num_classes=3, widths=(2, 2, 2, 2, 5)), 4, 16, 1)
    assert made["params"]["dense"]["kernel"].shape == (1 * 4 * 5, 128)


def test_a_mean_in_place_of_the_maximum_is_over_each_2x2():
    module = MODELS["cnn"](num_classes=3, widths=(5,), dense=4, pool="mean")
    x = np.random.default_rng(0).standard_normal((2, 7, 6, 1), np.float32)

    @jax.jit
    def forward(x):
        made = module.init(KEY, x, False)
        return made["params"]["dense"], module.apply(
            made, x, False, capture_intermediates=True, mutable=["intermediates"]
        )

    dense, (_, seen) = jax.tree.map(np.asarray, forward(x))
    conv, out = (
        seen["intermediates"][name]["__call__"][0] for name in ("stage1_conv1", "dense")
    )
    after = np.maximum(conv, 0)[:, :6].reshape(2, 3, 2, 3, 2, 5)
    expected = after.mean((2, 4)).reshape(2, -1) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


# Flax's first tutorial, Keras's and PyTorch's of the same form, and three stages on 64
# pixels; parameters by the arithmetic of convolutions and dense layers.
@pytest.mark.parametrize(
    ("options", "image", "parameters"),
    [
        ({"pool": "mean", "dense": 256}, (28, 28, 1), [320, 18_496, 803_072, 2_570]),
        ({"dense": 256}, (32, 32, 3), [896, 18_496, 1_048_832, 2_570]),
        (
            {"widths": (32, 64, 128), "dense": 128, "dropout": 0.5},
            (64, 64, 3),
            [896, 18_496, 73_856, 1_048_704, 1_290],
        ),
    ],
)
def test_the_tutorials_nets_are_options_of_it(options, image, parameters):
    made = shapes(MODELS["cnn"](num_classes=10, **options), *image)["params"]
    names = [name for name in (*made,) if name not in ("dense", "head")]
    layers = [*sorted(names), "dense", "head"]
    assert [sum(x.size for x in made[name].values()) for name in layers] == parameters


def test_every_stage_has_the_convolutions_and_norms_that_are_asked_for():
    module = MODELS["cnn"](num_classes=3, widths=(4, 8), convs=2, batch_norm=True)
    made = shapes(module, 8, 8, 1)
    convs = [f"stage{s}_conv{c}" for s in (1, 2) for c in (1, 2)]
    assert set(made["batch_stats"]) == {f"{name}_norm" for name in convs}
    assert {k: v["kernel"].shape for k, v in made["params"].items() if k in convs} == {
        "stage1_conv1": (3, 3, 1, 4),
        "stage1_conv2": (3, 3, 4, 4),
        "stage2_conv1": (3, 3, 4, 8),
        "stage2_conv2": (3, 3, 8, 8),
    }
    assert [list(made["params"][name]) for name in convs] == [["kernel"]] * 4


@pytest.mark.slow
def test_dropout_is_of_training_alone_and_of_its_key():
    module = MODELS["cnn"](num_classes=4, widths=(2,), dense=32, dropout=0.5)
    x = jax.random.normal(KEY, (2, 8, 8, 1))
    made = module.init(KEY, x, False)

    def logits(seed):
        return module.apply(made, x, True, rngs={"dropout": jax.random.key(seed)}).logits

    np.testing.assert_array_equal(logits(1), logits(1))
    assert (logits(1) != logits(2)).any()
    assert (module.apply(made, x, False).logits != logits(1)).any()


def test_bfloat16_keeps_float32_parameters_and_logits():
    module = MODELS["cnn"](num_classes=4, dtype=jnp.bfloat16, batch_norm=True)

    def forward(x):
        made = module.init(KEY, x, False)
        return made, module.apply(
            made, x, False, capture_intermediates=True, mutable=["intermediates"]
        )

    made, ((logits, _), seen) = jax.eval_shape(forward, images(8, 8, 3))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(made)} == {"float32"}
    assert logits.dtype == jnp.float32
    for layer in ("stage1_conv1", "stage1_conv1_norm", "dense"):
        assert seen["intermediates"][layer]["__call__"][0].dtype == jnp.bfloat16
