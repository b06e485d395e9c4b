"""Learning rates as functions of the step.

A schedule covers a `Span`: from the end of warm-up to the start of cool-down. `warm_up` and
`cool_down` add the rest. Rates are float32 and exact at both ends. The last update of a run
is at step `steps - 1`, one before the end of its schedule.

This module does not use optax's schedules. In runs of 1,000 to 2,300 steps the linear,
polynomial, cosine, exponential and piecewise constant ones differ in float32 at a fifth to
all of the steps. They are not exact at their ends, and do not support a drop at a rounded
step.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.config import durations
from jaxcls.config.calls import check_range

Schedule = Callable[[jax.Array], jax.Array]

# These schedules start below the peak, so a warm-up before them is refused.
RISING = ("one_cycle", "triangular")
# More drops in one run are a mistake, and their table would be too large for a device.
MOST_DROPS = 100_000


class Span(NamedTuple):
    """The steps of a schedule, and a function that reads a duration.

    first: The step at which warm-up ends.
    last: The step at which cool-down begins, or the number of steps of the run.
    steps: The text of a duration, such as "30 epochs" or "10 percent", -> exact steps;
        raises `InputError` for a bad text.
    """

    first: int
    last: int
    steps: Callable[[str], Fraction]


def constant(peak: float, span: Span) -> Schedule:
    """Returns the peak at every step."""
    return lambda step: jnp.full(jnp.shape(step), peak, jnp.float32)


def cosine(peak: float, span: Span, end: float = 0.0) -> Schedule:
    """Returns half a cosine from the peak to ``end * peak``.

    Loshchilov and Hutter, arXiv:1608.03983, without restarts.
    """
    check_range("[0, 1]", 0.1, end=end)
    return lambda step: _between(end * peak, peak, _half_cosine(_share(step, span)))


def linear(peak: float, span: Span, end: float = 0.0) -> Schedule:
    """Returns a line from the peak to ``end * peak``."""
    return polynomial(peak, span, power=1.0, end=end)


def polynomial(peak: float, span: Span, power: float, end: float = 0.0) -> Schedule:
    """Returns a curve from the peak to ``end * peak``: the remaining share to the `power`.

    Raises ValueError for a power of 0 or less.
    """
    check_range("[0, 1]", 0.1, end=end)
    check_range("(0, inf)", 2.0, power=power)

    def rate(step: jax.Array) -> jax.Array:
        return _between(end * peak, peak, _left(step, span) ** power)

    return rate


def step(
    peak: float, span: Span, every: str = "30 epochs", factor: float = 0.1
) -> Schedule:
    """Returns the peak, multiplied by `factor` after every period of `every`.

    Periods start at step 0 and include warm-up, as papers count epochs; torchvision's
    script counts from the end of warm-up. The k-th drop is at step round(k * every). Raises
    ValueError for over 100,000 drops.
    """
    check_range("(0, 1]", 0.1, factor=factor)
    period = _period("every", every, span)
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
    """Returns the peak, multiplied by `factor` at each duration of `at`.

    Durations start at step 0, as in `step`. Raises ValueError if `at` is not in ascending
    order.
    """
    check_range("(0, 1]", 0.1, factor=factor)
    drops = [durations.step_of(1, span.steps(text)) for text in at]
    if drops != sorted(drops):
        raise ValueError(f"at={tuple(at)} must rise, as in ('30 epochs', '60 epochs')")
    return _dropping(peak, span, drops, factor)


def exponential(
    peak: float, span: Span, every: str = "1 epoch", factor: float = 0.9
) -> Schedule:
    """Returns the peak times ``factor ** (step / every)``.

    Steps count from the start of the run and include warm-up. So the rate drops at the end
    of warm-up, from the peak to the value of a run without warm-up.
    """
    check_range("(0, 1]", 0.1, factor=factor)
    period = float(_period("every", every, span))

    def rate(step: jax.Array) -> jax.Array:
        powers = jnp.clip(step, span.first, span.last) / np.float32(period)
        return np.float32(peak) * jnp.exp(powers * math.log(factor))

    return rate


def triangular(
    peak: float, span: Span, up: float = 0.3, start: float = 0.0, end: float = 0.0
) -> Schedule:
    """Returns a line from ``start * peak`` to the peak, then a line to ``end * peak``.

    up: The share of the span before the peak, rounded to a step.
    """
    return _up_and_down(peak, span, up, start, end, lambda share: share)


def one_cycle(
    peak: float, span: Span, up: float = 0.3, start: float = 0.04, end: float = 4e-6
) -> Schedule:
    """Returns half a cosine from ``start * peak`` to the peak, and one to ``end * peak``.

    Smith and Topin (arXiv:1708.07120) in the form of torch's `OneCycleLR` with two phases.
    torch has the peak and the end one step earlier. The momentum stays constant.
    """
    return _up_and_down(peak, span, up, start, end, lambda x: 1.0 - _half_cosine(x))


def rsqrt(peak: float, span: Span, timescale: str = "10000 steps") -> Schedule:
    """Returns the peak times sqrt(timescale / (step - first + timescale)).

    The inverse square root, shifted so that it is the peak where warm-up ends, as in Zhai
    et al. (arXiv:2106.04560) and big_vision. It needs a `cool_down`. Raises ValueError for
    a timescale below one step.
    """
    scale32 = np.float32(float(_period("timescale", timescale, span)))

    def rate(step: jax.Array) -> jax.Array:
        passed = jnp.clip(step, span.first, span.last) - span.first
        return peak * jnp.sqrt(scale32 / (passed + scale32))

    return rate


def warm_up(
    schedule: Schedule, peak: float, warmup_steps: int, start: float = 0.0
) -> Schedule:
    """Returns `schedule` after a line from ``start * peak`` to the peak at `warmup_steps`.

    Raises ValueError unless 0 <= start <= 1.
    """
    check_range("[0, 1]", 0.1, start=start)
    if not warmup_steps:
        return schedule

    def rate(step: jax.Array) -> jax.Array:
        rising = _between(start * peak, peak, _ratio(step, warmup_steps))
        return jnp.where(step < warmup_steps, rising, schedule(step))

    return rate


def cool_down(schedule: Schedule, last: int, steps: int) -> Schedule:
    """Returns `schedule` to step `last`, then a line from its value there to 0 at `steps`.

    Zhai et al. (arXiv:2106.04560).
    """
    down = Span(last, steps, Fraction)

    def rate(step: jax.Array) -> jax.Array:
        return schedule(jnp.minimum(step, last)) * _left(step, down)

    return rate


def _share(step: jax.Array, span: Span) -> jax.Array:
    """The share of the span before the step: exactly 0 and 1 at its ends and beyond."""
    passed = jnp.clip(step, span.first, span.last) - span.first
    return _ratio(passed, max(span.last - span.first, 1))


def _left(step: jax.Array, span: Span) -> jax.Array:
    """The share of the span after the step: exactly 1 and 0 at its ends and beyond."""
    left = span.last - jnp.clip(step, span.first, span.last)
    return _ratio(left, span.last - span.first)


def _ratio(passed: jax.Array, whole: int) -> jax.Array:
    """Returns passed / whole as float32, exactly 1 from `whole` on."""
    # XLA compiles a division by a constant as a product with its rounded inverse.
    ratio = passed / np.float32(max(whole, 1))
    return jnp.where(passed >= whole, 1.0, jnp.minimum(ratio, 1.0))


def _between(low: float, high: float, share: jax.Array) -> jax.Array:
    """Interpolates from `low` at a share of 0 to `high` at 1, exact at both ends."""
    return np.float32(low) * (1.0 - share) + np.float32(high) * share


def _half_cosine(share: jax.Array) -> jax.Array:
    """Falls from 1 at a share of 0 to 0 at 1."""
    return 0.5 * (1.0 + jnp.cos(jnp.pi * share))


def _up_and_down(
    peak: float,
    span: Span,
    up: float,
    start: float,
    end: float,
    shape: Callable[[jax.Array], jax.Array],
) -> Schedule:
    """Rises from ``start * peak`` to the peak, then falls; `shape` maps 0..1 to 0..1."""
    check_range("[0, 1]", 0.1, up=up, start=start, end=end)
    top = span.first + round(up * (span.last - span.first))
    rise, fall = span._replace(last=top), span._replace(first=top)

    def rate(step: jax.Array) -> jax.Array:
        rising = _between(start * peak, peak, shape(_share(step, rise)))
        falling = _between(peak, end * peak, shape(_share(step, fall)))
        return jnp.where(step < top, rising, falling)

    return rate


def _dropping(peak: float, span: Span, drops: Sequence[int], factor: float) -> Schedule:
    """Returns the peak times `factor` to the number of `drops` at or before the step."""
    # Tables make every rate the nearest float32 and every drop exact to the step.
    rates = np.float32(peak * factor ** np.arange(len(drops) + 1, dtype=np.float64))
    edges = np.asarray([min(drop, 2**31 - 1) for drop in drops], np.int32)

    def rate(step: jax.Array) -> jax.Array:
        now = jnp.clip(step, span.first, span.last)
        return jnp.asarray(rates)[jnp.searchsorted(jnp.asarray(edges), now, side="right")]

    return rate


def _period(name: str, text: str, span: Span) -> Fraction:
    """Returns the steps of a duration; raises ValueError if it is 0."""
    steps = Fraction(span.steps(text))
    if steps <= 0:
        raise ValueError(f"{name}={text!r} must be above 0, such as '30 epochs'")
    return steps


# Each entry takes (peak, span) and its options.
SCHEDULES: Mapping[str, Callable[..., Schedule]] = MappingProxyType(
    {
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
)
