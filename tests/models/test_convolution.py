"""Convolutions on CPU against sums over windows, written out in NumPy."""

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
REST = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def by_hand(images, kernel, strides, pads, groups):
    """The sum over each window, in float64."""
    wide = np.pad(np.float64(images), ((0, 0), *pads, (0, 0)))
    h, w, inner, features = kernel.shape
    height = (wide.shape[1] - h) // strides[0] + 1
    width = (wide.shape[2] - w) // strides[1] + 1
    out = np.zeros((images.shape[0], height, width, features))
    for f in range(features):
        first = f // (features // groups) * inner
        for y in range(height):
            for x in range(width):
                top, left = y * strides[0], x * strides[1]
                window = wide[:, top : top + h, left : left + w, first : first + inner]
                out[:, y, x, f] = (window * kernel[..., f]).sum((1, 2, 3))
    return out


def made(case):
    images, kernel, strides, padding, groups = CASES[case]
    arrays = (RNG.standard_normal(shape).astype(np.float32) for shape in (images, kernel))
    pads = padding
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(images[1:3], kernel[:2], strides, padding)
    return *arrays, strides, padding, pads, groups


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_sum_over_each_window_and_its_gradients_are_those(case):
    images, kernel, strides, padding, pads, groups = made(case)

    def ours(images, kernel):
        return convolve(
            images, kernel, strides, padding, feature_group_count=groups, **REST
        )

    expected = by_hand(images, kernel, strides, pads, groups)
    np.testing.assert_allclose(jax.jit(ours)(images, kernel), expected, atol=1e-5)
    # It is linear in either, so a gradient is a sum over what each number alone gives.
    weights = RNG.standard_normal(expected.shape).astype(np.float32)
    grads = jax.jit(jax.grad(lambda *x: (ours(*x) * weights).sum(), argnums=(0, 1)))
    of_images, of_kernel = grads(images, kernel)
    for at in [(0, 0, 0, 0), (1, 3, 2, 2), (1, -1, -1, -1)]:
        one = np.zeros_like(images)
        one[at] = 1
        value = (by_hand(one, kernel, strides, pads, groups) * weights).sum()
        np.testing.assert_allclose(of_images[at], value, atol=1e-5)
    for at in [(0, 0, 0, 0), (-1, -1, -1, -1)]:
        one = np.zeros_like(kernel)
        one[at] = 1
        value = (by_hand(images, one, strides, pads, groups) * weights).sum()
        np.testing.assert_allclose(of_kernel[at], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_on_cpu_what_is_slow_there_is_no_convolution_and_elsewhere_all_is(case):
    images, kernel, strides, padding, _, groups = made(case)
    assert (on_cpu(*CASES[case]) is not None) == (case in REWRITTEN)

    def ours(images, kernel):
        return convolve(
            images, kernel, strides, padding, feature_group_count=groups, **REST
        )

    traced = jax.jit(ours).trace(images, kernel)
    is_plain = {
        platform: "stablehlo.convolution"
        in traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu", "cuda")
    }
    assert is_plain == {"cpu": case in PLAIN, "tpu": True, "cuda": True}


def test_within_plain_all_is_a_convolution_on_cpu_too():
    images, kernel, strides, padding, _, groups = made("patches")

    def ours(images, kernel):
        return convolve(
            images, kernel, strides, padding, feature_group_count=groups, **REST
        )

    with plain():
        traced = jax.jit(ours).trace(images, kernel)
    assert "stablehlo.convolution" in traced.lower(lowering_platforms=("cpu",)).as_text()
    again = jax.jit(lambda *both: ours(*both)).trace(images, kernel)
    assert "stablehlo.convolution" not in again.lower(lowering_platforms=("cpu",)).as_text()


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
    images, kernel, strides, padding, _, groups = made(case)

    def total(images, kernel):
        y = convolve(images, kernel, strides, padding, feature_group_count=groups, **REST)
        return (y.astype(jnp.float32) ** 2).sum()

    narrow = [jnp.bfloat16(x) for x in (images, kernel)]
    found = jax.grad(total, argnums=(0, 1))(*narrow)
    expected = jax.grad(total, argnums=(0, 1))(*map(jnp.float32, narrow))
    for ours, wide in zip(found, expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(ours), wide, atol=0.02 * np.abs(wide).max())


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
    expected = by_hand(*narrow, (1, 1), ((0, 0), (0, 0)), 2)
    np.testing.assert_allclose(np.float32(found), expected, rtol=2**-8)
