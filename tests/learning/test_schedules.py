"""Schedules at points by hand, and against torch's and optax's."""

import math
import warnings
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcls.config import calls, durations
from jaxcls.learning.schedules import SCHEDULES, Span, cool_down, warm_up

PEAK = 0.2
ROOT_HALF = 0.5**0.5


def span(first=0, last=100, epoch=10):
    """A span of a run whose epoch has `epoch` steps, exactly."""

    def steps(text):
        return durations.to_steps(
            text, "optim.schedule", examples=epoch, batch_size=1, total=last
        )

    return Span(first, last, steps)


def rates(schedule, steps):
    """The rates at `steps`, from one compiled function."""
    compiled = jax.jit(schedule)
    got = [compiled(jnp.int32(step)) for step in steps]
    assert {(rate.dtype.name, rate.shape) for rate in got} == {("float32", ())}
    return np.asarray(got)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("cosine", [1, 0.5 + 0.5 * ROOT_HALF, 0.5, 0]),
        ("cosine(end=0.1)", [1, 0.1 + 0.45 * (1 + ROOT_HALF), 0.55, 0.1]),
        ("linear", [1, 0.75, 0.5, 0]),
        ("linear(end=0.2)", [1, 0.8, 0.6, 0.2]),
        ("polynomial(power=2.0)", [1, 0.5625, 0.25, 0]),
        ("polynomial(power=0.5, end=0.1)", [1, 0.1 + 0.9 * 0.75**0.5, 0.736396, 0.1]),
        ("triangular(up=0.25)", [0, 1, 2 / 3, 0]),
        ("triangular(up=0.5, start=0.2, end=0.4)", [0.2, 0.6, 1, 0.4]),
        ("triangular(up=0.0)", [1, 0.75, 0.5, 0]),
        ("triangular(up=1.0)", [0, 0.25, 0.5, 1]),
        ("one_cycle(up=0.5)", [0.04, 0.52, 1, 4e-6]),
        ("one_cycle(up=0.25, end=0.1)", [0.04, 1, 0.1 + 0.9 * 0.75, 0.1]),
        ("rsqrt(timescale='25 steps')", [1, ROOT_HALF, 3**-0.5, 5**-0.5]),
    ],
)
@pytest.mark.parametrize("first", [0, 20])
def test_a_schedule_at_its_start_quarter_middle_and_end(text, expected, first):
    made = calls.build_one(
        text, SCHEDULES, "optim.schedule", peak=PEAK, span=span(first, first + 100)
    )
    got = rates(made, [first, first + 25, first + 50, first + 100])
    np.testing.assert_allclose(got, PEAK * np.asarray(expected), rtol=3e-7, atol=1e-9)


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"polynomial"}))
def test_a_schedule_stays_outside_its_span_as_it_is_at_its_ends(name):
    made = SCHEDULES[name](PEAK, span(20, 100))
    got = rates(made, [0, 19, 20, 100, 101, 2**31 - 1])
    assert got[0] == got[1] == got[2]
    assert got[3] == got[4] == got[5]


