"""AlexNet: what its sizes and channels change, and its dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.errors import InputError
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variance"), [("torch", 1 / 3), ("lecun", 1.0)])
def test_kernels_start_with_the_variance_of_their_initialisation(name, variance):
    model = built("alexnet", weight_init=name)
    variables = model.init(KEY, jnp.zeros((1, 64, 64, 3)), False)
    kernels = (
        variables["params"]["dense2"]["kernel"],
        variables["params"]["conv3"]["kernel"],
    )
    for kernel in map(np.asarray, kernels):
        fan_in = kernel.size / kernel.shape[-1]
        assert kernel.var() * fan_in == pytest.approx(variance, rel=0.02)


def test_another_initialisation_is_refused():
    with pytest.raises(
        InputError, match="weight_init='xavier' must be one of torch, lecun"
    ):
        built("alexnet", weight_init="xavier")
