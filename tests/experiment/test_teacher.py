"""A run that learns another's logits; what a teacher must have in common with it."""

import json

import jax
import numpy as np
import pytest

from jaxcls import experiment
from jaxcls.data import sources
from jaxcls.errors import InputError
from jaxcls.runs.workdir import Workdir
from jaxcls.training import train


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """The folder of a finished run, made once; asked for by its config."""
    made = {}

    def get(config):
        key = config.to_json()
        if key not in made:
            made[key] = tmp_path_factory.mktemp("teacher") / "run"
            train.run(experiment.build(config), str(made[key]))
        return str(made[key])

    return get


STUDENT = {"model.name": "cnn(widths=(4,), dense=8)", "distill.temperature": 2.0}


@pytest.mark.slow
def test_the_loss_with_all_the_weight_is_the_distance_to_the_teacher(tiny, taught):
    teacher = taught(tiny(mix=""))
    changes = {**STUDENT, "distill.run": teacher, "distill.weight": 1.0, "augment": ""}
    exp = experiment.build(tiny(**changes, mix=""))
    state, batch = exp.init(), next(exp.train_batches())
    logits = {}
    folder = Workdir(teacher)
    built = experiment.build(folder.config())
    logits["student"] = exp.recipe.logits_step()(
        {"params": state.params, "batch_stats": state.batch_stats}, batch.image
    )
    logits["teacher"] = built.recipe.logits_step()(exp.teacher.variables, batch.image)
    soft = {k: jax.nn.log_softmax(np.asarray(v) / 2) for k, v in logits.items()}
    apart = (np.exp(soft["teacher"]) * (soft["teacher"] - soft["student"])).sum(-1)
    _, scores = exp.programs.train_step(state, batch)
    assert float(scores["loss"]) == pytest.approx(4 * float(apart.mean()), rel=1e-4)


@pytest.mark.slow
def test_another_teacher_is_another_run(tiny, taught, tmp_path):
    def config(**changes):
        return tiny(**STUDENT, **{"distill.run": taught(tiny(**changes))})

    train.run(experiment.build(config()), str(tmp_path))
    implied = json.loads((tmp_path / "config.json").read_text())["implied"]
    assert implied["teacher"].startswith("sha256:")
    for changed in (config(seed=5), tiny(**STUDENT)):
        with pytest.raises(InputError, match=r"what distill\.run names changed"):
            train.run(experiment.build(changed), str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.classes": "0-4"}, r"tells other classes apart \(10 of digits\), and .* 5"),
        ({"normalize": "symmetric"}, r"channels and normalize='unit', and here .*'symm"),
        (
            {"data.train_ops": "decode(3)", "data.eval_ops": "decode(3)"},
            r"was trained on 1 channels and .* here are 3",
        ),
        (
            {
                "data.train_ops": "decode(1) | resize(12)",
                "data.eval_ops": "decode(1) | resize(12)",
            },
            r"cannot take images of 12x12 pixels; end data.train_ops in .* 8$",
        ),
    ],
)
def test_a_teacher_must_see_what_the_student_does(tiny, taught, changes, said):
    config = tiny(**STUDENT, **{"distill.run": taught(tiny())}, **changes)
    with pytest.raises(InputError, match=said) as error:
        _ = experiment.build(config).teacher
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_student_predicts_where_its_teacher_is_gone(tiny, taught, tmp_path):
    config = tiny(**STUDENT, **{"distill.run": taught(tiny())})
    train.run(experiment.build(config), str(tmp_path))
    folder = Workdir(str(tmp_path))
    lost = folder.config()
    lost.distill.run = "/gone"
    exp = experiment.build(lost, sources.facts_of(folder.read()["implied"]))
    assert exp.programs.state_shapes.params
    _ = exp.programs.probabilities_step, exp.programs.eval_step
