"""Steps in a loop: how many go at once changes no bits, and no record but by rounding."""

import functools
import json
import re
import types
from unittest import mock

import jax
import numpy as np
import pytest

from jaxcls import commands, experiment
from jaxcls.data.batch import Batch
from jaxcls.errors import DivergedError, InputError
from jaxcls.experiment.plan import Due
from jaxcls.learning import multistep
from jaxcls.runs import checkpoint
from jaxcls.runs import records as run_records
from jaxcls.training import loop, meter, stepping, train
from jaxcls.training.means import Means
from jaxcls.training.stopping import Stop
from tests.dying import Poisoned

RECORDS = ("metrics.jsonl", "digests.jsonl")


class Noted(Poisoned):
    """Notes how many steps go at once."""

    sizes: list[int]

    @functools.cached_property
    def programs(self):
        made = experiment.Experiment.programs.func(self)
        program = made.train_loop

        def noted(state, columns, count):
            self.sizes.append(count)
            return program(state, columns, count)

        made.train_loop = noted
        return made


MADE: dict[str, Noted] = {}  # What is compiled once serves every test.


def made(config, nan=()):
    exp = MADE.setdefault(config.to_json(), Noted(config, None))
    exp.nan, exp.sizes = nan, []
    return exp


@pytest.fixture
def looped(tiny):
    """A config of 20 steps: records at 9 and 18, evaluations at 8 and 16, a save at 10.

    An evaluation has a record, too.
    """

    def make(**changes):
        values = {
            "model.name": "cnn(widths=(2,), dense=8, dropout=0.5)",
            "batch_size": 16,
            "augment": "flip",
            "compile.loop": "on",
            "length": "20 steps",
            "log.every": "9 steps",
            "eval.every": "8 steps",
            "checkpoint.every": "10 steps",
            # By loss each evaluation is better, so each has a save.
            "best.metric": "loss",
        }
        return tiny(**{**values, **changes})

    return make


def run(config, folder, size, nan=(), at=0, **more):
    """How many steps went at once, in a run of at most `size` at once.

    at: a stop is asked for while this step is made ready.
    """
    exp, stop = made(config, nan), Stop()
    columns = type(exp.data).train_columns

    def asking(self, start, steps):
        for step, batch in enumerate(columns(self, start, steps), start + 1):
            if step == at:
                stop.ask()
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(exp.data), "train_columns", asking)
        patch.setattr(stepping, "next_size", lambda before, count, seconds: size)
        patch.setattr(loop.Loop, "size", size)
        train.run(exp, str(folder), stop, **more)
    return exp.sizes


def said(folder):
    return {name: (folder / name).read_bytes() for name in RECORDS}


def outline(folder):
    """The records without what is computed: steps, kinds, examples."""
    keys = ("step", "kind", "n", "index", "to", "at", "best_step")
    records = run_records.read(folder / "metrics.jsonl")
    return [{k: record[k] for k in keys if k in record} for record in records]


@pytest.mark.slow
def test_how_many_steps_go_at_once_changes_no_bits_and_duties_keep_their_steps(
    looped, tmp_path
):
    config = looped()
    assert run(config, tmp_path / "1", 1) == [1] * 20
    assert run(config, tmp_path / "7", 7) == [7, 1, 1, 1, 6, 2, 2]
    assert run(config, tmp_path / "all", 64) == [8, 1, 1, 6, 2, 2]
    assert said(tmp_path / "1") == said(tmp_path / "7") == said(tmp_path / "all")
    (start,) = json.loads((tmp_path / "7" / "manifest.json").read_text())["starts"]
    assert start["loop"] == 1
    train.run(made(looped(**{"compile.loop": "off"})), str(tmp_path / "alone"))
    assert outline(tmp_path / "alone") == outline(tmp_path / "7")
    for one, other in zip(
        *(run_records.read(tmp_path / name / "metrics.jsonl") for name in ("alone", "7")),
        strict=True,
    ):
        for key in {"loss", "grad_norm", "lr"} & one.keys():
            assert one[key] == pytest.approx(other[key], rel=1e-5)


