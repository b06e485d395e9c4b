"""The folder of a run: who holds it, what it says, and what it refuses."""

import json
import os
import platform
import re
import signal
import socket
import sys

import pytest

from jaxcls.config import loading
from jaxcls.config.knobs import KNOBS
from jaxcls.errors import InputError
from jaxcls.runs.workdir import Workdir
from tests.limits import files_of_at_most

IMPLIED = {"steps": 12, "image_shape": (8, 8, 1), "facts": {"num_classes": 10, "n": [1, 2]}}


def refused(*parts):
    """Expects an `InputError` of one line that holds all parts, in their order."""
    return pytest.raises(InputError, match="^.*" + ".*".join(map(re.escape, parts)) + ".*$")


def begun(path, **values):
    """The folder of a run of that config, which has a checkpoint."""
    folder = Workdir(path)
    with folder.lock():
        folder.adopt(loading.from_flat(values), IMPLIED)
        folder.begin(["cpu"])
        (folder.checkpoints / "3").mkdir(parents=True, exist_ok=True)
    return folder


HOLD = (
    "import sys; from jaxcls.runs.workdir import Workdir\n"
    "with Workdir(sys.argv[1]).lock(): print('held', flush=True); input()"
)


def test_a_folder_held_by_another_process_names_it_and_kill_9_frees_it(started, tmp_path):
    holder = started("-c", HOLD, str(tmp_path / "run"))
    assert holder.stdout.readline() == "held\n"
    folder, host = Workdir(tmp_path / "run"), socket.gethostname()
    says = f"is in use by host {host}, pid {holder.pid}, since 20", f"={tmp_path}/run-2"
    with refused(*says), folder.lock():
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with folder.lock():
        assert f"pid {holder.pid}" not in (folder.path / "lock").read_text()


def test_a_lock_on_a_full_disk_holds_without_a_name(started, tmp_path):
    folder = Workdir(tmp_path)
    with files_of_at_most(0), folder.lock():
        assert (tmp_path / "lock").read_text() == ""
        with refused("is in use by another process"), Workdir(tmp_path).lock():
            pass
    with files_of_at_most(0), folder.lock(), refused("config.json cannot be written (File"):
        folder.adopt(loading.from_flat({}), IMPLIED)


def test_the_lock_says_who_holds_it_now_and_nothing_else(tmp_path):
    (tmp_path / "lock").write_text("an older holder with a longer name\n" * 9)
    with Workdir(tmp_path).lock():
        text = (tmp_path / "lock").read_text()
    assert re.fullmatch(rf"host \S+, pid {os.getpid()}, since 20\S+\n", text)


def test_a_lock_is_free_again_after_use_and_holds_within_a_process(tmp_path):
    folder = Workdir(tmp_path / "run")
    for _ in range(2):
        with (
            folder.lock(),
            pytest.raises(InputError, match="is in use by host"),
            Workdir(tmp_path / "run").lock(),
        ):
            pass


def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with refused("--workdir=gs://bucket/run is a URL", "--workdir=runs/name"):
        Workdir("gs://bucket/run")
    with refused(f"--workdir={tmp_path}/file is a file; name a folder"):
        Workdir(tmp_path / "file").check_identity(loading.base())
    says = f"--workdir={tmp_path}/file/run cannot be written", "--workdir=DIR"
    with refused(*says), Workdir(tmp_path / "file/run").lock():
        pass


def test_a_folder_with_other_things_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with refused(f"--workdir={tmp_path} holds 'thesis.tex' and no run", f"={tmp_path}/run"):
        Workdir(tmp_path).check_identity(loading.base())
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_new_folder_an_empty_one_and_one_only_locked_are_taken(tmp_path):
    for folder in (Workdir(tmp_path / "new"), Workdir(tmp_path)):
        folder.check_identity(loading.base())
    with Workdir(tmp_path / "run").lock():
        Workdir(tmp_path / "run").check_identity(loading.base())


@pytest.mark.parametrize("left", [["config.json.tmp"], ["lock", "config.json.tmp"]])
def test_a_start_that_was_killed_in_its_first_write_leaves_a_folder_to_start_in(
    tmp_path, left
):
    for name in left:
        (tmp_path / name).write_text('{"format": 1, "con')
    folder, config = Workdir(tmp_path), loading.base()
    folder.check_identity(config)
    folder.adopt(config, {})
    assert folder.config() == config
    assert not (tmp_path / "config.json.tmp").exists()


