"""Studies: runs of cells and seeds, whatever stops them, and their one result."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from jaxcls import commands, experiment
from jaxcls.config import loading as configs
from jaxcls.errors import InputError
from jaxcls.studies import folder as study_folder
from jaxcls.studies import outcomes
from jaxcls.training import train
from tests import run_folders
from tests.conftest import ROOT

TINY = [
    "--config=configs/digits.py",
    "--config.length=4 steps",
    "--config.eval.every=2 steps",
    "--config.checkpoint.every=2 steps",
    "--config.model.name=cnn(widths=(4, 8), dense=16, dropout=0.2)",
    "--config.data.train_ops=decode(1)",
    "--config.data.eval_ops=decode(1)",
    "--config.augment=random_crop(1)",
    "--config.log.tensorboard=false",
    "--config.mesh.devices=1",
]


@pytest.fixture
def command(data_dir, tmp_path):
    """``command("--seeds=2", workdir="a")`` -> the arguments of a study of tiny runs."""

    def make(*more, workdir="study"):
        place = [f"--workdir={tmp_path / workdir}", f"--config.data.dir={data_dir}"]
        given = {text.partition("=")[0] for text in more}
        rest = [text for text in TINY if text.partition("=")[0] not in given]
        return [*rest, *place, *more]

    return make


@pytest.fixture
def done(command, tmp_path):
    """``done("--seeds=2")`` -> (status, folder) of a study made in this process."""

    def run(*more, workdir="study"):
        return commands.main(
            ["study", *command(*more, workdir=workdir)]
        ), tmp_path / workdir

    return run


def result(folder):
    return json.loads((folder / "study.json").read_text())


GRID = ("--seeds=2", "--grid", "optim.lr=0.01,0.001")


@pytest.mark.slow
def test_what_is_done_is_not_done_again_and_seeds_may_be_added(done, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, folder = done("--seeds=1", "--grid", "optim.lr=0.01")
    assert status == 0
    assert "run 1 of 1: optim.lr=0.01 seed 0: top1=" in capsys.readouterr().out
    run = folder / "optim.lr=0.01" / "seed-0"
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    first = (folder / "study.json").read_bytes()
    done("--seeds=1", "--grid", "optim.lr=0.01")
    assert "run 1 of" not in capsys.readouterr().out
    assert (folder / "study.json").read_bytes() == first
    with pytest.raises(InputError, match=r"holds another study \(other: batch_size\)"):
        done("--seeds=1", "--grid", "optim.lr=0.01", "--config.batch_size=32")
    plan = json.loads((folder / "plan.json").read_text())
    plan["cells"][0]["overrides"] = {"optim.lr": "0.5"}
    with monkeypatch.context() as other:
        other.setattr(study_folder, "read_plan", lambda folder: plan)
        with pytest.raises(
            InputError, match=r"another study \(other: cell optim.lr=0.01\)"
        ):
            done("--seeds=1", "--grid", "optim.lr=0.01")
    capsys.readouterr()
    done("--seeds=1,", "--grid", "optim.lr=0.01")  # Seed 1 alone; 0 was asked for before.
    out = capsys.readouterr().out
    assert "run 1 of 1: optim.lr=0.01 seed 1" in out
    assert "done: cells=1 done=2 " in out
    assert result(folder)["budget"] == {"cells": 1, "runs": 2, "steps": 8}
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


@pytest.mark.slow
def test_cells_may_be_added_and_the_result_is_of_all(done, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, folder = done("--seeds=1", "--grid", "optim.lr=0.01")
    done("--seeds=0-1", "--grid", "optim.lr=0.002")
    assert [cell["name"] for cell in result(folder)["cells"]] == [
        "optim.lr=0.01", "optim.lr=0.002",
    ]  # fmt: skip
    assert (result(folder)["done"], result(folder)["missing"]) == (3, 1)
    done("--seeds=2", "--grid", "optim.lr=0.002,0.01")
    assert (result(folder)["done"], result(folder)["missing"]) == (4, 0)


@pytest.mark.slow
def test_every_cell_and_seed_is_a_run_of_its_own_that_main_would_make(
    done, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    status, folder = done(*GRID)
    out = capsys.readouterr().out
    assert status == 0
    assert "run 4 of 4: optim.lr=0.001 seed 1: top1=" in out
    assert "done: cells=2 done=4 diverged=0 missing=0" in out
    names = [cell["name"] for cell in result(folder)["cells"]]
    assert names == ["optim.lr=0.01", "optim.lr=0.001"]
    run = folder / "optim.lr=0.001" / "seed-1"
    values = json.loads((run / "config.json").read_text())["config"]
    assert (values["seed"], values["optim.lr"]) == (1, 0.001)
    alone = tmp_path / "alone"
    train.run(experiment.build(configs.from_flat(values)), str(alone))
    for name in ("metrics.jsonl", "digests.jsonl"):
        assert (run / name).read_bytes() == (alone / name).read_bytes()


@pytest.mark.slow
def test_the_last_step_is_scored_beside_the_best(done, monkeypatch):
    monkeypatch.chdir(ROOT)
    # A rate of 100 makes what comes after the first evaluation worse.
    status, folder = done(
        "--seeds=1", "--config.optim.lr=100", "--config.optim.schedule=constant"
    )
    assert status == 0
    found = result(folder)
    run = folder / "base" / "seed-0"
    last = json.loads((run / outcomes.LAST_STEP).read_text())
    final = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["n"], final["best_step"]) == (4, 360, 2)
    values = found["cells"][0]["runs"][0]["values"]
    assert values["test_last"]["loss"] == last["loss"] != final["loss"]
    assert values["test_best"]["loss"] == final["loss"]


@pytest.mark.slow
def test_a_run_that_diverges_is_said_and_not_made_again(done, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    grid = ("--seeds=2", "--grid", "optim.lr=0.01,1e30", "--config.optim.name=sgd")
    status, folder = done(*grid)
    assert status == 0
    assert "optim.lr=1e30 seed 1: diverged" in capsys.readouterr().out
    found = result(folder)
    assert (found["done"], found["diverged"], found["missing"]) == (2, 2, 0)
    alone = ("--seeds=1", "--config.optim.lr=1e30", "--config.optim.name=sgd")
    assert done(*alone, workdir="alone")[0] == 3
    capsys.readouterr()
    assert done(*grid)[0] == 0
    assert "run 1 of" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_runs_of_two_shards_are_those_of_one(done, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    done(*GRID, "--shard=0/2", workdir="shards")
    assert "not all runs are there yet: cells=2 done=2 diverged=0 missing=2" in (
        capsys.readouterr().out
    )
    done(*GRID, "--shard=1/2", workdir="shards")
    _, folder = done(*GRID)
    shards = folder.with_name("shards")
    assert (shards / "study.json").read_bytes() == (folder / "study.json").read_bytes()


@pytest.mark.slow
def test_a_run_that_another_process_makes_is_left_to_it(
    done, command, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    from jaxcls.runs.workdir import Workdir

    done("--seeds=1")
    with Workdir(tmp_path / "study" / "base" / "seed-1").lock():
        assert done("--seeds=2")[0] == 0
    out = capsys.readouterr().out
    assert "base seed 1: under way in another process" in out
    assert "not all runs are there yet: cells=1 done=1 diverged=0 missing=1" in out


def test_a_folder_that_holds_something_else_is_refused(done, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match=r"holds 'letter\.txt' and no study"):
        done("--seeds=1")
    assert sorted(p.name for p in (tmp_path / "study").iterdir()) == ["letter.txt", "lock"]


def test_a_dry_run_says_the_plan_and_writes_nothing(done, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert done(*GRID, "--dry_run", "--shard=1/3")[0] == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "study:  2 cells x 2 seeds = 4 runs",
        "cell:   optim.lr=0.01",
        "cell:   optim.lr=0.001",
        "seeds:  0, 1",
        "shard:  1 of 3, 1 run",
    ]
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_study_that_was_stopped_twice_ends_as_one_that_never_was(command, tmp_path):
    more = ("--seeds=3", "--config.length=30 steps", "--config.best.metric=loss")

    def start(workdir):
        arguments = command(*more, workdir=workdir)
        return subprocess.Popen(
            [sys.executable, "-m", "jaxcls", "study", *arguments],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def until(process, count):
        while len(list(tmp_path.glob("stopped/base/*/digests.jsonl"))) < count:
            assert process.poll() is None
            time.sleep(0.02)

    for count, number, status in ((1, signal.SIGKILL, -9), (2, signal.SIGTERM, 75)):
        process = start("stopped")
        until(process, count)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == status
    for workdir in ("stopped", "whole"):
        process = start(workdir)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
    files = [tmp_path / name / "study.json" for name in ("stopped", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    starts = [
        json.loads(file.read_text())["starts"]
        for file in (tmp_path / "stopped").glob("base/*/manifest.json")
    ]
    assert sum(len(each) for each in starts) > 3


@pytest.mark.slow
def test_two_processes_on_one_folder_make_the_study_of_one(command, tmp_path):
    arguments = command("--seeds=2", workdir="two")
    env = {**os.environ, "PYTHONWARNINGS": "default"}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "jaxcls", "study", *arguments, f"--shard={i}/2"],
            cwd=ROOT, stdout=subprocess.PIPE, text=True, env=env,
        )
        for i in range(2)
    ]  # fmt: skip
    for process in both:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
    alone = command("--seeds=2", workdir="one")
    subprocess.run([sys.executable, "-m", "jaxcls", "study", *alone], cwd=ROOT, check=True)
    files = [tmp_path / name / "study.json" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


RECIPE = """
from jaxcls.config import base

