"""A flipped bit in a run's config, manifest or times: the same bits, or one line."""

import functools
import json
import os
import random
import shutil

import pytest

from jaxcls import experiment
from jaxcls.config import loading
from jaxcls.errors import InputError, StoppedError
from jaxcls.runs import provenance, records
from jaxcls.runs.workdir import Workdir
from jaxcls.training import train

pytestmark = pytest.mark.slow
NAMES = ("config.json", "manifest.json", "timing.jsonl")
PLACES = 250  # A start takes some hundredths of a second, and a file has thousands.


def flips(data, seed):
    """The data with one random bit of a byte flipped, at PLACES of them in turn."""
    rng = random.Random(seed)
    for place in rng.sample(range(len(data)), min(PLACES, len(data))):
        changed = bytearray(data)
        changed[place] ^= 1 << rng.randrange(8)
        yield bytes(changed)


@pytest.fixture(scope="module")
def made(tmp_path_factory, data_dir, whole, request):
    """(config, folder stopped after step 9 of 12, folder of the run to its end)."""
    tiny = request.getfixturevalue("config_of")
    config = tiny(**{"compile.convolution": "ynnpack"})
    stopped = tmp_path_factory.mktemp("flipped") / "run"
    with pytest.raises(StoppedError):
        train.run(experiment.build(config), str(stopped), until=9)
    ended, _ = whole(config)
    return tiny(), stopped, ended


@pytest.fixture(scope="module")
def config_of(data_dir):
    """The configs of runs of twelve steps, of a model with a convolution."""
    from tests import settings

    values = {"length": "12 steps", "log.every": "2 steps", "eval.every": "4 steps"}
    values["checkpoint.every"] = "3 steps"
    return lambda **more: settings.digits(data_dir, **values, **more)


@pytest.fixture
def quick(monkeypatch):
    """Starts that neither wait for a disk nor ask git."""
    start = functools.cache(provenance.of_this_start)
    monkeypatch.setattr(provenance, "of_this_start", lambda: dict(start()))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Start:
    """What a start checks and takes over before it trains; see `train.run`."""

    def __init__(self, config, folder):
        self.exp, self.folder = experiment.build(config), Workdir(folder)
        known = self.folder.weights_of(config)
        self.implied = train._prepared(self.exp, known)

    def begin(self):
        """(the final record if the run has ended, what the loop would be built of)."""
        if final := train._finished_before(self.exp, self.folder):
            return final, None
        exp = self.exp.resuming(self.folder.convolution())
        self.folder.weights_of(exp.config)
        before = loading.differences(self.folder.config(), exp.config)
        identity = [key for key in before if loading.is_identity(key, exp.config)]
        self.folder.adopt(exp.config, self.implied)
        self.folder.begin(["cpu"], convolution=exp.convolution)
        self.folder.changes()
        records.read(self.folder.timing)
        return None, (identity, exp.convolution, self.folder.read())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("state", ["stopped", "ended"])
def test_a_flipped_bit_matters_not_or_is_one_line(made, quick, tmp_path, state, name):
    config, *folders = made
    folder = tmp_path / "run"
    shutil.copytree(folders[state == "ended"], folder)
    start, files = Start(config, folder), [folder / each for each in NAMES]
    whole = [file.read_bytes() for file in files]
    expected, passed, said = start.begin(), 0, set()
    assert state == "ended" or expected[1][:2] == ([], "ynnpack")
    for changed in flips(whole[NAMES.index(name)], seed=state):
        for file, data in zip(files, whole, strict=True):
            file.write_bytes(changed if file.name == name else data)
        try:
            found = start.begin()
            records.read(folder / "timing.jsonl")
        except InputError as error:
            said.add(str(error))
            continue
        passed += 1
        assert found == expected
    assert said
    assert all(map(str.isprintable, said))


def test_a_flip_that_passes_trains_to_the_same_bits(made, tmp_path):
    config, stopped, ended = made
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    file = folder / "config.json"
    saved = json.loads(file.read_text())
    saved["config"]["data.threads"] ^= 4
    saved["config"]["log.tensorboard"] ^= True
    file.write_text(json.dumps(saved))
    train.run(experiment.build(config), str(folder))
    for name in ("metrics.jsonl", "digests.jsonl"):
        assert (folder / name).read_bytes() == (ended / name).read_bytes()


def test_another_library_of_convolutions_is_not_taken_in_silence(made, tmp_path):
    config, stopped, _ = made
    shutil.copytree(stopped, tmp_path / "run")
    file = tmp_path / "run/manifest.json"
    file.write_text(file.read_text().replace('"ynnpack"', '"ynnpacj"'))
    with pytest.raises(InputError, match=r"manifest\.json is not as it was written"):
        train.run(experiment.build(config), str(tmp_path / "run"))
