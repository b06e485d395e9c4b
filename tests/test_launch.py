"""The recipes of launch/: they parse, ask what they say, and start what trains."""

import os
import re
import shlex
import signal
import string
import subprocess
import sys

import numpy as np
import pytest

from jaxcls.runs import records as run_records
from tests.conftest import ROOT

LAUNCH = ROOT / "launch"
SMALL = "--config=configs/digits.py", "--config.model.name=cnn(widths=(4, 8))"
FEW = *SMALL, "--config.length=6 steps", "--config.log.every=1 steps"

# As SLURM does it, for two tasks on this node.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do echo "$1" >> "$TOLD"; shift; done
export SLURM_JOB_ID=$JOB SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2
for i in 0 1; do
    SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &
    tasks[i]=$!
done
status=0
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
exit "$status"
"""
GCLOUD = """#!/usr/bin/env bash
printf '%q ' "$@" >> "$TOLD"; echo >> "$TOLD"
[[ $* == *describe* ]] && { read -r state < "$STATES"; sed -i 1d "$STATES"; echo "$state"; }
exit 0
"""


@pytest.fixture
def launched(started, tmp_path):
    """``launched("local.sh", *arguments, **environment)`` -> the process, started."""
    path = f"{tmp_path}:{os.environ['PATH']}"
    told = {"TOLD": str(tmp_path / "told"), "STATES": str(tmp_path / "states")}

    def launch(script, *arguments, **environment):
        given = {"PATH": path, "PYTHON": sys.executable, **told, **environment}
        return started(*arguments, program=str(LAUNCH / script), **given)

    return launch


def program(path, text):
    path.write_text(text)
    path.chmod(0o755)


def losses(run):
    records = run_records.read(run / "metrics.jsonl")
    return [record["loss"] for record in records if record["kind"] == "train"]


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_is_one(script):
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


def test_a_pod_is_asked_for_waited_for_used_and_given_back(launched, tmp_path):
    program(tmp_path / "gcloud", GCLOUD)
    (tmp_path / "states").write_text("WAITING_FOR_RESOURCES\nACTIVE\n")
    given = {"NAME": "pod", "ZONE": "z", "TYPE": "v5litepod-16", "RUNTIME": "r"}
    arguments = "--config=configs/resnet50.py", "--config.optim.name=adamw(b2=0.95)"
    for verb in (["create"], ["train", *arguments], ["delete"]):
        process = launched("tpu.sh", *verb, **given, PAUSE="0")
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    asked = [shlex.split(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert [" ".join(line[2:5]) for line in asked] == [
        "queued-resources create pod",
        "queued-resources describe pod",
        "queued-resources describe pod",
        "tpu-vm ssh pod",
        "queued-resources delete pod",
    ]
    assert "--accelerator-type=v5litepod-16" in asked[0]
    assert all("--zone=z" in line for line in asked)
    assert "--worker=all" in asked[3]
    (command,) = [word for word in asked[3] if word.startswith("--command=")]
    words = shlex.split(command.removeprefix("--command="))
    assert words[-4:] == ["jaxcls.main", "--coordinator=auto", *arguments]


def test_a_pod_that_cannot_be_had_is_said(launched, tmp_path):
    program(tmp_path / "gcloud", GCLOUD)
    (tmp_path / "states").write_text("FAILED\n")
    process = launched("tpu.sh", "create", ZONE="z", TYPE="t", RUNTIME="r")
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "jaxcls: FAILED\n")


def test_the_manifest_is_whole_once_its_variables_are_given():
    yaml = pytest.importorskip("yaml")
    text = (LAUNCH / "gke.yaml").read_text()
    names = set(re.findall(r"\$\{(\w+)\}", text))
    exported = {
        word for line in re.findall(r"# +export (.*)", text) for word in line.split()
    }
    assert names == {word.partition("=")[0] for word in exported if "=" in word}
    given = dict.fromkeys(names, "x") | {"HOSTS": "4", "CHIPS": "4"}
    jobs = yaml.safe_load(string.Template(text).substitute(given))["spec"]["replicatedJobs"]
    job = jobs[0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4
    (container,) = job["template"]["spec"]["containers"]
    assert "--coordinator=auto" in container["args"]
    assert "jaxcls.main" in (LAUNCH / "Dockerfile").read_text()


@pytest.mark.slow
def test_four_processes_on_one_machine_are_one_run_as_of_one(launched, tmp_path):
    for count in "1", "4":
        run = tmp_path / f"of{count}"
        process = launched("local.sh", *FEW, f"--workdir={run}", PROCESSES=count)
        out, said = process.communicate(timeout=400)
        assert process.returncode == 0, said
        assert out.count("done: step=6") == 1
        records = run_records.read(run / "metrics.jsonl")
        assert records[-1]["n"] == 360
    one, four = losses(tmp_path / "of1"), losses(tmp_path / "of4")
    assert len(one) == 6
    np.testing.assert_allclose(one, four, rtol=1e-5)


@pytest.mark.slow
def test_a_signal_reaches_all_processes_and_their_status_is_the_scripts(launched, tmp_path):
    process = launched(
        "local.sh", *SMALL, "--config.length=400 epochs", f"--workdir={tmp_path / 'run'}"
    )
    while not (line := process.stdout.readline()).startswith("step 20:"):
        assert line, process.stderr.read()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 75, said
    assert said.count("is saved, and the same command goes on") == 2
    process = launched("local.sh", *SMALL, "--config.batch_size=7")
    _, said = process.communicate(timeout=200)
    assert process.returncode == 2, said


@pytest.mark.slow
@pytest.mark.parametrize(("more", "status"), [((), 0), (("--config.seed=x",), 2)])
def test_tasks_of_slurm_find_each_other(launched, tmp_path, more, status):
    program(tmp_path / "srun", SRUN)
    run = tmp_path / "run"
    process = launched("slurm.sh", *FEW, *more, f"--workdir={run}", JOB=str(os.getpid()))
    out, said = process.communicate(timeout=400)
    assert process.returncode == status, said
    if status == 0:
        assert out.count("done: step=6") == 1
        assert len(losses(run)) == 6
        assert "--kill-on-bad-exit=0\n" in (tmp_path / "told").read_text()
