"""Durations are exact: no error piles up over epochs."""

from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import pytest

from jaxcls.config import durations
from jaxcls.errors import InputError
from tests.properties import examples, few_examples, refusal


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.5 epochs", (Fraction(3, 2), "epoch")),
        (" 7steps ", (7, "step")),
        ("115e6 examples", (115_000_000, "example")),
    ],
)
def test_a_number_and_a_unit_are_parsed_exactly(text, expected):
    assert durations.parse(text, "length") == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "90",
        "epochs",
        "-1 epochs",
        "nan steps",
        "9 parsecs",
        "1..5 steps",
        "1e9999 steps",
    ],
)
def test_anything_else_is_refused_with_what_would_do(text):
    with pytest.raises(InputError) as caught:
        durations.parse(text, "eval.every")
    assert str(caught.value) == (
        f"eval.every={text!r} is not a duration; write a number and a unit, such as"
        " '90 epochs', '112600 steps', '115e6 examples' or '5 percent'"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12 steps", 12),
        ("3 epochs", Fraction(3000, 64)),
        ("640 examples", 10),
        ("5 percent", 6),
    ],
)
def test_each_unit_in_steps(text, expected):
    steps = durations.to_steps(text, "k", examples=1000, batch_size=64, total=120)
    assert steps == expected


def test_a_period_ends_at_the_nearest_step_and_a_half_goes_up():
    ends = [durations.step_of(count, Fraction(5, 2)) for count in (1, 2, 3)]
    assert ends == [3, 5, 8]
    assert durations.step_of(90, Fraction(1281167, 2048)) == 56301


PERIODS = st.fractions(min_value=Fraction(1, 50), max_value=200, max_denominator=64)


@few_examples
@hypothesis.given(PERIODS)
def test_is_due_at_exactly_the_steps_where_a_period_ends(every):
    ends = {durations.step_of(k, every) for k in range(1, int(301 / every) + 2)}
    due = [step for step in range(-2, 300) if durations.is_due(step, every)]
    assert due == [step for step in range(1, 300) if step in ends]


@examples
@hypothesis.given(
    st.decimals(min_value=0, max_value=10**6, places=3),
    st.sampled_from(["step", "epoch", "example", "percent"]),
    st.sampled_from(["", "s"]),
)
def test_a_number_with_a_unit_is_parsed_to_its_exact_fraction(number, unit, plural):
    text = f"{number:f} {unit}{plural}"
    assert durations.parse(text, "length") == (Fraction(number), unit)


@examples
@hypothesis.given(st.text(max_size=20))
def test_any_text_is_a_duration_or_one_line(text):
    assert "\n" not in refusal(durations.parse, text, "length")


def test_a_period_of_0_is_never_due():
    assert not any(durations.is_due(step, Fraction(0)) for step in range(10))
