"""Lookahead by hand, and schedule-free learning by its paper and against optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcls.learning.optimizers import OPTIMIZERS, decay_scales, decay_weights
from jaxcls.learning.wrappers import WRAPPERS, averaged
from tests.stepping import at_rate

RNG = np.random.default_rng(0)
START = RNG.standard_normal(5)
GRADS = RNG.standard_normal((12, 5))


# What each wrapper needs for params without convolutions.
OPTIONS = {"lookahead": {}, "schedule_free": {}}


def plain(decay=0.0, **options):
    decayed = decay_weights(decay, decay_scales("", {}))
    return optax.chain(OPTIMIZERS["sgd"](decayed, momentum=0.0, **options), at_rate())


def as_params(array):
    return {"w": jnp.asarray(array, jnp.float32)}


def trained(optimizer, rates, grads=GRADS):
    """The params and the optimizer's state after each of `rates`."""
    params = as_params(START)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, grads, lr, share):
        updates, state = optimizer.update(grads, state, params, lr=lr, share=share)
        # As the train step applies them: no update at all leaves every bit.
        params = jax.tree.map(lambda p, u: jnp.where(u == 0, p, p + u), params, updates)
        return params, state

    found = []
    for i, (rate, grad) in enumerate(zip(rates, grads, strict=True), start=1):
        share = jnp.float32(i / len(rates))
        params, state = step(params, state, as_params(grad), jnp.float32(rate), share)
        found.append((params, state))
    return found


def slow_and_fast(rates, every, keep, final):
    """Lookahead by hand: the params after each update; keep(share) of slow weights."""
    fast = slow = START
    found = []
    for i, (rate, grad) in enumerate(zip(rates, GRADS, strict=True), start=1):
        fast = fast - rate * grad
        if i % every == 0:
            d = keep(i / len(rates))
            slow = d * slow + (1 - d) * fast
            fast = slow
        if final and i == len(rates):
            fast = slow
        found.append(fast)
    return found


@pytest.mark.parametrize(
    ("options", "every", "keep", "final"),
    [
        ({}, 5, lambda share: 0.5, True),
        ({"every": 4, "rate": 0.8, "final": False}, 4, lambda share: 0.2, False),
        ({"every": 3, "rate": 1.0}, 3, lambda share: 0.0, True),
        ({"rate": 0.25, "power": 3.0}, 5, lambda share: 0.75 * share**3, True),
    ],
)
def test_lookahead_is_slow_and_fast_weights_by_hand(options, every, keep, final):
    rates = np.linspace(0.3, 0.1, 12)
    got = trained(WRAPPERS["lookahead"](plain(), **options), rates)
    expected = slow_and_fast(rates, every, keep, final)
    for (params, _), by_hand in zip(got, expected, strict=True):
        np.testing.assert_allclose(params["w"], by_hand, rtol=1e-6, atol=1e-6)


def test_after_a_sync_params_and_slow_weights_are_the_same_bits():
    steps = trained(WRAPPERS["lookahead"](plain(), every=4), [0.1] * 12)
    for params, state in steps[3::4]:
        np.testing.assert_array_equal(params["w"], state.slow["w"])
    for params, state in steps[:3]:
        assert (params["w"] != state.slow["w"]).all()


def test_what_never_moves_stays_bit_for_bit_in_an_averaging_wrapper():
    for name in ("lookahead", "schedule_free"):
        zeros = np.zeros((20, 5))
        for params, _ in trained(WRAPPERS[name](plain()), [0.1] * 20, zeros):
            np.testing.assert_array_equal(params["w"], np.float32(START))


RISING = [0.0, 0.1, 0.2, 0.3, *[0.4] * 8]


@pytest.mark.parametrize("rates", [[0.3] * 12, RISING, RISING[::-1]])
@pytest.mark.parametrize(("b1", "power"), [(0.9, 2.0), (0.5, 1.0)])
def test_schedule_free_is_optaxs(rates, b1, power):
    ours = trained(WRAPPERS["schedule_free"](plain(0.1), b1, power), rates)
    # Its own count of steps begins at 1.
    table = jnp.float32([0.0, *rates])
    theirs = optax.contrib.schedule_free(
        plain(0.1), lambda count: table[count], b1, weight_lr_power=power
    )
    close = {"rtol": 1e-5, "atol": 3e-6}
    for (params, state), (expected, other) in zip(
        ours, trained(theirs, rates), strict=True
    ):
        np.testing.assert_allclose(params["w"], expected["w"], **close)
        np.testing.assert_allclose(state.z["w"], other.z["w"], **close)
        x = optax.contrib.schedule_free_eval_params(other, expected)
        np.testing.assert_allclose(averaged(state, params)["w"], x["w"], **close)


def test_the_average_is_found_inside_chains_and_masks_and_what_is_masked_stays():
    wrapped = WRAPPERS["schedule_free"](plain())
    mask = {"frozen": {"kernel": False}, "head": {"kernel": True, "bias": False}}
    optimizer = optax.chain(optax.clip(1.0), optax.masked(wrapped, mask))
    params = {
        "frozen": {"kernel": jnp.ones(3)},
        "head": {"kernel": jnp.ones(2), "bias": jnp.ones(1)},
    }
    state = jax.jit(optimizer.init)(params)
    grads = jax.tree.map(lambda p: 0.5 * p, params)
    now, update = params, jax.jit(optimizer.update)
    for _ in range(2):
        updates, state = update(grads, state, now, lr=jnp.float32(1.0))
        now = jax.tree.map(lambda p, u, m: p + u if m else p, now, updates, mask)
    got = jax.jit(averaged)(state, now)
    assert averaged(WRAPPERS["lookahead"](plain()).init(params), params) is None
    # z: 1, 0.5, 0, of which x is the mean of the last two.
    np.testing.assert_allclose(got["head"]["kernel"], [0.25, 0.25], rtol=1e-6)
    assert got["frozen"]["kernel"].tolist() == [1, 1, 1]
    assert got["head"]["bias"].tolist() == [1]


@pytest.mark.parametrize("name", WRAPPERS)
def test_states_are_arrays_of_their_own_that_survive_jit_and_donation(name):
    optimizer = WRAPPERS[name](plain(), **OPTIONS[name])
    params = as_params(START)
    state = optimizer.init(params)

    def step(params, state, lr, share):
        updates, state = optimizer.update(params, state, params, lr=lr, share=share)
        return jax.tree.map(jnp.add, params, updates), state

    # One buffer twice would be refused here.
    step = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(2):
        params, state = step(params, state, jnp.float32(0.1), jnp.float32(0.5))
    assert jax.eval_shape(lambda: state) == jax.eval_shape(optimizer.init, params)


@pytest.mark.parametrize("name", WRAPPERS)
def test_every_argument_of_the_update_is_passed_down(name):
    seen = {}

    def update(updates, state, params=None, **extra):
        seen.update(extra)
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    optimizer, params = WRAPPERS[name](spy, **OPTIONS[name]), as_params(START)
    one = jnp.float32(1.0)
    optimizer.update(params, optimizer.init(params), params, lr=one, step=3, share=one)
    assert seen == {"lr": one, "step": 3, "share": one}
