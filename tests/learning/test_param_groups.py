"""What trains and how fast: param groups by hand, in the step, and by way of a config."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax

from jaxcls import experiment
from jaxcls.data import sources
from jaxcls.errors import InputError
from jaxcls.experiment.checks import check
from jaxcls.learning import optimizers, param_groups
from jaxcls.learning.optimizers import clip
from jaxcls.learning.param_groups import WHOLE, ParamGroup, path_name
from jaxcls.models.layers import BatchNorm
from tests import stepping
from tests.modules import KEY, built, shapes
from tests.stepping import SIDE, B, K, direction, optimizer_of

WIDTH = 5
RNG = np.random.default_rng(0)
BATCHES = stepping.batches(RNG)
START = {
    "body": {"kernel": RNG.standard_normal((SIDE * SIDE, WIDTH)).astype(np.float32)},
    "head": {
        "bias": RNG.standard_normal(K).astype(np.float32),
        "kernel": RNG.standard_normal((WIDTH, K)).astype(np.float32),
    },
}
# Arithmetic that leaves a number as it is would not leave these: -0.0 + 0.0 is 0.0, and
# XLA takes a denormal for 0.
ODD = np.array([-0.0, 1e-45, -1e-40, 1.1e-38, 3e38], np.float32)
TREE = {
    "stem": {"kernel": np.ones((2, 2))},
    "norm": {"scale": np.ones(2), "bias": np.ones(2)},
    "block": {"conv": {"kernel": np.ones((2, 2))}},
    "token": np.ones(2),
    "head": {"kernel": np.ones((2, 3)), "bias": np.ones(3)},
}
DEPTHS = [("stem", "norm", "token"), ("block",), ("head",)]


def paths(tree):
    """Every leaf of a tree by its path."""
    return {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def bits(tree):
    """The bytes of every array of a tree by its path; keys are left out."""
    leaves = paths(tree).items()
    return {
        path: np.asarray(leaf).tobytes()
        for path, leaf in leaves
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    }


# The scales of TREE with a decay of 0.5 a layer group.
SCALES = dict.fromkeys(("stem/kernel", "norm/scale", "norm/bias", "token"), 0.25)
SCALES |= {"block/conv/kernel": 0.5, "head/kernel": 1.0, "head/bias": 1.0}
FROZEN = {"scale": 0.0, "start": 0}


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, {}),
        ({"head_lr": 10.0}, {p: {"scale": 10.0} for p in SCALES if p[:4] == "head"}),
        ({"head_first": 4}, {p: {"start": 4} for p in SCALES if p[:4] != "head"}),
        (
            {"lr_scales": {"bias$": 64, "^norm/": 0.5}},
            {
                "norm/bias": {"scale": 8.0},
                "norm/scale": {"scale": 0.125},
                "head/bias": {"scale": 64.0},
            },
        ),
        ({"freeze": "^token$"}, {"token": FROZEN}),
        (
            {"freeze": "^head/b|^norm/scale", "head_lr": 1.0},
            {"norm/scale": FROZEN, "head/bias": FROZEN},
        ),
        ({"freeze": "^(?!head/)"}, {p: FROZEN for p in SCALES if p[:4] != "head"}),
    ],
)
def test_a_parameter_has_the_rate_and_the_steps_of_its_path(options, changes):
    found = param_groups.divide(TREE, DEPTHS, layer_decay=0.5, **options)
    expected = {path: ParamGroup(scale) for path, scale in SCALES.items()}
    for path, change in changes.items():
        expected[path] = expected[path]._replace(**change)
    assert found == expected


def test_a_layer_that_only_begins_like_the_head_is_not_the_head():
    tree = {"header": {"bias": 0}, "block": {"head": {"bias": 0}}, "head": {"bias": 0}}
    groups = [("header", "block"), ("head",)]
    found = param_groups.divide(tree, groups, head_lr=3.0, head_first=7)
    assert found["header/bias"] == found["block/head/bias"] == ParamGroup(1.0, 7)
    assert found["head/bias"] == ParamGroup(3.0, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"freeze": "HEAD"},
            r"optim.freeze: 'HEAD' matches no .*\(\?!head/\)' is all but",
        ),
        ({"freeze": "."}, r"optim.freeze='.' matches every parameter, and none would"),
        ({"freeze": "^head/", "head_first": 3}, r"head_first .* freezes it; leave one"),
        ({"lr_scales": {"^nil": 3}}, r"optim.lr_scales: '\^nil' matches no parameter"),
    ],
)
def test_an_expression_that_leaves_nothing_is_refused_with_one_that_works(options, said):
    with pytest.raises(InputError, match=said):
        param_groups.divide(TREE, DEPTHS, **options)


def test_the_decay_of_a_vit_is_that_of_beit():
    module = built("vit_ti_16(depth=3, width=12)")
    found = param_groups.divide(
        shapes(module, 32)[1]["params"], module.groups(), layer_decay=0.75
    )

    def number(path):
        """BEiT's get_num_layer_for_vit: 0 for the embeddings, i for block i, last."""
        layer = path.split("/")[0]
        if layer in ("patch", "token", "position"):
            return 0
        return int(layer.removeprefix("block")) if layer.startswith("block") else 4

    for path, part in found.items():
        assert part.scale == pytest.approx(0.75 ** (4 - number(path))), path