def test_another_identity_is_refused_with_the_difference_and_a_free_name(tmp_path):
    begun(tmp_path / "run", seed=1)
    (tmp_path / "run-2").mkdir()
    changed = loading.from_flat({"seed": 2, "optim.name": "adamw", "log.every": "9 steps"})
    changes = "(seed 1 -> 2, optim.name 'sgd' -> 'adamw')"
    with refused(f"holds another run {changes}", f"--workdir={tmp_path}/run-3"):
        Workdir(f"{tmp_path}/run/").check_identity(changed)


def test_a_folder_where_nothing_was_trained_takes_another_config(tmp_path):
    folder = begun(tmp_path / "run", seed=1)
    (folder.checkpoints / "3").rmdir()
    other = loading.from_flat({"seed": 2})
    folder.check_identity(other)
    folder.adopt(other, {"steps": 5})
    assert folder.config().seed == 2
    assert folder.read()["implied"] == {"steps": 5}


def test_an_operational_change_is_taken_and_recorded(tmp_path):
    folder = begun(tmp_path / "run")
    changed = loading.from_flat({"data.threads": 3, "data.dir": "/elsewhere"})
    folder.check_identity(changed)
    with folder.lock():
        folder.adopt(changed, IMPLIED)
    assert folder.config().data.threads == 3
    assert folder.config().data.dir == "/elsewhere"


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        # Data whose fingerprint was not known, and older versions, which had no weights.
        ({"facts": {}}, {"facts": {"fingerprint": "1"}}, "facts.fingerprint"),
        (
            {"facts": {"fingerprint": ""}},
            {"facts": {"fingerprint": "1"}},
            "facts.fingerprint",
        ),
        ({}, {"weights": ""}, "weights"),
    ],
)
def test_a_fact_that_older_runs_did_not_know_is_taken_once(tmp_path, before, after, key):
    folder, known = Workdir(tmp_path / "run"), loading.base()
    with folder.lock():
        folder.adopt(known, before)
        folder.metrics.write_text("{}\n")
        folder.adopt(known, after)
        other = {"facts": {"fingerprint": "2"}, "weights": "2"}
        with refused(f"{key} was"):
            folder.adopt(known, {name: other[name] for name in after})


def test_every_key_that_changes_a_run_is_part_of_its_identity():
    operational = {key for key, knob in KNOBS.items() if not knob.identity}
    assert operational == {
        "data.dir", "data.threads", "data.prefetch", "data.resident",
        "checkpoint.every", "checkpoint.keep", "log.every", "log.tensorboard",
        "log.wandb",
        "mesh.devices", "mesh.fsdp", "compile.cache", "compile.loop", "compile.convolution",
        "probe.cache", "watchdog.first", "watchdog.later",
        "log.profile",
        # Where they are; what they are is known by their fingerprint.
        "init.weights", "distill.run", "plugins",
    }  # fmt: skip


def test_config_json_holds_the_resolved_config_and_what_it_implies(tmp_path):
    folder = begun(tmp_path / "run", seed=7)
    saved = json.loads((folder.path / "config.json").read_text())
    assert saved["format"] == 1
    assert saved["config"].keys() == KNOBS.keys()
    assert saved["config"]["seed"] == 7
    assert saved["implied"] == json.loads(json.dumps(IMPLIED))
    assert loading.differences(folder.config(), loading.from_flat({"seed": 7})) == {}


def test_no_path_of_this_machine_is_part_of_what_a_run_is(tmp_path):
    folder = begun(tmp_path / "run", **{"data.dir": str(tmp_path / "data")})
    saved = folder.read()
    identity = {k: v for k, v in saved["config"].items() if KNOBS[k].identity}
    assert str(tmp_path) not in json.dumps([identity, saved["implied"]])


def test_continuing_a_run_leaves_config_json_as_it_is(tmp_path):
    folder = begun(tmp_path / "run")
    before = (folder.path / "config.json").stat()
    begun(tmp_path / "run")
    assert (folder.path / "config.json").stat().st_mtime_ns == before.st_mtime_ns


