"""Convolutions on CPU against those of lax."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcls.models.convolution import convolve, on_cpu, plain

RNG = np.random.default_rng(0)
# (images, kernel, strides, padding, groups) that are rewritten on CPU.
REWRITTEN = {
    "1x1": ((2, 5, 4, 6), (1, 1, 6, 3), (1, 1), ((0, 0), (0, 0)), 1),
    "1x1 by 2": ((2, 5, 4, 6), (1, 1, 6, 3), (2, 2), "SAME", 1),
    "patches": ((2, 6, 4, 3), (3, 2, 3, 5), (3, 2), "VALID", 1),
    "by channel": ((2, 6, 5, 4), (3, 3, 1, 4), (1, 1), ((1, 1), (1, 1)), 4),
    "by channel, uneven": ((2, 7, 6, 4), (5, 2, 1, 4), (2, 3), ((2, 1), (0, 1)), 4),
    "by channel, wide pads": ((2, 4, 4, 4), (2, 2, 1, 4), (1, 1), ((3, 2), (2, 3)), 4),
    "by channel, same": ((2, 7, 6, 4), (3, 3, 1, 4), (2, 2), "SAME", 4),
}
PLAIN = {
    "3x3": ((2, 5, 4, 6), (3, 3, 6, 3), (1, 1), ((1, 1), (1, 1)), 1),
    "1x1, padded": ((2, 5, 4, 6), (1, 1, 6, 3), (1, 1), ((1, 1), (1, 1)), 1),
    "1x1 in groups": ((2, 5, 4, 6), (1, 1, 2, 3), (1, 1), ((0, 0), (0, 0)), 3),
    "patches that leave a rest": ((2, 7, 4, 3), (3, 2, 3, 5), (3, 2), "VALID", 1),
    "patches that overlap": ((2, 6, 4, 3), (3, 2, 3, 5), (2, 2), "VALID", 1),
    "two filters a channel": ((2, 6, 5, 4), (3, 3, 1, 8), (1, 1), ((1, 1), (1, 1)), 4),
}
CASES = REWRITTEN | PLAIN
NHWC = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def made(case):
    """(images, kernel, their convolution of ours, that of lax)."""
    images, kernel, strides, padding, groups = CASES[case]
    arrays = (RNG.standard_normal(shape).astype(np.float32) for shape in (images, kernel))
    options = {"feature_group_count": groups, **NHWC}

    def of_both(convolution):
        return lambda *both: convolution(*both, strides, padding, **options)

    return *arrays, of_both(convolve), of_both(lax.conv_general_dilated)


@pytest.mark.parametrize("case", CASES)
def test_it_is_laxs_and_its_gradients_are_those(case):
    images, kernel, *both = made(case)
    weights = RNG.standard_normal(both[1](images, kernel).shape).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def all_of(convolution):
        out, gradients = jax.vjp(convolution, images, kernel)
        return out, gradients(weights)

    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, *map(all_of, both))


def is_convolution(traced, platform):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return "stablehlo.convolution" in text


@pytest.mark.parametrize("case", CASES)
def test_on_cpu_what_is_slow_there_is_no_convolution_and_elsewhere_all_is(case):
    images, kernel, ours, _ = made(case)
    assert (on_cpu(*CASES[case]) is not None) == (case in REWRITTEN)
    traced = jax.jit(ours).trace(images, kernel)
    found = [is_convolution(traced, platform) for platform in ("cpu", "tpu", "cuda")]
    assert found == [case in PLAIN, True, True]


def test_within_plain_all_is_a_convolution_on_cpu_too():
    images, kernel, ours, _ = made("patches")
    with plain():
        assert is_convolution(jax.jit(ours).trace(images, kernel), "cpu")
    again = jax.jit(lambda *both: ours(*both)).trace(images, kernel)
    assert not is_convolution(again, "cpu")


@pytest.mark.parametrize("dilation", [{"kernel_dilation": 2}, {"input_dilation": 2}])
@pytest.mark.parametrize("groups", [1, 4])
def test_what_is_dilated_is_a_convolution_as_flax_has_it(dilation, groups):
    layer = {"feature_group_count": groups, "padding": 0, **dilation}
    size = (3, 3) if groups > 1 else (1, 1)
    images = RNG.standard_normal((1, 7, 7, 4)).astype(np.float32)
    theirs = nn.Conv(4, size, **layer)
    variables = theirs.init(jax.random.key(0), images)
    ours = nn.Conv(4, size, **layer, conv_general_dilated=convolve)
    found, expected = (each.apply(variables, images) for each in (ours, theirs))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("case", ["1x1 by 2", "patches", "by channel"])
def test_gradients_in_bfloat16_are_those_of_float32_and_in_bfloat16(case):
    images, kernel, ours, _ = made(case)
    narrow = [jnp.bfloat16(x) for x in (images, kernel)]
    gradient = jax.grad(
        lambda *both: (ours(*both).astype(jnp.float32) ** 2).sum(), argnums=(0, 1)
    )
    expected = gradient(*map(jnp.float32, narrow))
    for found, wide in zip(gradient(*narrow), expected, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(found), wide, atol=0.02 * np.abs(wide).max())


@pytest.mark.slow
def test_a_sum_of_many_in_bfloat16_is_rounded_once():
    images = RNG.uniform(1, 2, (1, 9, 9, 2)).astype(np.float32)
    kernel = RNG.uniform(1, 2, (7, 7, 1, 2)).astype(np.float32)
    layer = nn.Conv(
        2, (7, 7), feature_group_count=2, use_bias=False, padding="VALID",
        dtype=jnp.bfloat16, conv_general_dilated=convolve,
    )  # fmt: skip
    narrow = [np.float32(jnp.bfloat16(x)) for x in (images, kernel)]
    found = layer.apply({"params": {"kernel": kernel}}, images)
    assert found.dtype == jnp.bfloat16
    options = {"feature_group_count": 2, **NHWC}
    expected = lax.conv_general_dilated(*narrow, (1, 1), "VALID", **options)
    np.testing.assert_allclose(np.float32(found), expected, rtol=2**-8)
