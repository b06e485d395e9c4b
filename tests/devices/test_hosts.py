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

from jaxcls.devices import hosts
from jaxcls.errors import InputError, StoppedError
from jaxcls.runs import records as run_records
from tests.conftest import ROOT

RECORDS = ("metrics.jsonl", "digests.jsonl")
SMALL = "--config.model.name=cnn(widths=(4, 8))"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("", "2", ""), "--processes and --process need --coordinator=HOST:PORT"),
        (("auto", "2", "0"), "finds --processes and --process itself; leave them out"),
        (("host", "2", "0"), "must be auto, mpi4py or HOST:PORT of process 0"),
        (("host:1", "", ""), "needs --processes=N and --process=I below N, and has none"),
        (
            ("host:1", "2", "2"),
            "needs --processes=N and --process=I below N, and has 2 and 2",
        ),
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
    assert not hosts.is_agreed(InputError())


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
        self.processes = [
            subprocess.Popen(
                [
                    sys.executable, "-m", "jaxcls.main", "--config=configs/digits.py",
                    f"--workdir={self.folder}", f"--coordinator=localhost:{port}",
                    f"--processes={count}", f"--process={number}",
                    *([] if any("model.name" in a for a in arguments) else [SMALL]),
                    *arguments, *(each or {}).get(number, ()),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={
                    **os.environ,
                    "TFDS_DATA_DIR": str(self.data_dir),
                    "JAX_NUM_CPU_DEVICES": str(devices),
                    "PYTHONPATH": str(ROOT),
                },
                cwd=ROOT,
            )
            for number in range(count)
        ]  # fmt: skip

    def until(self, beginning):
        """Read what process 0 prints up to a line that begins so."""
        first = self.processes[0]
        while not (line := first.stdout.readline()).startswith(beginning):
            assert line, first.stderr.read()

    def end(self, timeout=120):
        """[(status, what it printed, what it said on standard error)] of all processes."""
        said = [process.communicate(timeout=timeout) for process in self.processes]
        return [
            (p.returncode, *texts) for p, texts in zip(self.processes, said, strict=True)
        ]

    def starts(self):
        return json.loads((self.folder / "manifest.json").read_text())["starts"]

    def records(self):
        return {name: (self.folder / name).read_bytes() for name in RECORDS}


LENGTH = "--config.length=5 epochs"
LONG = "--config.length=400 epochs"


# Of 18 batches of 8, at each step: nearly all of the time goes into evaluations.
OFTEN = (
    "--config.eval.every=1 step",
    "--config.eval.batch_size=8",
    "--config.length=9 steps",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_dir):
    """The records of a run of OFTEN on two processes that nobody stopped."""
    run = Run(tmp_path_factory.mktemp("whole") / "run", data_dir)
    run.start(2, *OFTEN)
    assert [status for status, *_ in run.end()] == [0, 0]
    return run.records()


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
@pytest.mark.parametrize(
    ("after", "number", "target"),
    [
        ("step 1:", signal.SIGTERM, 1),
        ("step 3: eval", signal.SIGINT, 0),
    ],
)
def test_a_signal_to_one_stops_all_at_one_step_and_leaves_no_trace(
    made, whole, after, number, target
):
    run = made("run")
    run.start(2, *OFTEN)
    run.until(after)
    run.processes[target].send_signal(number)
    ended = run.end()
    assert [status for status, *_ in ended] == [75, 75], ended
    steps = [re.search(r"after step (\d+) is saved", said)[1] for *_, said in ended]
    assert steps[0] == steps[1]
    run.start(2, *OFTEN)
    assert [status for status, *_ in run.end()] == [0, 0]
    assert run.records() == whole
    assert [start["reason"] for start in run.starts()] == ["stopped", "done"]


@pytest.mark.slow
def test_a_signal_to_all_while_compiling_ends_them_at_once(made):
    run = made()
    deep = "--config.model.name=resnet50(stem='small')", "--config.batch_size=512"
    run.start(2, *deep, "--config.data.resident=off")
    run.until("starting from step 0")
    time.sleep(1)
    began = time.monotonic()
    for process in run.processes:
        process.terminate()
    ended = run.end()
    assert time.monotonic() - began < 5
    # The second may be ended by JAX's runtime, which saw the first leave.
    assert {status for status, *_ in ended} <= {75, -signal.SIGABRT}
    assert "stopped before the first step" in "".join(said for *_, said in ended)
    assert run.starts()[-1]["reason"] == "stopped"


@pytest.mark.slow
def test_law_3_a_run_moves_from_one_to_two_processes_and_back(made):
    whole, run = made("whole"), made("run")
    length = "--config.length=2 epochs", "--config.log.every=1 steps"
    whole.start(1, *length)
    assert [status for status, *_ in whole.end()] == [0]
    for count, after in (1, "step 5:"), (2, "step 20:"), (1, None):
        run.start(count, *length)
        if after:
            run.until(after)
            run.processes[-1].terminate()
        ended = run.end()
        assert [status for status, *_ in ended] == [75 if after else 0] * count, ended
    resumed = [start["resumed_from"] for start in run.starts()]
    assert resumed[0] is None
    assert 5 < resumed[1] < resumed[2]
    assert [start["hosts"] for start in run.starts()] == [1, 2, 1]
    losses = [
        [
            r["loss"]
            for r in run_records.read(each.folder / "metrics.jsonl")
            if r["kind"] == "train"
        ]
        for each in (whole, run)
    ]
    assert len(losses[0]) == len(losses[1]) == 40
    first = resumed[1]
    assert losses[0][:first] == losses[1][:first]
    # The steps after the move see the same batches; rounding is all that differs.
    np.testing.assert_allclose(
        losses[0][first : first + 5], losses[1][first : first + 5], rtol=1e-5
    )
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-2)


