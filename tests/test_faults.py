"""Whole runs under faults that no single module sees: what was damaged, what differs."""

import os
import shutil
import subprocess
import sys

import pytest

from jaxcls.runs import checkpoint
from jaxcls.training import train
from tests.conftest import ROOT
from tests.dying import Crash, Dying

pytestmark = [
    pytest.mark.slow,
    # Orbax leaves coroutines behind where a file cannot be read.
    pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"
    ),
]
RECORDS = ("metrics.jsonl", "digests.jsonl")


@pytest.fixture(scope="module")
def made():
    """The experiment of all tests here: what is compiled once serves each."""
    return {}


@pytest.fixture
def run(made, tiny):
    def start(folder, at=10**9):
        exp = made.setdefault("exp", Dying(tiny(**{"checkpoint.keep": 3}), None))
        exp.at = at
        return train.run(exp, str(folder))

    return start


def records(folder):
    return {name: (folder / name).read_bytes() for name in RECORDS}


@pytest.fixture
def whole(made, run, tmp_path_factory):
    """The records of a run that nothing happened to."""
    if "whole" not in made:
        folder = tmp_path_factory.mktemp("whole") / "run"
        run(folder)
        made["whole"] = records(folder)
    return made["whole"]


def flip_a_bit(step):
    # The largest file: the arrays' own bytes, which orbax does not check.
    file = max((step / "weights").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def truncate(step):
    file = step / "rest/manifest.ocdbt"
    file.write_bytes(file.read_bytes()[:20])


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


def junk(step):
    (step.parent / "100").mkdir()
    (step.parent / "100/notes.txt").write_text("not a checkpoint")
    (step.parent / "junk").mkdir()
    (step.parent / "11.orbax-checkpoint-tmp").mkdir()


DAMAGES = {
    "a flipped bit": flip_a_bit,
    "a truncated file": truncate,
    "a missing file": lambda step: (step / "meta/metadata").unlink(),
    "an empty folder": empty,
    "junk beside it": junk,
    "a missing item": lambda step: shutil.rmtree(step / "rest"),
    "a missing mark": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_law_2_a_damaged_checkpoint_is_said_and_leaves_no_trace(
    run, whole, tmp_path, caplog, damage
):
    with pytest.raises(Crash):
        run(tmp_path, at=10)
    last = tmp_path / "checkpoints/9"
    assert checkpoint.steps(last.parent)[-1] == 9
    DAMAGES[damage](last)
    run(tmp_path)
    assert records(tmp_path) == whole
    # What orbax does not need may be gone without harm; all else is said.
    assert ("is not whole" in caplog.text) == (damage != "a missing mark")


def digits(folder, data_dir, cwd, hash_seed, *flags, epochs=5):
    """A short run of configs/digits.py in a process of its own."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "jaxcls.main", f"--config={ROOT}/configs/digits.py",
            f"--workdir={folder}", f"--config.length={epochs} epochs",
            "--config.log.every=5 steps", f"--config.data.dir={data_dir}",
            "--config.model.name=cnn(widths=(4, 8))", *flags,
        ],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={
            **os.environ,
            "PYTHONHASHSEED": str(hash_seed),
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "PYTHONPATH": str(ROOT),
            "JAX_NUM_CPU_DEVICES": "1",
        },
    )  # fmt: skip


def test_law_1_hashes_folders_and_threads_change_no_bit(data_dir, tmp_path):
    done = []
    for seed, flags in (
        (1, ["--config.data.threads=1"]),
        (2, ["--config.data.threads=7", "--config.data.prefetch=5"]),
        (3, ["--config.data.resident=off", "--config.data.threads=3"]),
    ):
        cwd = tmp_path / f"cwd{seed}"
        cwd.mkdir()
        out, said = digits("run", data_dir, cwd, seed, *flags).communicate(timeout=120)
        assert "done: step=101" in out, said
        done.append(records(cwd / "run"))
    assert done[0] == done[1] == done[2]
