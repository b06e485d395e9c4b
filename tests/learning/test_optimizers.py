"""Optimizers against optax's own; clipping and decay by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcls.learning.optimizers import (
    OPTIMIZERS,
    clip,
    decay_scales,
    decay_weights,
)
from jaxcls.learning.param_groups import path_name
from tests.stepping import at_rate

RATES = jnp.float32([0.1, 0.1, 0.05, 0.02, 0.3])
RNG = np.random.default_rng(0)
START = {"layer": {"kernel": jnp.float32(RNG.standard_normal((6, 4)))}}
GRADS = [
    {"layer": {"kernel": jnp.float32(RNG.standard_normal((6, 4)))}}
    for _ in range(len(RATES))
]
DECAY = 0.3


def paths(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


def trained(optimizer):
    """START after an update with each of GRADS, each at its rate."""
    params, state = START, optimizer.init(START)
    update = jax.jit(optax.with_extra_args_support(optimizer).update)
    for rate, grads in zip(RATES, GRADS, strict=True):
        updates, state = update(grads, state, params, lr=rate)
        params = optax.apply_updates(params, updates)
    return np.asarray(params["layer"]["kernel"])


def first_updates(optimizer, grads):
    return jax.jit(lambda grads: optimizer.update(grads, optimizer.init(grads))[0])(grads)


def rate(count):
    return RATES[count]


def coupled(optimizer):
    return optax.chain(optax.add_decayed_weights(DECAY), optimizer)


def decoupled(*steps):
    decay = optax.add_decayed_weights(DECAY)
    return optax.chain(*steps, decay, optax.scale_by_learning_rate(rate))


@pytest.mark.parametrize(
    ("name", "options", "reference"),
    [
        ("sgd", {}, coupled(optax.sgd(rate, 0.9, nesterov=True))),
        ("sgd", {"nesterov": False, "momentum": 0.5}, coupled(optax.sgd(rate, 0.5))),
        ("sgd", {"momentum": 0.0}, coupled(optax.sgd(rate))),
        ("sgd", {"decoupled": True}, decoupled(optax.trace(0.9, nesterov=True))),
        ("adam", {}, coupled(optax.adam(rate))),
        ("adamw", {}, optax.adamw(rate, weight_decay=DECAY)),
        (
            "adamw",
            {"b1": 0.5, "b2": 0.9, "eps": 0.1},
            optax.adamw(rate, 0.5, 0.9, 0.1, weight_decay=DECAY),
        ),
        ("nadamw", {}, optax.nadamw(rate, weight_decay=DECAY)),
        ("lamb", {}, optax.lamb(rate, weight_decay=DECAY)),
        ("lamb", {"adapt_on": "head"}, optax.adamw(rate, eps=1e-6, weight_decay=DECAY)),
        ("lion", {"b1": 0.95}, optax.lion(rate, b1=0.95, weight_decay=DECAY)),
        ("rmsprop", {}, coupled(optax.rmsprop(rate, decay=0.99, eps_in_sqrt=False))),
        (
            "rmsprop",
            {"momentum": 0.9, "decoupled": True},
            decoupled(
                optax.scale_by_rms(0.99, eps_in_sqrt=False, eps=1e-8), optax.trace(0.9)
            ),
        ),
        (
            "rmsprop",
            {"tensorflow": True, "momentum": 0.9, "eps": 1e-3},
            coupled(optax.rmsprop(rate, 0.99, 1e-3, initial_scale=1.0, momentum=0.9)),
        ),
        ("muon", {}, optax.contrib.muon(rate, weight_decay=DECAY, consistent_rms=0.2)),
        (
            "muon",
            {"rms": 0.0, "momentum": 0.6, "iterations": 3, "nesterov": False},
            optax.contrib.muon(
                rate, ns_steps=3, beta=0.6, nesterov=False, weight_decay=DECAY
            ),
        ),
    ],
)
def test_an_optimizer_is_optaxs_with_its_decay_where_its_paper_puts_it(
    name, options, reference
):
    made = OPTIMIZERS[name](decay_weights(DECAY, decay_scales("", {})), **options)
    expected = trained(reference)
    assert np.abs(expected - START["layer"]["kernel"]).max() > 0.05
    got = trained(optax.chain(made, at_rate()))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_adafactors_mean_square_is_factored_and_forgets_by_the_step():
    rows = columns = trace = 0.0
    expected = np.asarray(START["layer"]["kernel"], np.float64)
    for t, (lr, grads) in enumerate(zip(RATES, GRADS, strict=True), start=1):
        grad, b2 = np.asarray(grads["layer"]["kernel"], np.float64), min(1 - t**-0.8, 0.3)
        rows = b2 * rows + (1 - b2) * (grad**2).mean(1, keepdims=True)
        columns = b2 * columns + (1 - b2) * (grad**2).mean(0, keepdims=True)
        trace = 0.9 * trace + 0.1 * grad / np.sqrt(rows * columns / rows.mean())
        expected = expected - float(lr) * (trace + DECAY * expected)
    decay = decay_weights(DECAY, decay_scales("", {}))
    made = OPTIMIZERS["adafactor"](decay, b2_cap=0.3, min_dim=4)
    got = trained(optax.chain(made, at_rate()))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_tensorflows_momentum_waits_where_the_rate_is_0():
    optimizer = OPTIMIZERS["rmsprop"](optax.identity(), momentum=0.5, tensorflow=True)
    optimizer = optax.chain(optimizer, at_rate())
    one = {"w": jnp.ones(3)}
    state, moved = optimizer.init(one), []
    for lr in [0.0, 1.0, 0.0, 1.0]:
        updates, state = optimizer.update(one, state, one, lr=jnp.float32(lr))
        moved.append(float(updates["w"][0]))
    np.testing.assert_allclose(moved, [0, -1, 0, -1.25], rtol=1e-6)


def test_muons_step_of_a_convolution_is_that_of_its_matrix_and_nearly_orthogonal():
    grad = RNG.standard_normal((3, 3, 2, 16)).astype(np.float32)
    optimizer = OPTIMIZERS["muon"](optax.identity(), rms=0.0)
    whole, matrix = (
        np.asarray(first_updates(optimizer, {"conv1": {"kernel": each}})["conv1"]["kernel"])
        for each in (grad, grad.reshape(-1, 16))
    )
    np.testing.assert_allclose(whole.reshape(matrix.shape), matrix, rtol=1e-4)
    singular = np.linalg.svd(matrix, compute_uv=False)
    assert (singular > 0.6).all()
    assert (singular < 1.3).all()


def test_muon_leaves_the_head_vectors_and_what_is_named_to_adam():
    params = {
        "head": {"kernel": jnp.ones((4, 3))},
        "patch": {"kernel": jnp.ones((2, 2, 3, 4)), "bias": jnp.ones(4)},
        "position": jnp.ones((1, 5, 4)),
        "block1": {"kernel": jnp.ones((4, 4))},
    }
    grads = jax.tree.map(
        lambda p: jnp.asarray(RNG.standard_normal(p.shape), jnp.float32), params
    )

    def step(**options):
        optimizer = OPTIMIZERS["muon"](optax.identity(), iterations=1, **options)
        updates = first_updates(optimizer, grads)
        # Adam's first step is the sign of the gradient.
        return {
            path_name(p) for p, u in paths(updates) if np.allclose(np.abs(u), 1, atol=1e-4)
        }

    vectors = {"patch/bias", "position"}
    assert step() == vectors | {"head/kernel"}
    assert step(adam_on="^(head|patch)/") == vectors | {"head/kernel", "patch/kernel"}
    assert step(adam_on="") == vectors


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_what_the_pattern_names_decays_and_the_rest_stays_bit_for_bit(name):
    ones = {"kernel": jnp.full((2, 2), 0.1), "bias": jnp.full(2, 0.1)}
    params = {"head": ones, "dense": ones, "norm1": {"scale": jnp.full(2, 0.1)}}
    decay = decay_weights(0.5, decay_scales("kernel$", {}))
    optimizer = OPTIMIZERS[name](decay)
    zeros = jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(optimizer.update)
    updates, _ = update(zeros, optimizer.init(params), params)
    for path, change in paths(updates):
        if path_name(path).endswith("kernel"):
            assert (np.asarray(change) < 0).all()
        else:
            assert not np.asarray(change).any()


def test_decay_has_its_pattern_and_the_factor_of_each_pattern_that_fits():
    params = {"head": {"kernel": 0, "bias": 0}, "conv": {"kernel": 0}, "norm": 0}
    scales = decay_scales("kernel$|bias", {"^head/": 0.5, "bias$": 0.25, "norm": 9.0})
    assert scales(params) == {
        "head": {"kernel": 0.5, "bias": 0.125},
        "conv": {"kernel": 1.0},
        "norm": 0.0,
    }


def test_decay_is_added_and_a_scale_of_0_leaves_even_what_is_not_finite():
    params = {"a": jnp.float32([2.0, -4.0]), "b": jnp.float32([jnp.inf, 1.0])}
    updates = {"a": jnp.float32([1.0, 1.0]), "b": jnp.float32([1.0, -0.0])}
    decay = decay_weights(0.5, decay_scales("a", {"a": 0.1}))
    got, _ = decay.update(updates, decay.init(params), params)
    np.testing.assert_allclose(got["a"], [1.1, 0.8], rtol=1e-6)
    assert got["b"] is updates["b"]


def clipped(grads, params=None, **options):
    optimizer = clip(optax.identity(), **options)
    params = params or grads
    return optimizer.update(grads, optimizer.init(params), params)[0]


@pytest.mark.parametrize(
    ("options", "grads", "expected"),
    [
        ({"norm": 1.0}, [-3.0, 4.0], [-0.6, 0.8]),
        ({"norm": 1.0}, [-0.3, 0.4], [-0.3, 0.4]),
        ({"value": 4.0}, [30.0, -3.0], [4.0, -3.0]),
        ({"value": 4.0, "norm": 1.0}, [30.0, -4.0], [0.5**0.5, -(0.5**0.5)]),
    ],
)
def test_values_are_clipped_before_the_norm_over_all_parameters(options, grads, expected):
    got = clipped({"a": jnp.float32(grads[0]), "b": jnp.float32(grads[1])}, **options)
    np.testing.assert_allclose([got["a"], got["b"]], expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 3, 2, 5), (4, 5), (1, 5), (1, 1, 1, 5), (2, 7, 5)])
def test_adaptive_clipping_is_by_the_norms_of_what_makes_one_output(shape):
    weights = RNG.standard_normal(shape).astype(np.float32)
    grads = RNG.standard_normal(shape).astype(np.float32) * np.float32([1, 0.01, 2, 0, 3])
    weights[..., 4] = 0.0
    got = clipped({"k": jnp.asarray(grads)}, {"k": jnp.asarray(weights)}, adaptive=0.1)
    for unit in range(5):
        grad, weight = grads[..., unit], weights[..., unit]
        most = 0.1 * max(np.linalg.norm(weight), 1e-3)
        expected = grad * min(1.0, most / max(np.linalg.norm(grad), 1e-6))
        np.testing.assert_allclose(got["k"][..., unit], expected, rtol=1e-5)


def test_adaptive_clipping_takes_a_vector_as_one_and_leaves_out_the_head():
    params = {"conv1": {"bias": jnp.float32([3.0, 4.0])}, "gain": jnp.float32(2.0)}
    params["head"] = {"bias": jnp.float32([3.0, 4.0])}
    grads = jax.tree.map(lambda p: jnp.full_like(p, 100.0), params)
    got = clipped(grads, params, adaptive=0.01)
    np.testing.assert_allclose(got["conv1"]["bias"], [0.05 * 0.5**0.5] * 2, rtol=1e-6)
    np.testing.assert_allclose(got["gain"], 0.02, rtol=1e-6)
    assert got["head"]["bias"].tolist() == [100.0, 100.0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_are_arrays_and_survive_masks_jit_and_donation(name):
    params = {
        "conv1": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.zeros(4)},
        "head": {"kernel": jnp.ones((4, 3))},
    }
    decay = decay_weights(0.1, decay_scales("kernel$", {}))
    chain = clip(OPTIMIZERS[name](decay), norm=1.0)
    frozen = {"conv1": {"kernel": False, "bias": True}, "head": {"kernel": True}}
    optimizer = optax.chain(optax.masked(chain, frozen), at_rate())
    state = jax.jit(optimizer.init)(params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} <= {"float32", "int32"}
    largest = max([leaf.size for leaf in jax.tree.leaves(state)], default=0)
    assert largest <= 32  # Nothing for what is masked.
    step = jax.jit(optimizer.update, donate_argnums=1)
    for _ in range(2):
        updates, state = step(params, state, params, lr=jnp.float32(0.1))
    assert jax.eval_shape(lambda: state) == jax.eval_shape(optimizer.init, params)
    assert all(u.dtype == jnp.float32 for u in jax.tree.leaves(updates))
