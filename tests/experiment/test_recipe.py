"""What a config's recipe comes to: its optimizer, schedule, loss, and their checks."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxcls import experiment
from jaxcls.evaluation import scoring
from jaxcls.experiment.checks import check
from jaxcls.experiment.recipe import keys
from jaxcls.learning.gradients import Examples
from jaxcls.learning.param_groups import path_name
from jaxcls.models import naming
from jaxcls.training import train
from tests.test_laws import run

SCHEDULE_FREE = {
    "optim.wrapper": "schedule_free",
    "optim.schedule": "constant",
    "ema.decay": 0.0,
    "best.metric": "ema_top1",
}
PLATEAU = {
    "optim.plateau_patience": 1,
    "optim.plateau_factor": 0.5,
    "early_stop.min_delta": 0.9,
    "eval.every": "2 steps",
}


def metrics_of(folder, kind):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


@pytest.mark.slow
def test_a_plateau_shows_in_the_recorded_rate(tiny, tmp_path):
    constant = {"optim.schedule": "constant", "length": "8 steps"}
    run(tiny(**PLATEAU, **constant), tmp_path)
    rates = {r["step"]: r["lr"] for r in metrics_of(tmp_path, "train")}
    # The evaluation at step 2 is a gain over none; those at 4 and 6 are not.
    expected = {2: 0.01, 4: 0.01, 6: 0.005, 8: 0.0025}
    assert rates == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_schedule_free_scores_and_predicts_with_its_average(tiny, tmp_path):
    config = tiny(**SCHEDULE_FREE)
    result = train.run(experiment.build(config), str(tmp_path))
    assert {"top1", "ema_top1"} <= result.record.keys()
    exp, _, _, weights = scoring.load(str(tmp_path), "last", {})
    kernels = [tree["params"]["head"]["kernel"] for tree in (weights, weights["ema"])]
    assert np.abs(np.subtract(*kernels)).max() > 1e-4
    assert exp.recipe.variables(weights) is weights["ema"]


@pytest.mark.parametrize("kind", [{"model.name": "cnn"}, {"optim.freeze": "^(?!head/)"}])
def test_microbatches_need_no_groups_without_norms_that_move(tiny, kind):
    check(experiment.build(tiny(**kind, **{"optim.accumulate": 4})))


def test_rates_and_decays_by_expression_reach_the_parameters(tiny):
    changes = {
        "optim.name": "sgd(momentum=0.0)",
        "optim.schedule": "constant",
        "optim.lr": 0.125,
        "optim.weight_decay": 0.5,
        "optim.lr_scales": "{'^dense/': 4}",
        "optim.decay_scales": "{'^dense/': 0.25}",
        "ema.decay": 0.0,
    }
    exp = experiment.build(tiny(**changes))
    zeros = jax.tree.map(jnp.zeros_like, exp.init().params)
    params = exp.init().params
    update = jax.jit(exp.recipe.optimizer.update)
    updates, _ = update(
        zeros,
        exp.recipe.optimizer.init(params),
        params,
        lr=jnp.float32(0.125),
        step=jnp.int32(0),
        share=jnp.float32(0),
    )
    for name, factor in {"dense": 4 * 0.25, "head": 1.0}.items():
        kernel = np.asarray(params[name]["kernel"])
        expected = -0.125 * 0.5 * factor * kernel
        np.testing.assert_allclose(updates[name]["kernel"], expected, rtol=1e-6)
        assert not np.any(updates["dense"]["bias"])


def test_a_schedule_counts_epochs_from_the_start_of_the_run(tiny):
    changes = {
        "length": "4 epochs",
        "optim.lr": 1.0,
        "optim.schedule": "step('1 epoch', 0.1)",
        "optim.warmup": "10 steps",
        "optim.warmup_from": 0.5,
        "optim.cooldown": "10 steps",
    }
    exp = experiment.build(tiny(**changes))
    epoch = 1293 / 64
    rates = [
        float(exp.recipe.schedule(step))
        for step in (0, 5, 10, 19, 20, 39, 40, exp.plan.steps)
    ]
    assert (round(epoch), round(2 * epoch)) == (20, 40)
    expected = [0.5, 0.75, 1, 1, 0.1, 0.1, 0.01, 0]
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=1e-9)
    assert float(exp.recipe.schedule(exp.plan.steps - 5)) == pytest.approx(
        0.5 * 0.001, rel=1e-5
    )


def test_copies_of_an_example_come_in_a_row_with_crops_of_their_own(tiny):
    changes = {
        "data.repeats": 3,
        "data.train_ops": "decode(1) | random_resized_crop(8, area=(0.2, 0.5))",
        "length": "50 steps",
    }
    exp = experiment.build(tiny(**changes))
    found = [jax.tree.map(np.asarray, batch) for batch in exp.train_batches()]
    index = np.concatenate([batch.index for batch in found])
    epoch = np.concatenate([batch.epoch for batch in found])
    images = np.concatenate([batch.image for batch in found])
    turns = np.arange(50 * 64) // 3
    np.testing.assert_array_equal(index, index[::3].repeat(3)[: len(index)])
    np.testing.assert_array_equal(epoch, turns // 1293)
    assert len(set(index.tolist())) == len(set(turns.tolist()))
    assert (images[0] != images[1]).any()
    np.testing.assert_array_equal(exp.data.train_examples(7), index[7 * 64 : 8 * 64])


def test_precision_of_products_is_in_the_compiled_step(tiny):
    def lowered(precision):
        exp = experiment.build(tiny(**{"model.matmul_precision": precision}))
        return exp.programs.lowered_train_step.as_text()

    assert "HIGHEST" in lowered("float32")
    assert "HIGHEST" not in lowered("")


@pytest.mark.slow
def test_a_step_with_groups_is_the_same_on_one_and_on_eight_devices(tiny):
    def losses(devices):
        changes = {"model.batch_norm_groups": 4, "mesh.devices": devices}
        exp = experiment.build(tiny(**changes))
        state, found = exp.init(), []
        for batch in exp.train_batches():
            state, scores = exp.programs.train_step(state, batch)
            found.append(float(scores["loss"]))
        return found

    np.testing.assert_allclose(losses(1), losses(8), rtol=1e-4)


def test_balanced_weights_are_those_of_the_counts(tiny):
    exp = experiment.build(tiny(**{"data.classes": "0, 3", "data.fraction": 0.5}))
    counts = exp.selection.class_counts()
    labels = np.concatenate([np.asarray(b.label) for b in exp.train_batches()])
    assert counts.sum() == exp.plan.examples
    first_epoch = labels[: exp.plan.examples]
    np.testing.assert_array_equal(np.bincount(first_epoch, minlength=2), counts)


def test_images_for_a_model_to_start_from_are_the_first_of_training_on_every_machine(tiny):
    exp = experiment.build(tiny())
    some = exp.data.sample(100)
    assert some.shape == (100, 8, 8, 1)
    first = next(exp.train_batches())
    np.testing.assert_array_equal(some[:64], np.asarray(first.image))
    assert len(exp.data.sample(10**6)) == exp.plan.examples


# A net without chance; its parameters are moved, so that no bias is 0.
PLAIN = {
    "model.name": "cnn(widths=(4,), dense=8)",
    "augment": "",
    "mix": "",
    "optim.name": "sgd(momentum=0.0)",
    "optim.schedule": "constant",
    "optim.lr": 1.0,
    "optim.weight_decay": 0.0,
    "ema.decay": 0.0,
}


def moved(exp, by=0.1):
    """The state at step 0, every parameter larger by so much."""
    state = exp.init()
    return state._replace(params=jax.tree.map(lambda p: p + by, state.params))


def gradient(config, along=None):
    """(params, gradient, running statistics) of the first batch, each by path.

    Of the params moved by `along` too, a tree like theirs.
    """
    exp = experiment.build(config)
    state, batch = moved(exp), next(exp.train_batches())
    params = jax.tree.map(jnp.add, state.params, along) if along else state.params
    examples = Examples(*exp.recipe.inputs(keys(exp.config)[1]["augment"], 0, batch), None)
    key = jax.random.key(0)
    found, grads = jax.jit(exp.recipe.gradient())(params, state.batch_stats, key, examples)
    return [naming.flatten(tree) for tree in (params, grads, found.batch_stats)]


def assert_same(got, expected, rtol=1e-4):
    assert got.keys() == expected.keys()
    for path, array in got.items():
        np.testing.assert_allclose(array, expected[path], rtol, 1e-6, err_msg=path)


def test_weights_of_classes_and_smoothing_are_of_the_training_loss_alone(tiny):
    weights = np.array([0.5, 1, 2, 0, 1, 1, 3, 1, 1, 1])
    text = ", ".join(map(str, weights))
    changes = {"loss.class_weights": text, "loss.smoothing": 0.3}
    exp = experiment.build(tiny(**PLAIN | changes))
    state, batch = moved(exp), next(exp.train_batches())
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = np.asarray(exp.recipe.logits_step()(variables, batch.image), np.float64)
    hot = np.eye(10)[np.asarray(batch.label)]
    targets = 0.7 * hot + 0.03
    each = -(targets * log_softmax(logits, -1)).sum(-1)
    scored = exp.programs.eval_step(variables, batch)
    expected = -(hot * log_softmax(logits, -1)).sum(-1)
    np.testing.assert_allclose(scored["loss"], expected, rtol=1e-4)
    _, record = exp.programs.train_step(state, batch)
    expected = ((hot @ weights) * each).mean()
    assert float(record["loss"]) == pytest.approx(expected, rel=1e-5)


def test_a_penalty_is_of_what_decays(tiny):
    changes = {"loss.l1": 0.02, "loss.l2": 0.05, "optim.decay_on": "^head/kernel$"}
    params, plain, _ = gradient(tiny(**PLAIN))
    _, grads, _ = gradient(tiny(**PLAIN | changes))
    w = params["head/kernel"]
    expected = plain["head/kernel"] + 0.02 * np.sign(w) + 2 * 0.05 * w
    assert_same(grads, plain | {"head/kernel": expected})


@pytest.mark.slow
def test_sam_is_the_gradient_at_the_worst_point_of_its_radius(tiny):
    _, plain, _ = gradient(tiny(**PLAIN))
    reach = 0.5 / np.sqrt(sum(np.sum(np.square(g)) for g in plain.values()))
    along = jax.tree_util.tree_map_with_path(
        lambda path, p: reach * plain[path_name(path)],
        experiment.build(tiny(**PLAIN)).programs.state_shapes.params,
    )
    _, worst, _ = gradient(tiny(**PLAIN), along)
    _, grads, _ = gradient(tiny(**PLAIN | {"optim.sam": 0.5}))
    assert_same(grads, worst)
    assert np.abs(worst["head/bias"] - plain["head/bias"]).max() > 1e-3


@pytest.mark.parametrize("groups", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_microbatches_have_the_groups_of_the_whole_batch(tiny, groups):
    name = {"model.name": "cnn(widths=(4,), dense=8, batch_norm=True)"}
    config = PLAIN | name | {"model.batch_norm_groups": groups}
    _, whole, statistics = gradient(tiny(**config))
    _, pieces, moved = gradient(tiny(**config | {"optim.accumulate": 4}))
    assert_same(pieces, whole, rtol=1e-3)
    assert_same(moved, statistics)
    if groups == 8:  # One compilation less in the default suite.
        _, other, _ = gradient(tiny(**PLAIN | name))
        assert np.abs(other["dense/kernel"] - whole["dense/kernel"]).max() > 1e-3


@pytest.mark.parametrize("way", ["norm", "value", "adaptive"])
def test_a_clip_reaches_the_gradients_before_the_optimizer(tiny, way):
    exp = experiment.build(tiny(**PLAIN | {f"optim.clip_{way}": 0.25}))
    params, rng = moved(exp).params, np.random.default_rng(0)
    grads = jax.tree.map(lambda p: rng.standard_normal(p.shape, np.float32), params)
    one, step = jnp.float32(1), jnp.int32(0)
    updates, _ = jax.jit(exp.recipe.optimizer.update)(
        grads, exp.recipe.optimizer.init(params), params, lr=one, step=step, share=one
    )
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))

    def clipped(path, p, g):
        if way == "value":
            return np.clip(g, -0.25, 0.25)
        if way == "norm":
            return g * 0.25 / norm
        if path.startswith("head/"):
            return g
        axes = tuple(range(max(g.ndim - 1, 1)))
        size, most = (np.sqrt(np.square(x).sum(axes, keepdims=True)) for x in (g, p))
        return g * np.minimum(1, 0.25 * most / size)

    params, grads = naming.flatten(params), naming.flatten(grads)
    expected = {path: -clipped(path, p, grads[path]) for path, p in params.items()}
    assert_same(naming.flatten(updates), expected)


def test_the_average_of_a_config_is_made_as_often_and_warms_up(tiny):
    changes = {"ema.decay": 0.2, "ema.every": 2, "ema.warmup": True, "optim.lr": 0.1}
    exp = experiment.build(tiny(**PLAIN | changes))
    state, batches = exp.init(), exp.train_batches()
    average = np.asarray(state.params["head"]["kernel"], np.float64)
    for i, batch in zip(range(1, 7), batches, strict=False):
        state, _ = exp.programs.train_step(state, batch)
        decay = min(0.2, (1 + i // 2) / (10 + i // 2))
        if i % 2 == 0:
            kernel = np.asarray(state.params["head"]["kernel"])
            average = decay * average + (1 - decay) * kernel
        got = state.ema["params"]["head"]["kernel"]
        np.testing.assert_allclose(got, average, rtol=1e-5, atol=1e-7)


def test_dropout_in_training_is_a_function_of_the_key(tiny):
    exp = experiment.build(tiny(**{"model.name": "cnn(widths=(4,), dropout=0.5)"}))
    state, images = exp.init(), jnp.ones((4, 8, 8, 1))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    apply = jax.jit(lambda key: exp.recipe.model.apply(variables, images, True, key)[0])
    first, again, other = (np.asarray(apply(jax.random.key(i))) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_convnexts_rate_decays_by_threes_and_its_blocks_are_recomputed_alone(tiny):
    ops = {f"data.{name}": "decode(1) | resize(32)" for name in ("train_ops", "eval_ops")}
    values = {"model.name": "convnext_tiny(stages=(1, 1, 4, 1), width=8)", **ops}
    exp = experiment.build(tiny(**values, **{"optim.layer_decay": 0.5}))
    found = exp.recipe.param_groups
    layers = ["stage3_block4", "stage3_block3", "stage3_block1", "stage3_conv", "stem_conv"]
    scales = [found[f"{layer}/bias"].scale for layer in layers if "block" not in layer]
    scales += [found[f"{layer}/dense1/bias"].scale for layer in layers if "block" in layer]
    assert scales == [0.5**3, 0.5**6, 0.5**2, 0.5**3, 0.5**3]
    assert {f"stage3_block{i}" for i in range(1, 5)} <= {g[0] for g in exp.recipe.groups}
