"""VGGs: what sizes and channels change, and where their statistics are."""

import pytest

from tests.modules import built, shapes


@pytest.mark.parametrize("size", [32, 224, 250])
def test_any_size_that_leaves_a_position_gives_the_same_parameters(size):
    _, made = shapes(built("vgg11", num_classes=7), size, channels=1)
    assert made["params"]["stage1_conv1"]["kernel"].shape == (3, 3, 1, 64)
    assert made["params"]["dense1"]["kernel"].shape == (7 * 7 * 512, 4096)
    assert made["params"]["head"]["kernel"].shape == (4096, 7)


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_statistics_are_of_the_variants_with_normalisation(name):
    _, made = shapes(built(name), 32)
    assert ("batch_stats" in made) == name.endswith("_bn")
