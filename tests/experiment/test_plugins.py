"""Plug-ins in an experiment: their entries beside ours, and what a model must be."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcls import experiment
from jaxcls.config import loading, plugins
from jaxcls.data import sources
from jaxcls.errors import InputError
from jaxcls.experiment import checks
from jaxcls.learning.metrics import Metric
from jaxcls.models import Output, layers


class Plain(nn.Module):
    """Bare logits, and none of our methods."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(4, (3, 3), name="stem")(images)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(self.num_classes, name="top")(nn.relu(x).mean((1, 2)))


class Told(Plain):
    """Logits and features, and layers by depth."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(4, (3, 3), name="stem")(images).mean((1, 2))
        return Output(nn.Dense(self.num_classes, name="head")(x), x)

    def groups(self):
        return [("stem",), ("head",)]


class Ours(nn.Module):
    """Our BatchNorm in a network of one's own."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(4, (3, 3), name="stem")(images)
        x = layers.BatchNorm(name="norm")(x, train)
        return nn.Dense(self.num_classes, name="top")(nn.relu(x).mean((1, 2)))


class OtherArguments(nn.Module):
    num_classes: int

    def __call__(self, x):
        return x


class OtherShape(nn.Module):
    num_classes: int

    def __call__(self, images, train):
        return images.mean((1, 2))


class NoParams(OtherShape):
    def __call__(self, images, train):
        return jnp.zeros((len(images), self.num_classes))


