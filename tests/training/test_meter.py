"""How fast a run goes, and when it ends: arithmetic by hand."""

import math

from jaxcls import experiment
from jaxcls.training import hints, meter


def test_it_counts_images_waiting_and_time_to_the_end():
    made = meter.Meter(start=10, steps=40, batch_size=32)
    assert made.eta == math.inf
    assert str(made) == "0 images/s, data wait 0%, ETA ?"
    made.apart("compile", 50.0)
    for _ in range(10):
        made.stepped(0.5, 0.125)
    assert made.eta == 20 * 0.5
    assert str(made) == "64 images/s, data wait 25%, ETA 0:10"
    made.apart("eval", 1.5)  # More of both are to come.
    made.apart("save", 0.5)
    assert made.eta == 20 * 0.7
    assert str(made) == "64 images/s, data wait 25%, ETA 0:14"


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

    def hint(**changes):
        return hints.input_bound(experiment.build(tiny(**changes)), 0.34)

    says = "input-bound: 34% of training waits for data; try "
    assert hint() == ""
    assert hint(**{"data.resident": "off", "data.threads": 2}) == (
        f"{says}--config.data.resident=on or --config.data.threads=4"
    )
    drawn = "decode(1) | random_resized_crop(4)"
    assert hint(**{"data.train_ops": drawn}) == (
        f"{says}--config.data.threads=8 or jaxcls prepare --shrink=5"
    )
