"""A recorded run is made again from its folder alone; what was tampered with is found."""

import json
import os
import shutil
import subprocess
import sys
import tarfile

import pytest

from jaxcls import commands
from jaxcls.errors import InputError
from jaxcls.runs import archive as run_archive
from jaxcls.studies import reproducing
from tests.conftest import ROOT

START = {
    "jaxcls": "0.1.0",
    "code": "0123",
    "commit": "abc",
    "python": "3.11.7",
    "xla_flags": "",
    "versions": {"jax": "0.10.2", "numpy": "2.4.6"},
    "cpu": {"instructions": ["avx", "fma"], "nproc": "", "cores": 2},
    "devices": ["cpu"],
    "hosts": 1,
    "resumed_from": None,
}


def test_what_differs_between_two_starts_is_named():
    assert reproducing._changes(START, START) == {}
    other = START | {
        "code": "4567",
        "versions": {"jax": "0.12.0", "numpy": "2.4.6"},
        "cpu": {"instructions": ["avx"], "nproc": "", "cores": 2},
        "devices": ["cpu", "cpu"],
    }
    assert reproducing._changes(START, other) == {
        "code": "code 0123 -> 4567",
        "jax": "jax 0.10.2 -> 0.12.0",
        "cpu": "cpu instructions (one lacks fma)",
        "devices": "devices 1 cpu -> 2 cpu",
    }


def recorded(starts, steps):
    return run_archive.Recorded({}, {}, starts, {step: {} for step in steps}, [])


def test_bits_are_compared_up_to_where_the_run_moved(capsys):
    again = START | {"resumed_from": 7}
    moved = START | {"devices": ["cpu"] * 8, "resumed_from": 10}
    assert reproducing._last_step(recorded([START, again], (5, 9, 12)), 0, print) == 12
    assert reproducing._last_step(recorded([START, again], (5, 9, 12)), 10, print) == 9
    assert (
        reproducing._last_step(recorded([START, again, moved], (5, 9, 12)), 0, print) == 9
    )
    assert "moved to another kind of machine after step 10" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"recorded up to step 4: the first is of step 5"):
        reproducing._last_step(recorded([START], (5, 9)), 4, print)
    with pytest.raises(InputError, match="no digest is recorded up to step 0"):
        reproducing._last_step(
            recorded([START, moved | {"resumed_from": 0}], (5, 9)), 0, print
        )
    asked = {**START["cpu"], "nproc": "2"}  # As many as there are cores.
    assert run_archive.topology(START) == run_archive.topology(START | {"cpu": asked})


def test_one_of_several_seeds_in_one_program_is_refused():
    alone = recorded([START], (5,))
    reproducing._check_is_alone(alone)
    row = recorded([START | {"together": 3, "row": 1}], (5,))
    with pytest.raises(InputError, match=r"together=3 seeds"):
        reproducing._check_is_alone(row)


@pytest.mark.parametrize(
    ("losses", "is_near"),
    [
        ({10: 1.0, 20: 0.5}, True),
        ({10: 1.01, 20: 0.51, 30: 9.0}, True),
        ({10: 1.0, 20: 0.6}, False),
        ({10: 1.0}, False),
        ({}, False),
    ],
)
def test_near_is_every_recorded_loss_within_the_tolerance(losses, is_near):
    before = [{"step": s, "kind": "train", "loss": x} for s, x in ((10, 1.0), (20, 0.5))]
    now = [{"step": s, "kind": "train", "loss": x} for s, x in losses.items()]
    # A record of another kind at the same step moves no pair.
    now.insert(0, {"step": 10, "kind": "skip", "index": [1]})
    recorded = run_archive.Recorded({}, {}, [START], {}, before)
    assert reproducing._compare_nearly(recorded, now, 20, 0.05, {}).is_same == is_near


def environment(data_dir):
    return {
        **os.environ,
        "TFDS_DATA_DIR": str(data_dir),
        "JAX_NUM_CPU_DEVICES": "2",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="module")
def ran(tmp_path_factory, data_dir):
    """The folder of a run of 12 steps on one of two devices, with NPROC=3."""
    folder = tmp_path_factory.mktemp("ran") / "run"
    subprocess.run(
        [
            sys.executable, "-m", "jaxcls.main", "--config=configs/digits.py",
            f"--workdir={folder}", "--config.model.name=cnn(widths=(4, 8), dropout=0.2)",
            "--config.length=12 steps", "--config.checkpoint.every=5 steps",
            "--config.log.every=2 steps", "--config.eval.every=4 steps",
            "--config.mesh.devices=1",
        ],
        check=True, cwd=ROOT, capture_output=True,
        env={**environment(data_dir), "NPROC": "3"},
    )  # fmt: skip
    return folder


