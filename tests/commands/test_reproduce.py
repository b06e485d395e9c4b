"""A recorded run is made again from its folder alone; what was tampered with is found."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile

import pytest

from jaxcls import commands, experiment
from jaxcls.config import loading
from jaxcls.errors import InputError
from jaxcls.runs import archive as run_archive
from jaxcls.runs import provenance
from jaxcls.studies import reproducing
from jaxcls.training import train
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
    assert provenance.changes(START, START) == {}
    other = START | {
        "numerics": 10**6,
        "code": "4567",
        "versions": {"jax": "0.12.0", "numpy": "2.4.6"},
        "cpu": {"instructions": ["avx"], "nproc": "", "cores": 2},
        "devices": ["cpu", "cpu"],
        "fsdp": 2,
        "loop": 1,
    }
    now = provenance.changes(other, START)["numerics"]
    assert now == "numerics 1000000 -> 0 (the first is another jaxcls; upgrade this one)"
    found = provenance.changes(START, other)
    assert found.pop("numerics").startswith("numerics 0 -> 1000000 (the first is commit ")
    assert found == {
        "code": "code 0123 -> 4567",
        "jax": "jax 0.10.2 -> 0.12.0",
        "cpu": "cpu instructions (one lacks fma)",
        "devices": "devices 1 cpu -> 2 cpu",
        "mesh.fsdp": "mesh.fsdp 1 -> 2",
        "steps": "steps one by one -> in a loop",
    }


def test_bits_are_compared_up_to_where_the_run_moved(capsys):
    def last(steps, *starts):
        digests = {step: {} for step in (5, 9, 12)}
        starts = [START, *(START | start for start in starts)]
        recorded = run_archive.Recorded({}, {}, starts, digests, [])
        return reproducing._last_step(recorded, steps)

    again, moved = {"resumed_from": 7}, {"devices": ["cpu"] * 8, "resumed_from": 10}
    assert last(0, again) == 12
    assert last(10, again) == 9
    assert last(0, again, moved) == 9
    assert "moved to another kind of machine after step 10" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"recorded up to step 4: the first is of step 5"):
        last(4)
    with pytest.raises(InputError, match="no digest is recorded up to step 0"):
        last(0, moved | {"resumed_from": 0})
    asked = {**START["cpu"], "nproc": "2"}  # As many as there are cores.
    assert run_archive.topology(START) == run_archive.topology(START | {"cpu": asked})


@pytest.mark.parametrize(
    ("losses", "is_near"),
    [
        ({10: 1.01, 20: 0.51, 30: 9.0}, True),
        ({10: 1.0, 20: 0.6}, False),
        ({10: 1.0}, False),
        ({10: 1.0, 20: None}, False),
    ],
)
def test_near_is_every_recorded_loss_within_the_tolerance(losses, is_near):
    before = [{"step": s, "kind": "train", "loss": x} for s, x in ((10, 1.0), (20, 0.5))]
    now = {(step, "train"): {"loss": loss} for step, loss in losses.items()}
    assert reproducing._compare_nearly(before, now, 0.05)[0] == is_near
    assert not reproducing._compare_nearly([], now, 0.05)[0]


def environment(data_dir):
    return {
        **os.environ,
        "TFDS_DATA_DIR": str(data_dir),
        "JAX_NUM_CPU_DEVICES": "2",
        "PYTHONPATH": str(ROOT),
    }


OF_THE_RUN = {
    "model.name": "cnn(widths=(4, 8), dropout=0.2)", "length": "12 steps",
    "checkpoint.every": "5 steps", "log.every": "2 steps", "eval.every": "4 steps",
    "mesh.devices": "1",
}  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory, data_dir):
    """The folder of a run of 12 steps on one of two devices, with NPROC=3."""
    folder = tmp_path_factory.mktemp("ran") / "run"
    command = [sys.executable, "-m", "jaxcls.main", "--config=configs/digits.py"]
    command += [f"--config.{key}={value}" for key, value in OF_THE_RUN.items()]
    subprocess.run(
        [*command, f"--workdir={folder}"], check=True, cwd=ROOT, capture_output=True,
        env={**environment(data_dir), "NPROC": "3"},
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def ran_here(tmp_path_factory, data_dir):
    """The folder of such a run in this process."""
    folder = tmp_path_factory.mktemp("here") / "run"
    given = OF_THE_RUN | {"data.dir": str(data_dir)}
    exp = experiment.build(loading.load(str(ROOT / "configs/digits.py"), given))
    train.run(exp, str(folder))
    return folder


@pytest.fixture
def copied(ran_here, tmp_path, monkeypatch):
    """A copy of the folder of a run of this process, whose devices have started."""
    monkeypatch.setattr(reproducing, "_set_environment", lambda start: None)
    return shutil.copytree(ran_here, tmp_path / "run")


@pytest.fixture
def again(ran, data_dir, tmp_path):
    """``again(*flags)`` -> (status, output), of a copy of the run at `again.folder`."""

    def run(*flags, workdir=None, cwd=ROOT):
        workdir = f"--workdir={workdir or run.folder}"
        done = subprocess.run(
            [sys.executable, "-m", "jaxcls", "reproduce", workdir, *flags],
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
    found = start["cpu"]["nproc"], start["local_devices"], start["devices"]
    assert found == ("3", 2, ["cpu"])
    # A folder that holds anything is no scratch folder.
    with pytest.raises(InputError, match="is not empty; name a new folder"):
        commands.main(
            ["reproduce", *(f"--{n}={again.folder}" for n in ("workdir", "scratch"))]
        )
    assert {p: p.stat().st_mtime_ns for p in again.folder.rglob("*")} == before


@pytest.mark.slow
def test_an_archive_of_the_proof_reproduces_elsewhere(again, tmp_path, capsys):
    for name in ("one", "two"):
        pack = f"--pack={tmp_path / name}.tar.gz"
        assert commands.main(["reproduce", f"--workdir={again.folder}", pack]) == 0
        assert capsys.readouterr().out == f"packed: {tmp_path / name}.tar.gz\n"
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "one.tar.gz") as archive:
        names = [member.name for member in archive]
        texts = [archive.extractfile(member).read().decode() for member in archive]
    assert names == [f"run/{name}" for name in run_archive.PACKED]
    assert not any(str(tmp_path) in text for text in texts)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(again.folder)
    packed = tmp_path / "one.tar.gz"
    status, said = again("--steps=9", workdir=packed, cwd=elsewhere)
    assert status == 0
    assert "reproduced bit for bit up to step 8: " in said  # The last one up to step 9.
    assert "step 10:" not in said


def other_digest(records):
    (record,) = [r for r in records if r["step"] == 10]
    record["arrays"]["params/head/kernel"] = "0" * 16


def better_metric(records):
    records[-1]["top1"] = 0.99


def other_seed(saved):
    saved["config"]["seed"] = 1


def slower(saved):
    saved["config"] |= {"checkpoint.every": "6 steps", "log.every": "3 steps"}


def other_cpu(manifest):
    manifest["starts"][0]["cpu"]["instructions"].append("avx1024")


def other_library(manifest):
    manifest["starts"][0]["convolution"] = "ynnpack"


def other_code(manifest):
    manifest["starts"][0]["numerics"] = 10**6


OTHER_KIND = "another kind of machine or code: losses are compared within"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        (
            {"digests.jsonl": other_digest},
            4,
            [
                "differs at step 10 (equal up to step 8), in 1 of ",
                "arrays: params/head/kernel\n",
                "different in the environment: nothing that is recorded",
            ],
        ),
        ({"config.json": other_seed}, 4, ["differs at step 4 (equal up to step 0)"]),
        (
            {"metrics.jsonl": better_metric},
            4,
            ["differs in metrics.jsonl at step 12, and in no digest"],
        ),
        # A run that saved at another pace on its way.
        ({"config.json": slower}, 0, ["reproduced bit for bit up to step 12"]),
        (
            {"manifest.json": other_cpu},
            0,
            [OTHER_KIND, "one lacks avx1024", "reproduced within 0, ", " of 10 losses"],
        ),
        ({"manifest.json": other_library}, 4, ["differs at step 4 (equal up to step 0)"]),
        (
            {"manifest.json": other_code},
            0,
            [OTHER_KIND, "numerics 1000000 -> ", "reproduced within 0, "],
        ),
        (
            {"manifest.json": other_cpu, "config.json": other_seed},
            4,
            [OTHER_KIND, "one lacks avx1024", "differs: within"],
        ),
    ],
)
def test_what_was_changed_in_the_proof_is_found(copied, capsys, changes, status, words):
    for name, change in changes.items():
        file = copied / name
        if file.suffix == ".jsonl":
            records = [json.loads(line) for line in file.read_text().splitlines()]
            change(records)
            file.write_text("".join(json.dumps(record) + "\n" for record in records))
        else:
            value = json.loads(file.read_text())
            change(value)
            value.pop("seal", None)
            file.write_text(json.dumps(value))
    found = commands.main(["reproduce", f"--workdir={copied}", "--tolerance=0.02"])
    said = capsys.readouterr().out
    assert found == status, said
    for each in words:
        assert each in said
    if "digests.jsonl" in changes:
        assert "step 12:" not in said  # It stops there.


@pytest.mark.slow
def test_a_run_that_was_killed_and_resumed_is_reproduced_in_one_go(
    again, data_dir, tmp_path
):
    command = [
        sys.executable, "-m", "jaxcls.main", "--config=configs/digits.py",
        f"--workdir={tmp_path / 'killed'}", "--config.model.name=cnn(widths=(4, 8))",
        "--config.length=4 epochs", "--config.mesh.devices=1",
    ]  # fmt: skip
    options = {"cwd": ROOT, "env": environment(data_dir), "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **options) as process:
        while not process.stdout.readline().startswith("step 40:"):
            pass
        process.kill()
    subprocess.run(command, check=True, capture_output=True, **options)
    status, said = again(workdir=tmp_path / "killed")
    assert status == 0
    assert "reproduced bit for bit up to step 81" in said


def fewer_examples(text):
    saved = json.loads(text)
    saved["implied"]["facts"]["splits"]["train"] = 1000
    return json.dumps(saved)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", "no JSON", "manifest.json cannot be read: Expecting value"),
        ("manifest.json", '{"starts": []}', "is not what a run writes"),
        (
            "manifest.json",
            '{"starts": [{"resumed_from": null, "devices": ["cpu"]}]}',
            "is not what a run writes",
        ),
        ("manifest.json", None, "and a run's proof needs it"),
        ("digests.jsonl", '{"step": 4}\n', r":1 is not a record \(it has no"),
        ("digests.jsonl", "[4]\n", ":1 is not a record"),
        ("digests.jsonl", None, "has recorded no digest yet"),
        ("config.json", fewer_examples, "the data are not those of the run"),
    ],
)
def test_a_proof_that_cannot_be_used_is_one_line(copied, name, content, message):
    file = copied / name
    if content is None:
        file.unlink()
    else:
        file.write_text(content if isinstance(content, str) else content(file.read_text()))
    with pytest.raises(InputError, match=message):
        commands.main(["reproduce", f"--workdir={copied}"])


@pytest.mark.slow
def test_an_archive_that_is_damaged_or_odd_is_one_line(copied, tmp_path):
    packed = tmp_path / "run.tar.gz"
    assert commands.main(["reproduce", f"--workdir={copied}", f"--pack={packed}"]) == 0
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
        with pytest.raises(InputError, match=f"{path.name} is no archive of a run"):
            commands.main(["reproduce", f"--workdir={path}"])


@pytest.mark.parametrize(
    "flag",
    [
        "--xla_dump_to=/tmp/anywhere",
        "--xla_gpu_dump_autotune_results_to=x",
        "--xla_gpu_kernel_cache_file=x",
        "--xla_cpu_sigmund_cpu_file_path=x",
        "--xla_gpu_cuda_data_dir=x",
        "--flagfile=x",
        "--xla_cpu_flag=../x",
    ],
)
def test_an_archive_sets_no_flag_that_may_write(flag, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    start = {**START, "xla_flags": f"--xla_cpu_enable_fast_math=false {flag}"}
    with pytest.raises(InputError, match="not set because a folder or an archive says"):
        reproducing._set_environment(start)
    assert os.environ["XLA_FLAGS"] == ""
    two = {**start, "xla_flags": f"{flag} --xla_disable_hlo_passes=fusion"}
    named = re.escape(f"XLA_FLAGS='{flag} --xla_disable_hlo_passes=fusion' jaxcls")
    with pytest.raises(InputError, match=named):
        reproducing._set_environment(two)
    # The user's own flag is the user's.
    monkeypatch.setenv("XLA_FLAGS", flag)
    monkeypatch.setenv("NPROC", "")
    monkeypatch.setattr("jax.config.update", lambda name, value: None)
    reproducing._set_environment(start)
    assert os.environ["XLA_FLAGS"] == start["xla_flags"]


@pytest.mark.parametrize(
    "flag",
    [
        "--xla_backend_optimization_level=0",
        "--xla_gpu_deterministic_ops=true",
        "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution",
        "--xla_allow_excess_precision=false",
    ],
)
def test_flags_that_change_bits_are_set_as_recorded(flag, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("NPROC", "")
    monkeypatch.setattr("jax.config.update", lambda name, value: None)
    reproducing._set_environment({**START, "xla_flags": flag})
    assert os.environ["XLA_FLAGS"] == flag
    assert os.environ["NPROC"] == "2"


@pytest.mark.parametrize("there", [0, -1, 10**9, "many", 2.5])
def test_a_start_asks_for_a_sensible_number_of_devices(there, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.raises(InputError, match=r"manifest.json has local_devices=.* from 1 to"):
        reproducing._set_environment({**START, "local_devices": there})


def test_an_archive_unpacks_to_bounded_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(run_archive, "MOST_BYTES", 2**20)
    file = tmp_path / "bomb.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        member = tarfile.TarInfo("run/config.json")
        member.size = 2**22
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    with (
        pytest.raises(InputError, match="it unpacks to more than 1,048,576 bytes"),
        run_archive.opened(str(file)),
    ):
        pass