def test_a_record_says_how_fast_the_steps_up_to_it_went(looped, tmp_path, monkeypatch):
    counted, at_record = [], []
    stepped, since_last = meter.Meter.stepped, meter.Meter.since_last

    def count(self, seconds, waited):
        counted.append(seconds)
        stepped(self, seconds, waited)

    def record(self):
        at_record.append(len(counted))
        return since_last(self)

    monkeypatch.setattr(meter.Meter, "stepped", count)
    monkeypatch.setattr(meter.Meter, "since_last", record)
    run(looped(), tmp_path, 7)
    # Records at 9 and 18, the evaluations at 8 and 16, and the last step, 20; of each the
    # steps up to it, and no other.
    assert at_record[:5] == [8, 9, 16, 18, 20]
    assert len(counted) == 20
    assert min(counted) >= 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "nan"),
    [("stop", (8, 15)), ("skip", (4, 5, 12)), ("rewind", (8, 15)), ("rewind", (4, 19))],
)
def test_an_update_that_is_not_finite_is_found_among_many(looped, tmp_path, policy, nan):
    def end(name, go):
        try:
            go(tmp_path / name)
            return 20
        except DivergedError:
            return max(checkpoint.steps(tmp_path / name / "checkpoints"))

    config = looped(**{"nonfinite.policy": policy})
    ended = {
        end("1", lambda folder: run(config, folder, 1, nan)),
        end("all", lambda folder: run(config, folder, 64, nan)),
    }
    assert said(tmp_path / "1") == said(tmp_path / "all")
    alone = looped(**{"nonfinite.policy": policy, "compile.loop": "off"})
    ended.add(end("alone", lambda folder: train.run(made(alone, nan), str(folder))))
    assert outline(tmp_path / "alone") == outline(tmp_path / "all")
    assert ended == ({nan[0]} if policy == "stop" else {20})
    kind = {"stop": "diverged", "skip": "skip", "rewind": "rewind"}[policy]
    found = [r["step"] - 1 for r in outline(tmp_path / "all") if r["kind"] == kind]
    assert found == ([nan[0]] if policy == "stop" else [*nan])


@pytest.mark.slow
def test_a_loop_over_eight_devices_agrees_with_its_steps_one_by_one(looped, tmp_path):
    model = {"model.name": "cnn(widths=(4,), dense=256, batch_norm=True)"}
    devices = {"mesh.devices": 8, "mesh.fsdp": 4, **model}
    train.run(made(looped(**devices)), str(tmp_path / "loop"))
    train.run(made(looped(**devices, **{"compile.loop": "off"})), str(tmp_path / "alone"))
    for one, other in zip(
        *(
            run_records.read(tmp_path / name / "metrics.jsonl")
            for name in ("alone", "loop")
        ),
        strict=True,
    ):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


@pytest.mark.slow
def test_a_looped_run_is_made_again_bit_for_bit_and_traced(looped, tmp_path, capsys):
    exp = experiment.build(looped(**{"log.profile": 4, "length": "10 steps"}))
    train.run(exp, str(tmp_path / "run"))
    # Blocks are as long as the machine is fast, and the trace is of whole blocks.
    assert re.search(r"profile: a trace of [4-7] steps is in", capsys.readouterr().out)
    again = [f"--workdir={tmp_path / 'run'}"]
    assert commands.main(["reproduce", *again, f"--scratch={tmp_path / 'again'}"]) == 0
    assert "reproduced bit for bit up to step 10" in capsys.readouterr().out
    (start,) = json.loads((tmp_path / "again" / "manifest.json").read_text())["starts"]
    assert start["loop"] == 1
    assert commands.main(["reproduce", *again, "--config.data.resident=off"]) == 0
    assert "steps in a loop -> one by one" in capsys.readouterr().out


