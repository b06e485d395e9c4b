"""ResNets: the sizes of their maps, and their blocks at the start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from jaxcls.errors import InputError
from jaxcls.models.resnet import BasicBlock, Bottleneck
from tests.modules import KEY, built


def image(size):
    return jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)


def outputs(module, size):
    """{module: shape and dtype of what it gives}, computing nothing."""

    def forward(x):
        made = module.init(KEY, x, False)
        return made, module.apply(
            made, x, False, capture_intermediates=True, mutable=["intermediates"]
        )

    made, (output, seen) = jax.eval_shape(forward, image(size))
    named = {"logits": output.logits, "made": made}
    layers = {k: v for k, v in seen["intermediates"].items() if k != "__call__"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(layers):
        named["/".join(p.key for p in path[:-2])] = leaf
    return named


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        ("resnet18", 224, [112, 56, 28, 14, 7]),
        ("resnet18(stem='small')", 32, [32, 32, 16, 8, 4]),
        ("resnet18", 33, [17, 9, 5, 3, 2]),
    ],
)
def test_the_stem_and_each_stage_give_maps_of_the_right_size(text, size, expected):
    seen = outputs(built(text), size)
    names = ["norm1", *(f"stage{i}_block2" for i in (1, 2, 3, 4))]
    assert [seen[name].shape[1:] for name in names] == [
        (side, side, width)
        for side, width in zip(expected, [64, 64, 128, 256, 512], strict=True)
    ]
    assert seen["logits"].shape == (1, 1000)


def test_the_stride_of_a_bottleneck_is_on_its_3x3():
    seen = outputs(built("resnet50(stages=(1, 1))"), 64)
    names = ("conv1", "conv2", "conv3", "shortcut_conv")
    sides = [seen[f"stage2_block1/{name}"].shape[1] for name in names]
    assert sides == [16, 8, 8, 8]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_bfloat16_keeps_float32_parameters_statistics_and_logits(name):
    seen = outputs(built(f"{name}(stages=(1, 1))", dtype=jnp.bfloat16), 32)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(seen.pop("made"))} == {"float32"}
    for name in ("logits", "head", "Dropout_0"):  # The last before the head.
        assert seen.pop(name).dtype == jnp.float32
    assert {leaf.dtype.name for leaf in seen.values()} == {"bfloat16"}


BLOCKS = pytest.mark.parametrize("block", [BasicBlock, Bottleneck])


def started(block, features, zero_init=True, stride=1, **options):
    """What a fresh block gives for an image, with the image and the variables."""
    options = {"width": 4, "stride": stride, "zero_init": zero_init} | options
    module = block(dtype=jnp.float32, **options)
    x = np.random.default_rng(0).standard_normal((2, 4, 4, features), np.float32)

    @jax.jit
    def start(x):
        made = module.init(KEY, x, False)
        return module.apply(made, x, True, mutable=["batch_stats"])[0], made

    y, made = start(x)
    return x, np.asarray(y), made


@BLOCKS
def test_a_block_starts_as_its_shortcut(block):
    x, y, made = started(block, 4 * block.expansion)
    assert not any("shortcut" in name for name in made["params"])
    np.testing.assert_allclose(y, np.maximum(x, 0), atol=1e-6)


def projected(x, made):
    """Every second position of x, by the projection, normalised over the batch."""
    kernel = np.asarray(made["params"]["shortcut_conv"]["kernel"])[0, 0]
    z = x[:, ::2, ::2] @ kernel
    return (z - z.mean((0, 1, 2))) / np.sqrt(z.var((0, 1, 2)) + 1e-5)


@BLOCKS
def test_a_block_that_changes_the_shape_starts_as_its_projection(block):
    x, y, made = started(block, 3, stride=2)
    np.testing.assert_allclose(y, np.maximum(projected(x, made), 0), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "channels"), [(BasicBlock, 15), (BasicBlock, 16), (Bottleneck, 16)]
)
def test_blur_is_before_a_stride_of_at_least_16_channels(block, channels):
    x, y, made = started(block, channels, stride=2, blur=True)
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    seen = x
    if channels >= 16:
        planes = np.moveaxis(x, -1, 1).reshape(-1, 4, 4)
        planes = np.stack([correlate2d(plane, kernel, mode="same") for plane in planes])
        seen = np.moveaxis(planes.reshape(2, channels, 4, 4), 1, -1)
    expected = np.maximum(projected(seen, made), 0)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@BLOCKS
def test_blur_is_not_where_there_is_no_stride(block):
    x = jnp.zeros((1, 4, 4, 20))

    def computed(stride, blur):
        module = block(4, stride, jnp.float32, zero_init=True, blur=blur)
        return str(jax.make_jaxpr(lambda: module.init_with_output(KEY, x, False)[0])())

    assert computed(1, True) == computed(1, False)
    assert computed(2, True) != computed(2, False)


def test_blur_has_no_parameters():
    module, blurred = built("resnet18"), built("resnet18(blur=True)")
    plain, smooth = (outputs(each, 33) for each in (module, blurred))
    assert jax.tree.map(lambda x: x.shape, plain) == jax.tree.map(lambda x: x.shape, smooth)
    assert module.namings() == blurred.namings()


@BLOCKS
def test_without_zero_init_a_block_starts_with_its_branch(block):
    x, y, _ = started(block, 4 * block.expansion, zero_init=False)
    assert np.abs(y - np.maximum(x, 0)).max() > 0.1


def test_an_unknown_stem_is_refused():
    with pytest.raises(InputError) as caught:
        built("resnet18(stem='cifar')")
    assert str(caught.value) == (
        "model.name: resnet18: stem='cifar' must be 'imagenet' or 'small'"
    )