def test_changed_data_are_refused_with_what_changed(tmp_path):
    folder = begun(tmp_path / "run")
    other = {**IMPLIED, "facts": {"num_classes": 11, "n": [1, 2]}}
    says = "the data changed: facts.num_classes was 10 and is 11; restore the data"
    with refused(says, f"--workdir={tmp_path}/run-2"):
        folder.adopt(loading.base(), other)
    assert folder.read()["implied"]["facts"]["num_classes"] == 10


def test_the_manifest_has_an_entry_for_each_start(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys, "argv", ["/long/path/main.py", "--config=a b.py"])
    folder = begun(tmp_path / "run")
    folder.note(resumed_from=None)
    begun(tmp_path / "run")
    folder.note(resumed_from=40)
    folder.end("done")
    manifest = json.loads((folder.path / "manifest.json").read_text())
    first, second = manifest["starts"]
    assert (first["reason"], second["reason"]) == ("killed", "done")
    assert (first["resumed_from"], second["resumed_from"]) == (None, 40)
    assert "ended" not in first
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", second["ended"])
    assert second["command"] == "python main.py '--config=a b.py'"
    assert second["devices"] == ["cpu"]
    version = __import__("jax").__version__
    assert second["versions"]["jax"] == version
    assert f"jax=={version}" in second["packages"]
    assert second["packages"] == sorted(second["packages"], key=str.lower)
    assert second["cpu"]["cores"] >= 1
    assert second["cpu"]["machine"] == platform.machine()
    assert second["python"] == sys.version.split()[0]


def test_a_start_after_a_proper_end_does_not_change_how_the_first_ended(tmp_path):
    begun(tmp_path / "run").end("interrupted")
    begun(tmp_path / "run").end("diverged")
    starts = json.loads((tmp_path / "run/manifest.json").read_text())["starts"]
    assert [start["reason"] for start in starts] == ["interrupted", "diverged"]


@pytest.mark.parametrize("harm", ["moved", "deleted", "emptied"])
def test_a_start_whose_entry_is_gone_says_that_the_folder_is(harm, tmp_path):
    folder = begun(tmp_path / "run")
    manifest = folder.path / "manifest.json"
    if harm == "moved":
        folder.path.rename(tmp_path / "other")
    elif harm == "deleted":
        manifest.unlink()
    else:
        manifest.write_text('{"starts": []}')
    with refused(f"{manifest} has lost this start; the folder was moved, emptied"):
        folder.end("done")


def test_reading_what_is_no_run_says_so_and_points_to_the_run(tmp_path):
    with refused(f"--workdir={tmp_path} is not a run's folder"):
        Workdir(tmp_path).read()
    folder = begun(tmp_path / "run")
    with refused(f"the run's folder is {folder.path}"):
        Workdir(folder.checkpoints / "12").read()


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('{"format": 1, "conf', "config.json cannot be read: "),
        ('{"format": 9, "config": {}, "implied": {}}', "has format 9, and jaxcls "),
        ('{"model_type": "vit"}', "its config.json is another program's"),
        ("[]", "its config.json is another program's"),
    ],
)
def test_a_config_json_that_cannot_be_read_is_named(text, wrong, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with refused(wrong):
        Workdir(tmp_path).read()


@pytest.mark.parametrize(
    ("part", "key", "value", "says"),
    [
        ("config", "log.every", 5, "log.every=5 is int, and must be str; the default is "),
        ("config", "optim.lr", "x", "optim.lr='x' is str, and must be float; the default"),
        ("config", "optim.lr", 10**400, "00 is int, and must be float"),
        ("config", "mesh.devices", None, "mesh.devices=None is NoneType, and must be int"),
        ("config", "mesh.devices", True, "mesh.devices=True is bool, and must be int"),
        ("config", "data.eval", [], "data.eval=[] is list, and must be str; the default"),
        ("implied", "facts", [1], "implied.facts=[1] must be an object; put the file"),
        ("implied", "weights", 1, "implied.weights=1 must be a text; put the file right"),
        ("implied", "plugins", {"a": 1}, "implied.plugins={'a': 1} must be an object of"),
        ("facts", "num_classes", -1, "implied.facts.num_classes=-1 must be a whole"),
        (
            "facts",
            "num_classes",
            10**9,
            "num_classes=1000000000 must be a whole",
        ),
        ("facts", "image_shape", [8, 8], "facts.image_shape=[8, 8] must be three sizes"),
        ("facts", "splits", {"a": "b"}, "facts.splits={'a': 'b'} must be an object of"),
        ("facts", "class_names", [0], "facts.class_names=[0] must be a list of texts"),
    ],
)
def test_a_value_of_config_json_of_another_type_is_named(part, key, value, says, tmp_path):
    folder = begun(tmp_path)
    file = tmp_path / "config.json"
    saved = json.loads(file.read_text())
    (saved["implied"]["facts"] if part == "facts" else saved[part])[key] = value
    file.write_text(json.dumps(saved))
    with refused(f"{file}: ", says):
        folder.read()


@pytest.mark.parametrize("part", ["config", "implied"])
def test_a_part_of_config_json_that_is_no_object_is_named(part, tmp_path):
    folder, file = begun(tmp_path), tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {part: 3}))
    with refused(f"{file}: '{part}' is int, and must be an object"):
        folder.config()


