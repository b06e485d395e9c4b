"""ResNets: the sizes of their maps, and their blocks at the start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import convolve

from jaxcls.models.resnet import Block
from tests.modules import KEY, outputs


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        ("resnet18", 224, [112, 56, 28, 14, 7]),
        ("resnet18(stem='small')", 32, [32, 32, 16, 8, 4]),
        ("resnet18", 33, [17, 9, 5, 3, 2]),
    ],
)
def test_the_stem_and_each_stage_give_maps_of_the_right_size(text, size, expected):
    seen = outputs(text, size)
    widths = [64, 64, 128, 256, 512]
    names = ["norm1", *(f"stage{i}_block2" for i in (1, 2, 3, 4))]
    for name, side, width in zip(names, expected, widths, strict=True):
        assert seen[name] == (side, side, width)


def test_the_stride_of_a_bottleneck_is_on_its_3x3():
    seen = outputs("resnet50(stages=(1, 1))", 64)
    names = ("conv1", "conv2", "conv3", "shortcut_conv")
    assert [seen[f"stage2_block1/{name}"][0] for name in names] == [16, 8, 8, 8]


def started(bottleneck, channels, zero_init=True, stride=1, blur=False):
    """What a fresh block gives for an image, with the image and the parameters."""
    module = Block(4, stride, jnp.float32, zero_init, 0.0, blur, bottleneck)
    x = np.random.default_rng(0).standard_normal((2, 4, 4, channels), np.float32)

    @jax.jit
    def start(x):
        made = module.init(KEY, x, False)
        return module.apply(made, x, True, mutable=["batch_stats"])[0], made["params"]

    y, params = start(x)
    return x, np.asarray(y), params


@pytest.mark.parametrize(("bottleneck", "channels"), [(False, 4), (True, 16)])
def test_a_block_starts_as_its_shortcut_or_without_zero_init_with_its_branch(
    bottleneck, channels
):
    x, y, params = started(bottleneck, channels)
    assert not any("shortcut" in name for name in params)
    np.testing.assert_allclose(y, np.maximum(x, 0), atol=1e-6)
    x, y, _ = started(bottleneck, channels, zero_init=False)
    assert np.abs(y - np.maximum(x, 0)).max() > 0.1


@pytest.mark.parametrize(
    ("bottleneck", "channels", "stride", "blur"),
    [
        (False, 3, 2, False),
        (True, 3, 2, False),
        (False, 15, 2, True),
        (False, 16, 2, True),
        (False, 16, 1, True),
        (True, 16, 2, True),
    ],
)
def test_a_block_that_changes_the_shape_starts_as_its_projection(
    bottleneck, channels, stride, blur
):
    x, y, params = started(bottleneck, channels, stride=stride, blur=blur)
    if blur and channels >= 16 and stride == 2:
        kernel = np.outer([1, 2, 1], [1, 2, 1])[None, :, :, None] / 16
        x = convolve(x, kernel, mode="constant")
    z = x[:, ::stride, ::stride]
    if "shortcut_conv" in params:
        z = z @ np.asarray(params["shortcut_conv"]["kernel"])[0, 0]
        z = (z - z.mean((0, 1, 2))) / np.sqrt(z.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(y, np.maximum(z, 0), rtol=1e-4, atol=1e-4)
