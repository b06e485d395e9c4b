"""Law 2: a run that dies, however and whenever, ends as the one that never did.

A table of kinds of run, each with states of its own that a resume must bring back, and
of the ways in which they die.
"""

import itertools
import json
import re

import pytest

from jaxcls import experiment
from jaxcls.data import pipeline
from jaxcls.devices import mesh
from jaxcls.errors import StoppedError
from jaxcls.runs import checkpoint, saving
from jaxcls.training import train
from jaxcls.training.stopping import Stop
from tests.dying import Crash, Poisoned
from tests.run_folders import record_bytes

# All kinds: 12 steps, evaluations after 4, 8, 12, saves after 3, 6, 9, 12.
BASE = {
    "batch_size": 32,
    "model.name": "cnn(widths=(4,), dense=8, dropout=0.2, batch_norm=True)",
    "eval.batch_size": 64,
}
KINDS = {
    # Mixup, dropout, running statistics, an average, a schedule, AdamW, what is best.
    "plain": {},
    "saved at every step": {"checkpoint.every": "1 steps"},
    "sam of microbatches": {
        "optim.sam": 0.05,
        "optim.accumulate": 4,
        "optim.clip_norm": 0.5,
        "model.batch_norm_groups": 4,
    },
    "lookahead, an average that warms up": {
        "optim.name": "sgd",
        "optim.wrapper": "lookahead(3)",
        "optim.clip_adaptive": 0.05,
        "ema.every": 2,
        "ema.warmup": True,
    },
    "schedule-free": {
        "optim.wrapper": "schedule_free",
        "optim.schedule": "constant",
        "ema.decay": 0.0,
        "best.metric": "ema_top1",
    },
    "frozen, rates by depth, the head first": {
        "optim.freeze": "^stage1",
        "optim.layer_decay": 0.5,
        "optim.head_first": "7 steps",
    },
    "low-rank parts": {
        "model.name": "vit_ti_16(patch=4, depth=1, width=8, heads=2, dropout=0.2)",
        "optim.lora": "rank=2, alpha=4, on='attention'",
    },
    "a plateau, then the end": {
        # Nothing moves, so that the first evaluation stays the best.
        "optim.lr": 1e-30,
        "model.name": "cnn(widths=(4,), dense=8)",
        "ema.decay": 0.0,
        "optim.schedule": "constant",
        "optim.plateau_patience": 1,
        "optim.plateau_factor": 0.5,
        "early_stop.patience": 4,
        "early_stop.min_delta": 0.9,
        "best.metric": "top1",
        "eval.every": "2 steps",
        "checkpoint.every": "5 steps",
    },
    "flips by epoch, copies, a mix that ends, weights of classes": {
        "augment": "alternating_flip | random_crop(1) | randaugment(1, (5, 15))",
        "mix": "mixup_or_cutmix(0.8, 1.0, until=0.7)",
        "data.repeats": 3,
        "data.fraction": 0.1,
        "loss.class_weights": "balanced",
        "loss.l2": 1e-4,
    },
    "balanced sizes that grow, streamed": {
        "data.resident": "off",
        "data.balance": True,
        "data.train_ops": "decode(1) | random_resized_crop(((0, 6), (0.6, 8)))",
        "model.name": "resnet18(stem='small', width=4, stages=(1,))",
    },
    "taught": {"distill.run": "plain", "distill.temperature": 2.0},
    "from weights": {"init.weights": "plain", "init.head": "fresh"},
    "skips": {"nonfinite.policy": "skip"},
    "rewinds": {"nonfinite.policy": "rewind"},
    "a state in parts": {"mesh.devices": 8, "mesh.fsdp": 4, "augment": "flip"},
    "in a loop": {"compile.loop": "on"},
}
NAN = {"skips": (4, 7), "rewinds": (4, 7)}
# (last step, best step): the first evaluation is a gain over none, and four are not.
ENDS = {"a plateau, then the end": (10, 2)}
# Each kind is compiled anew, and each death trains twice: the others are slow tests.
FAST = [
    ("plain", "crash at batch 7"),
    ("plain", "crash at batch 0, torn, crash at batch 1, crash at batch 4, torn"),
    ("plain", "crash at save 6, crash at save 6, crash at save 12"),
    ("plain", "stop at batch 0, stop at batch 6"),
    ("plain", "stop at evaluation 1, taken, crash at batch 10"),
    ("in a loop", "crash at batch 7"),
]

