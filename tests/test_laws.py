"""The laws that the README promises, each held by a test.

1 same inputs, same bits; 2 resume is invisible; 3 topology changes rounding only;
4 every example counts once; 5 one road from a config to objects; 6 a run carries its
proof; 7 nothing good is overwritten.
"""

import json
import pathlib
import shutil
import time

import jax
import numpy as np
import pytest

from jaxcls import experiment
from jaxcls.commands import dry_run
from jaxcls.config import loading
from jaxcls.data import sources
from jaxcls.errors import DivergedError
from jaxcls.runs import checkpoint, digests
from jaxcls.runs import records as run_records
from jaxcls.runs.workdir import Workdir
from jaxcls.training import train
from tests import golden
from tests.dying import Crash, dying
from tests.run_folders import record_bytes
from tests.scoring import score

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = golden.configs()
# Of the others the step is traced where it is run: see test_recipes_run.py.
SMALL = [
    name
    for name in CONFIGS
    if name.startswith(("digits", "cifar10", "finetune", "photos", "resnet50.py"))
]


@pytest.fixture
def tiny(tiny):
    """The laws have a crop, too, whose key each row has for itself."""
    return lambda **changes: tiny(**{"augment": "random_crop(1) | flip", **changes})


def run(config, workdir, at=10**9):
    return train.run(dying(config, at), str(workdir))


def final_digests(workdir, config):
    folder = Workdir(workdir)
    like = dying(config).programs.state_like
    last, _ = checkpoint.find(folder.checkpoints, "last")
    return checkpoint.digests(checkpoint.restore(folder.checkpoints, last, like))


def test_law_1_threads_and_folders_change_no_bit(tiny, whole, tmp_path, monkeypatch):
    reference = record_bytes(whole(tiny())[0])
    monkeypatch.chdir(tmp_path)
    run(tiny(**{"data.threads": 5, "data.prefetch": 1}), pathlib.Path("elsewhere"))
    assert record_bytes(tmp_path / "elsewhere") == reference


def test_law_1_another_seed_is_another_run(tiny, whole, tmp_path):
    run(tiny(seed=1), tmp_path / "run")
    assert record_bytes(tmp_path / "run") != record_bytes(whole(tiny())[0])


def test_law_2_a_finished_run_is_left_alone(tiny, whole):
    folder = whole(tiny())[0]
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    result = run(tiny(), folder)
    assert result.already
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


@pytest.mark.slow
def test_law_2_kill_9_at_any_time_leaves_no_trace(started, tmp_path):
    rng, lines = np.random.default_rng(0), {}
    for name, kills in (("whole", 0), ("killed", 4)):
        # With a cache of programs most kills are in training, and not in compilation.
        cached = [f"--config.compile.cache={tmp_path / 'cache'}"] if kills else []
        for patience in [*rng.uniform(0.0, 1.5, kills), None]:
            process = started(
                "-m", "jaxcls.main", "--config=configs/digits.py",
                f"--workdir={tmp_path / name}", "--config.length=8 epochs",
                "--config.checkpoint.every=7 steps", "--config.log.every=3 steps",
                "--config.mesh.devices=1", *cached, JAX_ENABLE_COMPILATION_CACHE="false",
            )  # fmt: skip
            if patience is not None:
                while line := process.stdout.readline():
                    if line.startswith(("starting from", "resuming from")):
                        break
                time.sleep(patience)
                process.kill()
            out, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        lines[name] = out.splitlines()[-1].split(": ", 1)[1]
    assert lines["killed"].replace("killed", "whole") == lines["whole"]
    assert record_bytes(tmp_path / "killed") == record_bytes(tmp_path / "whole")
    starts = json.loads((tmp_path / "killed" / "manifest.json").read_text())["starts"]
    reasons = [start["reason"] for start in starts]
    assert "killed" in reasons
    assert reasons == ["killed"] * (len(starts) - 1) + ["done"]


def test_law_3_one_and_eight_devices_agree_up_to_rounding(tiny, whole, tmp_path):
    run(tiny(**{"mesh.devices": 8}), tmp_path)
    losses = [
        [r["loss"] for r in run_records.read(folder / "metrics.jsonl") if "lr" in r]
        for folder in (tmp_path, whole(tiny())[0])
    ]
    np.testing.assert_allclose(losses[0][:3], losses[1][:3], rtol=1e-5)


