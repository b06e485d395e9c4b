"""Studies: runs of cells and seeds, whatever stops them, and their one result."""

import json
import signal
import subprocess
import sys
import time

import pytest

from jaxcls import commands, experiment
from jaxcls.config import loading as configs
from jaxcls.errors import InputError
from jaxcls.runs.workdir import Workdir
from jaxcls.studies import outcomes
from jaxcls.training import train
from tests import run_folders
from tests.conftest import ROOT

TINY = {
    "length": "4 steps",
    "eval.every": "2 steps",
    "checkpoint.every": "2 steps",
    "model.name": "cnn(widths=(4, 8), dense=16, dropout=0.2)",
    "data.train_ops": "decode(1)",
    "data.eval_ops": "decode(1)",
    "augment": "random_crop(1)",
    "log.tensorboard": "false",
    "mesh.devices": "1",
}
GRID = ("--seeds=2", "--grid", "optim.lr=0.01,0.001")


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def command(data_dir, tmp_path):
    """``command("--seeds=2", workdir="a")`` -> the arguments of a study of tiny runs."""

    def make(*more, workdir="study", **changed):
        values = {**TINY, "data.dir": data_dir, **changed}
        flags = [f"--config.{key}={value}" for key, value in values.items()]
        place = f"--workdir={tmp_path / workdir}"
        return ["study", "--config=configs/digits.py", place, *flags, *more]

    return make


@pytest.fixture
def done(command, tmp_path, capsys):
    """``done("--seeds=2")`` -> (status, study.json, output) of a study in this process."""

    def run(*more, workdir="study", **changed):
        status = commands.main(command(*more, workdir=workdir, **changed))
        result = json.loads((tmp_path / workdir / "study.json").read_text())
        return status, result, capsys.readouterr().out

    return run


@pytest.mark.slow
def test_what_is_done_is_not_done_again_and_seeds_and_cells_may_be_added(done, tmp_path):
    grid = ("--grid", "optim.lr=0.01")
    status, first, said = done("--seeds=1", *grid)
    assert status == 0
    assert "run 1 of 1: optim.lr=0.01 seed 0: top1=" in said
    run = tmp_path / "study" / "optim.lr=0.01" / "seed-0"
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    _, result, said = done("--seeds=1", *grid)
    assert result == first
    assert "run 1 of" not in said
    _, result, said = done("--seeds=1,", *grid)  # Seed 1 alone; 0 was asked for before.
    assert "run 1 of 1: optim.lr=0.01 seed 1" in said
    assert "done: cells=1 done=2 " in said
    assert result["budget"] == {"cells": 1, "runs": 2, "steps": 8}
    _, result, _ = done("--seeds=1", "--grid", "optim.lr=0.002")
    names = [cell["name"] for cell in result["cells"]]
    assert names == ["optim.lr=0.01", "optim.lr=0.002"]
    assert (result["done"], result["missing"]) == (3, 1)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


@pytest.mark.slow
def test_a_folder_of_another_study_is_refused(done, tmp_path):
    grid = ("--seeds=1", "--grid", "optim.lr=0.01")
    done(*grid)
    with pytest.raises(InputError, match=r"holds another study \(other: batch_size\)"):
        done(*grid, batch_size=32)
    file = tmp_path / "study" / "plan.json"
    file.write_text(file.read_text().replace('"0.01"', '"0.5"'))
    with pytest.raises(InputError, match=r"another study \(other: cell optim.lr=0.01\)"):
        done(*grid)


