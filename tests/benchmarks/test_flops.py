"""Multiply-adds against arithmetic by hand; the models' are in test_model_table.py."""

import functools

import jax
import jax.numpy as jnp
import pytest

from benchmarks.flops import multiply_adds
from jaxcls.models.vit import ViT


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def product(x, w):
    return x @ w


def conv(x, w, stride=1, padding=0, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def test_a_dense_layer_is_rows_times_inputs_times_outputs():
    def dense(x, w, b):
        return jax.nn.gelu(product(x, w) + b)

    assert multiply_adds(dense, shape(4, 10), shape(10, 5), shape(1, 5)) == 4 * 10 * 5


def test_nothing_is_computed_and_large_numbers_are_exact():
    side = 10**7
    assert multiply_adds(product, shape(side, side), shape(side, side)) == 10**21


@pytest.mark.parametrize(
    ("text", "left", "right", "expected"),
    [
        ("bij,bjk->bik", (8, 2, 3), (8, 3, 5), 8 * 2 * 3 * 5),
        ("bqhd,bkhd->bhqk", (2, 7, 4, 3), (2, 9, 4, 3), 2 * 4 * 7 * 9 * 3),
        ("ijk,jkl->il", (2, 3, 5), (3, 5, 7), 2 * 3 * 5 * 7),
        ("i,j->ij", (3,), (4,), 3 * 4),
    ],
)
def test_a_product_over_any_axes(text, left, right, expected):
    einsum = functools.partial(jnp.einsum, text)
    assert multiply_adds(einsum, shape(*left), shape(*right)) == expected


# Images, kernel, options, outputs times the inputs of each: of ResNet's stem, of ResNeXt,
# depthwise with two filters a channel; and a batch of uneven images.
@pytest.mark.parametrize(
    ("images", "kernel", "options", "expected"),
    [
        ((1, 224, 224, 3), (7, 7, 3, 64), (2, 3, 1), 112 * 112 * 64 * (7 * 7 * 3)),
        ((1, 56, 56, 128), (3, 3, 4, 128), (1, 1, 32), 56 * 56 * 128 * (3 * 3 * 4)),
        ((1, 14, 14, 6), (3, 3, 1, 12), (2, 1, 6), 7 * 7 * 12 * (3 * 3)),
        ((8, 6, 9, 3), (3, 2, 3, 5), (1, 0, 1), 8 * 4 * 8 * 5 * (3 * 2 * 3)),
    ],
)
def test_a_convolution_is_outputs_times_the_inputs_of_each(
    images, kernel, options, expected
):
    stride, padding, groups = options
    convolve = functools.partial(conv, stride=stride, padding=padding, groups=groups)
    assert multiply_adds(convolve, shape(*images), shape(*kernel)) == expected


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_gradient_of_a_kernel_takes_as_many_as_the_convolution(groups):
    images, kernel = shape(3, 8, 8, 4), shape(3, 3, 4 // groups, 8)

    def backwards(images, grads):
        forward = functools.partial(conv, images, groups=groups)
        return jax.linear_transpose(forward, kernel)(grads)

    expected = (3 * 6 * 6 * 8) * (3 * 3 * 4 // groups)
    assert multiply_adds(backwards, images, shape(3, 6, 6, 8)) == expected


def test_a_vision_transformer_of_one_block_is_the_papers_formula():
    width, patch, classes, images = 192, 16, 1000, 2
    model = ViT(num_classes=classes, patch=patch, width=width, depth=1, heads=3)
    image = shape(images, 224, 224, 3)
    made = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), image)
    got = multiply_adds(lambda v, x: model.apply(v, x, False).logits, made, image)
    patches = 14 * 14
    tokens = patches + 1
    # Query, key, value and output; two layers of four times the width; and the products
    # of queries with keys and of weights with values, which heads share out.
    dense = (4 + 2 * 4) * tokens * width**2
    attention = 2 * tokens**2 * width
    embedding = patches * (3 * patch**2) * width
    assert got == images * (embedding + dense + attention + width * classes)


def twice(x, w):
    return product(product(x, w), w)


@jax.custom_vjp
def custom(x, w):
    return product(x, w)


custom.defvjp(lambda x, w: (product(x, w), (x, w)), lambda kept, grads: kept)


def scanned(x, w):
    return jax.lax.scan(lambda carry, _: (product(carry, w), None), x, length=7)[0]


def either(x, w):
    return jax.lax.cond(x[0, 0] > 0, twice, product, x, w)


@pytest.mark.parametrize(
    ("forward", "times"),
    [
        (jax.jit(twice), 2),
        (jax.jit(lambda x, w: jax.jit(product)(x, w) + jax.jit(product)(x, w)), 2),
        (jax.checkpoint(twice), 2),
        (jax.vmap(product, in_axes=(0, None)), 1),
        (custom, 1),
        (scanned, 7),
        (jax.jit(lambda x, w: scanned(scanned(x, w), w)), 14),
        (lambda x, w: jax.lax.fori_loop(0, 5, lambda i, x: product(x, w), x), 5),
        (either, 2),
    ],
)
def test_what_is_called_counts_as_often_as_it_runs(forward, times):
    assert multiply_adds(forward, shape(4, 10), shape(10, 10)) == times * 400


def test_a_while_loop_counts_as_one_turn():
    def until_small(x, w):
        return jax.lax.while_loop(lambda x: x.sum() > 1.0, lambda x: product(x, w), x)

    assert multiply_adds(until_small, shape(4, 10), shape(10, 10)) == 400

    def halved(x, w):
        return product(jax.lax.while_loop(lambda x: x.sum() > 1.0, lambda x: x / 2, x), w)

    assert multiply_adds(halved, shape(4, 10), shape(10, 10)) == 400