def test_law_3_a_run_moves_to_another_topology(tiny, whole, tmp_path):
    with pytest.raises(Crash):
        run(tiny(), tmp_path, 7)
    result = run(tiny(**{"mesh.devices": 8}), tmp_path)
    final = train.finished(Workdir(whole(tiny())[0]))
    np.testing.assert_allclose(result.record["loss"], final["loss"], rtol=1e-3)
    assert result.record["n"] == final["n"]


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [7, 64, 360, 1000])
def test_law_4_a_split_is_scored_exactly(tiny, batch_size, devices):
    config = tiny(**{"mesh.devices": devices, "ema.decay": 0.0})
    exp = dying(config)
    n, values = score(exp, exp.init()._asdict(), "test", "data.test", batch_size)
    assert n == 360
    assert values["top1"] == REFERENCE.setdefault("top1", values["top1"])
    reference = REFERENCE.setdefault("loss", values["loss"])
    assert values["loss"] == pytest.approx(reference, rel=1e-6)


REFERENCE: dict[str, float] = {}


PHOTOS = sources.Facts("photos", "", (None, None, 3), 5, (), {"train": 500, "val": 90})


# To trace one takes seconds; finetune.py is of a ResNet-50, too.
SLOW = {"resnet50.py", "cifar10.py", "photos.py"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in SMALL],
)
def test_law_5_every_config_builds_from_shapes_alone(name, request):
    given = {}
    if name == "finetune.py":
        given["init.weights"] = str(request.getfixturevalue("resnet50_file"))
    loaded = loading.load(str(ROOT / "configs" / name), given)
    facts = sources.published_facts(loaded.data.name.removesuffix("_jpeg")) or PHOTOS
    used = loading.plugins_of(str(ROOT / "configs" / name), loaded)
    exp = experiment.build(loaded, facts, plugins=used)
    shown = dry_run.describe(exp)
    assert loading.to_text(exp.config).strip() in shown
    assert "= 'weights'" not in shown
    assert ("a fresh head for 5 classes; there it has 1000" in shown) == bool(given)


@pytest.mark.parametrize("name", CONFIGS)
def test_law_5_every_config_has_its_golden_text(name):
    text = loading.to_text(loading.load(str(ROOT / "configs" / name)))
    assert text == CONFIGS[name].read_text(), (
        f"if the change is meant: python -m tests.golden rewrites {CONFIGS[name].name}"
    )


def test_law_6_the_recorded_digest_is_that_of_the_checkpoint(tiny, whole):
    folder = whole(tiny())[0]
    recorded = run_records.read(folder / "digests.jsonl")
    arrays = final_digests(folder, tiny())
    assert recorded[-1]["arrays"] == arrays
    assert recorded[-1]["digest"] == digests.combine(arrays)
    assert [record["step"] for record in recorded] == [3, 4, 6, 8, 9, 12]


def test_law_7_a_diverged_run_keeps_its_last_finite_state(tiny, tmp_path):
    diverging = tiny(
        **{"optim.name": "sgd", "optim.lr": 1e30, "optim.warmup": "6 steps", "mix": ""}
    )
    for _ in range(2):  # The second start says the same, and changes nothing.
        with pytest.raises(DivergedError, match=r"after step (\d+) .*checkpoints/\1"):
            run(diverging, tmp_path)
    exp = experiment.build(diverging)
    folder = Workdir(tmp_path)
    state = checkpoint.restore_newest(folder.checkpoints, exp.programs.state_like)
    assert (
        int(state.bad_step) == int(state.step) == checkpoint.steps(folder.checkpoints)[-1]
    )
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_law_7_an_evaluation_that_is_not_finite_is_recorded_and_never_best(tiny, tmp_path):
    wild = {"optim.name": "sgd", "optim.lr": 1e15, "length": "1 steps", "mix": ""}
    config = tiny(**wild, **{"best.metric": "loss"})
    result = run(config, tmp_path)
    (record,) = [
        r for r in run_records.read(tmp_path / "metrics.jsonl") if r["kind"] == "eval"
    ]
    assert record["loss"] is None
    assert result.record["at"] == "last"
    assert run(config, tmp_path).already


def test_law_7_a_finish_by_another_process_is_seen_under_the_lock(
    tiny, whole, tmp_path, monkeypatch
):
    shutil.copytree(whole(tiny())[0], tmp_path / "run")
    before = record_bytes(tmp_path / "run")
    ask, looks = train.finished, []

    def look(folder):  # The first one comes before the other process has ended.
        looks.append(folder)
        return ask(folder) if len(looks) > 1 else None

    monkeypatch.setattr(train, "finished", look)
    assert run(tiny(), tmp_path / "run").already
    assert record_bytes(tmp_path / "run") == before


def test_law_7_what_is_saved_under_an_odd_path_loads(tiny, tmp_path):
    odd = tmp_path / "with space" / "star*" / "a#b?c%20" / "{brace}"
    run(tiny(), odd)
    assert final_digests(odd, tiny())
