"""States on disk: round trips, digests, and every kind of damage."""

import hashlib
import json
import logging
import os
import re
import shutil

import jax
import numpy as np
import optax
import pytest

from jaxcls.devices import mesh
from jaxcls.errors import InputError
from jaxcls.learning.step import Best, State
from jaxcls.runs import checkpoint, saving
from jaxcls.runs import digests as state_digests


def make(step, best=-1, devices=1, seed=0, **changed):
    """A state such as adamw, BatchNorm and an average have, on `devices` devices."""
    rng = np.random.default_rng([seed, step])

    def floats(*shape):
        return rng.normal(size=shape).astype(np.float32)

    params = {"dense": {"kernel": floats(64, 33), "bias": floats(33)}}
    optimizer = optax.adamw(1.0)
    opt_state = jax.tree.map(
        lambda x: floats(*x.shape) if x.ndim else x, optimizer.init(params)
    )
    state = State(
        step=np.int32(step),
        params=params,
        batch_stats={"norm": {"mean": floats(5), "var": floats(5)}},
        opt_state=opt_state,
        ema={"params": {"dense": {"kernel": floats(64, 33), "bias": floats(33)}}},
        key={
            name: jax.random.key(step + i, impl="threefry2x32")
            for i, name in enumerate(("augment", "dropout"))
        },
        best=Best(np.float32(0.5), np.int32(best)),
        mark=np.float32(-np.inf),
        patience=np.int32(2),
        halted=np.bool_(step % 2),
        bad_step=np.int32(-1),
        skips=np.int32(0),
        rewound=np.full((3, 2), -1, np.int32),
        plateau={},
    )
    return jax.device_put(state._replace(**changed), mesh.replicated(mesh.make(devices)))