def test_the_statistics_of_a_layer_follow_its_scale_and_without_one_its_bias():
    layer, frozen, free = {"mean": 0, "var": 0}, ParamGroup(0.0, 0), ParamGroup(0.5, 9)
    statistics = {
        "norm": layer,
        "block": {"norm1": layer, "norm2": layer, "norm3": layer},
        "position": 0,
    }
    found = {
        **{"norm/scale": free, "norm/bias": frozen},
        **{"block/norm1/scale": frozen, "block/norm1/bias": free},
        **{"block/norm2/scale": WHOLE, "block/norm3/bias": frozen, "position": frozen},
    }
    kept = {"mean": True, "var": True}
    expected = {"block": {"norm1": kept, "norm3": kept}}
    assert param_groups.frozen_statistics(statistics, found) == expected
    assert param_groups.frozen_statistics({}, found) == {}


def test_all_statistics_of_the_frozen_blocks_of_a_resnet_are_kept_and_no_others():
    module = built("resnet50(width=8)")
    like = shapes(module, 32)[1]
    found = param_groups.divide(
        like["params"], module.groups(), freeze="^stage1|norm1/bias$", layer_decay=0.5
    )
    frozen = param_groups.frozen_statistics(like["batch_stats"], found)
    expected = {p for p in paths(like["batch_stats"]) if p.startswith("stage1")}
    assert set(paths(frozen)) == expected
    assert len(expected) == 2 * (3 * 3 + 1)
    assert set(jax.tree.leaves(frozen)) == {True}


class Two(nn.Module):
    """Two normalisations, one after the other."""

    @nn.compact
    def __call__(self, x, train):
        first = BatchNorm(name="first")(x, train)
        return first, BatchNorm(name="second")(first, train)


def two(rng):
    """Variables of `Two` with nothing at its start, and images of another mean."""
    layer = {"mean": rng.normal(size=4), "var": rng.uniform(0.5, 2, 4)}
    trained = {"scale": rng.normal(size=4), "bias": rng.normal(size=4)}
    variables = {
        "params": {"first": trained, "second": trained},
        "batch_stats": {"first": layer, "second": layer},
    }
    x = jnp.asarray(5 + 3 * rng.normal(size=(6, 3, 3, 4)), jnp.float32)
    return jax.tree.map(jnp.float32, variables), x


def test_frozen_statistics_keep_every_bit_and_normalise_while_others_move():
    variables, x = two(np.random.default_rng(1))
    frozen = {"frozen": {"first": {"mean": True, "var": True}}}
    apply = jax.jit(
        lambda v, x: Two().apply({**v, **frozen}, x, True, mutable=["batch_stats"])
    )
    (first, second), new = apply(variables, x)
    evaluated = jax.jit(lambda v, x: Two().apply(v, x, False))(variables, x)
    np.testing.assert_array_equal(first, evaluated[0])
    assert np.abs(second - evaluated[1]).max() > 0.1
    old = variables["batch_stats"]
    assert bits(new["batch_stats"]["first"]) == bits(old["first"])
    assert bits(new["batch_stats"]["second"]) != bits(old["second"])
    odd = {"mean": jnp.asarray(ODD[:4]), "var": jnp.asarray(np.abs(ODD[:4]))}
    _, new = apply({**variables, "batch_stats": {**old, "first": odd}}, x)
    assert bits(new["batch_stats"]["first"]) == bits(odd)


