"""VGGs against their published sizes, and what they refuse."""

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
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vgg11", 132_863_336),
        ("vgg13", 133_047_848),
        ("vgg16", 138_357_544),
        ("vgg19", 143_667_240),
        ("vgg11_bn", 132_868_840),
        ("vgg13_bn", 133_053_736),
        ("vgg16_bn", 138_365_992),
        ("vgg19_bn", 143_678_248),
    ],
)
def test_parameters_are_as_many_as_torchvisions(name, parameters):
    logits, made = shapes(built(name), 224)
    assert sum(leaf.size for leaf in jax.tree.leaves(made["params"])) == parameters
    assert logits.shape == (2, 1000)
    assert ("batch_stats" in made) == name.endswith("_bn")


@pytest.mark.parametrize("size", [32, 224, 250])
def test_any_size_that_leaves_a_position_gives_the_same_parameters(size):
    _, made = shapes(built("vgg11", num_classes=7), size, channels=1)
    assert made["params"]["stage1_conv1"]["kernel"].shape == (3, 3, 1, 64)
    assert made["params"]["dense1"]["kernel"].shape == (7 * 7 * 512, 4096)
    assert made["params"]["head"]["kernel"].shape == (4096, 7)


def test_images_that_are_too_small_are_refused_with_what_works():
    with pytest.raises(InputError, match=r"at least 32 pixels, and gets 31x31; .*resize"):
        shapes(built("vgg16"), 31)


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_bfloat16_keeps_float32_parameters_and_logits(name):
    logits, made = shapes(built(name, dtype=jnp.bfloat16), 32)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {np.dtype("float32")}
    assert logits.dtype == jnp.float32