@pytest.mark.slow
def test_a_state_in_parts_over_two_processes_is_that_of_one_and_resumes(made):
    """Of four devices, which two processes share or one has, each holds a quarter."""
    arguments = (
        "--config.length=8 steps", "--config.log.every=1 steps", "--config.mesh.fsdp=4",
        "--config.model.name=cnn(widths=(4, 8), dense=512)", "--config.ema.decay=0.9",
        "--config.checkpoint.every=4 steps", "--config.checkpoint.keep=2",
    )  # fmt: skip
    one, two, cut = made("one"), made("two"), made("cut")
    one.start(1, *arguments, devices=4)
    assert [status for status, *_ in one.end()] == [0]
    two.start(2, *arguments, devices=2)
    assert [status for status, *_ in two.end()] == [0, 0]
    # As if both had died before step 8 was saved.
    shutil.copytree(two.folder, cut.folder)
    shutil.rmtree(cut.folder / "checkpoints" / "8")
    *records, _ = (two.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (cut.folder / "metrics.jsonl").write_text("".join(records))
    cut.start(2, *arguments, devices=2)
    assert [status for status, *_ in cut.end()] == [0, 0]
    assert cut.starts()[-1]["resumed_from"] == 4
    assert cut.records() == two.records()
    losses, digests = (
        [run_records.read(run.folder / name) for run in (one, two)]
        for name in ("metrics.jsonl", "digests.jsonl")
    )
    losses = [[r["loss"] for r in each if r["kind"] == "train"] for each in losses]
    assert len(losses[0]) == 8
    np.testing.assert_allclose(*losses, rtol=1e-5)
    exact = "step", "key/augment", "key/dropout", "bad_step", "skips", "rewound"
    same = [[[r["arrays"][name] for name in exact] for r in each] for each in digests]
    assert same[0] == same[1]
    assert [r["step"] for r in digests[0]] == [4, 8]


@pytest.mark.slow
def test_a_peer_that_is_killed_ends_the_other_with_a_message(made):
    run = made()
    run.start(2, LONG)
    run.until("step 40:")
    run.processes[1].kill()
    began = time.monotonic()
    (status, _, said), _ = run.end()
    assert time.monotonic() - began < 30
    assert status == 70
    assert "lost: process 0 of 2 no longer reaches the others" in said
    assert "start all of them again" in said
    assert "Traceback" not in said
    run.start(2, LONG)
    run.until("resuming from step ")


@pytest.mark.slow
def test_the_first_process_killed_ends_the_others(made):
    run = made()
    run.start(2, LONG)
    run.until("step 20:")
    run.processes[0].kill()
    began = time.monotonic()
    _, (status, _, said) = run.end()
    assert time.monotonic() - began < 30
    assert status in (70, -signal.SIGABRT)  # By us, or sooner by JAX's own runtime.
    assert "another task died" in said or "no longer reaches the others" in said
    assert run.starts()[-1].get("reason") is None  # Closed as killed by the next start.


@pytest.mark.slow
def test_a_peer_that_is_frozen_ends_every_process_in_time(made):
    run = made()
    run.start(2, LONG, "--config.watchdog.later=4")
    run.until("step 20:")
    frozen = run.processes[1]
    frozen.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    _, said = run.processes[0].communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert run.processes[0].returncode == 70
    assert re.search(r"watchdog: process 0 of 2 has got nowhere for 4 s: \w+", said)
    assert "train.py" in said  # The stacks of all threads.
    frozen.send_signal(signal.SIGCONT)
    frozen.communicate(timeout=60)
    assert frozen.returncode in (70, -signal.SIGABRT)
    assert run.starts()[-1]["reason"] == "watchdog"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--config.optim.lr=0.5", "process 0 has config.optim.lr=0.002 and process 1 0.5"),
        ("--config.seed=1", "process 0 has config.seed=0 and process 1 1"),
        ("--config.batch_size=128", "process 0 has config.batch_size=64 and process 1 128"),
    ],
)
def test_processes_that_differ_are_told_in_what(made, argument, says):
    run = made()
    run.start(2, LENGTH, each={1: [argument]})
    for status, _, said in run.end():
        assert status == 2
        assert says in said
        assert "Traceback" not in said
    assert not (run.folder / "config.json").exists()


