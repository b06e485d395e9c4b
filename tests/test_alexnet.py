"""AlexNet against its published size, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls import pipeline
from jaxcls.errors import InputError
from jaxcls.models import MODELS

KEY = jax.random.key(0)


def built(text, **options):
    options = {"num_classes": 1000, "dtype": jnp.float32} | options
    return pipeline.build_one(text, MODELS, "model.name", **options)


def shapes(module, size, channels=3):
    image = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    return jax.eval_shape(lambda x: module.init_with_output(KEY, x, False), image)


# https://pytorch.org/vision/stable/models.html
@pytest.mark.parametrize("size", [63, 224, 256])
def test_parameters_are_as_many_as_torchvisions_at_any_size(size):
    logits, made = shapes(built("alexnet"), size)
    assert sum(leaf.size for leaf in jax.tree.leaves(made["params"])) == 61_100_840
    assert logits.shape == (2, 1000)


def test_one_channel_and_other_classes_change_the_ends_alone():
    _, made = shapes(built("alexnet", num_classes=7), 224, channels=1)
    assert made["params"]["conv1"]["kernel"].shape == (11, 11, 1, 64)
    assert made["params"]["head"]["kernel"].shape == (4096, 7)


def test_images_that_are_too_small_are_refused_with_what_works():
    with pytest.raises(InputError, match=r"at least 63 pixels, and gets 62x62; .*resize"):
        shapes(built("alexnet"), 62)
    with pytest.raises(InputError, match="dropout"):
        built("alexnet(dropout=1.0)")


def test_bfloat16_keeps_float32_parameters_and_logits():
    logits, made = shapes(built("alexnet", dtype=jnp.bfloat16), 63)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {np.dtype("float32")}
    assert logits.dtype == jnp.float32


def test_dropout_is_of_the_dense_layers_and_of_training_only():
    module = built("alexnet(dropout=0.9)", num_classes=5)
    images = jnp.ones((1, 63, 63, 3))
    like = jax.eval_shape(lambda x: module.init(KEY, x, False), images)
    made = jax.tree.map(lambda x: jnp.full(x.shape, 1e-3), like)
    apply = jax.jit(
        lambda train, key: module.apply(made, images, train, rngs={"dropout": key}),
        static_argnums=0,
    )
    keys = jax.random.split(KEY, 2)
    evaluated = [np.asarray(apply(False, key)) for key in keys]
    trained = [np.asarray(apply(True, key)) for key in keys]
    np.testing.assert_array_equal(*evaluated)
    assert not np.array_equal(*trained)
