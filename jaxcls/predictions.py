"""What a model says of every example of a split, on the host."""

from typing import NamedTuple

import numpy as np
import scipy.special


class Predictions(NamedTuple):
    """logits [n, K] float32 and labels [n] int32 of all n examples, in their order."""

    logits: np.ndarray
    labels: np.ndarray


def probabilities(
    logits: np.ndarray, link: str = "softmax", temperature: float = 1.0
) -> np.ndarray:
    """logits [..., K] -> probabilities [..., K] float64.

    link: "softmax", or "sigmoid" of each class on its own, as `Recipe.link` says.
    temperature: what logits are divided by (Guo et al., arXiv:1706.04599).
    """
    scaled = np.asarray(logits, np.float64) / temperature
    if link == "sigmoid":
        return scipy.special.expit(scaled)
    return scipy.special.softmax(scaled, axis=-1)