def test_auto_is_a_loop_on_accelerators_with_resident_images_alone(tiny, monkeypatch):
    def chosen(**changes):
        return stepping.choose(experiment.build(tiny(**changes))).most

    off, on = {"data.resident": "off"}, {"compile.loop": "on"}
    assert chosen() == 1
    assert chosen(**on) == multistep.MOST
    monkeypatch.setattr(stepping.mesh, "is_accelerator", lambda mesh: True)
    assert chosen() == multistep.MOST
    assert chosen(**off) == chosen(**{"compile.loop": "off"}) == 1
    with pytest.raises(InputError, match=r"compile.loop=on: .*\(data\.resident\).*'auto'"):
        chosen(**on, **off)
    monkeypatch.setattr(stepping.hosts, "count", lambda: 2)
    assert chosen() == 1
    with pytest.raises(InputError, match=r"compile.loop=on: .* start one process, or"):
        chosen(**on)


@pytest.mark.parametrize(
    ("seconds", "largest"), [(0.001, multistep.MOST), (0.0096, 26), (0.2, 1), (3.0, 1)]
)
def test_what_goes_at_once_takes_a_quarter_of_a_second(tiny, monkeypatch, seconds, largest):
    # A device that does one thing after the other, while the host goes on.
    now, free, sizes = [0.0], [0.0], []

    def advance(state, block):
        sizes.append(len(block))
        free[0] = max(now[0], free[0]) + len(block) * seconds
        return state, free[0]

    def wait(done):
        now[0] = max(now[0], done)
        return dict.fromkeys(("finite", "loss"), np.ones(multistep.MOST))

    class NoDuties(loop.Loop):
        def _duties(self, state, step):
            return state

    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(loop.jax, "device_get", wait)
    plan = types.SimpleNamespace(steps=300, due=lambda step: Due(*(step == 300,) * 3))
    exp = types.SimpleNamespace(config=tiny(), mesh=None, plan=plan)
    stepper = stepping.in_blocks(exp)._replace(
        compile=lambda: None,
        batches=lambda start: (Batch() for _ in range(300)),
        advance=advance,
    )
    made = NoDuties(
        exp, stepper, mock.Mock(), Stop(), *(mock.Mock() for _ in range(3)), Means(())
    )
    made._train(types.SimpleNamespace(step=0, halted=False))
    assert sum(sizes) == 300
    assert sizes[0] == 1  # Nothing is known yet.
    assert max(sizes) == largest


def test_the_loop_itself_is_its_step_as_often_as_is_said():
    def train_step(state, batch, teacher):
        state = state * 2 + batch.image.sum() + teacher
        return state, {"state": state, "first": batch.index[0]}

    def take(data, index):
        return data._replace(image=data.image[index])

    made = jax.jit(
        functools.partial(multistep.train_loop, train_step=train_step, take=take)
    )
    index = np.random.default_rng(0).integers(0, 5, (multistep.MOST, 3))
    data = Batch(image=np.arange(5) ** 2)
    for count in (0, 1, 4):
        state, scores = made(7, Batch(index=index), count, data, 1)
        expected, every = 7, []
        for rows in index[:count]:
            expected = expected * 2 + int((rows**2).sum()) + 1
            every.append(expected)
        assert int(state) == expected
        assert scores["state"][:count].tolist() == every
        assert scores["first"][:count].tolist() == index[:count, 0].tolist()


def test_a_block_that_a_record_cut_short_does_not_make_the_next_ones_short():
    # Four steps in 0.02 s: fifty of them take the quarter of a second.
    assert stepping.next_size(32, 4, 0.02) == 50
    assert stepping.next_size(2, 2, 0.01) == 4  # At most twice as many as before.
    assert stepping.next_size(8, 8, 1e9) == 1
