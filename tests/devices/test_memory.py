"""Memory: bytes by hand, and a batch that is named as fitting fits."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.devices.memory import activation_bytes, check_fits, explained, tree_bytes
from jaxcls.errors import InputError

GIB = 2**30


def shape(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


def test_tree_bytes_adds_up_arrays_and_shapes_of_any_dtype():
    tree = {
        "a": jnp.zeros((2, 3)),
        "b": [shape(5, dtype=jnp.bfloat16), np.zeros((), np.int32)],
        "c": (shape(4, dtype=jnp.uint8), {}),
    }
    assert tree_bytes(tree) == 24 + 10 + 4 + 4


def conv(x, w):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize(("dtype", "size"), [(jnp.float32, 4), (jnp.bfloat16, 2)])
@pytest.mark.parametrize("wrapped", [lambda layer: layer, jax.jit])
def test_a_layer_keeps_what_it_takes_and_gives_also_inside_jit(wrapped, dtype, size):
    def dense(x, w):
        return jax.nn.relu(x @ w + 1.0)

    shapes = shape(8, 10, dtype=dtype), shape(10, 5, dtype=dtype)
    assert activation_bytes(wrapped(dense), 8, *shapes) == 8 * (10 + 5) * size
    shapes = shape(8, 6, 6, 3, dtype=dtype), shape(3, 3, 3, 5, dtype=dtype)
    assert activation_bytes(wrapped(conv), 8, *shapes) == 8 * 36 * (3 + 5) * size


def test_an_array_that_two_products_touch_counts_once():
    x, w = shape(8, 4), shape(4, 4)
    assert activation_bytes(lambda x, w: (x @ w) @ w, 8, x, w) == 3 * 8 * 4 * 4
    assert activation_bytes(lambda x, w: (x @ w) + (x @ w), 8, x, w) == 3 * 8 * 4 * 4


def test_what_differs_from_platform_to_platform_counts_as_a_convolution_does():
    def layers(function):
        def twice(x, w):
            return function(function(x, w), w)

        return activation_bytes(twice, 8, shape(8, 6, 6, 4), shape(1, 1, 4, 4))

    def branching(x, w):
        return jax.lax.platform_dependent(x, w, cpu=lambda x, w: x @ w[0, 0], default=conv)

    assert layers(branching) == layers(conv) == 3 * 8 * 36 * 4 * 4


def analysis(fixed, a_row, batch_size):
    """A step that needs `fixed` bytes, donated, and `a_row` for each row."""
    return SimpleNamespace(
        argument_size_in_bytes=fixed + a_row * batch_size // 4,
        output_size_in_bytes=fixed,
        alias_size_in_bytes=fixed,
        temp_size_in_bytes=a_row * batch_size - a_row * batch_size // 4,
    )


def refusal(fixed, a_row, batch_size, limit, devices=1):
    with pytest.raises(InputError) as caught:
        check_fits(
            analysis(fixed, a_row, batch_size),
            limit=limit,
            fixed=fixed,
            batch_size=batch_size,
            devices=devices,
        )
    return str(caught.value)


def test_a_batch_that_is_too_large_is_refused_with_one_that_fits():
    # 1 GiB of state; 15 GiB are left for rows of 1/16 GiB: 240, less 5 % is 228.
    assert refusal(GIB, GIB // 16, 512, 16 * GIB) == (
        "batch_size=512 needs 33.00 GiB a device and it has 16.00 GiB;"
        " about batch_size=228 fits"
    )


@pytest.mark.parametrize("fixed", [0, 3 * 10**9])
@pytest.mark.parametrize("a_row", [1000, 123_456_789])
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("share", [0.4, 0.999])
def test_the_batch_that_is_named_fits_and_divides(fixed, a_row, devices, share):
    limit = fixed + int(a_row * 512 * share)
    said = refusal(fixed, a_row, 512, limit, devices)
    named = int(said.split("about batch_size=")[1].split()[0])
    assert 0 < named < 512
    assert named % devices == 0
    assert fixed + a_row * named <= limit
    assert named >= 0.9 * share * 512 - devices


@pytest.mark.parametrize("limit", [GIB // 2, GIB + GIB // 32])
def test_no_batch_is_named_where_none_fits(limit):
    said = refusal(GIB, GIB // 16, 64, limit)
    assert said.endswith(
        "no batch fits; take a smaller model, smaller images, or more memory"
    )


@pytest.mark.parametrize(
    ("known", "limit"),
    [(analysis(GIB, 9, 64), GIB + 9 * 64), (analysis(GIB, 9, 64), None), (None, 1)],
)
def test_nothing_is_said_where_it_fits_or_is_not_known(known, limit):
    assert check_fits(known, limit=limit, fixed=GIB, batch_size=64, devices=1) is None


def test_what_jax_reports_of_a_compiled_step_is_understood():
    double = jax.jit(lambda x: 2 * x, donate_argnums=0).lower(shape(64, 256)).compile()
    known = double.memory_analysis()
    needed = 64 * 256 * 4
    check_fits(known, limit=needed, fixed=0, batch_size=64, devices=1)
    with pytest.raises(InputError, match=r"^batch_size=64 needs 0.00 GiB"):
        check_fits(known, limit=needed - 1, fixed=0, batch_size=64, devices=1)


def test_out_of_memory_is_said_with_a_smaller_batch():
    says = (
        r"batch_size=256 does .*\(RESOURCE_EXHAUSTED: 17 bytes\); try batch_size=128, or x$"
    )
    with pytest.raises(InputError, match=says), explained("batch_size", 256, ", or x"):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED:\n17 bytes")
    with pytest.raises(jax.errors.JaxRuntimeError), explained("batch_size", 256):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