@pytest.fixture
def again(ran, data_dir, tmp_path):
    """``again(*flags)`` -> (status, last lines), of a copy of the run at `again.folder`."""

    def run(*flags, workdir=None, cwd=ROOT):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "jaxcls",
                "reproduce",
                f"--workdir={workdir or run.folder}",
                *flags,
            ],
            capture_output=True,
            text=True,
            cwd=cwd,
            env=environment(data_dir),
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr

    run.folder = tmp_path / "run"
    shutil.copytree(ran, run.folder)
    return run


def change(path, change_it):
    """Rewrite a JSON or .jsonl file with what `change_it` makes of its list."""
    lines = path.suffix == ".jsonl"
    text = path.read_text()
    value = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    change_it(value)
    path.write_text(
        "".join(json.dumps(v) + "\n" for v in value) if lines else json.dumps(value)
    )


@pytest.mark.slow
def test_a_run_is_reproduced_bit_for_bit_and_its_folder_left_alone(again, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in again.folder.rglob("*")}
    status, said = again(f"--scratch={tmp_path / 'new'}")
    assert status == 0, said
    # Digests at 4, 5, 8, 10, 12: the bests and the scheduled ones.
    kinds = (again.folder / "digests.jsonl").read_text().splitlines()
    expected = f"up to step 12: {len(kinds)} digests of the state, 10 records"
    assert f"reproduced bit for bit {expected}" in said
    assert {p: p.stat().st_mtime_ns for p in again.folder.rglob("*")} == before
    # It ran as the recorded one did: the devices and XLA's pool of threads.
    (start,) = json.loads((tmp_path / "new/manifest.json").read_text())["starts"]
    assert (start["cpu"]["nproc"], start["local_devices"], start["devices"]) == (
        "3",
        2,
        ["cpu"],
    )


@pytest.mark.slow
def test_it_may_stop_at_a_step(again):
    status, said = again("--steps=9")
    assert status == 0
    assert "reproduced bit for bit up to step 8: " in said
    assert "step 10:" not in said


@pytest.mark.slow
def test_an_archive_of_the_proof_reproduces_elsewhere(again, tmp_path):
    for name in ("one", "two"):
        status, said = again(f"--pack={tmp_path / name}.tar.gz")
        assert (status, said) == (0, f"packed: {tmp_path / name}.tar.gz\n")
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "one.tar.gz") as archive:
        names = [member.name for member in archive]
        texts = [archive.extractfile(member).read().decode() for member in archive]
    assert names == [f"run/{name}" for name in run_archive.PACKED]
    assert not any(str(tmp_path) in text for text in texts)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(again.folder)
    status, said = again(workdir=tmp_path / "one.tar.gz", cwd=elsewhere)
    assert status == 0
    assert "reproduced bit for bit up to step 12" in said


@pytest.mark.slow
def test_a_digest_that_differs_is_found_with_its_step_and_array(again):
    def tamper(records):
        (record,) = [r for r in records if r["step"] == 10]
        record["arrays"]["params/head/kernel"] = "0" * 16

    change(again.folder / "digests.jsonl", tamper)
    status, said = again()
    assert status == 4
    found = "differs at step 10 (equal up to step 8), in 1 of "
    assert found in said
    assert "arrays: params/head/kernel\n" in said
    assert "different in the environment: nothing that is recorded" in said
    assert "step 12:" not in said  # It stops there.


@pytest.mark.slow
def test_another_run_under_this_name_is_found_at_its_first_digest(again):
    def tamper(saved):
        saved["config"]["seed"] = 1

    change(again.folder / "config.json", tamper)
    status, said = again()
    assert status == 4
    assert "differs at step 4 (equal up to step 0)" in said


@pytest.mark.slow
def test_a_metric_that_was_made_better_is_found(again):
    def tamper(records):
        records[-1]["top1"] = 0.99

    change(again.folder / "metrics.jsonl", tamper)
    status, said = again()
    assert status == 4
    assert "differs in metrics.jsonl at step 12, and in no digest" in said


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "status"), [(0, 0), (1, 4)])
def test_on_another_kind_of_cpu_losses_are_compared_within_a_tolerance(again, seed, status):
    def other_cpu(manifest):
        manifest["starts"][0]["cpu"]["instructions"].append("avx1024")

    def other_seed(saved):
        saved["config"]["seed"] = seed

    change(again.folder / "manifest.json", other_cpu)
    change(again.folder / "config.json", other_seed)
    flags = ("--tolerance=0.02",) if seed else ()
    found, said = again(*flags)
    assert found == status
    assert "another kind of machine: losses are compared within" in said
    assert "one lacks avx1024" in said
    assert ("reproduced within 0 up to step 12 (10 losses" in said) == (status == 0)


