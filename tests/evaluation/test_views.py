"""The views of test-time augmentation, pixel by pixel."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxcls.errors import InputError
from jaxcls.evaluation import views

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 8, 3), np.uint8)


def seen(text):
    return [np.asarray(view(jnp.asarray(IMAGES))) for view in views.build(text, "--tta")]


def test_a_flip_is_the_image_and_its_mirror():
    as_it_is, mirrored = seen("flip")
    np.testing.assert_array_equal(as_it_is, IMAGES)
    np.testing.assert_array_equal(mirrored, IMAGES[:, :, ::-1])


@pytest.mark.parametrize("count", [5, 9])
def test_crops_are_boxes_at_corners_and_middle_scaled_as_pillow_does(count):
    found = seen(f"crops({count}, 0.75)")
    assert len(found) == count
    tops, lefts = (0, 2, 4), (0, 1, 2)
    corners = list(itertools.product(tops, lefts))
    if count == 5:
        corners = [(0, 0), (0, 2), (2, 1), (4, 0), (4, 2)]
    for view, (top, left) in zip(found, corners, strict=True):
        assert view.dtype == np.uint8
        for image, own in zip(view, IMAGES, strict=True):
            box = Image.fromarray(own[top : top + 12, left : left + 6])
            scaled = np.asarray(box.resize((8, 16), Image.Resampling.BILINEAR))
            assert np.abs(image.astype(int) - scaled).max() <= 1


def test_joined_views_are_each_through_each():
    found = seen("flip | crops(5, 1.0)")
    assert len(found) == 10
    for k, view in enumerate(found):
        np.testing.assert_array_equal(view, IMAGES if k < 5 else IMAGES[:, :, ::-1])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("flop", r"^unknown --tta 'flop' \(did you mean 'flip'\?\); known: crops, flip"),
        ("crops(4)", "^--tta: crops: count=4 must be 5 or 9"),
        ("crops(5, 1.5)", "^--tta: crops: share=1.5 must be above 0 and at most 1"),
    ],
)
def test_unknown_views_are_refused(text, said):
    with pytest.raises(InputError, match=said):
        views.build(text, "--tta")
