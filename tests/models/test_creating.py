"""Models by themselves: random, or with the weights of a file."""

import doctest
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcls
from jaxcls import augment
from jaxcls.augment import Rows, chain, row_keys, single
from jaxcls.errors import InputError
from jaxcls.models import creating, naming, weights
from tests.modules import built, shapes


@pytest.mark.slow
@pytest.mark.parametrize("module", [augment, creating])
def test_examples_run(module):
    found = doctest.testmod(module, extraglobs={"jax": jax, "jnp": jnp})
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.slow
def test_weights_of_a_file_are_in_place_but_for_a_head_of_other_classes(tmp_path):
    shape = (32, 32, 3)
    text = "resnet18(stem='small', width=4)"
    _, there = jaxcls.models.create(text, 5, image_shape=shape, seed=1)
    file = tmp_path / "weights.safetensors"
    weights.write(file, _as_torch(text, there), None, (), text)
    for classes in (5, 3):
        module, here = jaxcls.models.create(
            text, classes, image_shape=shape, weights=str(file)
        )
        for path, array in naming.flatten(here).items():
            is_head = path.startswith("params/head/")
            is_same = array.shape == naming.flatten(there)[path].shape
            assert is_same == (classes == 5 or not is_head)
            if is_same:
                np.testing.assert_array_equal(array, naming.flatten(there)[path])
        out = module.apply(here, jnp.zeros((2, *shape)), False)
        assert out.logits.shape == (2, classes)


def _as_torch(text, variables):
    module, _ = jaxcls.models.create(text, 5, image_shape=(32, 32, 3))
    return naming.to_theirs(variables, module.namings()["torchvision"])


def test_what_is_no_model_or_not_its_weights_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"unknown name 'resnet19' \(did you mean"):
        jaxcls.models.create("resnet19", 10)
    file = tmp_path / "weights.safetensors"
    weights.write(file, {"a": np.zeros(3, np.float32)}, None, ())
    with pytest.raises(InputError, match=r"weights=.* for name=cnn: it holds no layer"):
        jaxcls.models.create("cnn", 10, image_shape=(8, 8, 1), weights=str(file))


def test_weights_that_may_be_of_another_network_are_a_warning(tmp_path):
    text, shape = "vit_ti_16(depth=1, width=12)", (32, 32, 3)
    module = built(text, num_classes=5)
    like = shapes(module, 32)[1]
    arrays = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), like)
    file = tmp_path / "weights.safetensors"
    weights.write(file, naming.to_theirs(arrays, module.namings()["timm"]), None, ())
    said = "vit_tiny_patch16_224(act_layer='quick_gelu')"
    told = {"architecture": "vit_tiny_patch16_224", "model_args": {}}
    told["model_args"]["act_layer"] = "quick_gelu"
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.warns(UserWarning, match=re.escape(f"the weights say {said}, not")):
        jaxcls.models.create(text, 5, image_shape=shape, weights=str(file))


def test_a_seed_gives_the_same_variables_and_another_seed_others():
    made = [
        jax.tree.leaves(jaxcls.models.create("cnn", 3, image_shape=(8, 8, 1), seed=s)[1])
        for s in (0, 0, 1)
    ]
    for a, b in zip(made[0], made[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(made[0], made[2], strict=True))


def test_augmentations_by_text_are_those_of_the_chain():
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
    key, count = jax.random.key(3), jnp.arange(16)
    rows = Rows(row_keys(key, 16), key, count, jnp.zeros_like(count), jnp.float32(0))
    expected = chain([single.invert(0.5)])(rows, jnp.asarray(images))
    found = jaxcls.augment.apply("invert(0.5)", key, images)
    np.testing.assert_array_equal(found, expected)
    inverted = (np.asarray(found) == 255 - images).all((1, 2, 3))
    assert 0 < inverted.sum() < 16
    assert (np.asarray(found)[~inverted] == images[~inverted]).all()
    with pytest.raises(InputError, match="unknown text 'flop'"):
        jaxcls.augment.apply("flop", key, images)
