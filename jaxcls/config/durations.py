"""Durations: "90 epochs", "112600 steps", "115e6 examples", "5 percent".

A duration is an exact fraction of steps. So "k epochs" is step round(k * n / B) on every
machine, and no error accumulates over epochs.
"""

import math
import re
from fractions import Fraction

from jaxcls.errors import InputError

_NUMBER = r"((?:[0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})(?:e[0-9]{1,2})?)"
_FORM = re.compile(_NUMBER + r"\s*(step|epoch|example|percent)s?")


def parse(text: str, key: str) -> tuple[Fraction, str]:
    """Parses ``"1.5 epochs"`` to ``(Fraction(3, 2), "epoch")``; raises `InputError`."""
    match = _FORM.fullmatch(text.strip())
    if not match:
        raise InputError(
            f"{key}={text!r} is not a duration; write a number and a unit, such as"
            " '90 epochs', '112600 steps', '115e6 examples' or '5 percent'"
        )
    return Fraction(match[1]), match[2]


def to_steps(
    text: str, key: str, *, examples: int, batch_size: int, total: int
) -> Fraction:
    """Returns the duration in steps, exactly; raises `InputError`.

    examples: the size of one epoch. total: the steps of the whole run, for "percent".
    """
    number, unit = parse(text, key)
    of_one = {
        "step": Fraction(1),
        "epoch": Fraction(examples, batch_size),
        "example": Fraction(1, batch_size),
        "percent": Fraction(total, 100),
    }
    return number * of_one[unit]


def step_of(count: int | Fraction, every: Fraction) -> int:
    """Returns the step at the end of period `count`: round(count * every), half up."""
    return math.floor(count * every + Fraction(1, 2))


def is_due(step: int, every: Fraction) -> bool:
    """Returns whether a period of `every` steps ends at `step`; 0 means never."""
    if every <= 0 or step <= 0:
        return False
    if every <= 1:
        return True
    # A period longer than a step ends within half a period of count * every, so round()
    # finds the count.
    count = round(step / every)
    return count > 0 and step_of(count, every) == step
