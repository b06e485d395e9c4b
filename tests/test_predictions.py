"""Probabilities of logits, by hand."""

import numpy as np

from jaxcls.predictions import probabilities


def test_softmax_and_sigmoid_are_their_definitions_at_any_temperature():
    logits = np.array([[1.0, -2.0, 0.5], [300.0, 0.0, -300.0]], np.float32)
    powers = np.exp(logits[0].astype(float) / 2)
    np.testing.assert_allclose(
        probabilities(logits, temperature=2)[0], powers / powers.sum()
    )
    np.testing.assert_allclose(probabilities(logits)[1], [1, np.exp(-300), np.exp(-600)])
    each = 1 / (1 + np.exp(-logits[0].astype(float)))
    np.testing.assert_allclose(probabilities(logits, "sigmoid")[0], each)
