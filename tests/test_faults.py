"""Whole runs under faults that no single module sees: what was damaged, what differs."""

import json
import shutil
import sys
import time

import pytest

from jaxcls.runs import checkpoint
from jaxcls.training import train
from tests.conftest import ROOT
from tests.dying import Crash, dying
from tests.run_folders import record_bytes

pytestmark = pytest.mark.slow


def flip_a_bit(step):
    # The largest file: the arrays' own bytes, which orbax does not check.
    file = max((step / "weights").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def junk(step):
    (step.parent / "100").mkdir()
    (step.parent / "100/notes.txt").write_text("not a checkpoint")
    (step.parent / "junk").mkdir()
    (step.parent / "11.orbax-checkpoint-tmp").mkdir()


DAMAGES = {
    "a flipped bit": flip_a_bit,
    "junk beside it": junk,
    "a missing item": lambda step: shutil.rmtree(step / "rest"),
    "a missing mark": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_law_2_a_damaged_checkpoint_is_said_and_leaves_no_trace(
    tiny, whole, tmp_path, caplog, damage
):
    config = tiny(**{"checkpoint.keep": 3})
    with pytest.raises(Crash):
        train.run(dying(config, at=10), str(tmp_path))
    last = tmp_path / "checkpoints/9"
    assert checkpoint.steps(last.parent)[-1] == 9
    DAMAGES[damage](last)
    train.run(dying(config), str(tmp_path))
    assert record_bytes(tmp_path) == record_bytes(whole(config)[0])
    # What orbax does not need may be gone without harm; all else is said.
    assert ("is not whole" in caplog.text) == (damage != "a missing mark")


def test_law_1_hashes_folders_and_threads_change_no_bit(started, tmp_path):
    done = []
    for seed, *flags in (
        (1, "--config.data.threads=1"),
        (2, "--config.data.threads=7", "--config.data.prefetch=5"),
        (3, "--config.data.resident=off", "--config.data.threads=3"),
    ):
        cwd = tmp_path / f"cwd{seed}"
        cwd.mkdir()
        process = started(
            "-m", "jaxcls.main", f"--config={ROOT}/configs/digits.py", "--workdir=run",
            "--config.length=2 epochs", "--config.log.every=5 steps",
            "--config.model.name=cnn(widths=(4,), dense=8, dropout=0.2)",
            "--config.log.tensorboard=false", *flags, cwd=cwd,
            PYTHONHASHSEED=str(seed), JAX_ENABLE_COMPILATION_CACHE="false",
        )  # fmt: skip
        out, said = process.communicate(timeout=120)
        assert "done: step=40" in out, said
        done.append(record_bytes(cwd / "run"))
    assert done[0] == done[1] == done[2]


LIMITED = """
import os, resource, threading
from jaxcls.runs import saving

save, saving.PAUSES = saving.Checkpoints.save, (0.1, 0.1)

def limited(self, *args, **kwargs):
    saving.Checkpoints.save = save
    if {room} >= 0:  # Only the first threads of a save get a file.
        opened = len(os.listdir("/proc/self/fd")) + {room}
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened, opened))
    else:
        self._manager.save = lambda *args, **kwargs: threading.Event().wait()
    save(self, *args, **kwargs)

saving.Checkpoints.save = limited
from jaxcls.__main__ import main
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("room", "status", "says"),
    [
        (0, 2, "error: {}/checkpoints: step 4 cannot be saved (see above); make room"),
        (3, 2, "error: {}/checkpoints: step 4 cannot be saved (see above); make room"),
        (-1, 70, "watchdog: the run has got nowhere for 3 s: saving a checkpoint."),
    ],
)
def test_a_save_without_files_or_without_end_ends_the_process_soon(
    started, tmp_path, room, status, says
):
    process = started(
        "-c", LIMITED.format(room=room), "train", f"--config={ROOT}/configs/digits.py",
        f"--workdir={tmp_path}/run", "--config.eval.every=4 steps",
        "--config.length=8 steps",
        "--config.log.tensorboard=false", "--config.model.name=cnn(widths=(4,))",
        "--config.watchdog.later=3",
    )  # fmt: skip
    while "eval" not in process.stdout.readline():
        assert process.poll() is None
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode == status
    says = says.format(f"{tmp_path}/run")
    assert len([line for line in said.splitlines() if line.startswith(says)]) == 1
    starts = json.loads((tmp_path / "run/manifest.json").read_text())["starts"]
    if room < 0:
        assert starts[-1]["reason"] == "watchdog"