def test_gradients_pass_through_a_frozen_normalisation_by_its_running_deviation():
    variables, x = two(np.random.default_rng(4))
    norm = {name: variables[name]["first"] for name in variables}
    given = {**norm, "frozen": {"mean": True, "var": True}}

    def total(x):
        return BatchNorm().apply(given, x, True, mutable=["batch_stats"])[0].sum()

    factor = norm["params"]["scale"] / np.sqrt(norm["batch_stats"]["var"] + 1e-5)
    np.testing.assert_allclose(
        jax.grad(total)(x), np.broadcast_to(factor, x.shape), rtol=1e-5
    )


def test_held_parameters_have_a_gradient_of_exactly_0_and_others_theirs():
    found = {
        "a": ParamGroup(0.0, 0),
        "b/kernel": ParamGroup(0.1, 0),
        "b/bias": ParamGroup(1.0, 9),
    }
    params = {"a": 3.0, "b": {"kernel": 5.0, "bias": 7.0}}

    def product(params):
        held = param_groups.hold(params, found)
        return held["a"] ** 2 * held["b"]["kernel"] + held["b"]["bias"]

    value, grads = jax.value_and_grad(product)(params)
    assert float(value) == 9 * 5 + 7
    assert {path: float(x) for path, x in paths(grads).items()} == {
        "a": 0.0,
        "b/kernel": 9.0,
        "b/bias": 1.0,
    }


def frozen_body(**changes):
    return {
        "body/kernel": ParamGroup(0.0, 0),
        "head/bias": WHOLE,
        "head/kernel": WHOLE,
    } | changes


def test_there_is_no_optimizer_state_for_what_is_frozen():
    state = optimizers.train_only(direction("adamw", 0.1), frozen_body()).init(START)
    arrays = {path: x for path, x in paths(state).items() if np.ndim(x)}
    assert not [path for path in arrays if "body" in path]
    assert sum(x.size for x in arrays.values()) == 2 * (K + WIDTH * K)


def test_what_trains_is_updated_as_if_the_frozen_were_not_there():
    alone = clip(direction("adamw", 0.1), norm=0.5)
    both = optimizers.train_only(alone, frozen_body())
    head, states = START["head"], [alone.init(START["head"]), both.init(START)]
    rng = np.random.default_rng(5)
    for _ in range(2):
        grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), START)
        expected, states[0] = alone.update(grads["head"], states[0], head)
        got, states[1] = both.update(grads, states[1], START)
        assert bits(got["head"]) == bits(expected)


def updated(params, changes, lr, step, found):
    """The params after `changes` at a rate."""
    rate = optimizers.at_rate(optax.identity(), lambda: found)
    due, _ = rate.update(changes, rate.init(params), params, lr=jnp.float32(lr), step=step)
    return optimizers.apply(params, due)


def test_an_update_is_the_rate_times_the_scale_times_the_change():
    found = {
        "a": ParamGroup(0.0, 0),
        "b": WHOLE,
        "c": ParamGroup(0.25, 0),
        "d": ParamGroup(3.0, 4),
    }
    params = {name: jnp.float32(value) for value, name in enumerate("abcd", 1)}
    changes = {name: jnp.float32(8) for name in "abcd"}
    update = jax.jit(lambda step: updated(params, changes, 0.5, step, found))
    for at, last in ((0, 4.0), (3, 4.0), (4, 16.0), (9, 16.0)):
        new = update(jnp.int32(at))
        assert [float(new[name]) for name in "abcd"] == [1.0, 6.0, 4.0, last]


