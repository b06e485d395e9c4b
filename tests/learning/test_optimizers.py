"""Optimizers against their papers' formulas in NumPy; clipping and decay by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcls.config import calls
from jaxcls.errors import InputError
from jaxcls.learning.clipping import clip
from jaxcls.learning.optimizers import OPTIMIZERS, decay_scales, decay_weights, path_name
from tests.stepping import at_rate

RATES = [0.1, 0.1, 0.05, 0.02, 0.3]
RNG = np.random.default_rng(0)
START = RNG.standard_normal((6, 4))
GRADS = RNG.standard_normal((len(RATES), 6, 4))
EVERYTHING = decay_scales("", {})


def paths(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


def trained(name, decay, grads=GRADS, **options):
    """START after an update with each of `grads`, each at its rate."""
    decayed = decay_weights(decay, EVERYTHING)
    optimizer = optax.chain(OPTIMIZERS[name](decayed, **options), at_rate())
    params = {"layer": {"kernel": jnp.asarray(START, jnp.float32)}}
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, grads, lr):
        updates, state = optimizer.update(grads, state, params, lr=lr)
        return jax.tree.map(jnp.add, params, updates), state

    for rate, grad in zip(RATES, grads, strict=True):
        grads_now = {"layer": {"kernel": jnp.asarray(grad, jnp.float32)}}
        params, state = step(params, state, grads_now, jnp.float32(rate))
    return params["layer"]["kernel"]


def each():
    return enumerate(zip(RATES, GRADS, strict=True), start=1)


def first_updates(optimizer, grads):
    return jax.jit(lambda grads: optimizer.update(grads, optimizer.init(grads))[0])(grads)


def sgd(decay, momentum=0.9, nesterov=True, decoupled=False):
    w, trace = START, 0.0
    for _, (rate, grad) in each():
        grad = grad if decoupled else grad + decay * w
        trace = momentum * trace + grad
        step = grad + momentum * trace if nesterov else trace
        w = w - rate * (step + decay * w if decoupled else step)
    return w


def adam(decay, decoupled, b1=0.9, b2=0.999, eps=1e-8, nesterov=False):
    w, m, v = START, 0.0, 0.0
    for t, (rate, grad) in each():
        grad = grad if decoupled else grad + decay * w
        m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
        mean = m / (1 - b1**t)
        if nesterov:
            mean = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * grad / (1 - b1**t)
        step = mean / (np.sqrt(v / (1 - b2**t)) + eps)
        w = w - rate * (step + decay * w if decoupled else step)
    return w


def lamb(decay, adapted, b1=0.9, b2=0.999, eps=1e-6):
    w, m, v = START, 0.0, 0.0
    for t, (rate, grad) in each():
        m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
        step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * w
        ratio = np.linalg.norm(w) / np.linalg.norm(step) if adapted else 1.0
        w = w - rate * ratio * step
    return w


def lion(decay, b1=0.9, b2=0.99):
    w, m = START, 0.0
    for _, (rate, grad) in each():
        w = w - rate * (np.sign(b1 * m + (1 - b1) * grad) + decay * w)
        m = b2 * m + (1 - b2) * grad
    return w


def rmsprop(decay, alpha=0.99, eps=1e-8, momentum=0.0, centered=False, tensorflow=False):
    w, mean, trace = START, 0.0, 0.0
    square = 1.0 if tensorflow else 0.0
    for _, (rate, grad) in each():
        grad = grad + decay * w
        mean = alpha * mean + (1 - alpha) * grad
        square = alpha * square + (1 - alpha) * grad**2
        variance = square - mean**2 if centered else square
        if tensorflow:
            trace = momentum * trace + rate * grad / np.sqrt(variance + eps)
            w = w - trace
        else:
            trace = momentum * trace + grad / (np.sqrt(variance) + eps)
            w = w - rate * trace
    return w


def adafactor(decay, momentum=0.9, b2_cap=0.999, factored=True, first_paper=False):
    w, rows, columns, square, trace = START, 0.0, 0.0, 0.0, 0.0
    for t, (rate, grad) in each():
        b2 = min(1 - t**-0.8, b2_cap)
        rows = b2 * rows + (1 - b2) * (grad**2).mean(1, keepdims=True)
        columns = b2 * columns + (1 - b2) * (grad**2).mean(0, keepdims=True)
        square = b2 * square + (1 - b2) * grad**2
        step = grad / np.sqrt(rows * columns / rows.mean() if factored else square)
        if first_paper:
            step = step / max(1.0, np.sqrt((step**2).mean()))
            step = step * max(np.sqrt((w**2).mean()), 1e-3)
        trace = momentum * trace + (1 - momentum) * step
        w = w - rate * (trace + decay * w)
    return w


def muon(decay, momentum=0.95, nesterov=True, iterations=5, rms=0.2):
    w, m = START, 0.0
    for t, (rate, grad) in each():
        m = momentum * m + (1 - momentum) * grad
        x = m
        if nesterov:
            fresh = (1 - momentum) * grad / (1 - momentum**t)
            x = momentum * m / (1 - momentum ** (t + 1)) + fresh
        x = x / np.linalg.norm(x)
        for _ in range(iterations):
            inner = x.T @ x
            x = 3.4445 * x + x @ (-4.7750 * inner + 2.0315 * inner @ inner)
        scale = rms * 6**0.5 if rms else 1.0
        w = w - rate * (scale * x + decay * w)
    return w


@pytest.mark.parametrize(
    ("name", "options", "reference", "given"),
    [
        ("sgd", {}, sgd, {}),
        ("sgd", {"nesterov": False, "momentum": 0.5}, sgd, {}),
        ("sgd", {"momentum": 0.0}, sgd, {}),
        ("sgd", {"decoupled": True}, sgd, {}),
        ("adam", {}, adam, {"decoupled": False}),
        ("adamw", {}, adam, {"decoupled": True}),
        ("adamw", {"b1": 0.5, "b2": 0.9, "eps": 0.1}, adam, {"decoupled": True}),
        ("adamw", {"b1": 0.0}, adam, {"decoupled": True}),
        ("nadamw", {}, adam, {"decoupled": True, "nesterov": True}),
        ("lamb", {}, lamb, {"adapted": True}),
        ("lamb", {"adapt_on": "head"}, lamb, {"adapted": False}),
        ("lamb", {"adapt_on": "", "eps": 0.1}, lamb, {"adapted": True, "eps": 0.1}),
        ("lion", {"b1": 0.95, "b2": 0.98}, lion, {}),
        ("rmsprop", {}, rmsprop, {}),
        ("rmsprop", {"alpha": 0.9, "momentum": 0.9, "eps": 0.1}, rmsprop, {}),
        ("rmsprop", {"centered": True, "momentum": 0.5}, rmsprop, {}),
        ("rmsprop", {"tensorflow": True, "momentum": 0.9, "eps": 1e-3}, rmsprop, {}),
        ("rmsprop", {"tensorflow": True, "centered": True}, rmsprop, {}),
        ("adafactor", {}, adafactor, {"factored": False}),
        ("adafactor", {"min_dim": 4}, adafactor, {}),
        ("adafactor", {"b2_cap": 0.3, "momentum": 0.0, "min_dim": 4}, adafactor, {}),
        (
            "adafactor",
            {"clip_rms": 1.0, "relative": True, "momentum": 0.0, "b2_cap": 1.0},
            adafactor,
            {"first_paper": True, "factored": False},
        ),
        ("muon", {}, muon, {}),
        ("muon", {"rms": 0.0, "momentum": 0.6, "iterations": 3}, muon, {}),
        ("muon", {"nesterov": False}, muon, {}),
    ],
)
def test_an_optimizer_is_its_papers_formula(name, options, reference, given):
    decay = 0.3
    got = trained(name, decay, **options)
    known = reference.__code__.co_varnames[: reference.__code__.co_argcount]
    shared = {key: value for key, value in options.items() if key in known}
    expected = reference(decay, **{**shared, **given})
    assert np.abs(expected - START).max() > 0.05
    # 1 - 0.999 ** t, of which Adam and its kind take the root, is good to 1e-5 in float32.
    atol = 1e-5 if reference in (adam, lamb) else 2e-6
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=atol)


def test_a_decoupled_rmsprop_decays_beside_its_step():
    plain = trained("rmsprop", 0.0, grads=0 * GRADS, decoupled=True)
    np.testing.assert_allclose(plain, START, rtol=1e-6)
    got = trained("rmsprop", 0.3, grads=0 * GRADS, decoupled=True)
    factor = np.prod([1 - rate * 0.3 for rate in RATES])
    np.testing.assert_allclose(got, START * factor, rtol=1e-6)


def test_centered_rmsprop_survives_a_gradient_that_never_changes():
    optimizer = OPTIMIZERS["rmsprop"](optax.identity(), centered=True)
    grads = {"w": jnp.float32([0.3, 0.7, 1e-3, 0.123])}
    compiled, state = jax.jit(optimizer.update), optimizer.init(grads)
    for _ in range(1500):
        updates, state = compiled(grads, state)
    assert np.isfinite(updates["w"]).all()


def test_tensorflows_momentum_waits_where_the_rate_is_0():
    optimizer = OPTIMIZERS["rmsprop"](optax.identity(), momentum=0.5, tensorflow=True)
    optimizer = optax.chain(optimizer, at_rate())
    one = {"w": jnp.ones(3)}
    state = optimizer.init(one)
    moved = []
    for lr in [0.0, 1.0, 0.0, 1.0]:
        updates, state = optimizer.update(one, state, one, lr=jnp.float32(lr))
        moved.append(float(updates["w"][0]))
    np.testing.assert_allclose(moved, [0, -1, 0, -1.25], rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 3, 2, 16), (1, 1, 40, 8)])
def test_muons_step_of_a_convolution_is_that_of_its_matrix_and_nearly_orthogonal(shape):
    grad = RNG.standard_normal(shape).astype(np.float32)
    matrix = grad.reshape(-1, shape[-1])
    steps = []
    for each_grad in (grad, matrix):
        grads = {"conv1": {"kernel": jnp.asarray(each_grad)}}
        optimizer = OPTIMIZERS["muon"](optax.identity(), rms=0.0)
        updates = first_updates(optimizer, grads)
        steps.append(np.asarray(updates["conv1"]["kernel"]))
    assert steps[0].shape == shape
    np.testing.assert_allclose(steps[0].reshape(matrix.shape), steps[1], rtol=1e-6)
    singular = np.linalg.svd(steps[1], compute_uv=False)
    scale = max(1.0, matrix.shape[1] / matrix.shape[0]) ** 0.5
    assert (singular / scale > 0.6).all()
    assert (singular / scale < 1.3).all()
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    assert -np.vdot(left @ right, steps[1]) / np.linalg.norm(steps[1]) > 0.9 * (
        min(matrix.shape) ** 0.5
    )


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


def test_the_norm_that_is_clipped_is_over_all_parameters():
    for size, expected in ((1.0, [-0.6, 0.8]), (0.1, [-0.3, 0.4])):
        grads = {"a": jnp.float32([-3.0 * size]), "b": jnp.float32([4.0 * size])}
        got = clipped(grads, norm=1.0)
        np.testing.assert_allclose([got["a"][0], got["b"][0]], expected, rtol=1e-6)


def test_each_value_is_clipped_before_the_norm():
    got = clipped({"a": jnp.float32([30.0, 4.0, 3.0, -0.0])}, value=4.0)
    assert got["a"].tolist() == [4.0, 4.0, 3.0, 0.0]
    got = clipped({"a": jnp.float32([30.0, -4.0])}, value=4.0, norm=1.0)
    np.testing.assert_allclose(got["a"], [0.5**0.5, -(0.5**0.5)], rtol=1e-6)


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
    got = clipped(grads, params, adaptive=0.01, adaptive_skip="")
    np.testing.assert_allclose(got["head"]["bias"], [0.05 * 0.5**0.5] * 2, rtol=1e-6)


def test_a_clip_of_0_changes_nothing():
    optimizer = OPTIMIZERS["sgd"](optax.identity())
    assert clip(optimizer) is optimizer


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
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} <= {"float32", "int32"}
    like = jax.eval_shape(optimizer.init, params)
    assert jax.tree.structure(like) == jax.tree.structure(state)
    largest = max([leaf.size for leaf in jax.tree.leaves(state)], default=0)
    assert largest <= 32  # Nothing for what is masked.
    step = jax.jit(optimizer.update, donate_argnums=1)
    for _ in range(2):
        updates, state = step(params, state, params, lr=jnp.float32(0.1))
    assert jax.tree.structure(like) == jax.tree.structure(state)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), like, state)
    assert all(jax.tree.leaves(same))
    assert all(u.dtype == jnp.float32 for u in jax.tree.leaves(updates))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sgd(momentum=1.0)", "momentum=1.0 must be at least 0 and below 1, such as 0.9"),
        ("adamw(b2=-0.1)", "b2=-0.1 must be at least 0 and below 1"),
        ("adam(eps=0.0)", "eps=0.0 must be above 0"),
        ("lion(b1=2.0)", "b1=2.0 must be"),
        ("rmsprop(alpha=1.5)", "alpha=1.5 must be"),
        ("adafactor(min_dim=0)", "min_dim=0 must be above 0"),
        ("muon(iterations=0)", "iterations=0 must be above 0"),
        ("muon(rms=-1.0)", "rms=-1.0 must be at least 0, such as 0.2"),
        ("muon(adam_on='(')", "adam_on='(' is not a regular expression"),
        ("lamb(adapt_on='*')", "adapt_on='*' is not a regular expression"),
    ],
)
def test_an_option_that_cannot_be_is_refused_in_one_line(text, problem):
    with pytest.raises(InputError) as error:
        calls.build_one(text, OPTIMIZERS, "optim.name", decay=optax.identity())
    assert problem in str(error.value)
    assert "\n" not in str(error.value)
