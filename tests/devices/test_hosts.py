"""A run of several processes: they agree, stop, fail and go on together.

Real processes on the loopback, one CPU device each. Those that start any are slow.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxcls import commands
from jaxcls.devices import hosts
from jaxcls.errors import InputError, StoppedError
from jaxcls.runs import records as run_records
from jaxcls.runs import workdir
from tests.conftest import ROOT, popen
from tests.run_folders import record_bytes

SMALL = "--config.model.name=cnn(widths=(4, 8))"
UNDRAWN = "--config.log.tensorboard=False"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("", "2", ""), "--processes and --process need --coordinator=HOST:PORT"),
        (("auto", "2", "0"), "finds --processes and --process itself; leave them out"),
        (("host", "2", "0"), "must be auto or HOST:PORT of process 0"),
        (("host:99999", "2", "0"), "must be auto or HOST:PORT of process 0"),
        (("host:1", "", ""), "needs --processes=N and --process=I below N, and has none"),
        (("host:1", "2", "2"), "and --process=I below N, and has 2 and 2"),
        (("host:1", "two", "0"), "needs --processes=N and --process=I below N"),
    ],
)
def test_flags_that_do_not_fit_are_answered_with_what_does(flags, says):
    with pytest.raises(InputError, match=re.escape(says)), hosts.joined(*flags):
        pass


def test_auto_where_there_is_nothing_to_find_says_what_to_give(command, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM", "OMPI", "KUBERNETES", "TPU")):
            monkeypatch.delenv(name)
    done = command("train", "--config=configs/digits.py", "--coordinator=auto")
    assert done.returncode == 2
    said = "error: --coordinator=auto: no TPU pod, SLURM, Kubernetes or Open MPI job"
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


def test_one_process_is_alone_and_agrees_with_itself():
    with hosts.joined(""):
        assert hosts.count() == 1
        assert hosts.is_first()
    assert hosts.share({"a": 1}) == [{"a": 1}]
    assert hosts.on_first(lambda: 7) == hosts.together(lambda: 7) == 7
    hosts.agree({"a": 1})
    assert hosts.is_agreed(None)
    assert hosts.is_agreed(StoppedError())
    assert not hosts.is_agreed(InputError("x"))


def test_no_process_asks_for_a_device_before_it_has_to(command, tmp_path):
    """`hosts` starts no backend: a run's folder is looked at first."""
    code = (
        "from jaxcls.devices import hosts\n"
        "from jax._src import xla_bridge\n"
        "hosts.share(1); hosts.count(); hosts.is_first()\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


class Run:
    """Processes of one run of digits, with a folder that they share."""

    def __init__(self, folder, data_dir):
        self.folder, self.data_dir = folder, data_dir
        self.processes = []

    def start(self, count, *arguments, each=None, devices=1):
        """Start `count` processes; each: {number: arguments of that one alone}.

        devices: CPU devices that each process has.
        """
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            port = listener.getsockname()[1]
        flags = f"--config=configs/digits.py --workdir={self.folder} --processes={count}"
        small = [] if any("model.name" in each for each in arguments) else [SMALL]
        flags = [*flags.split(), f"--coordinator=localhost:{port}", UNDRAWN]
        flags += [*small, *arguments]
        self.processes = [
            popen(
                self.data_dir, sys.executable, "-m", "jaxcls.main", *flags,
                f"--process={number}", *(each or {}).get(number, ()), devices=devices,
            )
            for number in range(count)
        ]  # fmt: skip

    def until(self, beginning):
        """Read what process 0 prints up to a line that begins so."""
        first = self.processes[0]
        while not (line := first.stdout.readline()).startswith(beginning):
            assert line, first.stderr.read()

    def end(self, *statuses):
        """What all processes said on standard error, once each ended with its status."""
        said = [process.communicate(timeout=300)[1] for process in self.processes]
        if statuses:
            assert [p.returncode for p in self.processes] == [*statuses], said
        return said

    def starts(self):
        return json.loads((self.folder / "manifest.json").read_text())["starts"]

    def losses(self):
        found = run_records.read(self.folder / "metrics.jsonl")
        return [record["loss"] for record in found if record["kind"] == "train"]


def alone(run, *arguments):
    """Train to the end in this process."""
    given = "--config=configs/digits.py", f"--workdir={run.folder}", UNDRAWN
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(run.data_dir))
        patch.chdir(ROOT)
        assert commands.main(["train", *given, *arguments]) == 0


