"""AlexNet: what its sizes and channels change, and its dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.modules import KEY, built, count, shapes


@pytest.mark.parametrize("size", [63, 256])
def test_any_size_gives_the_same_parameters(size):
    output, made = shapes(built("alexnet"), size)
    assert count(made["params"]) == 61_100_840
    assert output.logits.shape == (2, 1000)


def test_one_channel_and_other_classes_change_the_ends_alone():
    _, made = shapes(built("alexnet", num_classes=7), 224, channels=1)
    assert made["params"]["conv1"]["kernel"].shape == (11, 11, 1, 64)
    assert made["params"]["head"]["kernel"].shape == (4096, 7)


def test_dropout_is_of_the_dense_layers_and_of_training_only():
    module = built("alexnet(dropout=0.9)", num_classes=5)
    images = jnp.ones((1, 63, 63, 3))
    like = jax.eval_shape(lambda x: module.init(KEY, x, False), images)
    made = jax.tree.map(lambda x: jnp.full(x.shape, 1e-3), like)
    apply = jax.jit(
        lambda train, key: module.apply(made, images, train, rngs={"dropout": key}).logits,
        static_argnums=0,
    )
    keys = jax.random.split(KEY, 2)
    evaluated = [np.asarray(apply(False, key)) for key in keys]
    trained = [np.asarray(apply(True, key)) for key in keys]
    np.testing.assert_array_equal(*evaluated)
    assert not np.array_equal(*trained)
