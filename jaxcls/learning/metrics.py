"""Metrics: ``(logits [B, K] float32, labels [B] int32) -> [B] float32``, one an example.

This module alone defines the name, function and direction of each metric. Means over
classes need the predicted classes of a whole split, so they are in evaluations and not in
training records. A score that needs the logits of a split (AUC, calibration) is no metric
here.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.config.calls import check_range

Function = Callable[[jax.Array, jax.Array], jax.Array]
# The name of the loss in records, and the prefix of scores of the averaged params.
LOSS, AVERAGED = "loss", "ema_"


class Metric(NamedTuple):
    """A named `function`; `higher` is True if more is better."""

    name: str
    function: Function
    higher: bool = True


class OfSplit(NamedTuple):
    """A named `function`: predicted classes, labels, both [n] of a whole split -> score.

    A predicted class of -1 is none. `higher` is True if more is better.
    """

    name: str
    function: Callable[[np.ndarray, np.ndarray], float]
    higher: bool = True


def predicted(logits: jax.Array) -> jax.Array:
    """Returns the class [B] int32 of the largest logit; the lowest class wins a tie.

    logits: [B, K].

    The class is -1 where the largest logit is not finite, so it is never a hit.
    """
    # A NaN among the logits makes the maximum NaN, and argmax would return its index.
    largest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.isfinite(logits.max(axis=-1)), largest, -1)


def top1() -> Metric:
    """Returns a metric: 1 if the prediction is the label; the lowest class wins a tie."""

    def function(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return (predicted(logits) == labels).astype(jnp.float32)

    return Metric("top1", function)


def topk(k: int = 5) -> Metric:
    """Returns a metric: 1 if the label's logit is among the `k` largest.

    Lower classes win ties. Raises ValueError for a `k` below 1.
    """
    check_range("[1, inf)", 5, k=k)

    def function(logits: jax.Array, labels: jax.Array) -> jax.Array:
        of_label = jnp.take_along_axis(logits, labels[:, None], axis=-1)
        classes = jnp.arange(logits.shape[-1])[None, :]
        ahead = (logits > of_label) | ((logits == of_label) & (classes < labels[:, None]))
        # NaN compares as False, so it would rank first: it is never a hit.
        hit = (ahead.sum(axis=-1) < k) & jnp.isfinite(of_label[:, 0])
        return hit.astype(jnp.float32)

    return Metric(f"top{k}", function)


def macro_recall() -> OfSplit:
    """Returns a metric: the mean recall of the classes that occur (balanced accuracy)."""

    def function(predicted: np.ndarray, labels: np.ndarray) -> float:
        hits, _, support = _counts(predicted, labels)
        there = support > 0
        return _mean(hits[there] / support[there])

    return OfSplit("macro_recall", function)


def macro_f1() -> OfSplit:
    """Returns a metric: the mean F1 of the classes that occur or are predicted."""

    def function(predicted: np.ndarray, labels: np.ndarray) -> float:
        hits, taken, support = _counts(predicted, labels)
        there = taken + support > 0
        return _mean(2 * hits[there] / (taken + support)[there])

    return OfSplit("macro_f1", function)


def _counts(
    predicted: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the hits, predictions and examples of each class, arrays [classes]."""
    count = int(max(labels.max(), predicted.max())) + 1
    chosen = (labels[predicted == labels], predicted[predicted >= 0], labels)
    hits, taken, support = (np.bincount(each, minlength=count) for each in chosen)
    return hits, taken, support


def _mean(values: np.ndarray) -> float:
    # fsum is exact, so that no order of addition changes the best step.
    return math.fsum(values.tolist()) / len(values)


METRICS: Mapping[str, Callable[..., Metric | OfSplit]] = MappingProxyType(
    {"top1": top1, "topk": topk, "macro_recall": macro_recall, "macro_f1": macro_f1}
)


def directions(metrics: Iterable[Metric | OfSplit]) -> dict[str, bool]:
    """Returns {name: whether more is better} of the loss, `metrics` and averaged scores."""
    known = {LOSS: False, **{metric.name: metric.higher for metric in metrics}}
    return known | {f"{AVERAGED}{name}": higher for name, higher in known.items()}


def is_higher_better(name: str) -> bool:
    """Returns whether more is better for the score `name` of a record.

    For readers that have only records. A metric that the table does not name gives True.
    """
    return directions(make() for make in METRICS.values()).get(name, True)