@pytest.mark.slow
def test_every_cell_and_seed_is_a_run_of_its_own_that_main_would_make(done, tmp_path):
    status, result, said = done(*GRID)
    assert status == 0
    assert "run 4 of 4: optim.lr=0.001 seed 1: top1=" in said
    assert "done: cells=2 done=4 diverged=0 missing=0" in said
    names = [cell["name"] for cell in result["cells"]]
    assert names == ["optim.lr=0.01", "optim.lr=0.001"]
    run, alone = tmp_path / "study" / "optim.lr=0.001" / "seed-1", tmp_path / "alone"
    values = json.loads((run / "config.json").read_text())["config"]
    assert (values["seed"], values["optim.lr"]) == (1, 0.001)
    train.run(experiment.build(configs.from_flat(values)), str(alone))
    for name in ("metrics.jsonl", "digests.jsonl"):
        assert (run / name).read_bytes() == (alone / name).read_bytes()


@pytest.mark.slow
def test_the_last_step_is_scored_beside_the_best(done, tmp_path):
    # A rate of 100 makes what comes after the first evaluation worse.
    options = {"optim.lr": 100, "optim.schedule": "constant"}
    status, result, _ = done("--seeds=1", **options)
    assert status == 0
    run = tmp_path / "study" / "base" / "seed-0"
    last = json.loads((run / outcomes.LAST_STEP).read_text())
    final = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["n"], final["best_step"]) == (4, 360, 2)
    values = result["cells"][0]["runs"][0]["values"]
    assert values["test_last"]["loss"] == last["loss"] != final["loss"]
    assert values["test_best"]["loss"] == final["loss"]


@pytest.mark.slow
def test_a_run_that_diverges_is_said_and_not_made_again(done):
    grid, options = ("--seeds=2", "--grid", "optim.lr=0.01,1e30"), {"optim.name": "sgd"}
    status, result, said = done(*grid, **options)
    assert status == 0
    assert "optim.lr=1e30 seed 1: diverged" in said
    assert (result["done"], result["diverged"], result["missing"]) == (2, 2, 0)
    status, _, said = done(*grid, **options)
    assert (status, "run 1 of" in said) == (0, False)
    options["optim.lr"] = 1e30
    assert done("--seeds=1", workdir="alone", **options)[0] == 3


@pytest.mark.slow
def test_a_run_that_another_process_makes_is_left_to_it(done, tmp_path):
    done("--seeds=1")
    with Workdir(tmp_path / "study" / "base" / "seed-1").lock():
        status, _, said = done("--seeds=2")
    assert status == 0
    assert "base seed 1: under way in another process" in said
    assert "not all runs are there yet: cells=1 done=1 diverged=0 missing=1" in said


def test_a_folder_that_holds_something_else_is_refused(done, tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match=r"holds 'letter\.txt' and no study"):
        done("--seeds=1")
    assert sorted(p.name for p in (tmp_path / "study").iterdir()) == ["letter.txt", "lock"]


def test_a_dry_run_says_the_plan_and_writes_nothing(command, tmp_path, capsys):
    assert commands.main(command(*GRID, "--dry_run", "--shard=1/3")) == 0
    assert capsys.readouterr().out.splitlines() == [
        "study:  2 cells x 2 seeds = 4 runs",
        "cell:   optim.lr=0.01",
        "cell:   optim.lr=0.001",
        "seeds:  0, 1",
        "shard:  1 of 3, 1 run",
    ]
    assert not (tmp_path / "study").exists()


def start(arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "jaxcls", *arguments], stdout=subprocess.PIPE, text=True
    )


