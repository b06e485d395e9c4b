"""Saves that fail: full disks, slow storage; what is kept, tried again, said."""

from collections import namedtuple

import orbax.checkpoint as ocp
import pytest

from jaxcls import experiment
from jaxcls.errors import InputError
from jaxcls.runs import checkpoint, saving
from jaxcls.training import train
from tests.limits import files_of_at_most
from tests.run_folders import record_bytes
from tests.runs.test_checkpoint import bits, like, make


def test_a_save_that_fails_in_the_background_loses_neither_the_last_nor_the_next(
    tmp_path, caplog
):
    with saving.Checkpoints(tmp_path, keep=2) as saves:
        saves.save(make(0), checkpoint.digests(make(0)))
        saves.wait()
        with files_of_at_most(1000):
            saves.save(make(1), checkpoint.digests(make(1)))
            saves.wait()
        assert checkpoint.steps(tmp_path) == [0]
        assert "could not be saved" in caplog.text
        assert not list(tmp_path.glob("*tmp*"))
        saves.save(make(2), checkpoint.digests(make(2)))
    assert checkpoint.steps(tmp_path) == [0, 2]
    assert bits(checkpoint.restore(tmp_path, 2, like(make(2)))) == bits(make(2))


def test_what_must_not_be_lost_is_tried_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(saving, "PAUSES", (0.0, 0.0))
    tried, whole = [], ocp.CheckpointManager.save

    def failing_twice(self, step, *args, **kwargs):
        tried.append(step)
        if len(tried) < 3:
            raise OSError("No space left on device")
        return whole(self, step, *args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "save", failing_twice)
    with saving.Checkpoints(tmp_path, keep=1) as saves:
        saves.save_now(make(0), checkpoint.digests(make(0)))
    assert tried == [0, 0, 0]
    assert checkpoint.steps(tmp_path) == [0]
    assert caplog.text.count("No space left on device") == 2


def test_a_disk_that_stays_full_is_one_line_and_keeps_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "PAUSES", (0.0,))
    with saving.Checkpoints(tmp_path, keep=1) as saves:
        saves.save_now(make(3), checkpoint.digests(make(3)))
        said = r"step 4 cannot be saved .*make room.* start again from 3"
        with files_of_at_most(1000), pytest.raises(InputError, match=said):
            saves.save_now(make(4), checkpoint.digests(make(4)))
    assert checkpoint.steps(tmp_path) == [3]


def test_no_open_file_left_is_one_line_though_the_folder_cannot_be_listed(
    tmp_path, monkeypatch, caplog
):
    def failing(*args, **kwargs):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(saving, "PAUSES", (0.0,))
    with saving.Checkpoints(tmp_path, keep=1) as saves:
        saves.save_now(make(3), checkpoint.digests(make(3)))
        with monkeypatch.context() as now:
            for name in ("save", "reload"):
                now.setattr(ocp.CheckpointManager, name, failing)
            now.setattr(checkpoint, "steps", failing)
            with pytest.raises(InputError, match=r"step 4 cannot be saved \(see above\)"):
                saves.save_now(make(4), checkpoint.digests(make(4)))
        assert "could not be listed ([Errno 24] Too many open files)" in caplog.text
        saves.save_now(make(4), checkpoint.digests(make(4)))
        monkeypatch.setattr(ocp.CheckpointManager, "close", failing)
    assert checkpoint.steps(tmp_path) == [4]


def test_a_folder_that_is_gone_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "PAUSES", (600.0,))
    with saving.Checkpoints(tmp_path / "run/checkpoints", keep=1) as saves:
        saves.save_now(make(3), checkpoint.digests(make(3)))
        (tmp_path / "run").rename(tmp_path / "moved")
        said = f"{tmp_path}/run is gone, and step 4 cannot be saved there; put the folder"
        with pytest.raises(InputError, match=said):
            saves.save_now(make(4), checkpoint.digests(make(4)))
    assert checkpoint.steps(tmp_path / "moved/checkpoints") == [3]


def test_a_save_that_finds_no_room_writes_nothing(tmp_path, monkeypatch, caplog):
    usage = namedtuple("usage", "total used free")(10**6, 10**6, 12)
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda _: usage)
    with saving.Checkpoints(tmp_path, keep=1) as saves:
        saves.save(make(3), checkpoint.digests(make(3)))
    assert "bytes are needed and 12 are free" in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_goes_on_through_a_failed_save_and_ends_in_the_same_bits(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(saving, "PAUSES", (0.0,))
    config = tiny(**{"ema.decay": 0.0, "best.metric": "loss"})
    exp = experiment.build(config)
    smooth = train.run(exp, str(tmp_path / "smooth"))
    whole, tried = ocp.CheckpointManager.save, []

    def failing_at_first(self, step, *args, **kwargs):
        tried.append(step)
        if tried.count(step) == 1:
            raise OSError("slow storage went away")
        return whole(self, step, *args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "save", failing_at_first)
    rough = train.run(exp, str(tmp_path / "rough"))
    assert rough.record == smooth.record
    assert record_bytes(tmp_path / "rough") == record_bytes(tmp_path / "smooth")
    assert 12 in checkpoint.steps(tmp_path / "rough/checkpoints")
