"""Losses against SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxcls.losses import LOSSES, smooth


def test_softmax_is_the_cross_entropy_of_each_example():
    rng = np.random.default_rng(0)
    logits = 10 * rng.standard_normal((6, 4)).astype(np.float32)
    targets = rng.dirichlet(np.ones(4), 6).astype(np.float32)
    expected = -(targets * log_softmax(logits.astype(np.float64), axis=-1)).sum(-1)
    got = LOSSES["softmax"]()(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_softmax_of_huge_logits_is_finite():
    logits = jnp.asarray([[1e4, -1e4, 0.0]])
    got = LOSSES["softmax"]()(logits, jnp.asarray([[0.0, 1.0, 0.0]]))
    assert got.tolist() == [2e4]


@pytest.mark.parametrize(
    ("smoothing", "expected"),
    [
        (0.0, [[0, 0, 1, 0], [1, 0, 0, 0]]),
        (0.1, [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]),
    ],
)
def test_smoothing_spreads_its_share_over_all_classes(smoothing, expected):
    targets = smooth(jnp.asarray([2, 0]), 4, smoothing)
    assert targets.dtype == jnp.float32
    np.testing.assert_allclose(targets, expected, rtol=1e-6)
