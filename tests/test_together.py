"""Several seeds in one program: each is the run that it is alone, but for rounding."""

import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls import commands, experiment, logs, stopping, together, train
from jaxcls.errors import InputError, StoppedError
from tests.conftest import ROOT


def seeds_of(config, count):
    exp = experiment.build(config)
    return [exp.reseeded({"seed": seed}) for seed in range(count)]


def run(exps, folder, size=0, ask_at=0):
    """{row: result} of {row: experiment}, trained at once in `folder`/row."""
    stop = stopping.Stop()

    def on_digest(step, digests):
        if step == ask_at and not stop.requested:
            stop.ask()

    group = together.Group(next(iter(exps.values())), size or len(exps))
    runs = {}
    for row, exp in exps.items():
        steps = together.Row(group, row, exp)
        place = str(folder / str(row))
        runs[row] = train.running(exp, place, steps, stop, on_digest=on_digest)
    return dict(together.finish(group, runs))


def said(folder):
    """What must be the same bytes of the same run."""
    return [(folder / name).read_bytes() for name in ("metrics.jsonl", "digests.jsonl")]


def records(folder):
    return logs.read(folder / "metrics.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        "cnn(widths=(4,), dense=8, dropout=0.5, batch_norm=True)",
        "cnn(widths=(4,), dense=8, dropout=0.5)",
    ],
)
def test_ten_steps_of_three_seeds_are_those_of_each_alone(tiny, model):
    plain = {"optim.name": "sgd", "optim.lr": 0.1, "batch_size": 16}
    exps = seeds_of(tiny(**{"model.name": model, **plain}), 3)
    group = together.Group(exps[0], 3)
    rows = [together.Row(group, number, exp) for number, exp in enumerate(exps)]
    for row, exp in zip(rows, exps, strict=True):
        row.put(exp.init())
    for columns in zip(*(row.batches(0) for row in rows), strict=True):
        for row, each in zip(rows, columns, strict=True):
            row.begin(each)
        group.step()
        if int(rows[0].take().step) == 10:
            break
    weights = []
    for row, exp in zip(rows, exps, strict=True):
        state = exp.init()
        start = np.asarray(jax.tree.leaves(state.params)[0])
        for _, batch in zip(range(10), exp.train_batches(), strict=False):
            state, scores = exp.train_step(state, batch)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
            (state.params, state.batch_stats, state.ema),
            (lambda s: (s.params, s.batch_stats, s.ema))(row.take()),
        )
        assert abs(float(scores["loss"]) - row.scores()()["loss"]) < 1e-5
        weights.append(np.asarray(jax.tree.leaves(state.params)[0]))
        assert np.abs(weights[-1] - start).max() > 1e-3  # It has learned something.
    assert np.abs(weights[0] - weights[1]).max() > 1e-3


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """``whole(config)`` -> the folder of two seeds that trained at once, never stopped."""
    made = {}

    def get(config):
        key = config.to_json()
        if key not in made:
            made[key] = folder = tmp_path_factory.mktemp("whole")
            run(dict(enumerate(seeds_of(config, 2))), folder)
        return made[key]

    return get


@pytest.fixture
def little(tiny):
    """A config that compiles fast and evaluates at every other step."""
    fast = {
        "model.name": "cnn(widths=(2,), dense=8, dropout=0.5)",
        "augment": "",
        "mix": "",
    }
    return tiny(**fast, length="8 steps", batch_size=16, **{"eval.every": "2 steps"})