LENGTH = "--config.length=5 epochs"
LONG = "--config.length=400 epochs"


# Of 18 batches of 8, at each step: nearly all of the time goes into evaluations.
OFTEN = (
    "--config.eval.every=1 step",
    "--config.eval.batch_size=8",
    "--config.length=9 steps",
    "--config.log.every=1 step",
    "--config.checkpoint.every=3 steps",
    "--config.checkpoint.keep=2",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_dir):
    """A run of OFTEN on two processes that nobody stopped."""
    run = Run(tmp_path_factory.mktemp("whole") / "run", data_dir)
    run.start(2, *OFTEN)
    run.end(0, 0)
    return run


@pytest.fixture
def made(tmp_path, data_dir):
    """``made("name")`` -> a `Run` in a folder of that name."""
    runs = []

    def make(name="run"):
        runs.append(Run(tmp_path / name, data_dir))
        return runs[-1]

    yield make
    for process in (process for run in runs for process in run.processes):
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_signals_to_one_and_a_damaged_checkpoint_leave_no_trace(made, whole):
    run = made()
    for after, number, target in (
        ("step 1:", signal.SIGTERM, 1),
        ("step 5: eval", signal.SIGINT, 0),
    ):
        run.start(2, *OFTEN)
        run.until(after)
        run.processes[target].send_signal(number)
        said = run.end(75, 75)
        steps = [re.search(r"after step (\d+) is saved", each)[1] for each in said]
        assert steps[0] == steps[1]
    (last,) = (run.folder / "checkpoints").glob(f"{steps[0]}*")
    (last / "rest/manifest.ocdbt").unlink()
    run.start(2, *OFTEN)
    run.end(0, 0)
    assert last.with_name(f"{last.name}.corrupt").is_dir()
    assert record_bytes(run.folder) == record_bytes(whole.folder)
    assert [start["reason"] for start in run.starts()] == ["stopped", "stopped", "done"]
    assert run.starts()[-1]["resumed_from"] < int(steps[0])


@pytest.mark.slow
def test_law_3_a_run_moves_from_one_to_two_processes_and_back(made, whole):
    run = made()
    for count, after in (1, "step 1:"), (2, "step 5:"):
        run.start(count, *OFTEN)
        run.until(after)
        run.processes[-1].terminate()
        run.end(*[75] * count)
    alone(run, *OFTEN, SMALL, "--config.mesh.devices=1")
    resumed = [start["resumed_from"] for start in run.starts()]
    assert resumed[0] is None
    assert 1 <= resumed[1] < resumed[2] < 9
    assert [start["hosts"] for start in run.starts()] == [1, 2, 1]
    # The same batches at every step; rounding is all that differs.
    assert len(run.losses()) == 9
    np.testing.assert_allclose(run.losses(), whole.losses(), rtol=1e-5)