def like(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def bits(state):
    """Every leaf of a state as (structure, [(dtype, bytes)])."""
    raw = state._replace(key=jax.tree.map(jax.random.key_data, state.key))
    leaves, structure = jax.tree.flatten(raw)
    return structure, [(x.dtype, np.asarray(x).tobytes()) for x in leaves]


def save(folder, *states, keep=9):
    with saving.Checkpoints(folder, keep) as saves:
        for state in states:
            saves.save(state, checkpoint.digests(state))
            saves.wait()


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with checkpoints 3 and 6; copy it to change it."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    save(folder, make(3), make(6, best=3))
    return folder


@pytest.fixture
def copied(two, tmp_path):
    return shutil.copytree(two, tmp_path / "checkpoints")


@pytest.mark.parametrize(("saved_on", "read_on"), [(1, 1), (8, 8), (8, 1), (1, 8)])
def test_a_state_comes_back_bit_for_bit_on_any_devices(saved_on, read_on, tmp_path):
    state = make(5, best=4, devices=saved_on)
    save(tmp_path / "c", state)
    wanted = like(make(0, devices=read_on))
    found = checkpoint.restore(tmp_path / "c", 5, wanted)
    assert bits(found) == bits(state)
    assert isinstance(found.opt_state[0], optax.ScaleByAdamState)
    for leaf, expected in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert leaf.sharding == expected.sharding
    drawn = [float(jax.random.uniform(s.key["dropout"])) for s in (found, state)]
    assert drawn[0] == drawn[1]


def test_weights_load_where_nothing_else_is_left(copied):
    shutil.rmtree(copied / "6" / "rest")
    state = make(6, best=3)
    weights = checkpoint.restore_weights(copied, 6, like(state))
    expected = {k: state._asdict()[k] for k in ("params", "batch_stats", "ema")}
    assert jax.tree.structure(weights) == jax.tree.structure(expected)
    for ours, theirs in zip(*map(jax.tree.leaves, (weights, expected)), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    with pytest.raises(checkpoint.CorruptError):
        checkpoint.restore(copied, 6, like(state))


def seal(step_folder, change):
    """Let a checkpoint say something else of itself, as another version would."""
    meta = step_folder / "meta" / "metadata"
    said = json.loads(meta.read_text())
    del said["seal"]
    change(said)
    sealed = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
    meta.write_text(json.dumps({**said, "seal": sealed}))


def test_another_version_is_named_and_nothing_is_moved(copied):
    seal(copied / "6", lambda said: said["digests"].pop("params/dense/bias"))
    with pytest.raises(InputError, match=r"/6 lacks params/dense/bias .*manifest.json"):
        checkpoint.restore_newest(copied, like(make(0)))
    seal(copied / "6", lambda said: said.update(format=99))
    with pytest.raises(InputError, match="format 99, and this jaxcls reads 1"):
        checkpoint.restore_newest(copied, like(make(0)))
    assert checkpoint.steps(copied) == [3, 6]


def test_damaged_weights_are_not_handed_out(copied):
    seal(copied / "6", lambda said: said["digests"].update({"params/dense/bias": "0" * 16}))
    with pytest.raises(checkpoint.CorruptError, match="digest of params/dense/bias"):
        checkpoint.restore_weights(copied, 6, like(make(0)))


def test_digests_name_every_array_of_the_state_on_any_devices():
    found = checkpoint.digests(make(1))
    assert found == checkpoint.digests(make(1, devices=8))
    assert len(found) == len(jax.tree.leaves(make(1)))
    assert {"step", "params/dense/kernel", "key/dropout", "best/value"} <= found.keys()
    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in found.values())


def flipped(array, place, bit):
    out = np.array(array)
    out.view(np.uint8).reshape(-1)[place] ^= 1 << bit
    return out


def test_digests_combine_to_one_whatever_their_order():
    a = {"x": "1", "y": "2"}
    assert state_digests.combine(a) == state_digests.combine(dict(reversed(a.items())))
    assert state_digests.combine(a) != state_digests.combine({"x": "2", "y": "1"})


def test_the_last_few_and_the_best_stay(tmp_path):
    bests = {1: -1, 2: 2, 3: 2, 4: 2, 5: 2}
    save(tmp_path, *(make(step, best) for step, best in bests.items()), keep=2)
    assert checkpoint.steps(tmp_path) == [2, 4, 5]
    save(tmp_path, make(6, best=2), keep=2)  # A process that resumed.
    assert checkpoint.steps(tmp_path) == [2, 5, 6]
    save(tmp_path, make(7, best=7), make(8, best=7), make(9, best=7), keep=1)
    assert checkpoint.steps(tmp_path) == [7, 9]


@pytest.mark.parametrize(
    ("where", "bad"),
    [("params", np.nan), ("batch_stats", np.inf), ("ema", np.nan), ("opt_state", -np.inf)],
)
def test_a_state_that_is_not_finite_is_not_saved(where, bad, tmp_path):
    state = make(4)
    leaves, structure = jax.tree.flatten(getattr(state, where))
    leaves[-1] = leaves[-1].at[(0,) * leaves[-1].ndim].set(bad)
    state = state._replace(**{where: jax.tree.unflatten(structure, leaves)})
    with (
        saving.Checkpoints(tmp_path, 1) as saves,
        pytest.raises(RuntimeError, match="state of step 4 is not finite"),
    ):
        saves.save(state, checkpoint.digests(state))
    assert checkpoint.steps(tmp_path) == []


def test_the_newest_checkpoint_is_restored_if_there_is_any(two, tmp_path):
    assert bits(checkpoint.restore_newest(two, like(make(0)))) == bits(make(6, best=3))
    assert checkpoint.restore_newest(tmp_path, like(make(0))) is None
    assert checkpoint.restore_newest(tmp_path / "absent", like(make(0))) is None


def biggest(step_folder):
    return max(files(step_folder), key=lambda p: p.stat().st_size)


def flip_a_bit(step_folder):
    path = biggest(step_folder)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    path.write_bytes(flipped(data, len(data) // 2, 2).tobytes())


def empty(step_folder):
    shutil.rmtree(step_folder)
    step_folder.mkdir()


def become_a_file(step_folder):
    shutil.rmtree(step_folder)
    step_folder.touch()


def become_another_step(step_folder):
    shutil.rmtree(step_folder)
    shutil.copytree(step_folder.parent / "3", step_folder)


DAMAGES = {
    "a flipped bit": flip_a_bit,
    "a truncated file": lambda step: os.truncate(biggest(step), 20),
    "a missing file": lambda step: biggest(step).unlink(),
    "a missing item": lambda step: shutil.rmtree(step / "rest"),
    "missing digests": lambda step: shutil.rmtree(step / "meta"),
    "an empty folder": empty,
    "a file": become_a_file,
    "another step": become_another_step,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, copied, caplog):
    DAMAGES[damage](copied / "6")
    with caplog.at_level(logging.WARNING):
        found = checkpoint.restore_newest(copied, like(make(0)))
    assert bits(found) == bits(make(3))
    assert "checkpoint 6 is not whole (" in caplog.text
    assert "; trying older" in caplog.text
    assert checkpoint.steps(copied) == [3]
    assert (copied / "6.corrupt").exists()
    save(copied, make(6, best=6))
    assert bits(checkpoint.restore_newest(copied, like(make(0)))) == bits(make(6, best=6))
    empty(copied / "6")
    checkpoint.restore_newest(copied, like(make(0)))
    assert (copied / "6.corrupt-1").exists()


def test_folders_of_others_and_of_saves_cut_short_do_no_harm(copied):
    junk = ["notes", "9.orbax-checkpoint-tmp-17", "tmp.9", "6.corrupt", "-1", "1.5"]
    for name in junk:
        (copied / name).mkdir()
        (copied / name / "file").touch()
    for name in ("²", "\u0663", "007", "9" * 200, "x.pending", "².pending", "x.removed"):
        (copied / name).mkdir()
    for name in ("8.pending", "8.removed"):
        (copied / name).touch()
    there = {path.name for path in copied.iterdir()}
    checkpoint.bring_back(copied)
    assert {path.name for path in copied.iterdir()} == there
    assert checkpoint.steps(copied) == [3, 6]
    assert bits(checkpoint.restore_newest(copied, like(make(0)))) == bits(make(6, best=3))
    save(copied, make(9))
    assert checkpoint.steps(copied) == [3, 6, 9]


def test_no_damage_to_any_file_gives_another_state(two, tmp_path):
    expected, wanted = bits(make(6, best=3)), like(make(0))
    refused = 0
    for number, name in enumerate(p.relative_to(two) for p in files(two / "6")):
        folder = shutil.copytree(two, tmp_path / str(number))
        whole = (folder / name).read_bytes()
        middle = flipped(np.frombuffer(whole, np.uint8), len(whole) // 2, number % 8)
        for content in (middle.tobytes(), whole[: len(whole) // 2]):
            (folder / name).write_bytes(content)
            try:
                assert bits(checkpoint.restore(folder, 6, wanted)) == expected, name
            except checkpoint.CorruptError:
                refused += 1
    assert refused > 5


def test_a_run_all_of_whose_checkpoints_are_damaged_says_so(copied):
    flip_a_bit(copied / "3")
    empty(copied / "6")
    says = (
        rf"no checkpoint in {copied} is whole \(6: .*; 3: .*move the folder away to start"
    )
    with pytest.raises(InputError, match=says):
        checkpoint.restore_newest(copied, like(make(0)))
    assert checkpoint.steps(copied) == [3, 6]


@pytest.mark.parametrize(("which", "step"), [("best", 3), ("last", 6), ("3", 3), ("6", 6)])
def test_find_knows_best_last_and_steps(which, step, two):
    assert checkpoint.find(two, which) == (step, which)


def test_find_takes_the_last_for_best_where_nothing_was_evaluated(tmp_path):
    save(tmp_path, make(2))
    assert checkpoint.find(tmp_path, "best") == (2, "last")


LISTED = "is not in .*; there are best, last, 3, 6"


@pytest.mark.parametrize(
    ("which", "damage", "says"),
    [
        ("5", None, f"--checkpoint=5 {LISTED}"),
        ("newest", None, LISTED),
        ("", None, LISTED),
        ("-3", None, LISTED),
        ("\u0666", None, LISTED),
        ("²", None, LISTED),
        pytest.param("6" * 5000, None, f"--checkpoint={'6' * 80} {LISTED}", id="long"),
        # It never takes another for a best that is gone.
        (
            "best",
            lambda folder: shutil.rmtree(folder / "3"),
            "best, step 3, is not in .* last, 6",
        ),
        (
            "best",
            lambda folder: shutil.rmtree(folder / "6" / "meta"),
            "6 .*=STEP, one of 3",
        ),
        ("best", shutil.rmtree, "holds no checkpoint; train first"),
    ],
)
def test_find_names_the_checkpoints_there_are(which, damage, says, copied):
    if damage:
        damage(copied)
    with pytest.raises(InputError, match=says):
        checkpoint.find(copied, which)


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said.pop("best_step"),
        lambda said: said.update(best_step="6"),
        lambda said: said.update(digests=[1]),
        lambda said: said.update(records={"metrics": 1}),
    ],
)
def test_a_meta_of_another_form_is_not_whole(copied, change):
    seal(copied / "6", change)
    with pytest.raises(InputError, match="which names the best, is not whole"):
        checkpoint.find(copied, "best")


@pytest.mark.parametrize("content", [b'{"a":' * 10**5, b"\xff", b"7"])
def test_a_meta_that_is_no_json_is_not_whole(copied, content):
    (copied / "6/meta/metadata").write_bytes(content)
    with pytest.raises(checkpoint.CorruptError, match="metadata of meta"):
        checkpoint.meta_of(copied, 6)
