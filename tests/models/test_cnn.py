"""The small convolutional net: shapes, parameters, pooling."""

import jax
import numpy as np
import pytest

from tests.modules import KEY, built, count, shapes


# Flax's first tutorial, Keras's and PyTorch's of the same form, and three stages on 64
# pixels; parameters by the arithmetic of convolutions and dense layers.
@pytest.mark.parametrize(
    ("options", "size", "channels", "parameters"),
    [
        ("", 15, 1, [320, 18_496, 73_856, 1_290]),
        ("pool='mean', dense=256", 28, 1, [320, 18_496, 803_072, 2_570]),
        ("dense=256", 32, 3, [896, 18_496, 1_048_832, 2_570]),
        ("widths=(32, 64, 128), dropout=0.5", 64, 3,
         [896, 18_496, 73_856, 1_048_704, 1_290]),
        # Pooling stops at an image of one pixel.
        ("widths=(2, 2, 2, 2, 5), dense=4", 4, 1, [20, 38, 38, 38, 95, 24, 50]),
    ],
)  # fmt: skip
def test_the_tutorials_nets_are_options_of_it(options, size, channels, parameters):
    module = built(f"cnn({options})", num_classes=10)
    (logits, _), made = shapes(module, size, channels)
    layers = [layer for group in module.groups() for layer in group]
    assert [count(made["params"][name]) for name in layers] == parameters
    assert logits.shape == (2, 10)


def test_a_mean_in_place_of_the_maximum_is_over_each_2x2():
    module = built("cnn(widths=(5,), dense=4, pool='mean')", num_classes=3)
    x = np.random.default_rng(0).standard_normal((2, 7, 6, 1), np.float32)

    @jax.jit
    def forward(x):
        made = module.init(KEY, x, False)
        options = {"capture_intermediates": True, "mutable": ["intermediates"]}
        return made["params"]["dense"], module.apply(made, x, False, **options)[1]

    dense, seen = jax.tree.map(np.asarray, forward(x))
    conv, out = (
        seen["intermediates"][name]["__call__"][0] for name in ("stage1_conv1", "dense")
    )
    after = np.maximum(conv, 0)[:, :6].reshape(2, 3, 2, 3, 2, 5)
    expected = after.mean((2, 4)).reshape(2, -1) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_every_stage_has_the_convolutions_and_norms_that_are_asked_for():
    module = built("cnn(widths=(4, 8), convs=2, batch_norm=True)", num_classes=3)
    _, made = shapes(module, 8, 1)
    convs = [f"stage{s}_conv{c}" for s in (1, 2) for c in (1, 2)]
    assert set(made["batch_stats"]) == {f"{name}_norm" for name in convs}
    kernels = [(3, 3, 1, 4), (3, 3, 4, 4), (3, 3, 4, 8), (3, 3, 8, 8)]
    for name, shape in zip(convs, kernels, strict=True):
        assert list(made["params"][name]) == ["kernel"]
        assert made["params"][name]["kernel"].shape == shape
