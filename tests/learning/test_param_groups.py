"""What trains and how fast: parts by hand, in the step, and by way of a config."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcls.errors import InputError
from jaxcls.learning import param_groups
from jaxcls.learning.clipping import clip
from jaxcls.learning.optimizers import path_name
from jaxcls.learning.param_groups import WHOLE, ParamGroup
from jaxcls.models.layers import BatchNorm
from tests.modules import built, shapes
from tests.stepping import direction, with_columns

B, SIDE, WIDTH, K = 8, 2, 5, 3
RNG = np.random.default_rng(0)
BATCHES = [
    with_columns(
        RNG.integers(0, 256, (B, SIDE, SIDE, 1)).astype(np.uint8),
        RNG.integers(0, K, B).astype(np.int32),
    )
    for _ in range(6)
]
START = {
    "body": {"kernel": RNG.standard_normal((SIDE * SIDE, WIDTH)).astype(np.float32)},
    "head": {
        "bias": RNG.standard_normal(K).astype(np.float32),
        "kernel": RNG.standard_normal((WIDTH, K)).astype(np.float32),
    },
}
GROUPS = [("body",), ("head",)]
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


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_without_options_every_part_is_whole():
    found = param_groups.divide(TREE, DEPTHS)
    assert found == dict.fromkeys(paths(TREE), WHOLE)


def test_a_group_trains_slower_than_the_next_by_the_decay():
    found = param_groups.divide(TREE, DEPTHS, layer_decay=0.5)
    assert {path: part.scale for path, part in found.items()} == {
        "stem/kernel": 0.25,
        "norm/scale": 0.25,
        "norm/bias": 0.25,
        "token": 0.25,
        "block/conv/kernel": 0.5,
        "head/kernel": 1.0,
        "head/bias": 1.0,
    }
    assert {part.start for part in found.values()} == {0}


def test_the_rate_of_the_head_is_a_multiple_of_that_of_its_group():
    groups = [("stem", "token"), ("block",), ("norm", "head")]
    found = param_groups.divide(TREE, groups, layer_decay=0.5, head_lr=10.0)
    scales = [found[p].scale for p in ("head/bias", "head/kernel", "norm/bias", "token")]
    assert scales == [10.0, 10.0, 1.0, 0.25]


def test_a_layer_that_only_begins_like_the_head_is_not_the_head():
    tree = {"header": {"bias": 0}, "block": {"head": {"bias": 0}}, "head": {"bias": 0}}
    groups = [("header", "block"), ("head",)]
    found = param_groups.divide(tree, groups, head_lr=3.0, head_first=7)
    assert found["header/bias"] == found["block/head/bias"] == ParamGroup(1.0, 7)
    assert found["head/bias"] == ParamGroup(3.0, 0)


def test_all_but_the_head_start_after_the_steps_of_the_head():
    found = param_groups.divide(
        TREE, DEPTHS, freeze="^norm/", head_first=4, layer_decay=0.5
    )
    starts = {path: part.start for path, part in found.items()}
    assert starts.pop("head/kernel") == starts.pop("head/bias") == 0
    assert starts.pop("norm/scale") == starts.pop("norm/bias") == 0
    assert set(starts.values()) == {4}


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        ("", set()),
        ("^stem", {"stem/kernel"}),
        ("bias$", {"norm/bias", "head/bias"}),
        ("^token$", {"token"}),
        ("conv", {"block/conv/kernel"}),
        ("^head/b|^norm/scale", {"norm/scale", "head/bias"}),
        ("^(?!head/)", set(paths(TREE)) - {"head/kernel", "head/bias"}),
    ],
)
def test_what_the_pattern_finds_is_frozen_whatever_else_holds(freeze, frozen):
    options = {"layer_decay": 0.5, "head_lr": 2.0, "head_first": 3}
    found = param_groups.divide(TREE, DEPTHS, freeze=freeze, **options)
    assert {path for path, part in found.items() if part == ParamGroup(0.0, 0)} == frozen
    whole = param_groups.divide(TREE, DEPTHS, **options)
    assert {path: found[path] for path in found if path not in frozen} == {
        path: whole[path] for path in found if path not in frozen
    }


@pytest.mark.parametrize("freeze", ["nothing", "HEAD", "^kernel", "stem/kernel/"])
def test_a_pattern_that_finds_nothing_is_refused_with_one_that_works(freeze):
    with pytest.raises(InputError, match="matches no parameter") as error:
        param_groups.divide(TREE, DEPTHS, freeze=freeze)
    assert f"optim.freeze={freeze!r}" in one_line(error)
    works = re.findall(r"'(\^\S+)'", one_line(error))[-1]
    assert param_groups.divide(TREE, DEPTHS, freeze=works)["token"].scale == 0


@pytest.mark.parametrize("freeze", [".", "^", "kernel|bias|scale|token", "(?!x)"])
def test_a_pattern_that_leaves_nothing_to_train_is_refused(freeze):
    with pytest.raises(InputError, match=re.escape(f"{freeze!r} matches every parameter")):
        param_groups.divide(TREE, DEPTHS, freeze=freeze)


def test_the_head_first_and_frozen_is_refused():
    with pytest.raises(InputError, match=r"head_first .* freezes it; leave one"):
        param_groups.divide(TREE, DEPTHS, freeze="^head/", head_first=3)


def test_a_decay_that_leaves_nothing_is_refused_and_not_taken_for_frozen():
    with pytest.raises(InputError, match=r"layer_decay=1e-20 leaves \S+ no rate .* 0\.75"):
        param_groups.divide(TREE, DEPTHS, layer_decay=1e-20)


def test_shapes_are_divided_as_arrays_are():
    like = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE))
    options = {"freeze": "bias$", "layer_decay": 0.75, "head_lr": 2.0}
    assert param_groups.divide(like, DEPTHS, **options) == param_groups.divide(
        TREE, DEPTHS, **options
    )


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


def test_the_statistics_of_a_layer_follow_its_scale():
    statistics = {
        "norm": {"mean": 0, "var": 0},
        "block": {"norm1": {"mean": 0, "var": 0}, "norm2": {"mean": 0, "var": 0}},
        "position": 0,
    }
    frozen, free = ParamGroup(0.0, 0), ParamGroup(0.5, 9)
    found = {
        "norm/scale": free,
        "norm/bias": frozen,
        "block/norm1/scale": frozen,
        "block/norm1/bias": free,
        "block/norm2/scale": WHOLE,
        "position": frozen,
    }
    expected = {"block": {"norm1": {"mean": True, "var": True}}}
    assert param_groups.frozen_statistics(statistics, found) == expected
    assert param_groups.frozen_statistics({}, found) == {}
    assert param_groups.frozen_statistics(statistics, dict.fromkeys(found, WHOLE)) == {}


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


def test_frozen_statistics_are_kept_and_normalise_while_others_move():
    variables, x = two(np.random.default_rng(1))
    frozen = {"frozen": {"first": {"mean": True, "var": True}}}
    apply = jax.jit(
        lambda v, x: Two().apply({**v, **frozen}, x, True, mutable=["batch_stats"])
    )
    (first, second), new = apply(variables, x)
    evaluated = jax.jit(lambda v, x: Two().apply(v, x, False))(variables, x)
    np.testing.assert_array_equal(first, evaluated[0])
    layer, trained = (
        jax.tree.map(np.asarray, variables[name]["first"])
        for name in ("batch_stats", "params")
    )
    by_hand = (
        (np.asarray(x) - layer["mean"]) / np.sqrt(layer["var"] + 1e-5) * trained["scale"]
    )
    np.testing.assert_allclose(first, by_hand + trained["bias"], rtol=1e-4, atol=1e-4)
    assert bits(new["batch_stats"]["first"]) == bits(layer)
    assert set(new["batch_stats"]) == {"first", "second"}

    wide = np.asarray(first, np.float64)
    mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2), ddof=1)
    expected = {
        "mean": 0.9 * layer["mean"] + 0.1 * mean,
        "var": 0.9 * layer["var"] + 0.1 * var,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(
            new["batch_stats"]["second"][name], value, rtol=1e-4, atol=1e-4
        )
    biased = wide.var((0, 1, 2))
    normed = (wide - mean) / np.sqrt(biased + 1e-5) * trained["scale"] + trained["bias"]
    np.testing.assert_allclose(second, normed, rtol=1e-3, atol=1e-3)


def test_odd_numbers_among_frozen_statistics_keep_every_bit():
    variables, x = two(np.random.default_rng(2))
    odd = {"mean": jnp.asarray(ODD[:4]), "var": jnp.asarray(np.abs(ODD[:4]))}
    variables["batch_stats"]["first"] = odd
    frozen = {"frozen": {"first": {"mean": True, "var": True}}}
    _, new = jax.jit(
        lambda v, x: Two().apply({**v, **frozen}, x, True, mutable=["batch_stats"])
    )(variables, x)
    assert bits(new["batch_stats"]["first"]) == bits(odd)


def test_the_frozen_collection_changes_nothing_when_not_training():
    variables, x = two(np.random.default_rng(3))
    frozen = {"frozen": {"second": {"mean": True, "var": True}}}
    with_it = Two().apply({**variables, **frozen}, x, False)
    assert bits(with_it) == bits(Two().apply(variables, x, False))


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


def test_where_all_parts_train_the_optimizer_is_the_same():
    optimizer = direction("adamw", 0.1)
    found = frozen_body(**{"body/kernel": ParamGroup(1e-3, 5)})
    assert param_groups.train_only(optimizer, found) is optimizer


@pytest.mark.parametrize(("name", "copies"), [("adamw", 2), ("adam", 2), ("sgd", 1)])
def test_there_is_no_optimizer_state_for_what_is_frozen(name, copies):
    optimizer = direction(name, 0.1)
    state = param_groups.train_only(optimizer, frozen_body()).init(START)
    arrays = {path: x for path, x in paths(state).items() if np.ndim(x)}
    assert not [path for path in arrays if "body" in path]
    assert sum(x.size for x in arrays.values()) == copies * (K + WIDTH * K)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_what_trains_is_updated_as_if_the_frozen_were_not_there(name):
    alone = clip(direction(name, 0.1), norm=0.5)
    both = param_groups.train_only(alone, frozen_body())
    head, states = START["head"], [alone.init(START["head"]), both.init(START)]
    rng = np.random.default_rng(5)
    for _ in range(2):
        grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), START)
        expected, states[0] = alone.update(grads["head"], states[0], head)
        got, states[1] = both.update(grads, states[1], START)
        assert bits(got["head"]) == bits(expected)


def updated(params, changes, lr, step, found):
    """The params after `changes` at a rate."""
    rate = param_groups.until_stop(
        param_groups.at_rate(optax.identity(), lambda: found), lambda: found
    )
    due, _ = rate.update(changes, rate.init(params), params, lr=jnp.float32(lr), step=step)
    return param_groups.apply(params, due)


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


def test_what_stops_changes_until_then_and_no_more():
    found = {"a": ParamGroup(stop=3), "b": ParamGroup(2.0, 1, 2)}
    params = {"a": jnp.float32(1), "b": jnp.float32(2)}
    changes = {"a": jnp.float32(8), "b": jnp.float32(8)}
    update = jax.jit(lambda step: updated(params, changes, 0.5, step, found))
    told = [[float(x) for x in update(jnp.int32(i)).values()] for i in range(4)]
    assert told == [[5.0, 2.0], [5.0, 10.0], [5.0, 2.0], [1.0, 2.0]]


def test_factors_of_rates_multiply_where_several_match():
    found = param_groups.divide(
        TREE,
        DEPTHS,
        layer_decay=0.5,
        lr_scales={"bias$": 64, "^norm/": 0.5},
        stops={"^norm/": 9, "bias$": 5},
    )
    assert found["norm/bias"] == ParamGroup(64 * 0.5 * 0.25, 0, 5)
    assert found["norm/scale"] == ParamGroup(0.5 * 0.25, 0, 9)
    assert found["head/bias"] == ParamGroup(64.0, 0, 5)
    assert found["head/kernel"] == WHOLE


@pytest.mark.parametrize("key", ["lr_scales", "stops"])
def test_an_expression_that_matches_nothing_is_an_error(key):
    with pytest.raises(InputError) as error:
        param_groups.divide(TREE, DEPTHS, **{key: {"^nothing": 3}})
    said = one_line(error)
    name = {"lr_scales": "optim.lr_scales", "stops": "optim.freeze_after"}[key]
    assert said.startswith(f"{name}: '^nothing' matches no parameter; there are ")
    assert "'bias$' is all biases" in said


def test_statistics_without_a_scale_follow_their_bias():
    found = {"norm/bias": ParamGroup(0.0), "other/bias": WHOLE}
    statistics = {name: {"mean": 0, "var": 1} for name in ("norm", "other")}
    assert param_groups.frozen_statistics(statistics, found) == {
        "norm": {"mean": True, "var": True}
    }