def test_a_whole_number_is_of_a_knob_of_another_number(tmp_path):
    folder, file = begun(tmp_path), tmp_path / "config.json"
    saved = json.loads(file.read_text())
    saved["config"]["optim.lr"] = 2
    file.write_text(json.dumps(saved))
    assert repr(folder.config().optim.lr) == "2.0"


def test_facts_of_the_data_that_are_lost_are_named(tmp_path):
    with refused("implied.facts lacks 'name'; put the file right"):
        begun(tmp_path).implied()


def test_a_folder_of_records_without_checkpoints_is_still_a_run(tiny, tmp_path):
    folder = Workdir(tmp_path)
    folder.adopt(tiny(), {})
    folder.check_identity(tiny(seed=1))  # Nothing was trained yet.
    folder.metrics.write_text('{"step": 2}\n')
    with refused("seed 0 -> 1", "--workdir="):
        folder.check_identity(tiny(seed=1))


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"versions": {"jax": 7}}, "starts.0.versions.jax"),
        ({"versions": []}, "starts.0.versions"),
        ({"devices": []}, "starts.0.devices"),
        ({"cpu": {}}, "starts.0.cpu.instructions"),
        ({"cpu": {"instructions": ["avx", 1]}}, "starts.0.cpu.instructions.1"),
        ({"numerics": "6"}, "starts.0.numerics"),
        ({"resumed_from": True}, "starts.0.resumed_from"),
        ({"records": ["x"]}, "starts.0.records"),
        ({"seconds": -1.0}, "starts.0.seconds"),
        ({"seconds": None}, "starts.0.seconds"),
        ({"device_bytes": 1.5}, "starts.0.device_bytes"),
        ({"process_bytes": -1}, "starts.0.process_bytes"),
    ],
)
def test_a_start_of_another_form_is_named(tmp_path, change, wrong):
    folder = begun(tmp_path / "run")
    file = folder.path / "manifest.json"
    saved = json.loads(file.read_text())
    saved["starts"][0] |= change
    del saved["seal"]
    file.write_text(json.dumps(saved))
    with refused(f"{wrong} is not as it is written", "put it right"):
        folder.starts()


def test_a_path_with_a_nul_is_refused():
    with refused("is no path"):
        Workdir("runs/a\0b")


def test_a_manifest_that_was_changed_is_refused(tmp_path):
    folder = begun(tmp_path / "run")
    file = folder.path / "manifest.json"
    whole = file.read_text()
    file.write_text(whole.replace('"cpu"', '"gpu"'))
    with refused("manifest.json is not as it was written", "put it back as it was"):
        folder.starts()
    file.write_text(json.dumps(json.loads(whole)))
    assert len(folder.starts()) == 1  # Its spaces are its own affair.


def test_a_start_that_is_killed_before_it_has_begun_leaves_a_config_that_is_known(tmp_path):
    folder = begun(tmp_path / "run")
    folder.check_config()
    folder.adopt(loading.from_flat({"data.threads": 3}), IMPLIED)  # And no begin.
    folder.check_config()
    file = folder.path / "config.json"
    file.write_text(file.read_text().replace('"data.threads": 3', '"data.threads": 4'))
    with refused("config.json is not as the run's last start wrote it"):
        folder.check_config()