# Each start ends as is said, and after the last one the run goes on to its end.
TABLE = [(kind, "crash at batch 7") for kind in KINDS] + [
    ("plain", "crash at batch 0, torn, crash at batch 1, crash at batch 4, torn"),
    ("plain", "crash at batch 11"),
    ("plain", "crash at evaluation 1"),
    ("plain", "crash at evaluation 3"),
    ("plain", "crash at save 6, crash at save 6, crash at save 12"),
    ("plain", "stop at batch 0, stop at batch 6"),
    ("plain", ", ".join(f"stop at batch {i}" for i in range(12))),
    ("plain", "stop at evaluation 0, stop at evaluation 0, stop at evaluation 1"),
    ("plain", "stop at evaluation 3"),
    # Asked to in an evaluation a run saves a step that is not done: it is pending.
    ("plain", "stop at evaluation 1, crash at save 8"),
    ("plain", "stop at evaluation 1, taken, crash at batch 10"),
    ("saved at every step", "stop at batch 3, stop at batch 4, crash at batch 6"),
    ("lookahead, an average that warms up", "stop at batch 4"),
    ("frozen, rates by depth, the head first", "stop at batch 4, stop at batch 7"),
    ("a plateau, then the end", "crash at evaluation 3, stop at evaluation 0"),
    *(("skips", f"crash at batch {i}, stop at batch {i + 4}") for i in (3, 5)),
    *(("rewinds", f"crash at batch {i}, stop at batch {i + 3}") for i in (5, 8)),
    ("rewinds", "crash at rewind 1, crash at rewind 1, crash at rewind 2"),
    ("rewinds", "stop at evaluation 1, crash at save 8"),
    ("a state in parts", "stop at evaluation 1, crash at save 9"),
    ("in a loop", "stop at batch 5, stop at evaluation 0, crash at save 9"),
]
MADE = {}  # What is compiled once, and the run that never died, serve every test.


@pytest.fixture
def experiment_of(tiny, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(mesh, "LEAST", 8)  # Arrays as small as ours are split too.

    def get(kind):
        """(experiment, folder of its whole run, what that ended with)"""
        if kind not in MADE:
            changes = dict(KINDS[kind])
            for key in changes.keys() & {"distill.run", "init.weights"}:
                changes[key] = str(get(changes[key])[1])
            config = tiny(**BASE | changes)
            exp = Poisoned(config, None) if kind in NAN else experiment.build(config)
            vars(exp)["nan"] = NAN.get(kind)
            folder = tmp_path_factory.mktemp("whole") / "run"
            MADE[kind] = exp, folder, train.run(exp, str(folder)).record
        return MADE[kind]

    return get


def die(exp, folder, how, where, number, monkeypatch):
    """One start in `folder`, which ends as is said."""
    stop, evaluations, rewinds = Stop(), itertools.count(), itertools.count(1)

    def reached(place, count):
        if (place, count) == (where, number):
            if how == "crash":
                raise Crash
            stop.ask()

    def train_batches(of):
        def batches(self, start, steps):
            for step, batch in enumerate(of(self, start, steps), start):
                reached("batch", step)
                yield batch

        return batches

    def eval_batches(of):
        def batches(self, *args):
            which = next(evaluations)
            for i, batch in enumerate(of(self, *args)):
                if i == 1:
                    reached("evaluation", which)
                yield batch

        return batches

    def save(of):
        def save(self, state, *args, **kwargs):
            reached("save", int(state.step))  # Its records are written.
            of(self, state, *args, **kwargs)

        return save

    def rewind(of):
        def rewind(self, *args, **kwargs):
            found = of(self, *args, **kwargs)
            reached("rewind", next(rewinds))  # What came later is deleted.
            return found

        return rewind

    made = {
        (pipeline.Data, "train_batches"): train_batches,
        (pipeline.Data, "train_columns"): train_batches,
        (pipeline.Data, "eval_batches"): eval_batches,
        (saving.Checkpoints, "save"): save,
        (saving.Checkpoints, "rewind"): rewind,
    }
    with monkeypatch.context() as patched:
        for (owner, name), wrapped in made.items():
            patched.setattr(owner, name, wrapped(getattr(owner, name)))
        with pytest.raises(Crash if how == "crash" else StoppedError) as error:
            train.run(exp, str(folder), stop)
    if how == "stop":
        said = re.fullmatch(
            r"asked to; (?:the state after step (\d+) is saved, and the same command goes"
            r" on|step (12), the last, is saved, and the same command scores it)",
            str(error.value),
        )
        assert int(said[1] or said[2]) in checkpoint.steps(folder / "checkpoints")


@pytest.mark.parametrize(
    ("kind", "deaths"),
    [pytest.param(*row, marks=[] if row in FAST else [pytest.mark.slow]) for row in TABLE],
)
def test_law_2_a_run_that_dies_ends_as_the_one_that_did_not(
    experiment_of, tmp_path, monkeypatch, kind, deaths
):
    exp, whole, record = experiment_of(kind)
    end, best = ENDS.get(kind, (12, record["best_step"]))
    assert (record["step"], record["best_step"]) == (end, best)
    reasons = []
    for death in deaths.split(", "):
        if death == "torn":
            for name in ("metrics.jsonl", "digests.jsonl"):
                with (tmp_path / name).open("a") as file:
                    file.write('{"step": 9, "torn')
        elif death == "taken":  # As if it had died while the pending step is aside.
            assert checkpoint.take_pending(tmp_path / "checkpoints", 8)
        else:
            how, _, where, number = death.split()
            die(exp, tmp_path, how, where, int(number), monkeypatch)
            reasons.append({"stop": "stopped", "crash": "failed"}[how])
    assert train.run(exp, str(tmp_path)).record == record
    assert record_bytes(tmp_path) == record_bytes(whole)
    assert all(record_bytes(whole))
    starts = json.loads((tmp_path / "manifest.json").read_text())["starts"]
    assert [start["reason"] for start in starts] == [*reasons, "done"]
    assert not list((tmp_path / "checkpoints").glob("*.pending"))
