"""Configs that cannot work: each is refused by one line that names the key and the rule."""

import pytest

from jaxcls import experiment
from jaxcls.errors import InputError
from jaxcls.experiment.checks import check

SCHEDULE_FREE = {
    "optim.wrapper": "schedule_free",
    "optim.schedule": "constant",
    "ema.decay": 0.0,
    "best.metric": "ema_top1",
}

# (changes of the config `tiny`, what the line says).
REFUSED = [
    ({"model.batch_norm_groups": 48}, r"groups=48 does not divide .*=32$"),
    (
        {"optim.plateau_patience": 2, "early_stop.patience": 2},
        r"early_stop.patience=2 ends the run before .*patience=6$",
    ),
    (
        {"optim.lr_scales": "{'bias$': 0}"},
        r"^optim.lr_scales=.* \(0 is not a number above 0\); try {'bias\$': 2.0}$",
    ),
    ({"optim.layer_decay": 1e-20}, r"leaves .* no rate to speak of, below .*; try 0.75$"),
    ({"optim.schedule": ""}, r"names 0 things where one is needed"),
    ({"optim.lr_scales": "bias"}, r"must be a table of regular expressions"),
    ({"optim.lr_scales": "{'(': 1}"}, r"must be a table of regular expressions"),
    ({"optim.lr_scales": "{'x/': 1}"}, r"lr_scales: 'x/' matches no parameter"),
    ({"optim.decay_scales": "{'x/': 1}"}, r"decay_scales: 'x/' matches no param"),
    ({"optim.schedule": "step('often')"}, r"schedule='often' is not a duration"),
    (
        {"optim.warmup": "50 percent", "optim.cooldown": "75 percent"},
        r"are 6 and 9 steps and the whole run has 12",
    ),
    ({"optim.cooldown": "100 percent"}, r"cooldown='100 percent' is 12 steps and"),
    (
        {"optim.schedule": "linear", "optim.cooldown": "3 steps"},
        r"'linear' is at its end where optim.cooldown='3 steps' begins",
    ),
    (
        {"optim.schedule": "one_cycle", "optim.warmup": "3 steps"},
        r"'one_cycle' rises by itself, and optim.warmup='3 steps'",
    ),
    ({"optim.decay_on": "karnel$"}, r"optim.decay_on: 'karnel\$' matches no param"),
    (
        {"optim.wrapper": "schedule_free", "ema.decay": 0.0},
        r"schedule_free' is for a constant rate, .* and best.metric='ema_top1'$",
    ),
    (
        {**SCHEDULE_FREE, "optim.schedule": "cosine"},
        r"give optim.schedule='constant' and best.metric='ema_top1'$",
    ),
    (
        {"loss.name": "sigmoid(threshold=0.02)", "loss.smoothing": 0.5},
        r"loss.smoothing=0.5 makes targets of 0.05 and 0.55, .* at 0.02; try",
    ),
    ({"optim.wrapper": "look"}, r"unknown optim.wrapper 'look' .*lookahead"),
    ({"eval.batch_size": 10**9}, r"eval.batch_size=1000000000 must be at most 1048576;"),
    ({"batch_size": 10**9}, r"batch_size=1000000000 must be at most 1048576; .* is 128"),
    (
        {"model.name": f"cnn(widths={(4,) * 2000})"},
        r"^model.name: cnn: widths with convs makes 2,000 blocks, over 1,000; try widths=",
    ),
    ({"model.name": "cnn(convs=1000000000)"}, "makes 2,000,000,000 blocks, over 1,000"),
    ({"model.name": "resnet18(stages=(400, 601))"}, "stages makes 1,001 blocks"),
    ({"model.name": "vit_s_16(depth=2000)"}, "depth=2000 makes 2,000 blocks, .* depth=12"),
    ({"model.name": "wrn28_10(depth=3004)"}, "depth=3004 makes 1,502 blocks"),
    ({"loss.class_weights": "1, 2"}, r"loss.class_weights='1, 2'"),
    (
        {"loss.class_weights": "balanced", "data.balance": True},
        r"'balanced' and data.balance=True would both",
    ),
    ({"init.whiten": "head"}, r"'init.whiten' is no more; there is a model's from_images"),
    ({"distill.run": "/nowhere"}, r"distill.run=/nowhere is not a run's folder"),
    (
        {"optim.wrapper": "schedule_free"},
        r"^ema.decay=0.9 and optim.w.*leave one",
    ),
    ({"optim.accumulate": 4}, r"accumulate=4 .*model.batch_norm_groups=4$"),
    (
        {"optim.accumulate": 16, "mesh.devices": 8, "model.name": "cnn"},
        "microbatches of 4 examples, which do not spread over 8",
    ),
    (
        {"augment": "random_crop(8)"},
        r"padding=8 must be below the 8 pixels .* try 1",
    ),
    ({"mix": "mixup(0.2) | cutmix(1.0)"}, "names 2 things .* mixup_or_cutmix$"),
    ({"loss.name": "softmax | focal"}, r"^loss.name='softmax \| focal' names 2 things"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_a_config_that_cannot_work_is_refused_by_one_line(tiny, changes, said):
    with pytest.raises(InputError, match=said) as error:
        check(experiment.build(tiny(**changes)))
    assert "\n" not in str(error.value)
