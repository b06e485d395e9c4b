"""Training with parts: the pure step, and the keys of a config."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax

from jaxcls import experiment
from jaxcls.augment import NORMALIZATIONS, chain
from jaxcls.data import sources
from jaxcls.errors import InputError
from jaxcls.experiment.checks import check
from jaxcls.learning import gradients as gradient
from jaxcls.learning import losses, step
from jaxcls.learning.param_groups import WHOLE, ParamGroup
from tests.learning.test_param_groups import (
    BATCHES,
    ODD,
    SIDE,
    START,
    WIDTH,
    B,
    K,
    bits,
    frozen_body,
    one_line,
    paths,
)
from tests.modules import KEY
from tests.stepping import AllWhole, optimizer_of


def linear(variables, images, train, key):
    """logits = pixels @ body @ head + bias, with no statistics."""
    params = variables["params"]
    x = images.reshape(images.shape[0], -1) @ params["body"]["kernel"]
    return x @ params["head"]["kernel"] + params["head"]["bias"][None], {}


def made(found, *, name="sgd", decay=0.0, ema=0.0, start=START, lr=0.5, **options):
    """(state at step 0, jitted train_step) of the linear model with parts."""
    model = step.Model(lambda key, images: {"params": start}, linear)
    optimizer = optimizer_of(name, decay, "", found, **options)
    inputs = step.make_inputs(
        num_classes=K,
        smoothing=0.0,
        augment=chain([]),
        normalize=NORMALIZATIONS["unit"](),
        mix=None,
        steps=100,
    )
    init = step.make_init(
        model, optimizer, image_shape=(SIDE, SIDE, 1), ema=bool(ema), higher=True
    )
    keys = {"augment": jax.random.key(1), "dropout": jax.random.key(2)}
    objective = gradient.make_objective(
        linear, losses.softmax(), trains=AllWhole() if found is None else found
    )
    train_step = step.make_train_step(
        optimizer,
        lambda count: jnp.full((), lr, jnp.float32),
        gradient.whole(objective),
        inputs,
        metrics=[],
        steps=100,
        average=step.Average(ema) if ema else None,
    )
    start = jax.tree.map(jnp.asarray, start)
    state = init(KEY, keys, {})
    return state, jax.jit(lambda state, batch: train_step(state, batch, {}))


def gradients(params, batch):
    """Of the mean cross-entropy of `linear`, in float64 by hand."""
    body, head, bias = (
        np.asarray(x, np.float64)
        for x in (
            params["body"]["kernel"],
            params["head"]["kernel"],
            params["head"]["bias"],
        )
    )
    x = batch.image.reshape(B, -1) / 255
    error = (softmax(x @ body @ head + bias, -1) - np.eye(K)[batch.label]) / B
    return {
        "body/kernel": x.T @ error @ head.T,
        "head/kernel": (x @ body).T @ error,
        "head/bias": error.sum(0),
    }


def with_odd_body(values=ODD):
    body = START["body"]["kernel"].copy()
    body.flat[: len(values)] = values
    return {**START, "body": {"kernel": body}}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_frozen_parameter_keeps_every_bit(name):
    start = with_odd_body(ODD[:4])
    state, train_step = made(frozen_body(), name=name, decay=0.3, start=start)
    for batch in BATCHES:
        state, record = train_step(state, batch)
        assert bool(record["finite"])
    assert int(state.step) == len(BATCHES)
    assert bits(state.params["body"]) == bits(start["body"])
    for leaf in ("kernel", "bias"):
        assert (np.asarray(state.params["head"][leaf]) != START["head"][leaf]).all()


def test_the_average_of_a_frozen_parameter_keeps_every_bit():
    start = with_odd_body(ODD[:4])
    state, train_step = made(frozen_body(), ema=0.9, start=start)
    for batch in BATCHES:
        state, _ = train_step(state, batch)
    assert bits(state.ema["params"]["body"]) == bits(start["body"])


def test_updates_with_parts_are_those_worked_by_hand():
    found = frozen_body(
        **{"body/kernel": ParamGroup(0.25, 2), "head/kernel": ParamGroup(3.0, 0)}
    )
    state, train_step = made(found, decay=0.1, momentum=0.9, nesterov=False, lr=0.125)
    params = {path: np.float64(x) for path, x in paths(START).items()}
    trace = dict.fromkeys(params, 0.0)
    for i, batch in enumerate(BATCHES):
        tree = {
            "body": {"kernel": params["body/kernel"]},
            "head": {leaf: params[f"head/{leaf}"] for leaf in ("kernel", "bias")},
        }
        grads = gradients(tree, batch)
        for path, part in found.items():
            trace[path] = 0.9 * trace[path] + grads[path] + 0.1 * params[path]
            if i >= part.start:
                params[path] = params[path] - 0.125 * part.scale * trace[path]
        state, record = train_step(state, batch)
        assert float(record["lr"]) == 0.125
        for path, value in paths(state.params).items():
            np.testing.assert_allclose(
                value, params[path], rtol=1e-4, atol=1e-5, err_msg=path
            )


def test_a_scale_multiplies_the_update_of_sgd_by_exactly_itself():
    zero_body = {**START, "body": {"kernel": np.zeros((SIDE * SIDE, WIDTH), np.float32)}}
    state, train_step = made(None, start=zero_body, momentum=0.0)
    whole = train_step(state, BATCHES[0])[0].params
    change = np.asarray(whole["body"]["kernel"]) / np.float32(0.5)
    assert np.abs(change).min() > 0
    for factor in (2.0, 0.75**12):
        found = frozen_body(**{"body/kernel": ParamGroup(factor, 0)})
        state, train_step = made(found, start=zero_body, momentum=0.0)
        params = train_step(state, BATCHES[0])[0].params
        rate = np.float32(0.5) * np.float32(factor)
        np.testing.assert_array_equal(params["body"]["kernel"], change * rate)
        assert bits(params["head"]) == bits(whole["head"])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_body_waits_for_the_head_bit_for_bit_and_then_moves(name):
    first, start = 3, with_odd_body(ODD[:4])
    found = frozen_body(**{"body/kernel": ParamGroup(1.0, first)})
    state, train_step = made(found, name=name, decay=0.2, start=start)
    for i, batch in enumerate(BATCHES):
        before = bits(state.params)
        state, _ = train_step(state, batch)
        now = bits(state.params)
        assert (now["body/kernel"] == before["body/kernel"]) == (i < first), i
        assert now["head/kernel"] != before["head/kernel"]
        assert (now["body/kernel"] == bits(start)["body/kernel"]) == (i < first)


def test_the_moments_of_the_body_are_kept_while_it_waits():
    found = frozen_body(**{"body/kernel": ParamGroup(1.0, 4)})
    state, train_step = made(found, name="adam")
    first, second = 0.0, 0.0
    for batch in BATCHES[:3]:
        grad = gradients(state.params, batch)["body/kernel"]
        first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
        state, _ = train_step(state, batch)
    (adam,) = (
        x
        for x in jax.tree.leaves(
            state.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)
        )
        if isinstance(x, optax.ScaleByAdamState)
    )
    assert int(adam.count) == 3
    np.testing.assert_allclose(adam.mu["body"]["kernel"], first, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(adam.nu["body"]["kernel"], second, rtol=1e-4, atol=1e-9)


def test_a_step_without_parts_is_one_in_which_all_are_whole():
    found = dict.fromkeys(paths(START), WHOLE)
    runs = [made(each, name="adamw", decay=0.1, ema=0.9) for each in (None, found)]
    for batch in BATCHES:
        runs = [(step_of(state, batch)[0], step_of) for state, step_of in runs]
    assert bits(runs[0][0]) == bits(runs[1][0])


def test_the_norm_of_the_gradient_is_of_what_trains():
    grads = gradients(START, BATCHES[0])
    squares = {path: np.square(grad).sum() for path, grad in grads.items()}
    head = squares["head/kernel"] + squares["head/bias"]
    waits = frozen_body(**{"body/kernel": ParamGroup(1.0, 4)})
    for found, expected in (
        (frozen_body(), head),
        (waits, head + squares["body/kernel"]),
    ):
        state, train_step = made(found)
        _, record = train_step(state, BATCHES[0])
        assert float(record["grad_norm"]) == pytest.approx(expected**0.5, rel=1e-5)


EXPERIMENTS = {}  # What is compiled once serves every test.
TUNED = {
    "augment": "",
    "mix": "",
    "optim.schedule": "constant",
    "optim.freeze": "^stage1",
    "optim.layer_decay": 0.5,
    "optim.head_lr": 2.0,
    "optim.head_first": "7 steps",
}


def built_of(config):
    return EXPERIMENTS.setdefault(config.to_json(), experiment.build(config))


def trained(exp, steps):
    """The arrays of the state by path, at step 0 and after each of `steps` steps."""
    state, seen = exp.init(), []
    for batch in [None, *itertools.islice(exp.train_batches(), steps)]:
        if batch:
            state, record = exp.programs.train_step(state, batch)
            assert bool(record["finite"])
        arrays = paths(state._replace(key={})).items()
        seen.append({path: np.array(array) for path, array in arrays})
    return seen


def changed(before, after, prefix):
    """The paths below `prefix` whose bits differ."""
    below = [path for path in before if path.startswith(prefix)]
    assert below
    return {path for path in below if before[path].tobytes() != after[path].tobytes()}


def test_the_keys_of_a_config_reach_the_parts(tiny):
    exp = built_of(tiny(**TUNED))
    frozen = {"stage1_conv1/kernel", "stage1_conv1_norm/scale", "stage1_conv1_norm/bias"}
    expected = {path: ParamGroup(0.0, 0) for path in frozen} | {
        "stage2_conv1/kernel": ParamGroup(0.25, 7),
        "stage2_conv1_norm/scale": ParamGroup(0.25, 7),
        "stage2_conv1_norm/bias": ParamGroup(0.25, 7),
        "dense/kernel": ParamGroup(0.5, 7),
        "dense/bias": ParamGroup(0.5, 7),
        "head/kernel": ParamGroup(2.0, 0),
        "head/bias": ParamGroup(2.0, 0),
    }
    assert exp.recipe.param_groups == expected
    assert exp.plan.head_first == 7
    half = tiny(**TUNED | {"optim.head_first": "50 percent"})
    assert experiment.build(half).plan.head_first == 6
    assert set(experiment.build(tiny()).recipe.param_groups.values()) == {WHOLE}


@pytest.mark.slow
def test_frozen_layers_and_their_statistics_keep_every_bit_and_all_others_move(tiny):
    seen = trained(built_of(tiny(**TUNED)), 9)
    start, waiting, after = seen[0], seen[7], seen[9]
    for where in ("params/", "batch_stats/", "ema/params/", "ema/batch_stats/"):
        frozen = {path for path in start if path.startswith(f"{where}stage1")}
        assert frozen
        below = {path for path in start if path.startswith(where)}
        assert changed(start, after, where) == below - frozen
    head = {"params/head/kernel", "params/head/bias"}
    assert changed(start, waiting, "params/") == head
    assert changed(start, waiting, "batch_stats/") == {
        "batch_stats/stage2_conv1_norm/mean",
        "batch_stats/stage2_conv1_norm/var",
    }
    moments = [path for path in start if path.startswith("opt_state")]
    assert not [path for path in moments if "stage1" in path]
    assert [path for path in moments if "stage2" in path]


def test_the_rates_of_a_config_are_those_of_its_updates(tiny):
    seen = trained(built_of(tiny(**TUNED)), 9)
    scales = {"stage2_conv1": 0.25, "stage2_conv1_norm": 0.25, "dense": 0.5, "head": 2.0}
    for before, after in itertools.pairwise(seen):
        step = int(after["step"])
        for path in before:
            _, layer, leaf = [*path.split("/"), "", ""][:3]
            if not path.startswith("params/") or layer.startswith("stage1"):
                continue
            # AdamW by hand, from the moments that the state holds.
            mean, square = (
                next(x for at, x in after.items() if at.endswith(f"/{m}/{layer}/{leaf}"))
                for m in ("mu", "nu")
            )
            change = mean / (1 - 0.9**step)
            change = change / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
            change += 0.01 * before[path] * (leaf == "kernel")
            due = step > 7 or layer == "head"
            expected = -0.01 * scales[layer] * change * due
            assert np.abs(change).max() > 0.01
            np.testing.assert_allclose(
                after[path] - before[path], expected, rtol=1e-3, atol=1e-6, err_msg=path
            )


def test_a_linear_probe_trains_on_what_evaluation_sees(tiny):
    probe = {"optim.freeze": "^(?!head/)", "model.name": "cnn(batch_norm=True)"}
    exp = experiment.build(tiny(**probe))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), jnp.float32),
        exp.recipe.variables_like,
    )
    images = jnp.asarray(rng.normal(size=(4, 8, 8, 1)), jnp.float32)
    apply = jax.jit(exp.recipe.model.apply, static_argnums=2)
    training, statistics = apply(variables, images, True, KEY)
    evaluated, _ = apply(variables, images, False, KEY)
    np.testing.assert_allclose(training, evaluated, rtol=1e-5)
    assert bits(statistics) == bits(variables["batch_stats"])
    plain = experiment.build(tiny(**probe | {"optim.freeze": ""}))
    moved, statistics = jax.jit(plain.recipe.model.apply, static_argnums=2)(
        variables, images, True, KEY
    )
    assert np.abs(moved - evaluated).max() > 1
    assert bits(statistics) != bits(variables["batch_stats"])


BAD = [
    ("optim.layer_decay", -0.5, "must not be negative", 1.0),
    ("optim.layer_decay", 0.0, "must be above 0", 1.0),
    ("optim.layer_decay", 1.5, "must be at most 1", 1.0),
    ("optim.layer_decay", float("nan"), "finite", 1.0),
    ("optim.head_lr", -1.0, "must not be negative", 1.0),
    ("optim.head_lr", 0.0, "must be above 0", 1.0),
    ("optim.head_lr", float("inf"), "finite", 1.0),
    ("optim.head_first", "12 steps", "whole run has 12", "10 percent"),
    ("optim.head_first", "2 epochs", "whole run has 12", "10 percent"),
    ("optim.head_first", "100 percent", "whole run has 12", "10 percent"),
    ("optim.head_first", "-1 steps", "not a duration", "5 percent"),
    ("optim.head_first", "3", "not a duration", "5 percent"),
    ("optim.freeze", "stage1(", "not a regular expression", "kernel$"),
    ("optim.freeze", "[", "not a regular expression", "kernel$"),
    ("optim.freeze", "*", "not a regular expression", "kernel$"),
    ("optim.freeze", "a{99999999999999999999}", "not a regular expression", "kernel$"),
    ("optim.freeze", "(" * 5000, "not a regular expression", "kernel$"),
    ("optim.freeze", "stage9", "matches no parameter", "^(?!head/)"),
    ("optim.freeze", ".*", "matches every parameter", "^(?!head/)"),
]


@pytest.mark.parametrize(
    ("key", "value", "rule", "works"),
    BAD,
    ids=lambda x: str(x)[:24],
)
def test_a_bad_value_is_one_line_with_its_key_and_one_that_works(
    tiny, key, value, rule, works
):
    with pytest.raises(InputError, match=rule) as error:
        check(experiment.build(tiny(**{key: value})))
    text = one_line(error)
    shown = f"{key}={value}" if isinstance(value, float) else f"{key}={value!r}"
    assert shown[:200] in text
    assert str(works) in text
    good = experiment.build(tiny(**{key: works}))
    assert set(good.recipe.param_groups) == set(
        experiment.build(tiny()).recipe.param_groups
    )


def test_what_a_frozen_run_predicts_needs_no_dataset(tiny):
    splits = {"train": 500, "test": 100}
    known = sources.Facts("absent", "", (8, 8, 1), 10, (), splits)
    away = {"data.name": "absent", "data.dir": "/nonexistent", "data.fraction": 0.5}
    # One without parts does not: neither its model nor the shapes of its state count.
    assert experiment.build(tiny(**away), known).programs.state_like
    exp = experiment.build(tiny(**TUNED | away), known)
    assert exp.recipe.model
    assert exp.programs.state_like
