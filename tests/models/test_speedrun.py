"""The speed records' net: its whitening, its start, its sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from benchmarks.flops import multiply_adds
from jaxcls.models.speedrun import dirac, whitening
from tests.modules import KEY, built, outputs

RNG = np.random.default_rng(0)


def smooth_images():
    """[40, 9, 8, 3] float32 whose neighbouring pixels and channels go together."""
    noise = RNG.standard_normal((40, 10, 9, 4)).astype(np.float32)
    near = noise[:, 1:, 1:] + noise[:, :-1, 1:] + noise[:, 1:, :-1] + 0.5
    return near[..., 1:] + 0.7 * near[..., :-1]


def responses(images, kernel):
    """The products of every patch with every filter, [patches, filters] float64."""
    wide = np.float64(images)
    patches = np.lib.stride_tricks.sliding_window_view(wide, kernel.shape[:2], (1, 2))
    return np.einsum("nyxchw,hwcf->nyxf", patches, kernel).reshape(-1, kernel.shape[-1])


@pytest.mark.parametrize("side", [1, 2, 3])
def test_whitened_patches_are_uncorrelated_and_of_unit_size(side):
    images = smooth_images()
    kernel = whitening(images, kernel=side, epsilon=0.0)
    half = side * side * 3
    assert (kernel.shape, kernel.dtype) == ((side, side, 3, 2 * half), np.float32)
    found = responses(images, kernel)[:, :half]
    np.testing.assert_allclose(found.T @ found / len(found), np.eye(half), atol=1e-4)
    np.testing.assert_array_equal(kernel[..., half:], -kernel[..., :half])


def test_epsilon_keeps_small_whatever_hardly_varies():
    images = smooth_images()
    found = responses(images, whitening(images, epsilon=0.5))[:, :12]
    kept = np.diag(found.T @ found / len(found))
    # Of an eigenvalue v there is v / (v + epsilon) left.
    values = np.sort(kept * 0.5 / (1 - kept))[::-1]
    np.testing.assert_allclose(kept, values / (values + 0.5), rtol=1e-5)
    pixels = responses(images, np.eye(12).reshape(2, 2, 3, 12))
    assert values.sum() == pytest.approx(np.square(pixels).sum(1).mean(), rel=1e-4)


def test_whitening_has_one_answer_whatever_the_signs_of_eigenvectors():
    images = smooth_images()
    kernel = whitening(images)
    np.testing.assert_array_equal(whitening(-images), kernel)
    flat = kernel.reshape(12, 24)[:, :12]
    assert (flat[np.abs(flat).argmax(axis=0), np.arange(12)] > 0).all()


def test_whitening_is_of_all_images_however_many():
    images = RNG.standard_normal((600, 4, 4, 1)).astype(np.float32)
    again = np.concatenate([images, images, images])
    np.testing.assert_allclose(whitening(again), whitening(images), rtol=1e-5, atol=1e-6)
    assert np.abs(whitening(images[:300]) - whitening(images)).max() > 1e-3


def test_grey_pixels_of_a_corner_that_is_always_black_are_finite():
    images = (load_digits().images[:100, :, :, None] / 16).astype(np.float32)
    images[:, :, :4] = 0
    assert np.isfinite(whitening(np.repeat(images, 3, axis=3))).all()


@pytest.mark.slow
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 7), (4, 4), (6, 2)])
def test_the_first_filters_start_as_the_identity_and_others_as_pytorchs(inputs, outputs):
    kernel = dirac(KEY, (3, 3, inputs, outputs))
    x = jnp.asarray(RNG.standard_normal((2, 5, 6, inputs)).astype(np.float32))
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    same = min(inputs, outputs)
    np.testing.assert_allclose(y[..., :same], x[..., :same], atol=1e-6)
    others = np.asarray(kernel)[..., same:]
    bound = (1 / (9 * inputs)) ** 0.5
    if others.size:
        assert 0.8 * bound < np.abs(others).max() <= bound


@pytest.mark.parametrize(
    ("text", "steps", "peta"),
    [
        ("airbench", 48 * 9.9, 0.36),
        ("airbench(widths=(128, 384, 512), convs=3)", 48 * 37, 4.91),
    ],
)
def test_a_run_costs_what_the_author_states(text, steps, peta):
    module = built(text, num_classes=10)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    cost = multiply_adds(lambda x: module.init_with_output(KEY, x, False)[0], image)
    # Two operations each; forward, and twice that backward, for batches of 1,024; at the
    # end six views of 10,000 images.
    total = 2 * cost * (3 * 1024 * steps + 6 * 10_000)
    assert total / 1e15 == pytest.approx(peta, rel=0.02)


@pytest.mark.parametrize(("size", "sides"), [(32, (15, 7, 3)), (9, (4, 2, 1))])
def test_each_block_halves_what_the_first_layer_leaves(size, sides):
    seen = outputs("airbench(widths=(4, 6, 8))", size)
    for i, (side, width) in enumerate(zip(sides, (4, 6, 8), strict=True)):
        assert seen[f"block{i + 1}"] == (side, side, width)


@pytest.mark.slow
def test_statistics_keep_the_momentum_and_the_logits_the_scale():
    texts = "airbench(widths=(4,))", "airbench(widths=(4,), momentum=0.9, scale=1.0)"
    images = jnp.asarray(smooth_images())

    def start(text):
        module = built(text, num_classes=3)
        made = module.init(KEY, images, False)
        out, new = module.apply(made, images, True, mutable=["batch_stats"])
        return out.logits, new["batch_stats"]["block1"]["norm1"]

    (a, fast), (b, slow) = (jax.jit(start, static_argnums=0)(text) for text in texts)
    np.testing.assert_allclose(9 * a, b, rtol=1e-5)
    # From a mean of 0: 0.4 of the batch's, and 0.1 of it.
    np.testing.assert_allclose(fast["mean"], 4 * slow["mean"], rtol=1e-5)