@pytest.mark.slow
def test_a_run_that_was_killed_and_resumed_is_reproduced_in_one_go(
    again, data_dir, tmp_path
):
    flags = [
        "--config=configs/digits.py", f"--workdir={tmp_path / 'killed'}",
        "--config.model.name=cnn(widths=(4, 8))", "--config.length=4 epochs",
        "--config.mesh.devices=1",
    ]  # fmt: skip
    command = [sys.executable, "-m", "jaxcls.main", *flags]
    options = {"cwd": ROOT, "env": environment(data_dir), "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **options) as process:
        while not process.stdout.readline().startswith("step 40:"):
            pass
        process.kill()
    subprocess.run(command, check=True, capture_output=True, **options)
    status, said = again(workdir=tmp_path / "killed")
    assert status == 0
    assert "reproduced bit for bit up to step 81" in said


ODD = [
    ("manifest.json", "no JSON"),
    ("manifest.json", "[]"),
    ("manifest.json", '{"starts": []}'),
    ("manifest.json", '{"starts": [{"resumed_from": null, "devices": ["cpu"]}]}'),
    ("digests.jsonl", '{"step": 4}\n'),
    ("digests.jsonl", "[4]\n"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "text"), ODD)
def test_a_proof_of_another_form_is_one_line(again, name, text):
    (again.folder / name).write_text(text)
    with pytest.raises(InputError, match=r"is not what a run writes|:1 is not a record"):
        commands.main(["reproduce", f"--workdir={again.folder}"])


@pytest.mark.slow
def test_an_archive_that_is_damaged_or_odd_is_one_line(again, tmp_path):
    packed = tmp_path / "run.tar.gz"
    assert (
        commands.main(["reproduce", f"--workdir={again.folder}", f"--pack={packed}"]) == 0
    )
    content = packed.read_bytes()
    for at in (len(content) // 3, len(content) // 2, len(content) - 8):
        changed = bytearray(content)
        changed[at] ^= 255
        (tmp_path / f"damaged{at}.tar.gz").write_bytes(changed)
    with tarfile.open(tmp_path / "odd.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("run/config.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    for path in (*tmp_path.glob("damaged*"), tmp_path / "odd.tar.gz"):
        name = path.name
        with pytest.raises(InputError, match=f"{name} is no archive of a run"):
            commands.main(["reproduce", f"--workdir={tmp_path / name}"])


@pytest.mark.slow
def test_a_scratch_folder_that_holds_anything_is_refused(again):
    before = (again.folder / "config.json").read_bytes()
    with pytest.raises(InputError, match="is not empty; name a new folder"):
        commands.main(
            ["reproduce", f"--workdir={again.folder}", f"--scratch={again.folder}"]
        )
    assert (again.folder / "config.json").read_bytes() == before


@pytest.mark.slow
def test_a_run_that_saved_at_another_pace_on_its_way_is_reproduced(again):
    def slower(saved):
        saved["config"]["checkpoint.every"] = "6 steps"
        saved["config"]["log.every"] = "3 steps"

    change(again.folder / "config.json", slower)
    status, said = again()
    assert status == 0, said
    assert "reproduced bit for bit up to step 12" in said


@pytest.mark.slow
def test_a_folder_without_its_proof_is_one_line(again, monkeypatch):
    monkeypatch.setattr(reproducing, "_set_environment", lambda start: None)
    (again.folder / "digests.jsonl").unlink()
    with pytest.raises(InputError, match="has recorded no digest yet"):
        commands.main(["reproduce", f"--workdir={again.folder}"])
    (again.folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="and a run's proof needs it"):
        commands.main(["reproduce", f"--workdir={again.folder}"])


@pytest.mark.slow
def test_other_data_are_refused(again, monkeypatch):
    def fewer(saved):
        saved["implied"]["facts"]["splits"]["train"] = 1000

    change(again.folder / "config.json", fewer)
    monkeypatch.setattr(reproducing, "_set_environment", lambda start: None)
    with pytest.raises(InputError, match="the data are not those of the run"):
        commands.main(["reproduce", f"--workdir={again.folder}"])
