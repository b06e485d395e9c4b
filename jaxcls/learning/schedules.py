"""Learning rates as functions of the step.

A schedule lies between the end of warm-up and the beginning of cool-down, its `Span`;
`warm_up` and `cool_down` add these. All is float32 and exact at both ends. The last
update of a run is at step `steps - 1`, one before the end of its schedule.

optax's schedules are not used: over runs of 1,000 to 2,300 steps its linear, polynomial,
cosine, exponential and piecewise constant ones gave other float32 values at a fifth to all
of the steps, are not exact at their ends, and know no drop at a rounded step.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.config import durations

Schedule = Callable[[jax.Array], jax.Array]

# What begins below the peak: no warm-up comes before it.
RISING = ("one_cycle", "triangular")
# More drops than this in one run are a mistake, and a table that no device should hold.
MOST_DROPS = 100_000


class Span(NamedTuple):
    """The steps that a schedule is for, and how long a duration is.

    first: the step at which warm-up has ended. last: the one at which cool-down begins,
    or the number of steps of the run. steps: the text of a duration, such as "30 epochs"
    or "10 percent", in steps, exactly; it raises `InputError` for a bad one.
    """

    first: int
    last: int
    steps: Callable[[str], Fraction]


def constant(peak: float, span: Span) -> Schedule:
    """The peak throughout."""
    return lambda step: jnp.full(jnp.shape(step), peak, jnp.float32)


def cosine(peak: float, span: Span, end: float = 0.0) -> Schedule:
    """Half a cosine from the peak to ``end * peak`` (Loshchilov, arXiv:1608.03983)."""
    _check_ends(end=end)
    return lambda step: _between(end * peak, peak, _half_cosine(_share(step, span)))


def linear(peak: float, span: Span, end: float = 0.0) -> Schedule:
    """A line from the peak to ``end * peak``."""
    return polynomial(peak, span, power=1.0, end=end)


def polynomial(peak: float, span: Span, power: float, end: float = 0.0) -> Schedule:
    """From the peak to ``end * peak`` as what is left of the span to the `power`."""
    _check_ends(end=end)
    if power <= 0:
        raise ValueError(f"power={power} must be above 0, such as 2.0")

    def rate(step: jax.Array) -> jax.Array:
        return _between(end * peak, peak, _left(step, span) ** power)

    return rate


def step(
    peak: float, span: Span, every: str = "30 epochs", factor: float = 0.1
) -> Schedule:
    """The peak, times `factor` once more after `every` so long.

    Counted from the start of the run, warm-up included, as papers count epochs;
    torchvision's own script counts from the end of warm-up. The k-th drop is at step
    round(k * every). Raises ValueError for over 100,000 drops.
    """
    _check_factor(factor)
    period = _period(every, span)
    count = math.floor(span.last / period + Fraction(1, 2))
    if count > MOST_DROPS:
        raise ValueError(
            f"every={every!r} is {count} drops in a run, over {MOST_DROPS}, such as"
            " '30 epochs'"
        )
    drops = [durations.step_of(k, period) for k in range(1, count + 1)]
    return _dropping(peak, span, drops, factor)


def multistep(
    peak: float,
    span: Span,
    at: Sequence[str] = ("30 epochs", "60 epochs"),
    factor: float = 0.1,
) -> Schedule:
    """The peak, times `factor` once more from each of `at` on.

    Counted from the start of the run, as `step` is. Raises ValueError where `at` falls.
    """
    _check_factor(factor)
    drops = [durations.step_of(1, span.steps(text)) for text in at]
    if drops != sorted(drops):
        raise ValueError(f"at={tuple(at)} must rise, as in ('30 epochs', '60 epochs')")
    return _dropping(peak, span, drops, factor)


def exponential(
    peak: float,
    span: Span,
    every: str = "1 epoch",
    factor: float = 0.9,
    staircase: bool = False,
) -> Schedule:
    """The peak times ``factor ** (step / every)``; staircase: whole powers, as `step`.

    Counted from the start of the run, warm-up included, so that the rate falls at the end
    of warm-up from the peak to what it would have been without.
    """
    _check_factor(factor)
    if staircase:
        return step(peak, span, every, factor)
    period = float(_period(every, span))

    def rate(step: jax.Array) -> jax.Array:
        powers = jnp.clip(step, span.first, span.last) / np.float32(period)
        return np.float32(peak) * jnp.exp(powers * math.log(factor))

    return rate


def triangular(
    peak: float, span: Span, up: float = 0.3, start: float = 0.0, end: float = 0.0
) -> Schedule:
    """A line from ``start * peak`` to the peak, and one from it to ``end * peak``.

    up: the share of the span at which the peak is, to the nearest step.
    """
    return _up_and_down(peak, span, up, start, end, lambda share: share)


def one_cycle(
    peak: float, span: Span, up: float = 0.3, start: float = 0.04, end: float = 4e-6
) -> Schedule:
    """Half a cosine from ``start * peak`` to the peak, and one to ``end * peak``.

    As Smith and Topin (arXiv:1708.07120) in torch's form, `OneCycleLR` with two phases;
    that one has its peak and its end one step earlier. The momentum stays as it is.
    """
    return _up_and_down(peak, span, up, start, end, lambda x: 1.0 - _half_cosine(x))


def rsqrt(peak: float, span: Span, timescale: str = "10000 steps") -> Schedule:
    """The peak times sqrt(timescale / (step - first + timescale)).

    As in Zhai et al. (arXiv:2106.04560) and big_vision: the inverse square root, moved so
    that it is the peak where warm-up ends. To be followed by `cool_down`.
    """
    scale = span.steps(timescale)
    if scale <= 0:
        raise ValueError(f"timescale={timescale!r} must be above 0, such as '10000 steps'")
    scale32 = np.float32(float(scale))

    def rate(step: jax.Array) -> jax.Array:
        passed = jnp.clip(step, span.first, span.last) - span.first
        return peak * jnp.sqrt(scale32 / (passed + scale32))

    return rate


def warm_up(
    schedule: Schedule, peak: float, warmup_steps: int, start: float = 0.0
) -> Schedule:
    """Linear from ``start * peak`` at step 0 to the peak at `warmup_steps`; `schedule` on.

    Raises ValueError unless 0 <= start <= 1.
    """
    _check_ends(start=start)
    if not warmup_steps:
        return schedule

    def rate(step: jax.Array) -> jax.Array:
        rising = _between(start * peak, peak, _ratio(step, warmup_steps))
        return jnp.where(step < warmup_steps, rising, schedule(step))

    return rate


def cool_down(schedule: Schedule, last: int, steps: int) -> Schedule:
    """`schedule` to step `last`, then linear from its value there to 0 at `steps`.

    Zhai et al. (arXiv:2106.04560). Where `last` is `steps`, the schedule itself.
    """
    if last >= steps:
        return schedule
    down = Span(last, steps, Fraction)

    def rate(step: jax.Array) -> jax.Array:
        return schedule(jnp.minimum(step, last)) * _left(step, down)

    return rate


def _share(step: jax.Array, span: Span) -> jax.Array:
    """How much of the span has passed: exactly 0 and 1 at its ends and beyond."""
    passed = jnp.clip(step, span.first, span.last) - span.first
    return _ratio(passed, max(span.last - span.first, 1))


def _left(step: jax.Array, span: Span) -> jax.Array:
    """How much of the span is left: exactly 1 and 0 at its ends and beyond."""
    left = span.last - jnp.clip(step, span.first, span.last)
    return _ratio(left, span.last - span.first)


def _ratio(passed: jax.Array, whole: int) -> jax.Array:
    """passed / whole, float32, exactly 1 from `whole` on."""
    # Compiled, a division by a constant is a product with its rounded inverse.
    ratio = passed / np.float32(max(whole, 1))
    return jnp.where(passed >= whole, 1.0, jnp.minimum(ratio, 1.0))


def _between(low: float, high: float, share: jax.Array) -> jax.Array:
    """From `low` at a share of 0 to `high` at 1: exactly these there."""
    return np.float32(low) * (1.0 - share) + np.float32(high) * share


def _half_cosine(share: jax.Array) -> jax.Array:
    """From 1 at a share of 0 to 0 at 1."""
    return 0.5 * (1.0 + jnp.cos(jnp.pi * share))


def _up_and_down(
    peak: float,
    span: Span,
    up: float,
    start: float,
    end: float,
    shape: Callable[[jax.Array], jax.Array],
) -> Schedule:
    """From ``start * peak`` up to the peak, then down; `shape` rises from 0 to 1."""
    _check_ends(up=up, start=start, end=end)
    top = span.first + round(up * (span.last - span.first))
    rise, fall = span._replace(last=top), span._replace(first=top)

    def rate(step: jax.Array) -> jax.Array:
        rising = _between(start * peak, peak, shape(_share(step, rise)))
        falling = _between(peak, end * peak, shape(_share(step, fall)))
        return jnp.where(step < top, rising, falling)

    return rate


def _dropping(peak: float, span: Span, drops: Sequence[int], factor: float) -> Schedule:
    """The peak times `factor` to the number of `drops` at or before the step."""
    # Tables, so that every rate is the nearest float32 and every drop at its very step.
    rates = np.float32(peak * factor ** np.arange(len(drops) + 1, dtype=np.float64))
    edges = np.asarray([min(drop, 2**31 - 1) for drop in drops], np.int32)

    def rate(step: jax.Array) -> jax.Array:
        now = jnp.clip(step, span.first, span.last)
        return jnp.asarray(rates)[jnp.searchsorted(jnp.asarray(edges), now, side="right")]

    return rate


def _period(every: str, span: Span) -> Fraction:
    period = Fraction(span.steps(every))
    if period <= 0:
        raise ValueError(f"every={every!r} must be above 0, such as '30 epochs'")
    return period


def _check_factor(factor: float) -> None:
    if not 0 < factor <= 1:
        raise ValueError(f"factor={factor} must be above 0 and at most 1, such as 0.1")


def _check_ends(**shares: Any) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share} must be from 0 to 1, such as 0.1")


# Each takes (peak, span) besides its own options.
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "exponential": exponential,
    "linear": linear,
    "multistep": multistep,
    "one_cycle": one_cycle,
    "polynomial": polynomial,
    "rsqrt": rsqrt,
    "step": step,
    "triangular": triangular,
}
