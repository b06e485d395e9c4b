"""Layers against NumPy, SciPy and Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from jaxcls.models.layers import (
    BatchNorm,
    adaptive_mean,
    conv,
    global_mean,
    max_pool,
)

RNG = np.random.default_rng(0)
X = (3 + 2 * RNG.standard_normal((4, 3, 5, 2))).astype(np.float32)
SCALE, BIAS = np.float32([1.5, 0.5]), np.float32([0.1, -0.2])
MEAN, VAR = np.float32([1.0, 2.0]), np.float32([4.0, 0.25])
VARIABLES = {
    "params": {"scale": SCALE, "bias": BIAS},
    "batch_stats": {"mean": MEAN, "var": VAR},
}


def normed(mean, var, epsilon=1e-5):
    return (X - mean) / np.sqrt(var + epsilon) * SCALE + BIAS


def test_training_normalises_by_the_biased_variance_of_the_batch():
    y, _ = BatchNorm().apply(VARIABLES, jnp.asarray(X), True, mutable=["batch_stats"])
    axes = (0, 1, 2)
    np.testing.assert_allclose(y, normed(X.mean(axes), X.var(axes)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unbiased", [True, False])
def test_running_statistics_move_towards_those_of_the_batch(unbiased):
    norm = BatchNorm(momentum=0.8, unbiased=unbiased)
    _, new = norm.apply(VARIABLES, jnp.asarray(X), True, mutable=["batch_stats"])
    var = X.var((0, 1, 2), ddof=int(unbiased))
    stats = new["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.8 * MEAN + 0.2 * X.mean((0, 1, 2)), 1e-5)
    np.testing.assert_allclose(stats["var"], 0.8 * VAR + 0.2 * var, rtol=1e-5)


def test_evaluation_normalises_by_the_running_statistics():
    y = BatchNorm().apply(VARIABLES, jnp.asarray(X), False)
    np.testing.assert_allclose(y, normed(MEAN, VAR), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_the_biased_one_is_flaxs(train):
    ours = BatchNorm(unbiased=False)
    theirs = nn.BatchNorm(momentum=0.9, epsilon=1e-5)
    y, new = ours.apply(VARIABLES, jnp.asarray(X), train, mutable=["batch_stats"])
    y2, new2 = theirs.apply(VARIABLES, X, not train, mutable=["batch_stats"])
    np.testing.assert_allclose(y, y2, rtol=1e-4, atol=1e-5)
    for name in ("mean", "var"):
        expected = new2["batch_stats"][name]
        np.testing.assert_allclose(new["batch_stats"][name], expected, rtol=1e-5)


def test_init_leaves_the_running_statistics_at_0_and_1():
    made = BatchNorm().init(jax.random.key(0), jnp.asarray(X), True)
    stats, params = made["batch_stats"], made["params"]
    assert (stats["mean"].tolist(), stats["var"].tolist()) == ([0, 0], [1, 1])
    assert (params["scale"].tolist(), params["bias"].tolist()) == ([1, 1], [0, 0])


@pytest.mark.parametrize("value", [0.0, 10.1])
def test_a_constant_channel_is_normalised_to_the_bias(value):
    x = jnp.full((7, 4, 4, 2), value)
    y, _ = BatchNorm().apply(VARIABLES, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, np.broadcast_to(BIAS, y.shape), atol=0.01)


def test_statistics_of_bfloat16_are_float32_and_the_output_is_bfloat16():
    norm = BatchNorm(dtype=jnp.bfloat16)
    x = jnp.asarray(X, jnp.bfloat16)
    y, new = norm.apply(VARIABLES, x, True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {np.dtype(np.float32)}
    wide = np.asarray(x, np.float32)
    expected = 0.9 * MEAN + 0.1 * wide.mean((0, 1, 2))
    np.testing.assert_allclose(new["batch_stats"]["mean"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 1, 0)]
)
def test_max_pool_is_the_maximum_of_each_window(window, stride, padding):
    x = RNG.standard_normal((2, 6, 7, 3)).astype(np.float32) - 9  # Zeros would win.
    wide = np.pad(x, [(0, 0), (padding,) * 2, (padding,) * 2, (0, 0)], constant_values=-99)
    windows = np.lib.stride_tricks.sliding_window_view(wide, (window, window), (1, 2))
    expected = windows.max((-1, -2))[:, ::stride, ::stride]
    got = max_pool(jnp.asarray(x), window=window, stride=stride, padding=padding)
    np.testing.assert_array_equal(got, expected)


def test_max_pool_pads_bfloat16_too():
    got = max_pool(
        jnp.full((1, 2, 2, 1), -3.0, jnp.bfloat16), window=3, stride=2, padding=1
    )
    assert (got.dtype, got.tolist()) == (jnp.bfloat16, [[[[-3.0]]]])


@pytest.mark.parametrize(("height", "width", "size"), [(6, 6, 6), (13, 7, 6), (4, 9, 7)])
def test_adaptive_mean_is_over_windows_that_cover_the_image(height, width, size):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    got = np.asarray(adaptive_mean(jnp.asarray(x), size))
    for i in range(size):
        for j in range(size):
            rows = slice(int(i * height / size), int(np.ceil((i + 1) * height / size)))
            columns = slice(int(j * width / size), int(np.ceil((j + 1) * width / size)))
            expected = x[:, rows, columns].mean(axis=(1, 2))
            np.testing.assert_allclose(got[:, i, j], expected, rtol=1e-5, atol=1e-6)


def test_global_mean_is_over_the_positions_in_float32():
    got = global_mean(jnp.asarray(X, jnp.bfloat16))
    assert got.dtype == jnp.float32
    expected = np.asarray(jnp.asarray(X, jnp.bfloat16), np.float32).mean((1, 2))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize(("kernel", "stride", "size"), [(1, 2, 6), (3, 2, 6), (7, 2, 9)])
def test_conv_pads_every_side_by_half_the_kernel_as_pytorch_does(kernel, stride, size):
    layer = conv(1, kernel, stride, dtype=jnp.float32)
    x = RNG.standard_normal((1, size, size, 1)).astype(np.float32)
    y, made = layer.init_with_output(jax.random.key(0), jnp.asarray(x))
    assert list(made["params"]) == ["kernel"]
    side = kernel // 2
    wide, weights = np.pad(x[0, :, :, 0], side), made["params"]["kernel"][:, :, 0, 0]
    expected = correlate2d(wide, weights, mode="valid")[::stride, ::stride]
    np.testing.assert_allclose(y[0, :, :, 0], expected, rtol=1e-4, atol=1e-5)


def test_conv_starts_with_the_deviation_of_he_by_fan_out():
    layer = conv(64, 3, dtype=jnp.float32)
    made = layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))
    assert np.std(made["params"]["kernel"]) == pytest.approx(
        (2 / (9 * 64)) ** 0.5, rel=0.03
    )
