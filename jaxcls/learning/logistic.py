"""Logistic regression on fixed features: the head of a probe, fitted at once by L-BFGS."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Iterations of one fit; each passes once or twice over the features.
MOST = 1000


class Head(NamedTuple):
    """A dense layer: logits = features @ kernel + bias.

    kernel: float32 [D, K]. bias: float32 [K]. iterations: those that the fit took.
    """

    kernel: np.ndarray
    bias: np.ndarray
    iterations: int = 0


def zeros(features: int, classes: int) -> Head:
    """Returns a head that is 0."""
    return Head(np.zeros((features, classes), np.float32), np.zeros(classes, np.float32))


def fit(features: np.ndarray, labels: np.ndarray, penalty: float, start: Head) -> Head:
    """Returns the head of least loss: mean cross-entropy + penalty / 2 * sum(kernel^2).

    The biases have no penalty. scikit-learn's `LogisticRegression` calls 1 / (n * penalty)
    C. The search runs on centred and scaled features, which changes its path and not its
    end. The loss is float32, L-BFGS float64.

    Args:
        features: float32 [n, D].
        labels: int [n], below K.
        penalty: At least 0.
        start: Where the search begins, [D, K] and [K].
    """
    import scipy.optimize  # The import takes a second; training does not need it.

    mean, shape = features.mean(0), start.kernel.shape
    # About the root of the loss's curvature: the cross-entropy's at equal probabilities.
    curvature = features.var(0) * (1 / shape[1]) * (1 - 1 / shape[1]) + penalty
    scale = np.sqrt(np.where(curvature > 0, curvature, 1)).astype(np.float32)[:, None]
    z, targets = jnp.asarray((features - mean) / scale[:, 0]), jnp.asarray(labels)

    def of_vector(vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kernel, bias = np.split(vector.astype(np.float32), [shape[0] * shape[1]])
        return kernel.reshape(shape), bias

    def value(vector: np.ndarray) -> tuple[float, np.ndarray]:
        found, grads = _loss(of_vector(vector), z, targets, scale, penalty)
        flat = [np.asarray(each, np.float64).ravel() for each in grads]
        return float(found), np.concatenate(flat)

    first = [start.kernel * scale, start.bias + mean @ start.kernel]
    found = scipy.optimize.minimize(
        value,
        np.concatenate([each.ravel() for each in first]).astype(np.float64),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MOST, "maxfun": 2 * MOST, "ftol": 1e-7, "gtol": 1e-5},
    )
    kernel, bias = of_vector(found.x)
    kernel = kernel / scale
    return Head(kernel, bias - mean @ kernel, int(found.nit))


@jax.jit
@jax.value_and_grad
def _loss(
    params: tuple[jax.Array, jax.Array],
    z: jax.Array,
    targets: jax.Array,
    scale: jax.Array,
    penalty: float,
) -> jax.Array:
    """Returns the loss of (kernel * scale, bias) on scaled features z [n, D]."""
    kernel, bias = params
    each = optax.softmax_cross_entropy_with_integer_labels(z @ kernel + bias[None], targets)
    return each.mean() + penalty / 2 * jnp.sum(jnp.square(kernel / scale))


def logits(head: Head, features: np.ndarray) -> np.ndarray:
    """Returns the logits float32 [n, K] of features [n, D]."""
    found: np.ndarray = features @ head.kernel + head.bias
    return found
