"""Low-rank adaptation: where it starts, its gradient, what it keeps, and what is merged."""

import jax
import numpy as np
import pytest

from jaxcls import experiment
from jaxcls.errors import InputError
from jaxcls.experiment import checks
from jaxcls.export import writing
from jaxcls.models import naming
from jaxcls.runs import checkpoint
from jaxcls.training import train
from tests.settings import BARE

VIT = {**BARE, "model.name": "vit_ti_16(patch=4, depth=2, width=16, heads=2)"}
LORA = {**VIT, "optim.lora": "rank=2, alpha=6, on='qkv|proj|mlp'"}
KEYS = {"params": jax.random.key(3)}
LAYERS = ("attention/qkv", "attention/out", "dense1", "dense2")


@pytest.fixture
def recipe(tiny):
    return experiment.build(tiny(**LORA)).recipe


def filled(like, scale=0.3):
    """Normal numbers in the place of every parameter."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: (scale * rng.standard_normal(x.shape)).astype(np.float32), like
    )


def test_each_layer_has_its_parts_and_nothing_else_is_new(recipe):
    of_all = {path: x.shape for path, x in naming.flatten(recipe.variables_like).items()}
    given = naming.flatten(recipe.given_like)
    sizes = {"attention/qkv": (16, 48), "attention/out": (16, 16)}
    sizes |= {"dense1": (16, 64), "dense2": (64, 16)}
    expected = {}
    for block in ("block1", "block2"):
        for layer, (inputs, outputs) in sizes.items():
            expected[f"params/{block}/{layer}/lora_a"] = inputs, 2
            expected[f"params/{block}/{layer}/lora_b"] = 2, outputs
    assert {path: of_all[path] for path in of_all.keys() - given.keys()} == expected
    trained = {path for path, part in recipe.untimed_param_groups.items() if part.scale}
    parts = {path.removeprefix("params/") for path in expected}
    assert trained == parts | {"head/kernel", "head/bias"}


def test_it_starts_as_the_model_that_is_given(recipe):
    images = np.random.default_rng(1).standard_normal((3, 8, 8, 1), np.float32)
    init = jax.jit(lambda network: network.init(KEYS, images, False), static_argnums=0)
    made = init(recipe.network)
    # The head of a ViT starts at 0, and would hide every difference.
    made["params"]["head"] = filled(made["params"]["head"])
    a = np.asarray(made["params"]["block1"]["dense2"]["lora_a"])
    assert 0.9 / 8 < np.abs(a).max() <= 1 / 8
    assert len({round(float(x), 6) for x in a.ravel()}) == a.size
    other = made["params"]["block2"]["dense2"]["lora_a"]
    assert not np.array_equal(a, other)
    plain = init(recipe.module)
    plain["params"]["head"] = made["params"]["head"]
    np.testing.assert_array_equal(
        recipe.network.apply(made, images, False).logits,
        recipe.module.apply(plain, images, False).logits,
    )


def test_the_gradient_is_the_dense_one_projected(recipe):
    variables = filled(recipe.variables_like)
    images = np.random.default_rng(1).standard_normal((4, 8, 8, 1), np.float32)
    weights = np.random.default_rng(2).standard_normal((4, 10), np.float32)

    def value(apply):
        return lambda params: (
            weights * apply({**variables, "params": params}, images, False).logits
        ).sum()

    got = jax.jit(jax.grad(value(recipe.network.apply)))(variables["params"])
    merged = recipe.merged(variables)["params"]
    dense = jax.jit(jax.grad(value(recipe.module.apply)))(merged)
    dense, got = naming.flatten(dense), naming.flatten(got)
    given = naming.flatten(variables["params"])
    for block in ("block1", "block2"):
        for layer in LAYERS:
            path = f"{block}/{layer}"
            a, b = given[f"{path}/lora_a"], given[f"{path}/lora_b"]
            of_kernel = np.asarray(dense[f"{path}/kernel"])
            for part, expected in (
                ("lora_a", 3.0 * of_kernel @ b.T),
                ("lora_b", 3.0 * a.T @ of_kernel),
            ):
                error = np.abs(got[f"{path}/{part}"] - expected).max()
                assert error < 1e-4 * np.abs(expected).max()


def test_what_is_exported_is_the_model_alone_with_the_same_logits(tiny):
    exp = experiment.build(tiny(**LORA))
    variables = filled(exp.recipe.variables_like)
    model = writing.model_of(exp, {**variables, "ema": {}})
    assert (
        naming.flatten(model.variables).keys()
        == naming.flatten(exp.recipe.given_like).keys()
    )
    images = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 1), np.uint8)
    expected = exp.programs.logits_step(variables, images)
    got = jax.jit(model.apply)(model.variables, images)
    assert expected.std() > 0.1
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"optim.accumulate": 2, "model.remat": "blocks"}])
def test_a_run_moves_the_parts_and_the_head_alone(tiny, tmp_path, more):
    saves = {**LORA, "ema.decay": 0.9, "length": "6 steps", "checkpoint.every": "2 steps"}
    exp = experiment.build(tiny(**saves, **more, **{"checkpoint.keep": 9}))
    train.run(exp, str(tmp_path / "run"))
    folder, like = tmp_path / "run" / "checkpoints", exp.programs.state_like
    start = exp.init()
    found = [checkpoint.read_weights(folder, step, like) for step in (2, 4, 6)]
    before = naming.flatten({"params": start.params})
    trained = {"head/kernel", "head/bias"} | {
        f"block{i}/{layer}/{part}"
        for i in (1, 2)
        for layer in LAYERS
        for part in ("lora_a", "lora_b")
    }
    for weights in found:
        for tree in (weights, weights["ema"]):
            now = naming.flatten({"params": tree["params"]})
            same = [path for path in now if np.array_equal(now[path], before[path])]
            moved = {path.removeprefix("params/") for path in now.keys() - set(same)}
            assert moved <= trained
    # The head starts at 0 and B too, so that A has a gradient from the third step on.
    assert moved == trained


@pytest.mark.slow
def test_the_optimizer_and_the_gradient_hold_the_parts_and_the_head_alone(tiny):
    wide = {"model.name": "vit_ti_16(patch=4, depth=1, width=96, heads=2)"}
    exp = experiment.build(tiny(**{**LORA, **wide}))
    shapes = {x.shape for x in jax.tree.leaves(exp.programs.state_shapes.opt_state)}
    assert shapes >= {(96, 2), (2, 288)}
    assert not shapes & {(96, 288), (96, 384), (384, 96), (96, 96)}
    compiled = exp.programs.compiled_train_step.as_text()
    made = [line for line in compiled.splitlines() if "f32[96,288]" in line.split("(")[0]]
    # Arguments, results and what carries them on; no product has the shape of a kernel.
    assert made
    assert not any(" dot(" in line or " fusion(" in line for line in made)
    (full,) = [experiment.build(tiny(**{**VIT, **wide})).programs.compiled_train_step]
    assert any(
        " dot(" in line or " fusion(" in line
        for line in full.as_text().splitlines()
        if "f32[96,288]" in line.split("(")[0]
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rank=2", "alpha"),
        ("rank=0, alpha=1, on='attention'", r"rank=0 must be in \[1, 4096\], such as 8"),
        ("rank=2, alpha=0, on='attention'", r"alpha=0 must be in \(0, inf\), such as 16"),
        ("rank=2, alpha=1, on='qkv|fc9'", "'fc9'.*matches none of the 8 dense layers"),
        ("rank=2, alpha=1, on='('", "not a regular expression"),
        ("rank=2, alpha=1, on='head'", "'head'.*matches none"),
        ("rank=2, alpha=1, on=''", "matches none"),
        ("2, 4, 'attention') | flip(", "names 2 things"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(tiny, text, said):
    exp = experiment.build(tiny(**{**VIT, "optim.lora": text}))
    with pytest.raises(InputError, match=rf"optim\.lora.*{said}"):
        checks.check(exp)


def test_a_net_without_dense_layers_and_a_second_word_on_what_trains_are_refused(tiny):
    lora = {"optim.lora": "rank=2, alpha=4, on='attention'"}
    with pytest.raises(InputError, match=r"none of the \d dense layers"):
        checks.check(experiment.build(tiny(**BARE, **lora)))
    with pytest.raises(InputError, match="leave one of them out"):
        checks.check(experiment.build(tiny(**VIT, **lora, **{"optim.freeze": "^block1"})))
