"""What is drawn in a row is what Flax draws, bit for bit."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxcls.models import initializers

SHAPES = [(3, 3, 5, 7), (7, 7, 1, 12), (10, 6), (2, 3, 4)]
MADE = [
    ("variance_scaling", (2.0, "fan_out", "normal")),
    ("variance_scaling", (1 / 3, "fan_in", "uniform")),
    ("variance_scaling", (2.0, "fan_avg", "uniform")),
    ("normal", (0.02,)),
    ("variance_scaling", (1.0, "fan_in", "truncated_normal")),
]


@pytest.mark.parametrize(("name", "options"), MADE)
def test_what_is_drawn_is_what_flax_draws(name, options):
    ours, theirs = (getattr(m, name)(*options) for m in (initializers, nn.initializers))
    key = jax.random.key(3)
    for shape in SHAPES:
        found, wanted = (jax.jit(f, static_argnums=1)(key, shape) for f in (ours, theirs))
        assert found.shape == shape
        np.testing.assert_array_equal(found, wanted)
