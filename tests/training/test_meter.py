"""How fast a run goes, and when it ends: arithmetic by hand."""

import math
from fractions import Fraction

import pytest

from jaxcls import experiment
from jaxcls.config import durations
from jaxcls.training import hints, meter


def test_it_counts_images_waiting_and_time_to_the_end():
    made = meter.Meter(start=10, steps=40, batch_size=32)
    assert made.rate == made.wait_share == 0
    assert made.eta == math.inf
    assert str(made) == "0 images/s, data wait 0%, ETA ?"
    for _ in range(10):
        made.stepped(0.5, 0.125)
    assert made.rate == 10 * 32 / 5
    assert made.wait_share == 0.25
    assert made.eta == 20 * 0.5
    assert str(made) == "64 images/s, data wait 25%, ETA 0:10"


def every_ten(step):
    """Evaluations and saves of a run of 100 steps after `step`."""
    left = 10 - step // 10
    return {"eval": left, "save": left}


def test_the_evaluations_and_saves_to_come_are_part_of_the_time_to_the_end():
    made = meter.Meter(start=0, steps=100, batch_size=1, left=every_ten)
    for _ in range(20):
        made.stepped(0.5, 0.0)
    assert made.eta == 80 * 0.5
    made.apart("compile", 50.0)
    # The first compiles, and what it took is not what the others will take.
    for seconds in (30.0, 2.0):
        made.apart("eval", seconds)
        made.apart("save", 0.25)
    assert made.eta == 80 * 0.5 + 8 * 2.0 + 8 * 0.25


def test_right_after_a_resume_the_first_step_and_its_wait_are_not_the_pace():
    made = meter.Meter(start=50, steps=100, batch_size=1, left=every_ten)
    made.apart("eval", 3.0)  # What the last start had not done.
    made.stepped(9.0, 8.5)
    assert made.eta == 49 * 9.0 + 5 * 3.0  # Nothing better is known yet.
    made.stepped(0.5, 0.0)
    assert made.eta == 48 * 0.5 + 5 * 3.0


@pytest.mark.parametrize("every", ["0.3", "1", "2.5", "20.2", "7/3", "50"])
def test_the_duties_left_are_those_that_will_be_due(every, tiny):
    exp = experiment.build(tiny(length="50 steps"))
    dues = dict.fromkeys(("eval", "checkpoint", "log"), Fraction(every))
    exp.recipe.plan = exp.plan._replace(every=dues)
    for step in range(51):
        due = [
            s
            for s in range(step + 1, 51)
            if s == 50 or durations.is_due(s, Fraction(every))
        ]
        assert exp.plan.left(step) == {"eval": len(due), "save": len(due)}
        ended = [s for s in range(1, step + 1) if durations.is_due(s, Fraction(every))]
        assert durations.periods(step, Fraction(every)) == len(ended)


def test_without_an_eval_split_no_evaluation_is_left(tiny):
    exp = experiment.build(tiny(**{"data.eval": ""}))
    assert exp.plan.left(0) == {"eval": 0, "save": 4}


def test_it_tells_what_happened_since_it_was_last_asked():
    made = meter.Meter(start=0, steps=100, batch_size=10)
    made.stepped(1.0, 0.5)
    made.since_last()
    made.stepped(2.0, 0.5)
    made.stepped(2.0, 1.5)
    made.apart("save", 0.75)
    assert made.since_last() == {
        "images_per_s": 5.0, "data_wait": 0.5, "train_s": 4.0, "eval_s": 0.0,
        "save_s": 0.75,
    }  # fmt: skip


def test_a_long_time_to_the_end_is_shown_in_hours():
    made = meter.Meter(start=0, steps=3662, batch_size=1)
    made.stepped(1.0, 0.0)
    assert str(made).endswith("ETA 1:01:01")


def test_the_shares_of_the_time_come_to_all_of_it():
    made = meter.Meter(start=0, steps=100, batch_size=1)
    made.apart("compile", 4.0)
    made.apart("eval", 10.0)
    made.stepped(75.0, 15.0)
    assert made.shares(100.0) == (
        "1:40: compiling 4 %, training 60 %, data wait 15 %, evaluation 10 %, other 11 %"
    )
    idle = meter.Meter(start=0, steps=100, batch_size=1)
    idle.apart("save", 8.0)
    assert idle.shares(8.0) == "8 s: training 0 %, data wait 0 %, saving 100 %"


def test_waiting_is_that_of_the_last_three_records_without_the_first_of_a_start():
    made = meter.Meter(start=0, steps=100, batch_size=1)
    shares = []
    for waited in (9.0, 1.0, 2.0, 3.0, 7.0):
        made.stepped(10.0, waited)
        made.since_last()
        shares.append(made.waiting())
    assert shares == [0.0, 0.0, 0.0, 0.2, 0.4]
    assert made.waiting(at_end=True) == 13 / 40


def test_a_hint_names_what_may_help_this_run(tiny, monkeypatch):
    monkeypatch.setattr(hints.batches, "cores", lambda: 4)
    resident = experiment.build(tiny())
    assert hints.input_bound(resident, 0.34) == ""
    off = experiment.build(tiny(**{"data.resident": "off", "data.threads": 2}))
    assert hints.input_bound(off, 0.34) == (
        "input-bound: 34% of training waits for data; try --config.data.resident=on (1 MiB"
        " on each device) or --config.data.threads=0 (one a core: 4)"
    )
    drawn = experiment.build(
        tiny(**{"data.train_ops": "decode(1) | random_resized_crop(4)"})
    )
    assert hints.input_bound(drawn, 0.5) == (
        "input-bound: 50% of training waits for data; try --config.data.threads=8 (where"
        " the disk is slow) or smaller files (jaxcls prepare --shrink=5)"
    )
