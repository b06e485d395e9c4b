"""Layers against NumPy, SciPy and Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.signal import correlate2d
from scipy.stats import norm

from jaxcls.models import layers
from jaxcls.models.layers import (
    BatchNorm,
    adaptive_mean,
    batch_norm_groups,
    blur,
    conv,
    gelu,
    max_pool,
)
from tests.modules import KEY, built

RNG = np.random.default_rng(0)
X = (3 + 2 * RNG.standard_normal((4, 3, 5, 2))).astype(np.float32)
SCALE, BIAS = np.float32([1.5, 0.5]), np.float32([0.1, -0.2])
MEAN, VAR = np.float32([1.0, 2.0]), np.float32([4.0, 0.25])
VARIABLES = {
    "params": {"scale": SCALE, "bias": BIAS},
    "batch_stats": {"mean": MEAN, "var": VAR},
}


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


def test_a_constant_channel_is_normalised_to_the_bias():
    x = jnp.full((7, 4, 4, 2), 10.1)
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


def test_without_a_scale_there_is_a_bias_alone():
    given = {"params": {"bias": BIAS}, "batch_stats": VARIABLES["batch_stats"]}
    norm = BatchNorm(use_scale=False)
    made = norm.init(KEY, jnp.asarray(X), False)
    assert list(made["params"]) == ["bias"]
    y = norm.apply(given, jnp.asarray(X), False)
    expected = (X - MEAN) / np.sqrt(VAR + 1e-5) + BIAS
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def trained(norm, groups, variables=VARIABLES):
    """What a layer gives for X in training, and its running statistics."""
    y, new = norm.apply(variables, jnp.asarray(X), True, groups, mutable=["batch_stats"])
    return np.asarray(y), jax.tree.map(np.asarray, new.get("batch_stats"))


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("unbiased", [True, False])
def test_every_groups_th_row_is_normalised_together_and_their_means_are_kept(
    groups, unbiased
):
    y, stats = trained(BatchNorm(momentum=0.8, unbiased=unbiased), groups)
    parts = [X[group::groups] for group in range(groups)]
    for group, rows in enumerate(parts):
        mean, var = rows.mean((0, 1, 2)), rows.var((0, 1, 2))
        expected = (rows - mean) / np.sqrt(var + 1e-5) * SCALE + BIAS
        np.testing.assert_allclose(y[group::groups], expected, rtol=1e-4, atol=1e-5)
    mean = np.mean([rows.mean((0, 1, 2)) for rows in parts], axis=0)
    var = np.mean([rows.var((0, 1, 2), ddof=int(unbiased)) for rows in parts], axis=0)
    np.testing.assert_allclose(stats["mean"], 0.8 * MEAN + 0.2 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.8 * VAR + 0.2 * var, rtol=1e-5)


def test_rows_without_positions_are_grouped_too():
    rows = RNG.standard_normal((6, 2)).astype(np.float32)
    y, _ = BatchNorm().apply(VARIABLES, jnp.asarray(rows), True, 3, mutable=["batch_stats"])
    parts = rows.reshape(2, 3, 2)
    expected = (parts - parts.mean(0)) / np.sqrt(parts.var(0) + 1e-5) * SCALE + BIAS
    np.testing.assert_allclose(y, expected.reshape(6, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [0, 3])
def test_groups_that_do_not_divide_the_batch_are_refused(groups):
    with pytest.raises(ValueError, match=f"groups={groups} must divide .* 4 rows"):
        trained(BatchNorm(), groups)


def test_groups_are_of_training_alone_and_not_of_frozen_statistics():
    x = jnp.asarray(X)
    expected = BatchNorm().apply(VARIABLES, x, False)
    np.testing.assert_array_equal(BatchNorm().apply(VARIABLES, x, False, 3), expected)
    frozen = VARIABLES | {"frozen": {"mean": True, "var": True}}
    y, new = BatchNorm().apply(frozen, x, True, 2, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, expected)
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], frozen["batch_stats"])


def grouped_step(module, made, groups):
    """images -> (logits, running statistics, gradients) of training in groups, jitted."""

    @jax.jit
    def step(images):
        def objective(params):
            with batch_norm_groups(groups):
                out, new = module.apply(
                    made | {"params": params}, images, True, mutable=["batch_stats"]
                )
            return jnp.square(out.logits).mean(), (out.logits, new["batch_stats"])

        grads, (logits, stats) = jax.grad(objective, has_aux=True)(made["params"])
        return logits, stats, grads

    return step


@pytest.fixture(scope="module")
def grouped():
    """(module, variables, images) of a net with two layers of normalisation."""
    module = built("cnn(widths=(4, 6), dense=8, batch_norm=True)", num_classes=3)
    images = np.random.default_rng(0).standard_normal((16, 4, 4, 3), np.float32)
    images = jnp.asarray(images * np.float32(range(1, 17)).reshape(16, 1, 1, 1))
    return module, jax.jit(lambda: module.init(KEY, images, False))(), images


@pytest.mark.slow
def test_a_model_within_sees_each_group_as_if_it_were_alone(grouped):
    module, made, images = grouped
    logits, stats, grads = grouped_step(module, made, 2)(images)
    alone = grouped_step(module, made, 1)
    parts = [alone(images[0::2]), alone(images[1::2])]
    close = {"rtol": 1e-3, "atol": 1e-5}
    for group, (expected, _, _) in enumerate(parts):
        np.testing.assert_allclose(logits[group::2], expected, **close)
    for got, one, other in (
        (stats, parts[0][1], parts[1][1]),
        (grads, parts[0][2], parts[1][2]),
    ):
        means = jax.tree.map(lambda a, b: (a + b) / 2, one, other)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), got, means)
    assert np.abs(logits - alone(images)[0]).max() > 0.01


def test_groups_do_not_depend_on_the_number_of_devices(grouped):
    module, made, images = grouped
    step = grouped_step(module, made, 4)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    assert mesh.size == 8
    split = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        step(split),
        step(images),
    )


def test_rows_are_grouped_where_they_lie():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((16, 4, 4, 2), jnp.float32, sharding=rows)

    def normed(x):
        return BatchNorm().apply(VARIABLES, x, True, 2, mutable=["batch_stats"])[0]

    compiled = jax.jit(normed, out_shardings=rows).lower(x).compile().as_text()
    assert "all-reduce" in compiled
    for moving in ("all-gather", "all-to-all", "collective-permute"):
        assert moving not in compiled


def test_groups_reach_a_layer_that_is_computed_again_for_its_gradient():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.remat(BatchNorm, static_argnums=(2,))(name="norm")(x, train)

    given = jax.tree.map(jnp.asarray, {k: {"norm": v} for k, v in VARIABLES.items()})

    def total(x):
        with batch_norm_groups(2):
            y, new = Twice().apply(given, x, True, mutable=["batch_stats"])
        return jnp.square(y).sum() + new["batch_stats"]["norm"]["mean"].sum()

    def by_hand(x):
        y, new = BatchNorm().apply(VARIABLES, x, True, 2, mutable=["batch_stats"])
        return jnp.square(y).sum() + new["batch_stats"]["mean"].sum()

    got, expected = (jax.jit(jax.grad(f))(jnp.asarray(X)) for f in (total, by_hand))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_after_the_groups_the_batch_is_one_again():
    x = jnp.asarray(X)
    with pytest.raises(ValueError, match="groups=3"), batch_norm_groups(3):
        BatchNorm().apply(VARIABLES, x, True, mutable=["batch_stats"])
    y, _ = BatchNorm().apply(VARIABLES, x, True, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, trained(BatchNorm(), 1)[0])


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


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (7, 4)])
def test_blur_is_the_binomial_of_each_channel_with_zeros_outside(height, width):
    x = RNG.standard_normal((2, height, width, 3)).astype(np.float32)
    got = blur(jnp.asarray(x))
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    for image, channel in np.ndindex(2, 3):
        expected = correlate2d(x[image, :, :, channel], kernel, mode="same")
        np.testing.assert_allclose(got[image, :, :, channel], expected, atol=1e-6)


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


@pytest.mark.parametrize(("dtype", "near"), [("float32", 2e-6), ("bfloat16", 1e-2)])
def test_gelu_and_its_gradient_are_of_the_normal_distribution(dtype, near):
    x = jnp.linspace(-6, 6, 97).astype(dtype)
    exact = np.asarray(x, np.float64)
    value, gradient = jax.vmap(jax.value_and_grad(gelu))(x)
    assert value.dtype == gradient.dtype == dtype
    expected = norm.cdf(exact) + exact * norm.pdf(exact)
    np.testing.assert_allclose(np.float64(value), exact * norm.cdf(exact), near, near)
    np.testing.assert_allclose(np.float64(gradient), expected, near, near)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_gelu_by_tanh_and_its_gradient_are_torchs(dtype, near):
    torch = pytest.importorskip("torch")
    x = jnp.linspace(-6, 6, 97).astype(dtype)
    value, gradient = jax.vmap(jax.value_and_grad(layers.GELUS["tanh"]))(x)
    assert value.dtype == gradient.dtype == dtype
    theirs = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    expected = torch.nn.functional.gelu(theirs, approximate="tanh")
    expected.sum().backward()
    np.testing.assert_allclose(np.float64(value), expected.detach(), near, near)
    np.testing.assert_allclose(np.float64(gradient), theirs.grad, near, near)
    assert np.abs(np.float64(value) - np.float64(gelu(x))).max() > 1e-4


class Branch(nn.Module):
    """Stochastic depth alone."""

    rate: float
    rescale: bool

    @nn.compact
    def __call__(self, x, train):
        return layers.drop_path(x, self.rate, train, self.rescale)


@pytest.mark.parametrize(("rescale", "kept"), [(True, 4.0), (False, 1.0)])
def test_a_branch_that_is_kept_is_rescaled_or_stays(rescale, kept):
    x = jnp.asarray(RNG.standard_normal((4000, 3, 2)), jnp.float32)
    module, rngs = Branch(0.75, rescale), {"dropout": jax.random.key(1)}
    found = np.asarray(module.apply({}, x, True, rngs=rngs))
    is_kept = (found != 0).all((1, 2))
    assert (found[~is_kept] == 0).all()
    np.testing.assert_allclose(found[is_kept], kept * np.asarray(x)[is_kept], rtol=1e-6)
    assert abs(is_kept.mean() - 0.25) < 4 * (0.75 * 0.25 / 4000) ** 0.5
    np.testing.assert_array_equal(module.apply({}, x, False), x)


def test_rates_rise_from_0_or_are_constant():
    assert layers.drop_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert layers.drop_rates(0.3, 4, "constant") == [0.3] * 4
    assert layers.drop_rates(0.3, 1) == [0]
    assert layers.drop_rates(0.3, 1, "constant") == [0.3]