def get_config():
    c = base()
    c.batch_size = 64
    c.length = "12 steps"
    c.model.name = "cnn(widths=(4, 8), dense=16)"
    c.data.name = "digits"
    c.data.train = "train[:90%]"
    c.data.eval = "train[90%:]"
    c.data.test = "test"
    c.data.train_ops = "decode(1)"
    c.data.eval_ops = "decode(1)"
    c.optim.name = "adamw"
    c.optim.lr = 0.01
    c.log.tensorboard = False
    return c
"""


@pytest.mark.slow
def test_a_recipe_is_recorded_verified_and_found_to_differ(data_dir, tmp_path, capsys):
    file = tmp_path / "recipe.py"
    file.write_text(RECIPE)
    place = f"--config.data.dir={data_dir}"

    def run(*arguments, workdir):
        return commands.main(
            ["study", *arguments, place, f"--workdir={tmp_path / workdir}"]
        )

    more = ("--seeds=3", "--record", "--margin=60")
    with pytest.raises(InputError, match=r"--config\.optim\.lr changes it"):
        run(f"--config={file}", *more, "--config.optim.lr=0.1", workdir="no")
    assert run(f"--config={file}", *more, workdir="made") == 0
    recorded = tmp_path / "recipe.expected.json"
    assert f"recorded: {recorded}" in capsys.readouterr().out
    assert run(f"--verify={file}", workdir="again") == 0
    assert "top1 consistent: +0" in capsys.readouterr().out
    made, again = (
        sorted((tmp_path / name / "base").glob("*/digests.jsonl"))
        for name in ("made", "again")
    )
    assert [a.read_bytes() for a in made] == [b.read_bytes() for b in again]
    # A record that no machine reaches, and one that three seeds say too little of.
    before = json.loads(recorded.read_text())
    figure = before["figures"]["test_best"]["top1"]
    recorded.write_text(json.dumps(before | {"margin": 0.1}))
    assert run(f"--verify={file}", workdir="again") == 4
    assert "cannot be told, too few seeds" in capsys.readouterr().out
    figure |= {"mean": 2.0, "deviation": 0.01}
    recorded.write_text(json.dumps(before | {"margin": 0.1}))
    assert run(f"--verify={file}", workdir="again") == 4
    assert "top1 differs: " in capsys.readouterr().out
    file.write_text(RECIPE.replace("0.01", "0.02"))
    with pytest.raises(InputError, match=r"\(optim\.lr differ\)"):
        run(f"--verify={file}", workdir="again")


def test_two_runs_are_compared_from_their_folders(tmp_path, capsys):
    for side, values in {"a": (0.5, 0.6, 0.7), "b": (0.52, 0.61, 0.74)}.items():
        for seed, top1 in enumerate(values):
            run_folders.write(
                tmp_path / side / f"seed-{seed}", run_folders.scored(top1), seed=seed
            )
    assert (
        commands.main(["study", "--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    )
    out = capsys.readouterr().out
    assert f"{tmp_path}/b against {tmp_path}/a: no difference seen: +2.3 points" in out
    with pytest.raises(InputError, match="these are the same; name two"):
        commands.main(["study", "--compare", str(tmp_path / "a"), f"{tmp_path}/a/"])