def end(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out


@pytest.mark.slow
def test_a_study_that_was_stopped_twice_ends_as_one_that_never_was(command, tmp_path):
    options = {"length": "30 steps", "best.metric": "loss"}
    for count, number, status in ((1, signal.SIGKILL, -9), (2, signal.SIGTERM, 75)):
        process = start(command("--seeds=2", workdir="stopped", **options))
        while len(list(tmp_path.glob("stopped/base/*/digests.jsonl"))) < count:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == status
    end(start(command("--seeds=2", workdir="stopped", **options)))
    assert commands.main(command("--seeds=2", workdir="whole", **options)) == 0
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    assert (stopped / "study.json").read_bytes() == (whole / "study.json").read_bytes()
    manifests = [*stopped.glob("base/*/manifest.json")]
    starts = [s for file in manifests for s in json.loads(file.read_text())["starts"]]
    assert len(starts) > 3
    # What was measured is beside it: in cost.json, of all starts.
    cost = json.loads((stopped / "cost.json").read_text())
    assert (cost["runs"], cost["starts"] + cost["unknown"]) == (2, len(starts))
    assert cost["to_last_record"] + cost["unknown"] == 1  # Of the one that was killed.
    (taken,) = cost["seconds"].values()
    ended = [s["seconds"] for s in starts if "seconds" in s]
    assert sum(ended) <= taken + 1e-6
    assert cost["peaks"]["process_bytes"] == max(s.get("process_bytes", 0) for s in starts)


@pytest.mark.slow
def test_two_processes_on_one_folder_make_the_study_of_one(command, tmp_path):
    shards = [command("--seeds=2", f"--shard={i}/2", workdir="two") for i in range(2)]
    for process in [start(arguments) for arguments in shards]:
        end(process)
    assert commands.main(command("--seeds=2", workdir="one")) == 0
    files = [tmp_path / name / "study.json" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


RECIPE = """
from jaxcls.config import loading

def get_config():
    return loading.load("configs/digits.py", {values})
"""


@pytest.mark.slow
def test_a_recipe_is_recorded_verified_and_found_to_differ(data_dir, tmp_path, capsys):
    file, recorded = tmp_path / "recipe.py", tmp_path / "recipe.expected.json"
    values = {**TINY, "length": "12 steps", "optim.lr": "0.01"}
    file.write_text(RECIPE.format(values=values))

    def run(flag, *more, workdir="again"):
        place = f"--config.data.dir={data_dir}", f"--workdir={tmp_path / workdir}"
        status = commands.main(["study", f"{flag}={file}", *more, *place])
        return status, capsys.readouterr().out

    status, said = run("--config", "--seeds=3", "--record", "--margin=60", workdir="made")
    assert status == 0
    assert f"recorded: {recorded}" in said
    status, said = run("--verify")
    assert status == 0
    assert "top1 consistent: +0" in said
    made, again = (
        sorted((tmp_path / name / "base").glob("*/digests.jsonl"))
        for name in ("made", "again")
    )
    assert [a.read_bytes() for a in made] == [b.read_bytes() for b in again]
    # A record that three seeds say too little of, and one that no machine reaches.
    before = json.loads(recorded.read_text())
    recorded.write_text(json.dumps(before | {"margin": 0.1}))
    status, said = run("--verify")
    assert status == 4
    assert "cannot be told, too few seeds" in said
    before["figures"]["test_best"]["top1"] |= {"mean": 2.0, "deviation": 0.01}
    recorded.write_text(json.dumps(before | {"margin": 0.1}))
    status, said = run("--verify")
    assert status == 4
    assert "top1 differs: " in said
    file.write_text(RECIPE.format(values={**values, "optim.lr": "0.02"}))
    with pytest.raises(InputError, match=r"\(optim\.lr differ\)"):
        run("--verify")


def test_two_runs_are_compared_from_their_folders(tmp_path, capsys):
    for side, values in {"a": (0.5, 0.6, 0.7), "b": (0.52, 0.61, 0.74)}.items():
        for seed, top1 in enumerate(values):
            folder = tmp_path / side / f"seed-{seed}"
            run_folders.write(folder, run_folders.scored(top1), seed=seed)
    one, other = f"{tmp_path}/a", f"{tmp_path}/b"
    assert commands.main(["study", "--compare", one, other]) == 0
    said = capsys.readouterr().out
    assert f"{other} against {one}: no difference seen: +2.3 points" in said
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    for same in (one, f"{tmp_path}/b/../a", f"{tmp_path}/linked"):
        with pytest.raises(InputError, match="these are the same; name two"):
            commands.main(["study", "--compare", one, same])
    assert "--against" not in said
    single = [f"{tmp_path}/{side}/seed-0" for side in "ab"]
    assert commands.main(["study", "--compare", *single]) == 0
    *_, why, hint = capsys.readouterr().out.splitlines()
    assert why.startswith("by example they are not compared: ")
    assert hint == f"later: jaxcls evaluate --workdir={single[1]} --against={single[0]}"


@pytest.mark.slow
def test_a_seed_that_varies_a_fraction_varies_the_examples_alone(done, tmp_path):
    part = {"data.fraction": "0.5", "length": "2 steps"}
    status, result, _ = done("--seeds=2", "--vary=fraction", **part)
    assert status == 0
    assert [cell["vary"] for cell in result["cells"]] == [["fraction"]]
    saved = [
        json.loads((tmp_path / f"study/base/seed-{seed}/config.json").read_text())
        for seed in (0, 1)
    ]
    apart = {k for k, v in saved[0]["config"].items() if saved[1]["config"][k] != v}
    assert apart == {"data.fraction_seed"}
    assert [each["config"]["data.fraction_seed"] for each in saved] == [0, 1]
    assert saved[0]["implied"] == saved[1]["implied"]
    losses = [run["values"]["test_last"]["loss"] for run in result["cells"][0]["runs"]]
    assert losses[0] != losses[1]
    # Seed 1 is the run that train makes of its config.
    values = {key: str(value) for key, value in {**TINY, **part}.items()}
    values |= {"data.dir": saved[0]["config"]["data.dir"], "data.fraction_seed": "1"}
    config = configs.load("configs/digits.py", values)
    train.run(experiment.build(config), str(tmp_path / "alone"))
    seed = tmp_path / "study/base/seed-1"
    assert run_folders.record_bytes(seed) == run_folders.record_bytes(tmp_path / "alone")


@pytest.mark.slow
def test_a_seed_that_varies_the_split_varies_train_and_eval_and_not_test(done, tmp_path):
    status, result, _ = done("--seeds=2", "--vary=each", "--metric=loss", length="2 steps")
    assert status == 0
    cell = result["cells"][-1]
    assert (cell["name"], cell["vary"]) == ("vary=split", ["split"])
    runs = [tmp_path / f"study/vary=split/seed-{seed}" for seed in (0, 1)]
    saved = [json.loads((run / "config.json").read_text()) for run in runs]
    apart = {k for k, v in saved[0]["config"].items() if saved[1]["config"][k] != v}
    assert apart == {"data.split_seed"}
    assert saved[0]["implied"] == saved[1]["implied"]
    assert {*result["streams"]["test_last"]} == {
        *("init", "order", "augment", "dropout", "split")
    }
    losses = [run["values"]["test_last"]["loss"] for run in cell["runs"]]
    assert losses[0] != losses[1]


def test_a_split_that_cannot_be_drawn_anew_is_refused_before_the_first_run(
    command, tmp_path
):
    parts = ("--config.data.train=train[:90%]", "--config.data.eval=train[80%:]")
    with pytest.raises(InputError, match=r"data\.split_seed=5 draws .* two parts of one"):
        commands.main(command("--vary=init,split", "--seeds=5,6", *parts))
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--vary=split", "--config.data.train=train"], "try --config.data.train='train"),
        (["--vary=fraction"], "data.fraction=1; try --config.data.fraction=0.9"),
        (
            ["--vary=fraction", "--grid", "data.fraction=0.5,1"],
            "cell data.fraction=1: --vary=fraction varies which examples",
        ),
        (
            ["--vary=fraction", "--grid", "data.fraction_seed=1,2"],
            "data.fraction_seed is what --seeds varies; leave it out of the cells",
        ),
    ],
)
def test_a_fraction_that_cannot_vary_is_refused(command, tmp_path, flags, says):
    with pytest.raises(InputError, match=says):
        commands.main(command("--seeds=2", *flags))
    assert not (tmp_path / "study").exists()
