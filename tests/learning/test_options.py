"""Options out of range, in every table that a config names: one line with the rule."""

import optax
import pytest

from jaxcls.augment import AUGMENTATIONS, MIXES, NORMALIZATIONS
from jaxcls.config import calls
from jaxcls.errors import InputError
from jaxcls.learning.losses import LOSSES
from jaxcls.learning.metrics import METRICS
from jaxcls.learning.optimizers import OPTIMIZERS
from jaxcls.learning.schedules import SCHEDULES
from jaxcls.learning.wrappers import WRAPPERS
from tests.learning.test_schedules import span

# Key of the config -> its table, and what the builder gives beside the options.
TABLES = {
    "augment": (AUGMENTATIONS, {}),
    "mix": (MIXES, {}),
    "normalize": (NORMALIZATIONS, {}),
    "loss.name": (LOSSES, {}),
    "eval.metrics": (METRICS, {}),
    "optim.name": (OPTIMIZERS, {"decay": optax.identity()}),
    "optim.schedule": (SCHEDULES, {"peak": 0.1, "span": span()}),
    "optim.wrapper": (WRAPPERS, {"optimizer": optax.identity()}),
}


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("augment", "flip(1.5)", "probability=1.5 must be in [0, 1], such as 0.5"),
        ("augment", "random_crop(-1)", "padding=-1 must be in [0, inf), such as 4"),
        ("augment", "random_crop(1, 'wrap')", "unknown mode of random_crop 'wrap'"),
        ("augment", "cutout(0)", "size=0 must be in [1, inf), such as 16"),
        ("augment", "cutout(4, fill='noise')", "fill='noise' is not int | tuple[int, ...]"),
        ("augment", "random_erasing(area=(0.3, 0.1))", "area=(0.3, 0.1) must rise, such"),
        ("augment", "random_erasing(area=(0.3, 1.1))", "area=(0.3, 1.1) must be in [0, 1]"),
        (
            "augment",
            "random_erasing(ratio=(0.0, 1.0))",
            "ratio=(0.0, 1.0) must be in (0, inf",
        ),
        ("augment", "random_erasing(fill='mean')", "fill='mean' must be a colour or"),
        ("augment", "randaugment(0)", "layers=0 must be in [1, inf), such as 2"),
        ("augment", "randaugment(2, 31)", "magnitude=31 must be in [0, 30], such as 9"),
        (
            "augment",
            "randaugment(2, (5, 11), 'timm')",
            "magnitude=(5, 11) must be in [0, 1",
        ),
        ("augment", "randaugment(2, 9, 'keras')", "unknown space of randaugment 'keras'"),
        ("augment", "autoaugment('svhn')", "unknown policy of autoaugment 'svhn'"),
        ("augment", "blur(0.5, (2, 1))", "sigma=(2, 1) must rise, such as (0.1, 2.0)"),
        ("augment", "posterize(0.5, 0)", "bits=0 must be in [1, 8], such as 4"),
        ("augment", "color_jitter(hue=0.6)", "hue=0.6 must be in [0, 0.5]"),
        ("augment", "color_jitter(-0.1)", "brightness=-0.1 must be in [0, 60]"),
        ("augment", "rotate((0, 200))", "degrees=(0, 200) must be in [0, 180], such as 15"),
        ("augment", "translate(1.5)", "share=1.5 must be in [0, 1], such as 0.1"),
        ("mix", "mixup(0)", "alpha=0 mixes nothing; give 0.2 or (0.0, 0.2)"),
        ("mix", "cutmix((-1, 1))", "alpha=(-1, 1) must be in [0, inf), such as 0.2"),
        ("mix", "mixup(0.2, until=-0.5)", "until=-0.5 must be in [0, 1]"),
        ("mix", "mixup_or_cutmix(cutmix_share=3)", "cutmix_share=3 must be in [0, 1]"),
        ("normalize", "mean_std((0, 0), (1,))", "std=(1,) must be as long, std above 0"),
        ("normalize", "mean_std((0,), (0,))", "std=(0,) must be as long, std above 0"),
        ("loss.name", "sigmoid(1.0)", "threshold=1.0 must be in [0, 1), such as 0.2"),
        ("loss.name", "sigmoid(reduce='max')", "unknown reduce of sigmoid 'max'"),
        ("loss.name", "focal(-1)", "gamma=-1 must be in [0, inf), such as 2.0"),
        ("loss.name", "poly(-1.5)", "epsilon=-1.5 must be in [-1, inf), such as 1.0"),
        ("eval.metrics", "topk(0)", "k=0 must be in [1, inf), such as 5"),
        ("optim.name", "sgd(momentum=1.0)", "momentum=1.0 must be in [0, 1), such as 0.9"),
        ("optim.name", "adamw(b2=-0.1)", "b2=-0.1 must be in [0, 1)"),
        ("optim.name", "adam(eps=0.0)", "eps=0.0 must be in (0, inf)"),
        ("optim.name", "adafactor(min_dim=0)", "min_dim=0 must be in [1, inf)"),
        ("optim.name", "muon(iterations=0)", "iterations=0 must be in [1, inf)"),
        ("optim.name", "muon(rms=-1.0)", "rms=-1.0 must be in [0, inf), such as 0.2"),
        ("optim.name", "muon(adam_on='(')", "adam_on='(' is not a regular expression"),
        ("optim.name", "lamb(adapt_on='*')", "adapt_on='*' is not a regular expression"),
        ("optim.schedule", "cosine(end=1.5)", "end=1.5 must be in [0, 1]"),
        ("optim.schedule", "polynomial(power=0.0)", "power=0.0 must be in (0, inf)"),
        ("optim.schedule", "polynomial", "power"),
        ("optim.schedule", "step(factor=2.0)", "factor=2.0 must be in (0, 1]"),
        ("optim.schedule", "step(every='0 steps')", "every='0 steps' must be above 0"),
        ("optim.schedule", "step(every='.0001 steps')", "drops in a run, over 100000"),
        ("optim.schedule", "multistep(at=('3 epochs', '2 epochs'))", "must rise"),
        ("optim.schedule", "multistep(at='30 epochs')", "is not"),
        ("optim.schedule", "exponential(every='soon')", "'soon' is not a duration"),
        ("optim.schedule", "triangular(up=2.0)", "up=2.0 must be in [0, 1]"),
        (
            "optim.schedule",
            "rsqrt(timescale='0 epochs')",
            "timescale='0 epochs' must be above 0",
        ),
        ("optim.wrapper", "lookahead(every=0)", "every=0 must be in [1, inf), such as 5"),
        ("optim.wrapper", "lookahead(rate=0.0)", "rate=0.0 must be in (0, 1], such as 0.5"),
        ("optim.wrapper", "schedule_free(b1=1.0)", "b1=1.0 must be in (0, 1), such as 0.9"),
        ("optim.wrapper", "schedule_free(weight_power=-1)", "weight_power=-1 must be in"),
    ],
)
def test_an_option_out_of_range_is_refused_in_one_line_with_the_rule(key, text, said):
    table, given = TABLES[key]
    with pytest.raises(InputError) as error:
        calls.build_one(text, table, key, **given)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
