"""Metrics: ``(logits [B, K] float32, labels [B] int32) -> [B] float32``, one an example.

This module alone defines the name, function and direction of each metric. A score that is
not a mean over examples (AUC, calibration) is no metric here: it needs the predictions of a
whole split.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcls.config.calls import check_range

Function = Callable[[jax.Array, jax.Array], jax.Array]
# The name of the loss in records, and the prefix of scores of the averaged params.
LOSS, AVERAGED = "loss", "ema_"


class Metric(NamedTuple):
    """A named `function`; `higher` is True if more is better."""

    name: str
    function: Function
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


METRICS: Mapping[str, Callable[..., Metric]] = MappingProxyType(
    {"top1": top1, "topk": topk}
)


def directions(metrics: Iterable[Metric]) -> dict[str, bool]:
    """Returns {name: whether more is better} of the loss, `metrics` and averaged scores."""
    known = {LOSS: False, **{metric.name: metric.higher for metric in metrics}}
    return known | {f"{AVERAGED}{name}": higher for name, higher in known.items()}


def is_higher_better(name: str) -> bool:
    """Returns whether more is better for the score `name` of a record.

    For readers that have only records. A metric that the table does not name gives True.
    """
    return directions(make() for make in METRICS.values()).get(name, True)