@pytest.mark.slow
def test_data_of_another_fingerprint_on_one_process_are_refused(made, tmp_path):
    run = made()
    other = tmp_path / "other"
    shutil.copytree(run.data_dir, other)
    (info,) = other.glob("digits/*/dataset_info.json")
    text = info.read_text()
    changed = text.replace('"1437"', '"1436"')
    assert changed != text
    info.write_text(changed)
    run.start(2, LENGTH, each={1: [f"--config.data.dir={other}"]})
    for status, _, said in run.end():
        assert status == 2
        assert "Traceback" not in said


@pytest.mark.slow
def test_a_folder_in_use_is_refused_by_all(made):
    first, second = made(), made()
    first.start(1, LONG)
    first.until("step 20:")
    second.start(2, LONG)
    for status, _, said in second.end():
        assert status == 2
        assert "is in use by host" in said
    first.processes[0].terminate()
    assert first.end()[0][0] == 75


@pytest.mark.slow
def test_a_record_that_is_broken_for_one_process_ends_both(made, tmp_path):
    run = made()
    other = tmp_path / "other"
    shutil.copytree(run.data_dir, other)
    (shard,) = other.glob("digits/*/*train*array_record*")
    data = bytearray(shard.read_bytes())
    middle = len(data) // 2
    data[middle] ^= 1
    shard.write_bytes(bytes(data))
    run.start(
        2, LENGTH, "--config.data.resident=off", each={1: [f"--config.data.dir={other}"]}
    )
    (first, _, _), (second, _, said) = run.end()
    assert second == 2
    assert "error: process 1: " in said
    assert shard.name in said
    assert first in (70, -signal.SIGABRT)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["stop", "rewind"])
def test_a_run_that_diverges_ends_on_all_with_3(made, policy):
    run = made()
    wild = (
        "--config.optim.name=sgd",
        "--config.optim.lr=1e30",
        "--config.optim.warmup=6 steps",
    )
    limits = "--config.nonfinite.skips=2", "--config.nonfinite.rewinds=1"
    for _ in range(2):
        run.start(2, *wild, *limits, LENGTH, f"--config.nonfinite.policy={policy}")
        ended = run.end()
        assert [status for status, *_ in ended] == [3, 3], ended
    kinds = [r["kind"] for r in run_records.read(run.folder / "metrics.jsonl")]
    assert kinds.count("diverged") == 1
    assert kinds.count({"stop": "train", "rewind": "rewind"}[policy]) >= (policy != "stop")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_by_all(made):
    run = made()
    run.start(2, LONG, "--config.checkpoint.keep=3")
    run.until("step 101:")
    run.processes[0].terminate()
    assert [status for status, *_ in run.end()] == [75, 75]
    last = max((run.folder / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    (last / "rest/manifest.ocdbt").unlink()
    run.start(2, LONG, "--config.checkpoint.keep=3")
    run.until("resuming from step")
    assert (last.with_name(f"{last.name}.corrupt")).is_dir()
