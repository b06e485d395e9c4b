"""Optimizers against their papers' formulas in NumPy; schedules at points by hand."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcls.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    clip,
    decay_mask,
    warm_up,
)

RATES = [0.1, 0.1, 0.05, 0.02, 0.3]
RNG = np.random.default_rng(0)
START = RNG.standard_normal(4)
GRADS = RNG.standard_normal((len(RATES), 4))


def everything(params):
    return {"w": True}


def trained(optimizer, grads=GRADS):
    """START after an update with each of `grads`, scaled as the train step scales it."""
    params = {"w": jnp.asarray(START, jnp.float32)}
    state = optimizer.init(params)
    for rate, grad in zip(RATES, grads, strict=True):
        grads_now = {"w": jnp.asarray(grad, jnp.float32)}
        updates, state = optimizer.update(grads_now, state, params)
        params = {"w": params["w"] + rate * updates["w"]}
    return params["w"]


def sgd(decay, momentum=0.9, nesterov=True):
    """torch.optim.SGD."""
    w, trace = START, 0.0
    for rate, grad in zip(RATES, GRADS, strict=True):
        grad = grad + decay * w
        trace = momentum * trace + grad
        w = w - rate * (grad + momentum * trace if nesterov else trace)
    return w


def adam(decay, decoupled, b1=0.9, b2=0.999, eps=1e-8):
    """torch.optim.Adam, or AdamW where the decay is decoupled."""
    w, m, v = START, 0.0, 0.0
    for t, (rate, grad) in enumerate(zip(RATES, GRADS, strict=True), start=1):
        grad = grad if decoupled else grad + decay * w
        m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
        step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        w = w - rate * (step + decay * w if decoupled else step)
    return w


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": False},
        {"momentum": 0.5},
        {"momentum": 0.0},
        {"momentum": 0.0, "nesterov": False},
    ],
)
def test_sgd_is_pytorchs_with_coupled_decay(decay, options):
    got = trained(OPTIMIZERS["sgd"](decay, everything, **options))
    np.testing.assert_allclose(got, sgd(decay, **options), rtol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("options", [{}, {"b1": 0.5, "b2": 0.9, "eps": 0.1}])
@pytest.mark.parametrize(("name", "decoupled"), [("adam", False), ("adamw", True)])
def test_adam_couples_its_decay_and_adamw_does_not(name, decoupled, decay, options):
    got = trained(OPTIMIZERS[name](decay, everything, **options))
    np.testing.assert_allclose(got, adam(decay, decoupled, **options), rtol=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_what_the_pattern_names_decays(name):
    ones = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    params = {"head": ones, "norm1": {"scale": jnp.ones(2)}}
    optimizer = OPTIMIZERS[name](0.5, decay_mask("kernel$"))
    zeros = {"head": {k: jnp.zeros(2) for k in ones}, "norm1": {"scale": jnp.zeros(2)}}
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert (np.asarray(updates["head"]["kernel"]) < 0).all()
    assert not np.asarray(updates["head"]["bias"]).any()
    assert not np.asarray(updates["norm1"]["scale"]).any()


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("kernel$", [True, False, False]),
        ("", [True, True, True]),
        ("^head/", [True, True, False]),
        ("nothing", [False, False, False]),
    ],
)
def test_the_pattern_is_searched_in_the_path(pattern, expected):
    params = {"head": {"kernel": 0, "bias": 0}, "kernel_norm": {"scale": 0}}
    mask = decay_mask(pattern)(params)
    got = [mask["head"]["kernel"], mask["head"]["bias"], mask["kernel_norm"]["scale"]]
    assert got == expected


def test_clip_scales_a_long_gradient_to_the_norm_before_decay_is_added():
    decay = 0.5
    optimizer = clip(OPTIMIZERS["sgd"](decay, everything, momentum=0.0), 2.0)
    params = {"w": jnp.asarray([1.0, 1.0])}
    for grad, clipped in ([3.0, 4.0], [1.2, 1.6]), ([0.3, 0.4], [0.3, 0.4]):
        grads = {"w": jnp.asarray(grad)}
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        np.testing.assert_allclose(updates["w"], -np.add(clipped, decay), rtol=1e-6)


def test_the_norm_that_is_clipped_is_over_all_parameters():
    optimizer = clip(optax.sgd(1.0), 1.0)
    grads = {"a": jnp.asarray([3.0]), "b": jnp.asarray([4.0])}
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.6, -0.8], rtol=1e-6)


def test_a_clip_of_0_changes_nothing():
    optimizer = OPTIMIZERS["sgd"](0.0, everything)
    assert clip(optimizer, 0.0) is optimizer


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("constant", {}, [0.2, 0.2, 0.2, 0.2, 0.2]),
        ("cosine", {}, [0.2, 0.1 * (1 + 0.5**0.5), 0.1, 0.0, 0.0]),
        ("cosine", {"end": 0.1}, [0.2, 0.02 + 0.09 * (1 + 0.5**0.5), 0.11, 0.02, 0.02]),
    ],
)
def test_a_schedule_at_its_start_quarter_middle_end_and_beyond(name, options, expected):
    schedule = SCHEDULES[name](peak=0.2, steps=100, **options)
    got = [schedule(jnp.int32(step)) for step in (0, 25, 50, 100, 150)]
    assert {(x.dtype.name, x.shape) for x in got} == {("float32", ())}
    np.testing.assert_allclose(got, expected, atol=1e-7)


def test_warm_up_rises_from_0_to_the_peak_and_hands_over_to_the_whole_schedule():
    schedule = warm_up(SCHEDULES["cosine"](0.2, 100), 0.2, 10)
    got = [schedule(jnp.int32(step)) for step in (0, 1, 5, 9, 10, 60, 110)]
    np.testing.assert_allclose(got, [0, 0.02, 0.1, 0.18, 0.2, 0.1, 0], atol=1e-7)


def test_warm_up_and_cosine_are_optaxs():
    ours = warm_up(SCHEDULES["cosine"](0.2, 33, end=0.25), 0.2, 7)
    theirs = optax.warmup_cosine_decay_schedule(0.0, 0.2, 7, 40, end_value=0.05)
    steps = jnp.arange(45)
    np.testing.assert_allclose(
        [ours(step) for step in steps], [theirs(step) for step in steps], atol=1e-7
    )


def test_a_warm_up_of_0_is_the_schedule_itself():
    schedule = SCHEDULES["constant"](0.2, 10)
    assert warm_up(schedule, 0.2, 0) is schedule