@pytest.mark.parametrize("peak", [0.256, 11.5, 1 / 3])
@pytest.mark.parametrize("end", [0.0, 0.1])
@pytest.mark.parametrize("name", ["cosine", "linear", "triangular", "one_cycle"])
def test_the_ends_and_the_peak_are_the_nearest_float32(name, peak, end):
    made = SCHEDULES[name](peak, span(7, 107), end=end)
    top = 37 if name in ("triangular", "one_cycle") else 7
    got = rates(made, [top, 107])
    assert list(got) == [np.float32(peak), np.float32(end * peak)]


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_a_long_run_has_a_rate_of_its_own_far_beyond_what_float32_counts(name):
    last = 2**31 - 1
    made = SCHEDULES[name](1.0, span(5, last))
    got = rates(made, [5, last // 2 + 3, last - 1000, last])
    left = 1000 / (last - 5)
    almost = left if name == "linear" else 0.5 * (1 - math.cos(math.pi * left))
    np.testing.assert_allclose(got, [1, 0.5, almost, 0], rtol=1e-6, atol=1.2e-7)


def test_steps_drop_at_whole_periods_counted_from_the_start_of_the_run():
    made = SCHEDULES["step"](1.0, span(25, 100), every="3 epochs", factor=0.1)
    got = rates(made, [25, 29, 30, 59, 60, 89, 90, 100])
    expected = np.float32([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert got.tolist() == expected.tolist()


def test_a_drop_is_at_the_step_at_which_so_many_epochs_end():
    # An epoch is 7.5 steps: the house rounds a half up.
    made = SCHEDULES["step"](1.0, span(0, 40, Fraction(15, 2)), every="1 epoch", factor=0.5)
    got = rates(made, range(40))
    ends = [8, 15, 23, 30, 38]
    assert np.flatnonzero(np.diff(got)).tolist() == [end - 1 for end in ends]
    assert got[-1] == 0.5**5


def test_multistep_drops_at_each_and_twice_where_two_fall_together():
    at = ("2 epochs", "50 percent", "50 steps", "1e2 examples")
    made = SCHEDULES["multistep"](1.0, span(), at=at, factor=0.5)
    got = rates(made, [0, 19, 20, 49, 50, 99, 100])
    assert got.tolist() == [1, 1, 0.5, 0.5, 0.125, 0.125, 0.0625]


def test_exponential_is_the_tutorials_own():
    factor = math.exp(-0.1)
    made = SCHEDULES["exponential"](0.01, span(), every="1 epoch", factor=factor)
    steps = [0, 1, 10, 55, 100]
    expected = [0.01 * math.exp(-step / 10 / 10) for step in steps]
    np.testing.assert_allclose(rates(made, steps), expected, rtol=3e-7)


def test_warm_up_rises_from_0_to_the_peak_and_hands_over_to_the_whole_schedule():
    schedule = warm_up(SCHEDULES["cosine"](PEAK, span(10, 110)), PEAK, 10)
    got = rates(schedule, [0, 1, 5, 9, 10, 60, 110])
    np.testing.assert_allclose(got, [0, 0.02, 0.1, 0.18, 0.2, 0.1, 0], rtol=2e-7)
    assert got[[0, 4, 6]].tolist() == [0, np.float32(0.2), 0]


def test_warm_up_may_start_above_0():
    schedule = warm_up(SCHEDULES["constant"](PEAK, span(4, 9)), PEAK, 4, start=0.5)
    got = rates(schedule, [0, 2, 4, 5])
    np.testing.assert_allclose(got, [0.1, 0.15, 0.2, 0.2], rtol=2e-7)


def test_what_is_counted_from_the_start_of_the_run_passes_warm_up_by():
    after = SCHEDULES["exponential"](1.0, span(20, 100), every="1 epoch", factor=0.5)
    got = rates(warm_up(after, 1.0, 20), [10, 19, 20, 30])
    np.testing.assert_allclose(got, [0.5, 0.95, 0.25, 0.125], rtol=3e-7)


def test_warm_up_and_cosine_are_optaxs():
    ours = warm_up(SCHEDULES["cosine"](0.2, span(7, 40), end=0.25), 0.2, 7)
    theirs = optax.warmup_cosine_decay_schedule(0.0, 0.2, 7, 40, end_value=0.05)
    np.testing.assert_allclose(
        rates(ours, range(45)), [theirs(jnp.int32(step)) for step in range(45)], atol=3e-8
    )


def test_a_warm_up_of_0_is_the_schedule_itself():
    schedule = SCHEDULES["constant"](PEAK, span())
    assert warm_up(schedule, PEAK, 0) is schedule


def test_cool_down_falls_in_a_line_from_where_the_schedule_is_to_0():
    before = SCHEDULES["rsqrt"](PEAK, span(0, 75), timescale="25 steps")
    schedule = cool_down(before, 75, 100)
    got = rates(schedule, [0, 74, 75, 80, 99, 100, 150])
    at75 = PEAK / 2
    expected = [PEAK, PEAK * (25 / 99) ** 0.5, at75, at75 * 0.8, at75 / 25, 0, 0]
    np.testing.assert_allclose(got, expected, rtol=3e-7)
    assert got[2] == rates(before, [75])[0]
    assert got[5] == 0


@pytest.fixture
def torch_rates(torchvision):
    """``torch_rates(name, peak, steps, **options)`` -> the rate of each step."""
    torch = pytest.importorskip("torch")

    def make(name, peak, steps, **options):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak, momentum=0.9)
        scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **options)
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scheduler.step()
        return found

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("cosine(end=0.1)", "CosineAnnealingLR", {"T_max": 100, "eta_min": 0.02}),
        ("linear(end=0.2)", "LinearLR", [1.0, 0.2, 100]),
        ("polynomial(power=2.0)", "PolynomialLR", {"total_iters": 100, "power": 2.0}),
        ("step(every='3 epochs')", "StepLR", {"step_size": 30, "gamma": 0.1}),
        (
            "multistep(at=('3 epochs', '80 percent'), factor=0.5)",
            "MultiStepLR",
            {"milestones": [30, 80], "gamma": 0.5},
        ),
        ("exponential(every='1 step', factor=0.98)", "ExponentialLR", {"gamma": 0.98}),
        (
            "one_cycle(up=0.3)",
            "OneCycleLR",
            # Its peak is at pct_start * total_steps - 1, its end at total_steps - 1.
            {"max_lr": PEAK, "total_steps": 101, "pct_start": 31 / 101},
        ),
    ],
)
def test_a_schedule_is_torchs(text, name, options, torch_rates):
    if isinstance(options, list):
        keys = ("start_factor", "end_factor", "total_iters")
        options = dict(zip(keys, options, strict=True))
    ours = calls.build_one(text, SCHEDULES, "", peak=PEAK, span=span())
    theirs = torch_rates(name, PEAK, 101, **options)
    np.testing.assert_allclose(rates(ours, range(101)), theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["triangular", "one_cycle"])
@pytest.mark.parametrize(("up", "top"), [(0.3, 10), (0.25, 9)])
def test_the_peak_is_at_the_nearest_step(name, up, top):
    # Of 9 steps from 7 on: 2.7, and 2.25.
    got = rates(SCHEDULES[name](1.0, span(7, 16), up=up), [top - 1, top, top + 1])
    assert got[1] == 1
    assert max(got[0], got[2]) < 1
