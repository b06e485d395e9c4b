"""A part of a run is trained again from a checkpoint, and what was changed is found."""

import json
import shutil

import pytest

from jaxcls import commands
from jaxcls.errors import InputError
from jaxcls.runs import checkpoint, records, workdir
from jaxcls.runs.archive import Recorded
from jaxcls.studies import auditing, reproducing
from tests.run_folders import record_bytes
from tests.settings import BARE


@pytest.fixture
def audited(tiny, whole, tmp_path, monkeypatch, capsys):
    """``audited(*flags)`` -> (status, output), of a copy of a run at `audited.folder`."""
    made, _ = whole(tiny(**BARE | {"checkpoint.keep": 3}))
    # Its devices have started long ago.
    monkeypatch.setattr(reproducing, "_set_environment", lambda start: None)

    def run(*flags):
        capsys.readouterr()
        status = commands.main(["reproduce", f"--workdir={run.folder}", *flags])
        return status, capsys.readouterr().out

    run.folder = tmp_path / "run"
    shutil.copytree(made, run.folder)
    run.kept = checkpoint.steps(run.folder / "checkpoints")
    run.digests = records.read(run.folder / "digests.jsonl")
    run.middle = run.kept[-2]
    assert 0 < run.middle < 12
    return run


def rewrite(folder, step, change):
    """Changes the digest record of a step."""
    lines = records.read(folder / "digests.jsonl")
    for record in lines:
        if record["step"] == step:
            change(record)
    text = "".join(json.dumps(record) + "\n" for record in lines)
    (folder / "digests.jsonl").write_text(text)


def other_kernel(record):
    (name, *_) = [name for name in record["arrays"] if name.endswith("kernel")]
    record["arrays"][name] = "0" * 16


def test_a_part_is_the_same_and_only_the_part_is_trained(audited, tmp_path):
    scratch = tmp_path / "scratch"
    before = {p: p.stat().st_mtime_ns for p in audited.folder.rglob("*")}
    status, said = audited(f"--from={audited.middle}", f"--scratch={scratch}")
    assert status == 0, said
    later = [r["step"] for r in audited.digests if r["step"] > audited.middle]
    assert f"resuming from step {audited.middle}" in said
    assert (
        f"from checkpoint {audited.middle} on: reproduced bit for bit up to step 12:"
        in (said)
    )
    assert f"{len(later)} digests of the state" in said
    trained = [r["step"] for r in records.read(scratch / "timing.jsonl")]
    assert min(trained) > audited.middle
    assert {p: p.stat().st_mtime_ns for p in audited.folder.rglob("*")} == before
    assert record_bytes(scratch) == record_bytes(audited.folder)


def test_a_part_ends_where_it_is_asked_to(audited, tmp_path):
    first = audited.kept[0]
    to = min(r["step"] for r in audited.digests if r["step"] > first)
    status, said = audited(f"--from={first}", f"--steps={to}")
    assert status == 0, said
    assert f"up to step {to}: 1 digests of the state" in said


def test_the_first_step_that_differs_is_named(audited):
    later = [r["step"] for r in audited.digests if r["step"] > audited.middle]
    rewrite(audited.folder, later[0], other_kernel)
    status, said = audited(f"--from={audited.middle}")
    assert status == 4
    assert (
        f"differs at step {later[0]} (equal up to step {audited.middle}), in 1 of" in said
    )


def test_a_checkpoint_whose_recorded_digest_was_changed_is_found(audited):
    rewrite(audited.folder, audited.middle, other_kernel)
    status, said = audited(f"--from={audited.middle}")
    assert status == 4
    expected = f"checkpoints/{audited.middle} is not what digests.jsonl records: 1 of"
    assert expected in said
    assert "kernel" in said
    assert "step 12" not in said


def test_a_checkpoint_whose_weights_were_changed_is_found(audited):
    weights = audited.folder / f"checkpoints/{audited.middle}/weights"
    flip(weights)
    status, said = audited(f"--from={audited.middle}")
    assert status == 4
    assert f"checkpoints/{audited.middle} is not as it was saved: " in said


def flip(folder):
    """Changes a byte in the middle of the largest file below a folder."""
    file = max(
        (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_weights_of_another_checkpoint_with_its_own_digests_are_found(tiny, whole, audited):
    """A whole forged checkpoint: only digests.jsonl tells."""
    other, _ = whole(tiny(seed=1, **BARE | {"checkpoint.keep": 3}))
    both = {*audited.kept} & {*checkpoint.steps(other / "checkpoints")} - {12}
    place = f"checkpoints/{max(both)}"
    shutil.rmtree(audited.folder / place)
    shutil.copytree(other / place, audited.folder / place)
    status, said = audited(f"--from={max(both)}")
    assert status == 4
    assert f"{place} is not what digests.jsonl records: " in said


def test_an_earlier_record_that_was_changed_is_one_line(audited):
    rewrite(audited.folder, audited.digests[0]["step"], other_kernel)
    with pytest.raises(InputError, match=rf"{audited.folder}/digests\.jsonl does not hold"):
        audited(f"--from={audited.middle}")


def test_what_is_not_kept_is_refused_with_what_is(audited):
    there = ", ".join(str(step) for step in audited.kept if step != 12)
    for step in (1, 12, 10**9):
        says = rf"--from={step} is no kept .* are {there} \("
        with pytest.raises(InputError, match=says):
            audited(f"--from={step}")
    with pytest.raises(InputError, match="no digest is recorded up to step 1"):
        audited(f"--from={audited.middle}", "--steps=1")
    shutil.rmtree(audited.folder / "checkpoints")
    with pytest.raises(InputError, match=r"there are none \(checkpoint.keep keeps more"):
        audited(f"--from={audited.middle}")


def recorded(*starts, digests=(3, 6, 9)):
    found = [{"resumed_from": step, "numerics": n} for step, n in starts]
    return Recorded({}, {}, found, {step: {} for step in digests}, [{"step": 6}])


def test_the_start_that_trained_on_is_the_last_one_from_before(tmp_path):
    folder = workdir.Workdir(tmp_path)
    (folder.checkpoints / "6").mkdir(parents=True)
    now = auditing.NUMERICS
    starts = [(None, now), (6, now), (3, now), (7, now)]
    part = auditing.part(recorded(*starts), folder, 6)
    assert [start["resumed_from"] for start in part.starts] == [3, 7]
    assert (part.digests, part.metrics) == ({9: {}}, [])
    with pytest.raises(InputError, match=r"computes other bits \(numerics 1000000, and"):
        auditing.part(recorded((None, now), (6, 10**6)), folder, 6)
