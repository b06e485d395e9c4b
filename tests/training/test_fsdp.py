"""A state in parts: the same run as with a whole one, in less memory a device."""

import jax
import numpy as np
import pytest

from jaxcls import experiment
from jaxcls.devices import mesh
from jaxcls.devices.memory import tree_bytes
from jaxcls.runs import checkpoint, saving
from tests.scoring import score


@pytest.fixture(autouse=True)
def small_arrays_too(monkeypatch):
    monkeypatch.setattr(mesh, "LEAST", 8)


def parts(fsdp):
    return {"mesh.devices": 8, "mesh.fsdp": fsdp}


def stepped(exp, steps=4):
    """The state after so many steps, and their losses."""
    state, losses = exp.init(), []
    for _, batch in zip(range(steps), exp.train_batches(), strict=False):
        state, scores = exp.programs.train_step(state, batch)
        losses.append(float(scores["loss"]))
    return state, losses


def bytes_of(state, device):
    """What a device really holds of a state."""
    shards = [s for x in jax.tree.leaves(state) for s in x.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


def test_arrays_are_split_along_their_longest_axis_that_divides(monkeypatch):
    monkeypatch.setattr(mesh, "LEAST", 48)
    params = {"square": (8, 8), "odd": (3, 3, 5, 16), "none": (7, 7), "small": (40,)}
    shapes = {"params": params, "batch_stats": {"table": (64, 64)}}
    like = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    found = jax.tree.map(lambda its: tuple(its.spec), mesh.of_state(mesh.make(8, 4), like))
    split = {"square": (None, "fsdp"), "odd": (None, None, None, "fsdp")}
    assert found["params"] == split | {"none": (), "small": ()}
    assert found["batch_stats"] == {"table": ()}
    whole = mesh.of_state(mesh.make(8), like)
    assert all(its.is_fully_replicated for its in jax.tree.leaves(whole))


def test_each_device_has_rows_of_its_own_and_groups_are_neighbours():
    made = mesh.make(8, 4)
    assert made.devices.tolist() == [jax.devices()[:4], jax.devices()[4:]]
    batch = mesh.put(made, np.arange(16, dtype=np.int32))
    for shard in batch.addressable_shards:
        first = 2 * shard.device.id
        assert np.asarray(shard.data).tolist() == [first, first + 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fsdp", "changes"),
    [
        (4, {}),
        (8, {}),
        (4, {"optim.name": "adamw", "optim.sam": 0.05, "optim.clip_norm": 0.5}),
        (4, {"optim.accumulate": 2, "model.batch_norm_groups": 2}),
        (
            4,
            {
                "model.name": "resnet18(stem='small', stages=(1, 1), width=8)",
                "model.remat": "blocks",
            },
        ),
    ],
)
def test_steps_agree_with_those_of_one_device_up_to_rounding(tiny, fsdp, changes):
    exps = [experiment.build(tiny(**changes, **each)) for each in ({}, parts(fsdp))]
    states, losses = zip(*map(stepped, exps), strict=True)
    np.testing.assert_allclose(losses[0][:3], losses[1][:3], rtol=1e-5)
    (n, whole), (m, split) = (
        score(exp, state._asdict(), "test", "data.test", 64)
        for exp, state in zip(exps, states, strict=True)
    )
    assert n == m == 360
    assert whole["loss"] == pytest.approx(split["loss"], rel=1e-3)


def test_blocks_made_anew_gather_their_own_params_once_more(tiny):
    changes = {"model.name": "mixer_s_32(depth=2)", "augment": "", "model.remat": "blocks"}
    ops = {f"data.{name}_ops": "decode | resize(32)" for name in ("train", "eval")}
    exp = experiment.build(tiny(**changes, **ops, **parts(4)))
    images = jax.ShapeDtypeStruct((8, *exp.data.train_shape), np.float32)

    def loss(params, images, key):
        variables = {"params": params, "batch_stats": {}}
        return exp.recipe.model.apply(variables, images, True, key)[0].sum()

    shapes = exp.programs.state_shapes
    key = shapes.key["dropout"]
    traced = jax.make_jaxpr(jax.grad(loss))(shapes.params, images, key)
    anew = [str(e) for e in traced.jaxpr.eqns if "prevent_cse" in e.params]
    assert len(anew) == 2
    assert all("sharding_constraint" in text for text in anew)


@pytest.mark.slow
def test_a_device_holds_its_part_of_params_average_and_optimizer_state(tiny):
    model = {"model.name": "cnn(widths=(16, 32), dense=256)", "optim.name": "adamw"}
    exp = experiment.build(tiny(**model, **parts(4)))
    state = exp.init()
    whole = experiment.build(tiny(**model)).programs.state_shapes
    held = bytes_of(state, jax.devices()[0])
    assert held == pytest.approx(tree_bytes(whole) / 4, rel=0.05)
    assert tree_bytes(exp.programs.state_of_a_device) == held
    needed = (
        exp.programs.lowered_train_step.compile().memory_analysis().argument_size_in_bytes
    )
    batch = 128 // 8 * (8 * 8 + 3 * 4)
    assert needed == pytest.approx(held + batch, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 2])
def test_what_is_saved_in_parts_is_restored_in_others_bit_for_bit(tiny, tmp_path, fsdp):
    exp, folder = experiment.build(tiny(**parts(4))), tmp_path / "checkpoints"
    state = exp.init()
    digests = checkpoint.digests(state)
    with saving.Checkpoints(folder, 1) as saves:
        saves.save(state, digests)
    like = experiment.build(tiny(**parts(fsdp))).programs.state_like
    restored = checkpoint.restore(folder, 0, like)
    assert checkpoint.digests(restored) == digests
    kernels = [each.params["dense"]["kernel"] for each in (restored, like, state)]
    assert kernels[0].sharding == kernels[1].sharding
    assert kernels[0].sharding.is_fully_replicated == (fsdp == 1)
    np.testing.assert_array_equal(*map(np.asarray, (kernels[0], kernels[2])))