class OtherCollection(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        self.variable("cache", "x", lambda: jnp.zeros(3))
        return nn.Dense(self.num_classes)(images.mean((1, 2)))


def halves():
    return lambda rows, images: images // 2


def bolder():
    def function(logits, labels):
        return jax.nn.softmax(logits).max(-1)

    return Metric("confidence", function)


def plain_sgd(decay):
    return optax.chain(decay, optax.scale(-1.0))


ADDED = plugins.Plugins(
    {
        "MODELS": {
            "plain": Plain, "told": Told, "ours": Ours,
            "arguments": OtherArguments, "shape": OtherShape, "collection": OtherCollection,
            "empty": NoParams,
            "nothing": lambda num_classes: 3,
        },
        "AUGMENTATIONS": {"halves": halves},
        "LOSSES": {"squares": lambda: lambda logits, t: ((logits - t) ** 2).sum(-1)},
        "METRICS": {"confidence": bolder},
        "OPTIMIZERS": {"plain_sgd": plain_sgd},
        "SCHEDULES": {"flat": lambda peak, span: lambda step: peak * 0.5},
        "NORMALIZATIONS": {"tenths": lambda: lambda x: x.astype(jnp.float32) / 10},
        "MIXES": {}, "WRAPPERS": {},
    },
    {"added/added.py": ""},
)  # fmt: skip


def built(tiny, added=ADDED, **values):
    config = tiny(**{"ema.decay": 0.0, "mix": "", "augment": "", **values})
    return experiment.build(config, plugins=added)


def test_entries_of_every_table_take_a_step(tiny):
    exp = built(
        tiny,
        **{
            "model.name": "plain", "augment": "halves", "loss.name": "squares",
            "eval.metrics": "top1 | confidence", "optim.name": "plain_sgd",
            "optim.schedule": "flat", "normalize": "tenths", "mesh.devices": 1,
            "optim.lr": 0.5, "optim.weight_decay": 0.0,
        },
    )  # fmt: skip
    checks.check(exp)
    state, batch = exp.init(), next(exp.train_batches())
    images = jnp.asarray(batch.image)
    pixels = (np.asarray(images) // 2).astype(np.float32) / 10
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits, _ = Plain(10).apply(variables, pixels, True, mutable=["batch_stats"])
    targets = np.eye(10)[np.asarray(batch.label)]
    loss = float(((np.asarray(logits) - targets) ** 2).sum(-1).mean())
    _, record = exp.programs.train_step(state, batch)
    assert float(record["loss"]) == pytest.approx(loss, rel=1e-4)
    assert float(record["lr"]) == 0.25
    sure = float(jax.nn.softmax(logits).max(-1).mean())
    assert float(record["confidence"]) == pytest.approx(sure, rel=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.name": "nothing"}, "model.name='nothing' makes int, and must make a flax"),
        (
            {"model.name": "arguments"},
            r"its __call__ takes \(x\), and must take \(images, tr",
        ),
        ({"model.name": "shape"}, r"returns an array of \[1, 1\], and must return logits"),
        ({"model.name": "collection"}, "makes the collection 'cache'; a model keeps its"),
        ({"model.name": "empty"}, "has no params, so there is nothing to train"),
        ({"model.name": "plain(width=3)"}, r"takes plain\(\)"),
        ({"model.name": "plane"}, r"unknown model.name 'plane' \(did you mean 'plain'"),
        (
            {"model.name": "plain", "optim.layer_decay": 0.5},
            r"has no groups\(\), its layer",
        ),
        (
            {"model.name": "plain", "optim.head_lr": 2.0},
            r"has no groups\(\), its layers by",
        ),
        ({"model.name": "plain", "optim.head_first": "1 steps"}, r"has no groups\(\), its"),
        ({"model.name": "plain", "model.remat": "blocks"}, "is not made of blocks"),
        (
            {"model.name": "plain", "optim.freeze": "^(stem|norm)/"},
            "optim.freeze=.* does not reach norm/mean of .*'plain', which Flax's",
        ),
        (
            {"model.name": "plain", "model.batch_norm_groups": 2},
            "batch_norm_groups=2 does not reach norm/mean of",
        ),
    ],
)
def test_what_a_model_lacks_is_said_in_one_line_when_it_is_built(tiny, values, message):
    with pytest.raises(InputError, match=message) as error:
        checks.check(built(tiny, **values))
    assert "\n" not in str(error.value)


def test_what_freezes_or_groups_no_norm_of_others_is_taken(tiny):
    for values in (
        {"model.name": "plain", "optim.freeze": "^stem/"},
        {"model.name": "plain", "optim.accumulate": 2, "model.batch_norm_groups": 2},
        {"model.name": "ours", "optim.freeze": "^(stem|norm)/"},
        {"model.name": "ours", "model.batch_norm_groups": 2},
    ):
        checks.check(built(tiny, **values))


def test_features_and_layers_by_depth_are_taken_where_the_model_tells_them(tiny):
    exp = built(tiny, **{"model.name": "told", "optim.layer_decay": 0.5})
    checks.check(exp)
    scales = {path: group.scale for path, group in exp.recipe.param_groups.items()}
    assert scales["stem/kernel"] == 0.5
    assert scales["head/kernel"] == 1.0
    images = np.zeros((8, 8, 8, 1), np.uint8)
    state = exp.init()
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    assert exp.programs.embed_step(variables, images).shape == (8, 4)
    other = built(tiny, **{"model.name": "plain"})
    with pytest.raises(InputError, match="'plain' gives no features; return"):
        jax.eval_shape(other.recipe.embed_step(), other.recipe.variables_like, images)


def test_a_factory_gets_the_dtype_if_it_takes_one(tiny):
    seen = {}

    def both(num_classes, dtype):
        seen["both"] = dtype
        return Plain(num_classes)

    def any_of_them(**given):
        seen["any"] = sorted(given)
        return Plain(given["num_classes"])

    models = {"both": both, "any_of_them": any_of_them}
    added = plugins.Plugins({"MODELS": models}, {"a/a.py": ""})
    for name in models:
        _ = built(tiny, added, **{"model.name": name}).recipe.module
    assert seen == {"both": jnp.float32, "any": ["dtype", "num_classes"]}


def test_a_model_without_names_elsewhere_gets_its_own_paths(tiny):
    exp = built(tiny, **{"model.name": "plain"})
    assert exp.recipe.namings == {
        "pytorch": {"norm": "norm", "stem": "stem", "top": "top"},
    }


def test_a_name_of_ours_is_not_replaced(tiny):
    added = plugins.Plugins({"LOSSES": {"softmax": lambda: None}}, {"a/a.py": ""})
    exp = built(tiny, added)
    with pytest.raises(InputError, match="'softmax' is in LOSSES already; give it another"):
        _ = exp.recipe


def test_nothing_is_imported_by_build(tiny):
    with pytest.raises(InputError, match=r"config.plugins='os' is not loaded; give build"):
        experiment.build(tiny(plugins="os"))


def test_a_config_that_writes_to_our_tables_is_told_of_plug_ins(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxcls.config import base\nfrom jaxcls.models import MODELS\n"
        "def get_config():\n    MODELS['mine'] = dict\n    return base()\n"
    )
    with pytest.raises(InputError, match=r"mine.py:4: our tables are read-only; .*plugins"):
        loading.load(str(file))


def test_its_source_is_a_fact_of_the_run(tiny):
    facts = sources.published_facts("cifar10")
    config = tiny(**{"data.name": "cifar10"})
    assert "plugins" not in experiment.build(config, facts).implied()
    found = experiment.build(config, facts, plugins=ADDED).implied()["plugins"]
    assert list(found) == ["added/added.py"]
    assert re.fullmatch("[0-9a-f]{16}", found["added/added.py"])
