"""Records and checkpoints vouch for each other: what was changed, cut or lost is said."""

import json
import random
import shutil

import pytest

from jaxcls import experiment
from jaxcls.errors import InputError, StoppedError
from jaxcls.runs import checkpoint
from jaxcls.runs.workdir import Workdir
from jaxcls.training import train
from tests import settings
from tests.dying import dying

FILES = ("metrics.jsonl", "digests.jsonl")


@pytest.fixture(scope="module")
def made(tmp_path_factory, data_dir):
    """(config, folder) of a run that was stopped after step 9 of 12."""
    folder = tmp_path_factory.mktemp("sealed") / "run"
    values = {"length": "12 steps", "log.every": "2 steps", "eval.every": "4 steps"}
    config = settings.digits(data_dir, **values, **{"checkpoint.every": "3 steps"})
    with pytest.raises(StoppedError):
        train.run(dying(config), str(folder), until=9)
    return config, folder


@pytest.fixture
def stopped(made, tmp_path):
    """(config, folder) of a copy of that run."""
    shutil.copytree(made[1], tmp_path / "run")
    return made[0], tmp_path / "run"


def changed_number(lines):
    record = json.loads(lines[0])
    key = "loss" if "loss" in record else "digest"
    value = record[key] + 1 if key == "loss" else "0" * 16
    return [json.dumps({**record, key: value}) + "\n", *lines[1:]]


DAMAGE = {
    "a number": changed_number,
    "the first line": lambda lines: lines[1:],
    "the last line": lambda lines: lines[:-1],
    "the order": lambda lines: [lines[1], lines[0], *lines[2:]],
    "a line twice": lambda lines: [lines[0], *lines],
    "all lines": lambda lines: [],
    "the file": lambda lines: None,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_run_does_not_go_on_over_records_that_are_not_its_own(stopped, name, damage):
    config, folder = stopped
    file = folder / name
    before = file.read_text()
    lines = DAMAGE[damage](before.splitlines(keepends=True))
    if lines is None:
        file.unlink()
    else:
        file.write_text("".join(lines))
    said = rf"{name} does not hold the records that checkpoints/9 vouches for: some were"
    with pytest.raises(InputError, match=said):
        train.run(dying(config), str(folder))


def test_it_goes_on_once_the_file_is_as_it_was(stopped):
    config, folder = stopped
    file = folder / "digests.jsonl"
    before = file.read_text()
    file.write_text("")
    with pytest.raises(InputError, match="put the file back as it was"):
        train.run(dying(config), str(folder))
    file.write_text(before)
    assert train.run(dying(config), str(folder)).record["step"] == 12


@pytest.mark.slow
def test_every_byte_of_the_records_matters_or_leaves_them_the_same(stopped):
    _, folder = stopped
    workdir, rng = Workdir(folder), random.Random(0)
    for name in FILES:
        file = folder / name
        before, refused = file.read_bytes(), 0
        for place in range(len(before)):
            flipped = bytearray(before)
            flipped[place] ^= 1 << rng.randrange(8)
            file.write_bytes(bytes(flipped))
            try:
                train._checked_records(workdir, 9)
            except InputError:
                refused += 1
                continue
            lines = [bytes(flipped).split(b"\n"), before.split(b"\n")]
            ours, theirs = ([json.loads(x) for x in each if x] for each in lines)
            assert ours == theirs
        assert refused > 0.9 * len(before)
        file.write_bytes(before)


def test_a_finished_run_is_not_told_from_changed_records(tiny, whole, tmp_path):
    folder, result = whole(tiny())
    assert train.run(dying(tiny()), str(folder)).already
    file = folder / "metrics.jsonl"
    before = file.read_text()
    file.write_text(before.replace('"top1": 0.', '"top1": 1.'))
    try:
        with pytest.raises(InputError, match=r"records that manifest.json vouches for"):
            train.run(dying(tiny()), str(folder))
    finally:
        file.write_text(before)
    assert train.run(dying(tiny()), str(folder)).record == result.record


def test_a_finished_run_is_told_where_its_data_are_gone(stopped, monkeypatch):
    config, folder = stopped
    result = train.run(dying(config), str(folder))

    def absent(name, data_dir):
        raise InputError(f"{name} is not in {data_dir}")

    monkeypatch.setattr("jaxcls.data.sources.Dataset", absent)
    again = train.run(experiment.build(config), str(folder))
    assert (again.record, again.already) == (result.record, True)


def test_a_checkpoint_of_an_earlier_version_vouches_for_nothing(stopped):
    config, folder = stopped
    file = folder / "checkpoints/9/meta/metadata"
    meta = checkpoint.meta_of(folder / "checkpoints", 9)
    assert sorted(meta.pop("records")) == ["digests", "metrics"]
    file.write_text(json.dumps({**meta, "seal": checkpoint.seal_of(meta)}))
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[1:]))
    assert train.run(dying(config), str(folder)).record["step"] == 12
