"""Names elsewhere: layouts against NumPy, and what does not fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.models import naming
from jaxcls.models.naming import Entry
from tests.modules import built, shapes

RNG = np.random.default_rng(0)


def noise(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


VARIABLES = {
    "params": {
        "conv": {"kernel": noise(3, 2, 4, 5), "bias": noise(5)},
        "norm": {"scale": noise(5), "bias": noise(5)},
        "block": {"dense": {"kernel": noise(7, 6)}},
        "token": noise(1, 1, 6),
        "head": {"kernel": noise(6, 3), "bias": noise(3)},
    },
    "batch_stats": {"norm": {"mean": noise(5), "var": noise(5)}},
}
PLAIN = {
    "conv": "features.0",
    "norm": "features.1",
    "block/dense": "blocks.0.fc",
    "token": "cls_token",
    "head": "classifier",
}
NAMES = {
    "params/conv/kernel": "features.0.weight",
    "params/conv/bias": "features.0.bias",
    "params/norm/scale": "features.1.weight",
    "params/norm/bias": "features.1.bias",
    "batch_stats/norm/mean": "features.1.running_mean",
    "batch_stats/norm/var": "features.1.running_var",
    "params/block/dense/kernel": "blocks.0.fc.weight",
    "params/token": "cls_token",
    "params/head/kernel": "classifier.weight",
    "params/head/bias": "classifier.bias",
}


def theirs():
    """The tensors of `VARIABLES` elsewhere, each axis moved by its letter."""
    ours = naming.flatten(VARIABLES)
    tensors = {NAMES[path]: array for path, array in ours.items()}
    tensors["features.0.weight"] = np.einsum("hwio->oihw", ours["params/conv/kernel"])
    for name in ("blocks.0.fc.weight", "classifier.weight"):
        tensors[name] = tensors[name].T
    return tensors


def same(ours, theirs):
    """Whether two {name: array} are alike, in every bit."""
    alike = functools.partial(np.testing.assert_array_equal, strict=True)
    jax.tree.map(alike, ours, theirs)


def check(ours, table, there):
    """Our variables have these tensors elsewhere, which come back the same."""
    written = naming.to_theirs(ours, table)
    same(written, there)
    like = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, ours))
    fit = naming.fit(there, table, like)
    assert (fit.missing, fit.extra, fit.shapes) == ({}, [], {})
    same(fit.found, naming.flatten(ours))
    arrays = [*written.values(), *fit.found.values()]
    assert all(array.flags.c_contiguous for array in arrays)


def test_every_parameter_has_the_name_and_the_axes_of_its_kind():
    assert naming.names(VARIABLES, PLAIN) == NAMES
    check(VARIABLES, PLAIN, theirs())


def test_what_is_missing_and_extra_is_told_exactly():
    tensors = theirs()
    del tensors["features.1.running_var"], tensors["cls_token"]
    tensors |= {"z.weight": noise(2), "a.bias": noise(2), "cls_token.bias": noise(1)}
    fit = naming.fit(tensors, PLAIN, VARIABLES)
    assert fit.missing == {
        "batch_stats/norm/var": "features.1.running_var",
        "params/token": "cls_token",
    }
    assert fit.extra == ["a.bias", "cls_token.bias", "z.weight"]
    assert fit.shapes == {}
    assert set(fit.found) == set(NAMES) - set(fit.missing)


def test_counters_of_batches_are_ignored_and_what_only_sounds_alike_is_not():
    counters = {"features.1.num_batches_tracked": np.array(7)}
    others = {"num_batches_tracked": 0, "features.1.num_batches_tracked.weight": noise(1)}
    fit = naming.fit(theirs() | counters | others, PLAIN, VARIABLES)
    assert fit.extra == sorted(others)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("features.0.weight", (5, 4, 6)),
        ("features.0.weight", (3, 2, 4, 5)),
        ("features.0.bias", (5, 1, 1)),
        ("blocks.0.fc.weight", (7, 6)),
        ("classifier.bias", ()),
        ("classifier.weight", (0, 6)),
    ],
)
def test_another_shape_is_told_and_never_reshaped(name, shape):
    tensors = theirs()
    wanted = tensors[name].shape
    tensors[name] = np.zeros(shape, np.float32)
    fit = naming.fit(tensors, PLAIN, VARIABLES)
    (path,) = (path for path in NAMES if NAMES[path] == name)
    assert fit.shapes == {path: (name, shape, wanted)}
    assert (fit.missing, fit.extra) == ({}, [])
    assert set(fit.found) == set(NAMES) - {path}


def test_a_name_may_be_given_for_a_single_parameter_of_a_layer():
    table = {"block/dense/kernel": "in_proj_weight", "block/dense/bias": "in_proj_bias"}
    layer = {"kernel": noise(2, 6), "bias": noise(6)}
    there = {"in_proj_weight": layer["kernel"].T, "in_proj_bias": layer["bias"]}
    check({"params": {"block": {"dense": layer}}}, table, there)


def test_a_scale_of_channels_gets_the_axes_that_it_has_there():
    scale = noise(4)
    ours = {"params": {"block": {"layer_scale": scale}}}
    table = {"block/layer_scale": Entry("b.layer_scale", shape=(4, 1, 1))}
    check(ours, table, {"b.layer_scale": scale[:, None, None]})


@pytest.mark.parametrize("is_flat", [True, False])
def test_a_layer_after_flattening_reads_channels_first_there(is_flat):
    kernel, bias, images = noise(4 * 3 * 2, 5), noise(5), noise(6, 4, 3, 2)
    ours = {"params": {"dense": {"kernel": kernel, "bias": bias}}}
    table = {"dense": Entry("fc", (4, 3, 2, 5), (5, 24) if is_flat else ())}
    there = naming.to_theirs(ours, table)
    check(ours, table, there)
    channels_first, weights = images.transpose(0, 3, 1, 2), there["fc.weight"]
    assert weights.shape == ((5, 24) if is_flat else (5, 2, 4, 3))
    got = channels_first.reshape(6, -1) @ weights.reshape(5, -1).T
    np.testing.assert_allclose(got, images.reshape(6, -1) @ kernel, rtol=1e-4, atol=1e-4)


def test_the_tokens_before_a_grid_are_told_of_positions_alone():
    table = {"position": Entry("pos_embed", grid=1), "head": "head"}
    paths = ("params/position", "batch_stats/position", "params/head/kernel")
    assert [naming.grid_of(path, table) for path in paths] == [1, 1, -1]


@pytest.mark.parametrize(
    ("text", "ours", "name"),
    [
        ("vgg11_bn", "stage1_conv1_norm/scale", "features.1.weight"),
        ("resnet18", "stage2_block1/shortcut_conv/kernel", "layer2.0.downsample.0.weight"),
        ("vit_b_16", "block12/attention/qkv/kernel",
         "encoder.layers.encoder_layer_11.self_attention.in_proj_weight"),
        ("convnext_tiny", "stage1_block1/layer_scale", "features.1.0.layer_scale"),
        ("swin_t(stages=(1, 1), heads=(3, 6))", "stage2_reduce/kernel",
         "features.2.reduction.weight"),
        ("efficientnet_b0", "stage2_block1/squeeze1/bias", "features.2.0.block.2.fc1.bias"),
        ("mobilenet_v2", "stage1_block1/conv3/kernel", "features.1.conv.1.weight"),
        ("alexnet", "dense1/kernel", "classifier.1.weight"),
    ],
)  # fmt: skip
def test_torchvisions_file_has_this_tensor(text, ours, name):
    module = built(text)
    names = naming.names(shapes(module, 224)[1], module.namings()["torchvision"])
    assert names[f"params/{ours}"] == name
