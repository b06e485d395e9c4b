import functools

import jax
import numpy as np
import pytest
from scipy.special import expit, softmax

from jaxcls import experiment
from jaxcls.data import sources
from jaxcls.errors import InputError


def test_steps_round_the_whole_run_once(tiny):
    exp = experiment.build(tiny(length="3 epochs", batch_size=64))
    assert exp.plan.steps == round(3 * 1293 / 64)
    assert experiment.build(tiny(length="1000 examples")).plan.steps == 16
    assert float(exp.plan.every["eval"]) == 4


def test_warm_up_is_part_of_the_run_and_the_rate_may_be_of_a_batch_size(tiny):
    values = {"length": "100 steps", "optim.warmup": "10 percent", "batch_size": 64}
    exp = experiment.build(tiny(**values))
    rates = [float(exp.recipe.schedule(step)) for step in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(rates, [0, 0.005, 0.01, 0.005, 0], atol=1e-9)
    per = experiment.build(tiny(**values, **{"optim.lr_per": 256}))
    rates = [float(per.recipe.schedule(step)) for step in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(rates, [0, 0.00125, 0.0025, 0.00125, 0], atol=1e-9)


def test_nothing_is_opened_before_it_is_asked_for(tiny):
    exp = experiment.build(tiny(**{"data.name": "absent", "data.dir": "/nonexistent"}))
    with pytest.raises(InputError, match="'absent' is not prepared"):
        _ = exp.selection.facts
    facts = sources.Facts("absent", "", (8, 8, 1), 7, (), {"train": 100, "test": 10})
    known = experiment.build(tiny(**{"data.name": "absent", "data.dir": "/no"}), facts)
    assert known.programs.state_shapes.params["head"]["kernel"].shape[-1] == 7


def test_auto_is_float32_on_cpu_and_bfloat16_is_a_choice(tiny):
    assert experiment.build(tiny()).recipe.dtype == np.float32
    chosen = experiment.build(tiny(**{"model.dtype": "bfloat16"}))
    assert str(chosen.recipe.dtype) == "bfloat16"


def test_train_batches_start_anywhere(tiny):
    exp = experiment.build(tiny())
    walked = list(exp.train_batches())
    jumped = next(exp.train_batches(7))
    for expected, found in zip(walked[7][:2], jumped[:2], strict=True):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_the_features_are_what_the_head_makes_the_predictions_of(tiny):
    exp = experiment.build(tiny())
    state = exp.init()
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    features = np.asarray(exp.programs.embed_step(variables, pixels))
    assert (features.shape, features.dtype) == ((4, 16), np.float32)
    head = state.params["head"]
    logits = features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(
        logits, exp.programs.logits_step(variables, pixels), rtol=1e-5
    )
    each = experiment.build(tiny(**{"loss.name": "sigmoid"}))
    for made, link in ((exp, functools.partial(softmax, axis=1)), (each, expit)):
        found = made.programs.probabilities_step(variables, pixels)
        np.testing.assert_allclose(link(logits), found, rtol=1e-5)


def test_the_step_that_is_compiled_ahead_is_the_step_that_runs(tiny, caplog):
    exp = experiment.build(tiny())
    state, batch = exp.init(), next(exp.train_batches())
    with jax.log_compiles():
        exp.programs.compile_train_step()
        exp.programs.train_step(state, batch)
    assert caplog.text.count("XLA compilation of jit(train_step)") == 1
