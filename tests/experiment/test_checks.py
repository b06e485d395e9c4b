"""What a config asks for and cannot be meant is said before anything runs."""

import re

import jax
import jax.numpy as jnp
import pytest

from jaxcls import experiment
from jaxcls.commands import dry_run
from jaxcls.errors import InputError
from jaxcls.experiment import checks
from jaxcls.models.layers import BatchNorm
from tests.experiment.test_recipe import SCHEDULE_FREE

LOOKAHEAD = {"optim.wrapper": "lookahead", "ema.decay": 0.0}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ema.decay": 0.9999, "length": "40 steps"}, "leaves 100% of the initial params"),
        (
            {"ema.decay": 0.9, "length": "12 steps"},
            "all 12 updates; .* ema.decay=0.68",
        ),
        ({"ema.decay": 0.9, "length": "40 steps", "ema.every": 2}, "all 20 updates"),
        ({"ema.decay": 0.9, "length": "40 steps"}, ""),
        (
            {"ema.decay": 0.9999, "length": "9500 steps"},
            "warmup=true, or .*=0.99952",
        ),
        ({"ema.decay": 0.9, "ema.every": 99}, "all 0 updates; .* or a smaller ema.every$"),
        ({"ema.decay": 0.9999, "length": "40 steps", "ema.warmup": True}, ""),
        ({"ema.decay": 0.0}, ""),
        (SCHEDULE_FREE, "averaged params with BatchNorm's statistics of other params"),
        ({**SCHEDULE_FREE, "model.name": "cnn"}, ""),
        # Evaluations after 4, 8 and 12 steps, the last with the slow weights.
        (LOOKAHEAD, "model is the slow weights, .* after step 4; try eval.every='5 steps'"),
        ({**LOOKAHEAD, "eval.every": "1 steps"}, "after step 1; .*eval.every='5 steps'"),
        ({**LOOKAHEAD, "optim.wrapper": "lookahead(every=2)"}, ""),
        ({**LOOKAHEAD, "optim.wrapper": "lookahead(every=8)"}, "after step 4; .*'8 steps'"),
        ({**LOOKAHEAD, "eval.every": "13 steps"}, ""),
        ({**LOOKAHEAD, "data.eval": ""}, ""),
        # 20.2 steps an epoch: evaluations after 20, 40, 61.
        ({**LOOKAHEAD, "eval.every": "1 epoch", "length": "2 epochs"}, ""),
        ({**LOOKAHEAD, "eval.every": "1 epoch", "length": "9 epochs"}, "after step 61;"),
        (
            {
                **LOOKAHEAD,
                "optim.wrapper": "lookahead(4, final=False)",
                "length": "13 steps",
            },
            "the last, after step 13; leave out final=False",
        ),
    ],
)
def test_an_average_that_says_little_is_noted(tiny, values, said):
    exp = experiment.build(tiny(**values))
    noted = "; ".join(checks.notes(exp))
    assert bool(noted) == bool(said)
    assert re.search(said, noted)


def test_the_dry_run_has_the_notes(tiny):
    exp = experiment.build(tiny(**LOOKAHEAD))
    (noted,) = checks.notes(exp)
    assert noted in dry_run.describe(exp)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"data.classes": "0-1", "eval.metrics": "topk(2)", "best.metric": "top2"},
            "best.metric='top2' is always 1 with 2 classes, so it chooses nothing; give",
        ),
        (
            {
                "data.classes": "0-4", "eval.metrics": "topk(7)", "best.metric": "ema_top7",
            },
            "best.metric='ema_top7' is always 1 with 5 classes",
        ),
        ({"data.classes": "3"}, "has 1 class in use, and there is nothing to tell"),
        (
            {"optim.warmup": "0 epochs", "optim.warmup_from": 0.5},
            "optim.warmup_from=0.5 does nothing where optim.warmup='0 epochs' is 0 steps",
        ),
        (
            {"optim.warmup": "0.4 steps", "optim.warmup_from": 0.5},
            "optim.warmup_from=0.5 does nothing where optim.warmup='0.4 steps' is 0 steps",
        ),
        (
            {"batch_size": 4, "model.batch_norm_groups": 4, "model.name": "resnet18",
             "data.train_ops": "decode | resize(9)", "data.eval_ops": "decode | resize(9)"},
            "would normalise one value a channel by itself, which gives 0, for images",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(tiny, values, message):
    with pytest.raises(InputError, match=message):
        checks.check(experiment.build(tiny(**values)))


def test_a_metric_that_can_move_chooses(tiny):
    values = {"eval.metrics": "topk(5)", "best.metric": "top5"}
    checks.check(experiment.build(tiny(**values)))


@pytest.mark.parametrize(
    ("shape", "groups", "works"),
    [((1, 2), 1, False), ((2, 2), 1, True), ((2, 2), 2, False), ((1, 1, 2, 2), 1, True)],
)
def test_a_norm_needs_two_values_a_channel(shape, groups, works):
    x, norm = jnp.ones(shape), BatchNorm()
    variables = norm.init(jax.random.key(0), x, True)

    def train():
        return norm.apply(variables, x, True, groups, mutable=["batch_stats"])

    if works:
        train()
    else:
        with pytest.raises(InputError, match="one value a channel"):
            train()
    # Evaluation normalises by the running statistics.
    norm.apply(variables, x, False)
