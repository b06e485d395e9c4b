"""The colour where an image has no pixel: the same rule in every augmentation."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls import augment
from jaxcls.augment.colors import fill_color
from jaxcls.errors import InputError
from tests.rows import augmented

# What leaves a pixel without one of its own, for certain.
CALLS = {
    "cutout": "cutout(20, {})",
    "random_erasing": "random_erasing(1, (0.5, 0.5), {})",
    "rotate": "rotate(180, {})",
    "shear": "shear(45, {})",
    "translate": "translate(1.0, {})",
    "randaugment": "randaugment(4, 30, {})",
    "trivialaugment": "trivialaugment({})",
    "autoaugment": "autoaugment('imagenet', {})",
}


def test_a_fill_is_one_level_or_one_a_channel_or_its_grey():
    np.testing.assert_array_equal(fill_color(7, 3), [7, 7, 7])
    np.testing.assert_array_equal(fill_color((7,), 3), [7, 7, 7])
    np.testing.assert_array_equal(fill_color((1, 2, 3), 3), [1, 2, 3])
    np.testing.assert_array_equal(fill_color((200, 31, 94), 1), [89])
    with pytest.raises(InputError, match=r"^fill=\(1, 2\) has 2 levels and the images"):
        fill_color((1, 2), 3)


def test_every_augmentation_that_fills_is_tried_here():
    table = augment.AUGMENTATIONS
    assert set(CALLS) == {
        n for n in table if "fill" in inspect.signature(table[n]).parameters
    }


# Policies take long to compile, and their colour is made where that of the others is.
GREY = [name for name in CALLS if name not in ("trivialaugment", "autoaugment")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "channels"), [*((name, 1) for name in GREY), *((name, 3) for name in CALLS)]
)
def test_a_level_a_level_in_brackets_and_three_of_it_are_the_same(name, channels):
    image = np.full((64, 12, 12, channels), 90, np.uint8)
    fills = "201", "(201,)", "(201, 201, 201)"
    got = [augmented(CALLS[name].format(f"fill={fill}"), image) for fill in fills]
    assert (got[0] == 201).any()
    np.testing.assert_array_equal(got[1], got[0])
    np.testing.assert_array_equal(got[2], got[0])


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("fill", ["256", "()", "(0, -1, 0)"])
def test_what_is_no_level_is_refused_everywhere(name, fill):
    text = CALLS[name].format(f"fill={fill}")
    with pytest.raises(InputError, match=r"fill=.* must be in \[0, 255\], such as 128 or"):
        augmented(text, jnp.zeros((1, 4, 4, 3), jnp.uint8))