def test_odd_numbers_keep_every_bit_while_no_update_is_due():
    odd = np.array([*ODD, np.inf, np.nan], np.float32)
    odd[-1:] = np.array([0xFFC12345], np.uint32).view(np.float32)
    params = {"frozen": jnp.asarray(odd), "waits": jnp.asarray(odd)}
    found = {"frozen": ParamGroup(0.0, 0), "waits": ParamGroup(0.5, 2)}
    changes = jax.tree.map(jnp.ones_like, params)
    update = jax.jit(lambda p, step: updated(p, changes, 0.1, step, found))
    assert bits(update(params, jnp.int32(1))) == bits(params)
    after = bits(update(params, jnp.int32(2)))
    assert after["frozen"] == bits(params)["frozen"]
    assert after["waits"] != bits(params)["waits"]


def linear(variables, images, train, key):
    """logits = pixels @ body @ head + bias, with no statistics."""
    params = variables["params"]
    x = images.reshape(images.shape[0], -1) @ params["body"]["kernel"]
    return x @ params["head"]["kernel"] + params["head"]["bias"][None], {}


def made(found, name="sgd", decay=0.0, start=START, ema=0.0, lr=0.5, **options):
    """(state at step 0, jitted train_step) of the linear model with parts."""
    optimizer = optimizer_of(name, decay, "", found, **options)
    parts = {"trains": found, "ema": ema, "lr": lr}
    return stepping.made({"params": start}, linear, optimizer, **parts)


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
def test_a_frozen_parameter_and_its_average_keep_every_bit(name):
    start = with_odd_body(ODD[:4])
    state, train_step = made(frozen_body(), name, 0.3, start, ema=0.9)
    for batch in BATCHES:
        state, record = train_step(state, batch)
        assert bool(record["finite"])
    assert int(state.step) == len(BATCHES)
    assert bits(state.params["body"]) == bits(start["body"])
    assert bits(state.ema["params"]["body"]) == bits(start["body"])
    for leaf in ("kernel", "bias"):
        assert (np.asarray(state.params["head"][leaf]) != START["head"][leaf]).all()


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


def test_the_body_waits_for_the_head_bit_for_bit_and_then_moves():
    first, start = 3, with_odd_body(ODD[:4])
    found = frozen_body(**{"body/kernel": ParamGroup(1.0, first)})
    state, train_step = made(found, "adamw", 0.2, start)
    for i, batch in enumerate(BATCHES):
        before = bits(state.params)
        state, _ = train_step(state, batch)
        now = bits(state.params)
        assert (now["body/kernel"] == before["body/kernel"]) == (i < first), i
        assert now["head/kernel"] != before["head/kernel"]
        assert (now["body/kernel"] == bits(start)["body/kernel"]) == (i < first)


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


@pytest.mark.parametrize(
    ("key", "value", "rule", "works"),
    [
        ("optim.layer_decay", 1.5, "must be at most 1", 1.0),
        ("optim.head_lr", float("inf"), "finite", 1.0),
        ("optim.head_first", "2 epochs", "whole run has 12", "10 percent"),
        ("optim.head_first", "3", "not a duration", "5 percent"),
        ("optim.freeze", "a{99999999999999999999}", "not a regular expression", "kernel$"),
        ("optim.freeze", "(" * 5000, "not a regular expression", "kernel$"),
    ],
    ids=lambda x: str(x)[:24],
)
def test_a_bad_value_is_one_line_with_its_key_and_one_that_works(
    tiny, key, value, rule, works
):
    with pytest.raises(InputError, match=rule) as error:
        check(experiment.build(tiny(**{key: value})))
    assert f"{key}={value if isinstance(value, float) else repr(value)}"[:200] in str(
        error.value
    )
    assert str(works) in str(error.value)
    assert experiment.build(tiny(**{key: works})).recipe.param_groups


def test_what_a_frozen_run_predicts_needs_no_dataset(tiny):
    splits = {"train": 500, "test": 100}
    known = sources.Facts("absent", "", (8, 8, 1), 10, (), splits)
    away = {"data.name": "absent", "data.dir": "/nonexistent", "data.fraction": 0.5}
    # One without parts does not: neither its model nor the shapes of its state count.
    assert experiment.build(tiny(**away), known).programs.state_like
    exp = experiment.build(tiny(**TUNED | away), known)
    assert exp.recipe.model
    assert exp.programs.state_like
