"""Metrics: ``(logits [B, K] float32, labels [B] int32) -> [B] float32``, one an example.

Name, function and direction of each are said here and nowhere else. What is not a mean
over examples (AUC, calibration) is no metric: it belongs to the predictions of a split.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Function = Callable[[jax.Array, jax.Array], jax.Array]
# The name of the loss in records, and what comes before the names of the average's values.
LOSS, AVERAGED = "loss", "ema_"


class Metric(NamedTuple):
    """A named `function`; `higher`: whether more is better."""

    name: str
    function: Function
    higher: bool = True


def predicted(logits: jax.Array) -> jax.Array:
    """The class [B] int32 of the largest of logits [B, K]; the lowest wins a tie.

    -1 where the largest is not finite, so that it is no class and never a hit.
    """
    # The maximum is NaN where any logit is, and argmax would point at it.
    largest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.isfinite(logits.max(axis=-1)), largest, -1)


def top1() -> Metric:
    """1 where the largest logit is the label's; the lowest class wins a tie."""

    def function(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return (predicted(logits) == labels).astype(jnp.float32)

    return Metric("top1", function)


def topk(k: int = 5) -> Metric:
    """1 where the label's logit is among the `k` largest; lower classes win ties."""
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")

    def function(logits: jax.Array, labels: jax.Array) -> jax.Array:
        own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
        classes = jnp.arange(logits.shape[-1])[None, :]
        ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))
        # A logit that is no number ranks nothing, so it is never a hit.
        hit = (ahead.sum(axis=-1) < k) & jnp.isfinite(own[:, 0])
        return hit.astype(jnp.float32)

    return Metric(f"top{k}", function)


METRICS: dict[str, Callable[..., Metric]] = {
    "top1": top1,
    "topk": topk,
}


def directions(metrics: Iterable[Metric]) -> dict[str, bool]:
    """Whether more is better, by name, of the loss, `metrics` and the average's values."""
    own = {LOSS: False, **{metric.name: metric.higher for metric in metrics}}
    return own | {f"{AVERAGED}{name}": higher for name, higher in own.items()}


def is_higher_better(name: str) -> bool:
    """Whether more is better of what a record calls `name`.

    For a reader of records alone; True for a metric that the table does not name.
    """
    return directions(make() for make in METRICS.values()).get(name, True)