@pytest.mark.slow
def test_every_seed_has_its_folder_with_all_that_it_has_alone(little, whole, tmp_path):
    folder = whole(little)
    exp = experiment.build(little).reseeded({"seed": 1})
    alone = tmp_path / "alone"
    train.run(exp, str(alone))
    for name in ("metrics.jsonl", "timing.jsonl", "digests.jsonl"):
        one, other = logs.read(alone / name), logs.read(folder / "1" / name)
        assert [(r["step"], r.get("kind"), *r) for r in one] == [
            (r["step"], r.get("kind"), *r) for r in other
        ]
    for one, other in zip(records(alone), records(folder / "1"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-3)
    assert said(folder / "0") != said(folder / "1")
    for row in range(2):
        saved = json.loads((folder / str(row) / "config.json").read_text())
        (start,) = json.loads((folder / str(row) / "manifest.json").read_text())["starts"]
        assert saved["config"]["seed"] == row
        assert (start["together"], start["row"], start["reason"]) == (2, row, "done")


class Poisoned(experiment.Experiment):
    """The update of step 5 is not finite, until a rewind leaves its batch out."""

    @functools.cached_property
    def schedule(self):
        schedule = experiment.Experiment.schedule.func(self)
        return lambda step: jnp.where(step == 5, jnp.nan, schedule(step))


@pytest.mark.slow
def test_a_rewind_is_of_each_seed_by_itself(little, tmp_path):
    little.nonfinite.policy = "rewind"
    exps = [Poisoned(little, None).reseeded({"seed": seed}) for seed in range(2)]
    results = run({0: exps[0], 1: exps[1]}, tmp_path)
    train.run(exps[1], str(tmp_path / "alone"))
    assert [result.record["step"] for result in results.values()] == [8, 8]
    for row in "01":
        (event,) = (r for r in records(tmp_path / row) if r["kind"] == "rewind")
        assert (event["step"], event["to"]) == (6, 3)
    for one, other in zip(
        records(tmp_path / "alone"), records(tmp_path / "1"), strict=True
    ):
        assert {k: one[k] for k in ("step", "kind")} == {
            k: other[k] for k in ("step", "kind")
        }
        assert one.get("index") == other.get("index")
        assert one.get("loss", 0) == pytest.approx(other.get("loss", 0), abs=1e-3)


@pytest.mark.slow
def test_a_teacher_teaches_every_seed_what_it_teaches_each_alone(little, whole, tmp_path):
    untaught = whole(little)
    little.distill.run = str(untaught / "0")
    little.distill.weight = 0.9
    exps = seeds_of(little, 2)
    run(dict(enumerate(exps)), tmp_path)
    train.run(exps[1], str(tmp_path / "alone"))
    alone, taught = records(tmp_path / "alone"), records(tmp_path / "1")
    for one, other in zip(alone, taught, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-3)
    assert [r["loss"] for r in taught] != [r["loss"] for r in records(untaught / "1")]


@pytest.mark.slow
def test_stopped_runs_go_on_to_the_same_bits_in_any_company(little, whole, tmp_path):
    exps = dict(enumerate(seeds_of(little, 2)))
    with pytest.raises(StoppedError):
        run(exps, tmp_path, ask_at=3)
    starts = json.loads((tmp_path / "1" / "manifest.json").read_text())["starts"]
    assert starts[0]["reason"] == "stopped"
    run({1: exps[1]}, tmp_path, size=2)  # Row 0 is idle, and then row 1.
    run({0: exps[0]}, tmp_path, size=2)
    for row in "01":
        assert said(tmp_path / row) == said(whole(little) / row)


@pytest.mark.slow
def test_one_that_stops_early_leaves_the_other_as_it_is(little, whole, tmp_path):
    early, other = seeds_of(little, 2)
    early.config.early_stop.patience = 1
    early.config.early_stop.min_delta = 2.0  # No gain of top-1 is as large.
    early.__dict__.pop("record_evaluation", None)
    results = run({0: early, 1: other}, tmp_path)
    assert (results[0].record["step"], results[1].record["step"]) == (4, 8)
    assert said(tmp_path / "1") == said(whole(little) / "1")
    before = [r for r in records(whole(little) / "0") if r["step"] <= 4]
    assert records(tmp_path / "0")[:-1] == before


def counted(until, error=None, seen=None):
    """A run of so many steps, that ends with an error, or raises what it is told."""
    try:
        for _ in range(until):
            yield
    except BaseException as told:
        seen.append(told)
        raise
    if error:
        raise error
    return f"{until} steps"


def test_runs_end_one_by_one_and_an_error_of_one_ends_all():
    group = types.SimpleNamespace(step=lambda: None)
    ended = together.finish(group, {7: counted(3), 8: counted(1), 9: counted(2)})
    assert list(ended) == [(8, "1 steps"), (9, "2 steps"), (7, "3 steps")]
    seen = []
    runs = {0: counted(9, seen=seen), 1: counted(1, InputError("full")), 2: counted(1)}
    found = together.finish(group, runs)
    with pytest.raises(InputError, match="full") as raised:
        list(found)
    assert seen == [raised.value]


def test_all_runs_that_are_asked_to_stop_come_to_save():
    group = types.SimpleNamespace(step=lambda: None)
    seen = []
    asked = StoppedError("asked")
    runs = {0: counted(4, asked, seen), 1: counted(1, asked, seen), 2: counted(2)}
    found = together.finish(group, runs)
    assert next(found) == (2, "2 steps")
    with pytest.raises(StoppedError):
        next(found)
    assert seen == []  # None was told to end before it did so itself.


def test_begun_runs_keep_their_rows_and_new_ones_go_together():
    begun = {3: (4, 1), 5: (1, 0), 6: (4, 0), 7: (4, 1), 8: (2, 1)}
    assert together.plans(range(13), begun, 3) == [
        (4, {1: 3, 0: 6}),
        (1, {0: 5}),
        (4, {1: 7}),
        (2, {1: 8}),
        (3, {0: 0, 1: 1, 2: 2}),
        (3, {0: 4, 1: 9, 2: 10}),
        (2, {0: 11, 1: 12}),
    ]
    assert together.plans([4, 2], {}, 1) == [(1, {0: 4}), (1, {0: 2})]


def test_seeds_go_together_only_where_that_is_measured_to_be_faster(tiny, monkeypatch):
    exps = seeds_of(tiny(), 4)

    def choose(seconds, lacks=0, too_many=99):
        def group_of(size):
            return types.SimpleNamespace(size=size, lacks=size >= too_many)

        def segments(group, exps, steps, count):
            assert group.size == len(exps)
            return [(1.0, seconds)] * count

        monkeypatch.setattr(together, "segments", segments)
        return together.choose(exps, group_of)

    assert choose(0.1) == (1, "")  # On CPU, whatever.
    monkeypatch.setattr(together.mesh, "is_accelerator", lambda mesh: True)
    why = "4 seeds at once are 2.00 times as fast as one after the other"
    assert choose(2.0) == (4, why)
    assert choose(3.9)[0] == choose(8.0)[0] == 1
    assert choose(1.0, too_many=4)[0] == 2
    assert choose(1.0, too_many=2) == (
        1,
        "one seed after the other: two at once do not fit the device's memory",
    )


@pytest.mark.slow
def test_both_ways_are_timed_in_turn(little):
    exps = seeds_of(little, 2)
    timed = together.segments(together.Group(exps[0], 2), exps, steps=5, count=2)
    assert np.shape(timed) == (2, 2)
    assert np.min(timed) > 0


OFF, ONE = "--config.data.resident=off", "--config.mesh.devices=1"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--together=0"], "--together=0 must be auto, or how many seeds"),
        (["--together=two"], "--together=two must be auto"),
        (["--together=2", OFF, ONE], r"--together=2: .*\(data\.resident\)"),
        (["--together=2", "--config.mesh.devices=2"], r"2 devices train .*devices=1, or"),
    ],
)
def test_what_cannot_be_at_once_is_refused(more, message, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    place = [f"--workdir={tmp_path / 's'}", f"--config.data.dir={data_dir}"]
    small = "--config.model.name=cnn(widths=(4,), dense=8)"
    with pytest.raises(InputError, match=message):
        commands.main(
            ["study", "--config=configs/digits.py", "--seeds=2", small, *place, *more]
        )
    assert not (tmp_path / "s").exists()


STUDY = [
    "--config=configs/digits.py",
    "--config.length=6 steps",
    "--config.eval.every=2 steps",
    "--config.checkpoint.every=2 steps",
    "--config.model.name=cnn(widths=(4,), dense=8, dropout=0.2)",
    "--config.data.train_ops=decode(1)",
    "--config.data.eval_ops=decode(1)",
]


@pytest.mark.slow
def test_a_study_of_seeds_at_once_is_one_of_runs_that_can_be_made_again(
    command, tmp_path, data_dir
):
    place = f"--workdir={tmp_path / 's'}"
    done = command("study", *STUDY, place, "--seeds=5", "--together=3")
    assert done.returncode == 0, done.stderr
    assert "done: cells=1 done=5 diverged=0 missing=0" in done.stdout
    assert "run 3 of 5: base seed 2: top1=" in done.stdout
    for seed, (size, row) in enumerate([(3, 0), (3, 1), (3, 2), (2, 0), (2, 1)]):
        folder = tmp_path / "s" / "base" / f"seed-{seed}"
        (start,) = json.loads((folder / "manifest.json").read_text())["starts"]
        assert (start["together"], start["row"]) == (size, row)
        assert any((folder / "tensorboard").iterdir())
        assert (folder.with_name(f"seed-{seed}.log")).read_text().count("compiled in") == 1
    again = command("reproduce", f"--workdir={tmp_path / 's' / 'base' / 'seed-2'}")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "reproduced bit for bit up to step 6" in again.stdout


@pytest.mark.slow
def test_a_study_goes_on_as_it_began_and_one_that_diverges_ends_alone(
    data_dir, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    place = f"--config.data.dir={data_dir}"

    def made(name, *more, seeds="2", status=0):
        folder = f"--workdir={tmp_path / name}"
        flags = [f"--seeds={seeds}", ONE, "--config.log.tensorboard=false"]
        flags.append("--config.checkpoint.keep=3")
        assert commands.main(["study", *STUDY, place, folder, *flags, *more]) == status
        return tmp_path / name / "base"

    whole = made("whole", "--together=2")
    stopped = made("stopped", "--together=2")
    for row in range(2):  # As if it had been killed after step 4.
        saved = stopped / f"seed-{row}" / "checkpoints" / "6"
        saved.rename(tmp_path / f"{row}-6")
        metrics = stopped / f"seed-{row}" / "metrics.jsonl"
        metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    study_json = (tmp_path / "stopped" / "study.json").read_bytes()
    made("stopped", seeds="3")
    for row in range(2):
        files = [folder / f"seed-{row}" for folder in (whole, stopped)]
        assert said(files[0]) == said(files[1])
        starts = json.loads((files[1] / "manifest.json").read_text())["starts"]
        assert [start["together"] for start in starts] == [2, 2]
    assert study_json == (tmp_path / "whole" / "study.json").read_bytes()
    capsys.readouterr()
    bad = ("--config.optim.name=sgd", "--config.optim.lr=1e30")
    made("bad", "--together=2", *bad, status=3)
    assert capsys.readouterr().out.count("diverged; metrics.jsonl in its folder") == 2
