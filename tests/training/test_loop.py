"""An update that is not finite, under each policy, in runs that die and that do not.

NaN is injected into the learning rate of some steps; what should follow is computed by
driving the pure step by hand.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.data import batches
from jaxcls.errors import DivergedError, InputError
from jaxcls.runs import checkpoint, digests, records, saving
from jaxcls.training import train
from tests.dying import Poisoned

TREES = ("params", "batch_stats", "opt_state", "ema")


# It is compiled in less time; statistics and averages are what must stay finite.
LIGHT = {"augment": "", "mix": ""}
MADE: dict[str, Poisoned] = {}  # What is compiled once serves every test.


def made(config, nan=()):
    exp = MADE.setdefault(config.to_json(), Poisoned(config, None))
    exp.nan = nan
    return exp


def run(config, folder, nan):
    return train.run(made(config, nan), str(folder))


def last_state(config, folder):
    folder = folder / "checkpoints"
    step, _ = checkpoint.find(folder, "last")
    return checkpoint.restore(folder, step, made(config).programs.state_like)


def by_hand(config, left_out, back=None):
    """The state after the run's steps, driven by hand.

    left_out: the batches consumed without an update. back: {step: earlier step}, where
    the state of the earlier one is taken up again.
    """
    exp = made(config)
    state, kept = exp.init(), {}
    for step, batch in enumerate(exp.train_batches()):
        kept[step] = jax.tree.map(jnp.copy, state)  # The step donates its state.
        if step in (back or {}):
            state = kept[back[step]]._replace(step=jnp.int32(step))
        if step in left_out:
            state = state._replace(step=state.step + 1)
        else:
            state, _ = exp.programs.train_step(state, batch)
    return state


def same(left, right):
    trees = [{k: getattr(state, k) for k in TREES} for state in (left, right)]
    return digests.of_tree(trees[0]) == digests.of_tree(trees[1])


def events(folder, kind):
    return [r for r in records.read(folder / "metrics.jsonl") if r["kind"] == kind]


def order(config, step):
    """The records of a batch, from the definition of the order."""
    n = made(config).data.examples("train")
    positions = range(step * config.batch_size, (step + 1) * config.batch_size)
    return [int(batches.order(config.seed, p // n, n)[p % n]) for p in positions]


def test_stop_keeps_the_last_finite_state_and_names_the_batch(tiny, tmp_path):
    config = tiny(**LIGHT, **{"data.split_seed": 3})
    for _ in range(2):  # The second start says the same.
        with pytest.raises(DivergedError, match=r"update after step 5 .*checkpoints/5"):
            run(config, tmp_path, (5,))
    state = last_state(config, tmp_path)
    assert int(state.step) == 5
    clean = by_hand(config, {5, 6, 7, 8, 9, 10, 11})
    assert same(state, clean)
    (found,) = events(tmp_path, "diverged")
    assert (found["step"], found["kind"]) == (6, "diverged")
    # The images of the record's split, which anyone can read, are those of the batch.
    chosen = made(config).selection
    named = chosen.dataset.source(found["split"], "").read(np.array(found["index"]))
    trained = chosen.records("train[:90%]", "data.train").read(np.array(order(config, 5)))
    assert [*named] == [*trained]


@pytest.mark.slow
def test_stop_right_after_a_checkpoint_records_the_batch_once(tiny, tmp_path):
    for _ in range(3):
        with pytest.raises(DivergedError):
            run(tiny(**LIGHT), tmp_path, (6,))
    assert [r["step"] for r in events(tmp_path, "diverged")] == [7]


SKIP = {**LIGHT, "nonfinite.policy": "skip"}
REWIND = {**LIGHT, "nonfinite.policy": "rewind"}


@pytest.mark.parametrize("nan", [(3, 4, 7), pytest.param((0, 11), marks=pytest.mark.slow)])
def test_skip_consumes_the_batch_and_changes_nothing(tiny, tmp_path, nan):
    config = tiny(**SKIP)
    result = run(config, tmp_path, nan)
    assert result.record["step"] == 12
    assert same(last_state(config, tmp_path), by_hand(config, set(nan)))
    found = [(r["step"] - 1, r["index"]) for r in events(tmp_path, "skip")]
    assert found == [(step, order(config, step)) for step in nan]


@pytest.mark.slow
def test_skip_stops_when_too_many_follow_one_another(tiny, tmp_path):
    config = tiny(**SKIP, **{"nonfinite.skips": 2})
    with pytest.raises(DivergedError, match="after step 8 "):
        run(config, tmp_path, (1, 2, 6, 7, 8, 9))
    assert [r["step"] - 1 for r in events(tmp_path, "skip")] == [1, 2, 6, 7]
    assert int(last_state(config, tmp_path).step) == 8


# The checkpoints that a rewind may go back to are those of steps 3, 6, 9.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("nan", "left_out", "back", "windows"),
    [
        ((1,), {0, 1}, {1: 0}, [(0, 1)]),
        # Step 6, where it goes on, has a checkpoint of its own, and 8 an evaluation.
        ((5, 7), {3, 4, 5, 6, 7}, {5: 3, 7: 6}, [(3, 5), (6, 7)]),
        ((4, 5), {3, 4, 5}, {4: 3}, [(3, 4), (5, 5)]),
        ((4, 8), {3, 4, 6, 7, 8}, {4: 3, 8: 6}, [(3, 4), (6, 8)]),
        ((11,), {9, 10, 11}, {11: 9}, [(9, 11)]),
    ],
)
def test_rewind_goes_on_from_the_last_checkpoint_without_the_batches_since(
    tiny, tmp_path, nan, left_out, back, windows
):
    config = tiny(**REWIND)
    result = run(config, tmp_path, nan)
    assert result.record["step"] == 12
    state = last_state(config, tmp_path)
    # By hand the batches of a window are first trained on, then taken back.
    oracle = by_hand(config, {step for step in left_out if step in nan}, back)
    assert same(state, oracle)
    found = state.rewound[state.rewound[:, 0] >= 0]
    assert [tuple(window) for window in np.asarray(found).tolist()] == windows
    assert [r["step"] for r in events(tmp_path, "rewind")] == [b + 1 for _, b in windows]
    steps = [r["step"] for r in records.read(tmp_path / "metrics.jsonl")]
    assert steps == sorted(steps)


def test_a_rewind_from_the_first_update_begins_anew_however_often_it_saves(tiny, tmp_path):
    config = tiny(**REWIND, **{"checkpoint.every": "1 percent", "length": "4 steps"})
    assert run(config, tmp_path, (0,)).record["step"] == 4
    (found,) = events(tmp_path, "rewind")
    assert (found["step"], found["to"]) == (1, 0)


@pytest.mark.slow
def test_rewind_stops_when_it_went_back_too_often(tiny, tmp_path):
    config = tiny(**REWIND, **{"nonfinite.rewinds": 1})
    for _ in range(2):
        with pytest.raises(DivergedError, match="after step 8 "):
            run(config, tmp_path, (4, 8))
    assert [r["step"] for r in events(tmp_path, "rewind")] == [5]


@pytest.mark.slow
def test_rewind_brings_back_what_was_best_at_the_checkpoint(tiny, tmp_path):
    # By loss each evaluation is better than the one before, so each is a new best.
    config = tiny(**REWIND, **{"eval.every": "1 step", "best.metric": "loss"})
    result = run(config, tmp_path, (11,))
    evals = {r["step"]: r["loss"] for r in events(tmp_path, "eval")}
    assert sorted(evals) == [*range(1, 10), 12]
    assert result.record["best_step"] == min(evals, key=evals.get)


@pytest.fixture
def damage(monkeypatch, tmp_path):
    """``damage(file)`` -> the steps that are there when a rewind finds it gone."""
    rewind, left = saving.Checkpoints.rewind, []

    def before_a_rewind(file):
        def damaged(self, like, to_start):
            self.wait()
            (tmp_path / "checkpoints" / file).unlink()
            left.extend(checkpoint.steps(tmp_path / "checkpoints"))
            return rewind(self, like, to_start=to_start)

        monkeypatch.setattr(saving.Checkpoints, "rewind", damaged)
        return left

    return before_a_rewind


@pytest.mark.slow
def test_a_rewind_finds_the_older_checkpoint_where_the_last_is_not_whole(
    tiny, tmp_path, damage, caplog
):
    damage("6/rest/manifest.ocdbt")
    run(tiny(**REWIND, **{"checkpoint.keep": 3}), tmp_path, (7,))
    (found,) = events(tmp_path, "rewind")
    assert (found["to"], found["step"]) == (3, 8)
    assert "checkpoint 6 is not whole" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("file", ["rest/manifest.ocdbt", "meta/metadata"])
def test_a_rewind_with_nothing_whole_to_go_back_to_removes_nothing(
    tiny, tmp_path, damage, file
):
    left = damage(f"6/{file}")
    with pytest.raises(InputError, match="no checkpoint that a rewind may go back to"):
        run(tiny(**REWIND), tmp_path, (7,))
    assert 6 in left
    assert checkpoint.steps(tmp_path / "checkpoints") == left


@pytest.mark.slow
def test_how_often_a_rewind_is_saved_is_part_of_what_the_run_is(tiny, tmp_path):
    run(tiny(**REWIND), tmp_path / "rewinds", ())
    other = {"checkpoint.every": "2 steps"}
    with pytest.raises(InputError, match=r"checkpoint.every '3 steps' -> '2 steps'"):
        run(tiny(**REWIND, **other), tmp_path / "rewinds", ())
    run(tiny(**LIGHT), tmp_path / "stops", ())
    assert run(tiny(**LIGHT, **other), tmp_path / "stops", ()).already


@pytest.mark.slow
def test_a_record_of_what_was_left_out_finds_the_examples_of_a_part(tiny, tmp_path):
    part = {"data.classes": "1, 3", "data.fraction": 0.5, "batch_size": 16}
    changed = tiny(**SKIP, **part)
    run(changed, tmp_path, (2,))
    (found,) = events(tmp_path, "skip")
    exp = made(changed)
    source = exp.selection.dataset.source("train[:90%]", "data.train")
    labels = [label for _, label in source.read(np.array(found["index"]))]
    assert set(labels) == {1, 3}
    batch = list(exp.train_batches())[2]
    assert [[1, 3][k] for k in np.asarray(batch.label).tolist()] == labels


@pytest.mark.slow
def test_metrics_hold_no_number_that_is_not_finite(tiny, tmp_path):
    run(tiny(**SKIP, **{"log.every": "1 step"}), tmp_path, (5,))
    text = (tmp_path / "metrics.jsonl").read_text()
    json.loads(text.splitlines()[0], parse_constant=pytest.fail)
    (found,) = [r for r in events(tmp_path, "train") if r["step"] == 6]
    assert found["lr"] is None  # Where the NaN was put.