@pytest.mark.slow
def test_a_state_in_parts_over_two_processes_is_that_of_one_and_resumes(made):
    """Of four devices, which two processes share or one has, each holds a quarter."""
    arguments = (
        "--config.length=8 steps", "--config.log.every=1 steps", "--config.mesh.fsdp=4",
        "--config.model.name=cnn(widths=(4, 8), dense=512)", "--config.ema.decay=0.9",
        "--config.checkpoint.every=4 steps", "--config.checkpoint.keep=2",
    )  # fmt: skip
    one, two, cut = made("one"), made("two"), made("cut")
    alone(one, *arguments, "--config.mesh.devices=4")
    two.start(2, *arguments, devices=2)
    two.end(0, 0)
    # As if both had died before step 8 was saved.
    shutil.copytree(two.folder, cut.folder)
    shutil.rmtree(cut.folder / "checkpoints" / "8")
    *records, _ = (two.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (cut.folder / "metrics.jsonl").write_text("".join(records))
    cut.start(2, *arguments, devices=2)
    cut.end(0, 0)
    assert cut.starts()[-1]["resumed_from"] == 4
    assert record_bytes(cut.folder) == record_bytes(two.folder)
    assert len(one.losses()) == 8
    np.testing.assert_allclose(one.losses(), two.losses(), rtol=1e-5)
    digests = [run_records.read(run.folder / "digests.jsonl") for run in (one, two)]
    exact = "step", "key/augment", "key/dropout", "bad_step", "skips", "rewound"
    same = [[[r["arrays"][name] for name in exact] for r in each] for each in digests]
    assert same[0] == same[1]
    assert [r["step"] for r in digests[0]] == [4, 8]


@pytest.mark.slow
def test_a_process_that_is_killed_or_frozen_ends_the_others_and_the_run_goes_on(made):
    run = made()
    run.start(2, LONG)
    run.until("step 40:")
    first, second = run.processes
    second.kill()
    began = time.monotonic()
    said, _ = run.end()
    assert time.monotonic() - began < 30
    assert first.returncode == 70
    assert "lost: process 0 of 2 no longer reaches the others" in said
    assert "start all of them again" in said
    assert "Traceback" not in said

    run.start(2, LONG)
    run.until("resuming from step ")
    run.until("step ")
    first, second = run.processes
    first.kill()
    began = time.monotonic()
    _, said = run.end()
    assert time.monotonic() - began < 30
    assert second.returncode in (70, -signal.SIGABRT)  # By us, or by JAX's runtime.
    assert "another task died" in said or "no longer reaches the others" in said
    assert run.starts()[-1].get("reason") is None  # The next start closes it.

    run.start(2, LONG, "--config.watchdog.later=4")
    run.until("resuming from step ")
    run.until("step ")
    first, second = run.processes
    second.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    _, said = first.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert first.returncode == 70
    assert re.search(r"watchdog: process 0 of 2 has got nowhere for 4 s: \w+", said)
    assert "train.py" in said  # The stacks of all threads.
    second.send_signal(signal.SIGCONT)
    second.communicate(timeout=60)
    assert second.returncode in (70, -signal.SIGABRT)
    assert run.starts()[-1]["reason"] == "watchdog"


@pytest.mark.slow
def test_processes_that_differ_are_told_in_what(made):
    run = made()
    run.start(2, LENGTH, each={1: ["--config.seed=1"]})
    for said in run.end(2, 2):
        assert "process 0 has config.seed=0 and process 1 1" in said
        assert "Traceback" not in said
    assert not (run.folder / "config.json").exists()


@pytest.mark.slow
def test_data_of_another_fingerprint_on_one_process_are_refused(made, tmp_path):
    run = made()
    other = shutil.copytree(run.data_dir, tmp_path / "other")
    (info,) = other.glob("digits/*/dataset_info.json")
    text = info.read_text()
    assert '"1437"' in text
    info.write_text(text.replace('"1437"', '"1436"'))
    run.start(2, LENGTH, each={1: [f"--config.data.dir={other}"]})
    assert "Traceback" not in "".join(run.end(2, 2))


@pytest.mark.slow
def test_a_folder_in_use_is_refused_by_all(made):
    run = made()
    with workdir.Workdir(str(run.folder)).lock():
        run.start(2, LONG)
        assert all("is in use by host" in said for said in run.end(2, 2))


@pytest.mark.slow
def test_a_record_that_is_broken_for_one_process_ends_both(made, tmp_path):
    run = made()
    other = shutil.copytree(run.data_dir, tmp_path / "other")
    (shard,) = other.glob("digits/*/*train*array_record*")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    streamed, broken = "--config.data.resident=off", f"--config.data.dir={other}"
    run.start(2, LENGTH, streamed, each={1: [broken]})
    _, said = run.end()
    first, second = run.processes
    assert second.returncode == 2
    assert "error: process 1: " in said
    assert shard.name in said
    assert first.returncode in (70, -signal.SIGABRT)


@pytest.mark.slow
def test_a_run_that_diverges_ends_on_all_with_3(made):
    run = made()
    wild = "optim.name=sgd", "optim.lr=1e30", "optim.warmup=6 steps", "nonfinite.skips=2"
    wild += "nonfinite.rewinds=1", "nonfinite.policy=rewind"
    for _ in range(2):
        run.start(2, *(f"--config.{each}" for each in wild), LENGTH)
        run.end(3, 3)
    kinds = [r["kind"] for r in run_records.read(run.folder / "metrics.jsonl")]
    assert kinds.count("diverged") == kinds.count("rewind") == 1
