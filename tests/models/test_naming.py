"""Names elsewhere: layouts against NumPy and PyTorch, and what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from jaxcls.models import naming
from jaxcls.models.naming import Entry, Naming
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
PLAIN = Naming(
    {
        "conv": "features.0",
        "norm": "features.1",
        "block/dense": "blocks.0.fc",
        "token": "cls_token",
        "head": "classifier",
    }
)
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
    """The tensors of `VARIABLES` elsewhere, each index moved by hand."""
    params, stats = VARIABLES["params"], VARIABLES["batch_stats"]
    weight = np.empty((5, 4, 3, 2), np.float32)
    for h, w, i, o in np.ndindex(3, 2, 4, 5):
        weight[o, i, h, w] = params["conv"]["kernel"][h, w, i, o]
    return {
        "features.0.weight": weight,
        "features.0.bias": params["conv"]["bias"],
        "features.1.weight": params["norm"]["scale"],
        "features.1.bias": params["norm"]["bias"],
        "features.1.running_mean": stats["norm"]["mean"],
        "features.1.running_var": stats["norm"]["var"],
        "blocks.0.fc.weight": params["block"]["dense"]["kernel"].T,
        "cls_token": params["token"],
        "classifier.weight": params["head"]["kernel"].T,
        "classifier.bias": params["head"]["bias"],
    }


def same(ours, theirs):
    """Whether two {name: array} are alike, in every bit."""
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name, strict=True)


def test_every_path_has_the_name_and_suffix_of_its_kind():
    assert naming.names(VARIABLES, PLAIN) == NAMES


def test_axes_go_there_as_moved_by_hand():
    same(naming.to_theirs(VARIABLES, PLAIN), theirs())


def test_what_fits_is_found_with_our_axes():
    fit = naming.fit(theirs(), PLAIN, VARIABLES)
    assert (fit.missing, fit.extra, fit.shapes) == ({}, [], {})
    same(fit.found, naming.flatten(VARIABLES))


def test_shapes_alone_say_what_fits():
    like = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, VARIABLES))
    same(naming.fit(theirs(), PLAIN, like).found, naming.flatten(VARIABLES))
    assert naming.names(like, PLAIN) == NAMES


def test_arrays_are_contiguous_on_both_sides():
    there = naming.to_theirs(VARIABLES, PLAIN)
    back = naming.fit(there, PLAIN, VARIABLES).found
    assert all(array.flags.c_contiguous for array in [*there.values(), *back.values()])


def test_a_model_without_statistics_fits_without_them():
    params = {"params": {"head": VARIABLES["params"]["head"]}, "batch_stats": {}}
    fit = naming.fit(theirs(), PLAIN, params)
    assert set(fit.found) == {"params/head/kernel", "params/head/bias"}
    assert (fit.missing, fit.shapes) == ({}, {})
    assert fit.extra == sorted(set(theirs()) - {"classifier.weight", "classifier.bias"})


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
    counters = {"features.1.num_batches_tracked": np.array(7), "num_batches_tracked": 0}
    fit = naming.fit(theirs() | counters, PLAIN, VARIABLES)
    assert fit.extra == ["num_batches_tracked"]
    more = theirs() | {"features.1.num_batches_tracked.weight": noise(1)}
    fit = naming.fit(more, PLAIN, VARIABLES)
    assert fit.extra == ["features.1.num_batches_tracked.weight"]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("features.0.weight", (5, 4, 6)),
        ("features.0.weight", (5, 4, 2, 3)),
        ("features.0.weight", (3, 2, 4, 5)),
        ("features.0.weight", (5, 24)),
        ("features.0.bias", (5, 1, 1)),
        ("features.1.running_mean", (1, 5)),
        ("blocks.0.fc.weight", (7, 6)),
        ("blocks.0.fc.weight", (6, 7, 1, 1)),
        ("blocks.0.fc.weight", (42,)),
        ("cls_token", (6,)),
        ("classifier.bias", (3, 1)),
        ("classifier.bias", ()),
        ("classifier.weight", (0, 6)),
        ("classifier.weight", (4, 6)),
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
    table = Naming(
        {
            "block/dense/kernel": "attention.in_proj_weight",
            "block/dense/bias": "attention.in_proj_bias",
        }
    )
    ours = {"params": {"block": {"dense": {"kernel": noise(2, 6), "bias": noise(6)}}}}
    there = naming.to_theirs(ours, table)
    layer = ours["params"]["block"]["dense"]
    same(
        there,
        {
            "attention.in_proj_weight": layer["kernel"].T,
            "attention.in_proj_bias": layer["bias"],
        },
    )
    same(naming.fit(there, table, ours).found, naming.flatten(ours))


def test_a_scale_of_channels_gets_the_axes_that_it_has_there():
    scale = noise(4)
    ours = {"params": {"block": {"layer_scale": scale}}}
    table = Naming({"block/layer_scale": Entry("b.layer_scale", shape=(-1, 1, 1))})
    there = naming.to_theirs(ours, table)
    same(there, {"b.layer_scale": scale[:, None, None]})
    same(naming.fit(there, table, ours).found, naming.flatten(ours))
    flat = naming.fit({"b.layer_scale": scale}, table, ours)
    assert flat.shapes == {"params/block/layer_scale": ("b.layer_scale", (4,), (4, 1, 1))}
    assert flat.found == {}


FLAT = Entry("fc", view=(4, 3, 2, -1), shape=(5, -1))
AS_CONV = Entry("fc", view=(4, 3, -1, 5))


@pytest.mark.parametrize("entry", [FLAT, AS_CONV])
def test_a_layer_after_flattening_reads_channels_first_there(entry):
    kernel, bias, images = noise(4 * 3 * 2, 5), noise(5), noise(6, 4, 3, 2)
    ours = {"params": {"dense": {"kernel": kernel, "bias": bias}}}
    table = Naming({"dense": entry})
    there = naming.to_theirs(ours, table)
    same({"fc.bias": there["fc.bias"]}, {"fc.bias": bias})
    same(naming.fit(there, table, ours).found, naming.flatten(ours))
    expected = images.reshape(6, -1) @ kernel
    channels_first = images.transpose(0, 3, 1, 2)
    if entry is FLAT:
        assert there["fc.weight"].shape == (5, 24)
        got = channels_first.reshape(6, -1) @ there["fc.weight"].T
    else:
        assert there["fc.weight"].shape == (5, 2, 4, 3)
        got = np.stack(
            [
                sum(correlate2d(image[c], weight[c], mode="valid").item() for c in range(2))
                for image in channels_first
                for weight in there["fc.weight"]
            ]
        ).reshape(6, 5)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_the_other_order_of_a_flattened_layer_is_another_shape():
    ours = {"params": {"dense": {"kernel": noise(24, 5), "bias": noise(5)}}}
    conv = naming.to_theirs(ours, Naming({"dense": AS_CONV}))
    fit = naming.fit(conv, Naming({"dense": FLAT}), ours)
    assert fit.shapes == {"params/dense/kernel": ("fc.weight", (5, 2, 4, 3), (5, 24))}


def test_the_tokens_before_a_grid_are_told_of_positions_alone():
    table = Naming({"position": Entry("pos_embed", grid=1), "head": "head"})
    assert naming.grid_of("params/position", table) == 1
    assert naming.grid_of("batch_stats/position", table) == 1
    assert naming.grid_of("params/head/kernel", table) == -1
    assert naming.grid_of("params/head/bias", table) == -1


@pytest.mark.parametrize(
    ("text", "ours", "name", "shape"),
    [
        ("vgg11_bn", "stage1_conv1_norm/scale", "features.1.weight", (64,)),
        ("resnet50", "stage1_block1/shortcut_conv/kernel", "layer1.0.downsample.0.weight",
         (256, 64, 1, 1)),
        ("resnext50_32x4d", "stage1_block1/conv2/kernel", "layer1.0.conv2.weight",
         (128, 4, 3, 3)),
        ("vit_b_16", "block12/attention/qkv/kernel",
         "encoder.layers.encoder_layer_11.self_attention.in_proj_weight", (2304, 768)),
        ("vit_b_16", "position", "encoder.pos_embedding", (1, 197, 768)),
        ("vit_b_16", "patch/kernel", "conv_proj.weight", (768, 3, 16, 16)),
        ("convnext_tiny", "stage1_block1/layer_scale", "features.1.0.layer_scale",
         (96, 1, 1)),
        ("convnext_tiny", "stage1_block1/conv/kernel", "features.1.0.block.0.weight",
         (96, 1, 7, 7)),
        ("efficientnet_b0", "head/bias", "classifier.1.bias", (1000,)),
        ("alexnet", "dense1/kernel", "classifier.1.weight", (4096, 9216)),
    ],
)  # fmt: skip
def test_torchvisions_file_has_this_tensor(text, ours, name, shape):
    module = built(text)
    like = shapes(module, 224)[1]
    table = module.namings()["torchvision"]
    assert naming.names(like, table)[f"params/{ours}"] == name
    only = {"params": {}}
    *parents, leaf = ours.split("/")
    node, source = only["params"], like["params"]
    for parent in parents:
        node, source = node.setdefault(parent, {}), source[parent]
    node[leaf] = np.zeros(source[leaf].shape, np.float32)
    assert naming.to_theirs(only, table)[name].shape == shape


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("groups", [1, 2])
def test_a_small_network_of_torchs_gives_the_same_from_its_tensors(groups):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(2, 6, (3, 2), groups=groups),
        torch.nn.BatchNorm2d(6),
        torch.nn.Flatten(),
        torch.nn.Linear(6 * 5 * 4, 3),
    )
    for tensor in [*network.parameters(), network[1].running_mean]:
        torch.nn.init.normal_(tensor.data)
    torch.nn.init.uniform_(network[1].running_var, 0.5, 2.0)
    tensors = {name: x.numpy() for name, x in network.state_dict().items()}
    table = Naming(
        {
            "conv": "0",
            "norm": "1",
            "dense": Entry("3", view=(5, 4, 6, 3), shape=(3, -1)),
        }
    )
    like = {
        "params": {
            "conv": {"kernel": noise(3, 2, 2 // groups, 6), "bias": noise(6)},
            "norm": {"scale": noise(6), "bias": noise(6)},
            "dense": {"kernel": noise(120, 3), "bias": noise(3)},
        },
        "batch_stats": {"norm": {"mean": noise(6), "var": noise(6)}},
    }
    fit = naming.fit(tensors, table, like)
    assert (fit.missing, fit.extra, fit.shapes) == ({}, [], {})
    at = {path.partition("/")[2]: array for path, array in fit.found.items()}
    images = noise(4, 7, 5, 2)
    x = jax.lax.conv_general_dilated(
        images,
        at["conv/kernel"],
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    x = np.asarray(x) + at["conv/bias"]
    x = (x - at["norm/mean"]) / np.sqrt(at["norm/var"] + 1e-5)
    x = x * at["norm/scale"] + at["norm/bias"]
    got = x.reshape(4, -1) @ at["dense/kernel"] + at["dense/bias"]
    with torch.no_grad():
        there = network.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(got, there, rtol=1e-4, atol=1e-4)
    structure = jax.tree.structure(like)
    back = structure.unflatten([fit.found[path] for path in naming.flatten(like)])
    written = naming.to_theirs(back, table)
    counter = {name: x for name, x in tensors.items() if name.endswith("tracked")}
    same(written | counter, tensors)
