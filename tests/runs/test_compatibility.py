"""What released versions wrote stays readable: folders of runs, as they were written."""

import json
import pathlib
import shutil
import tarfile

import pytest

from jaxcls import experiment
from jaxcls.errors import InputError
from jaxcls.evaluation import scoring
from jaxcls.runs import checkpoint, records
from jaxcls.runs.workdir import Workdir
from jaxcls.training import train
from jaxcls.version import COMMITS, NUMERICS
from tests.scoring import score

GOLDEN = sorted((pathlib.Path(__file__).parent.parent / "golden").glob("run-*.tar.gz"))


@pytest.fixture(params=GOLDEN, ids=lambda path: path.name)
def old(request, tmp_path):
    """The folder of a digits run of 3 steps that an older jaxcls wrote."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return Workdir(tmp_path / "run")


@pytest.mark.parametrize("devices", [1, 8])
def test_an_old_state_loads_whole_and_verified_on_any_devices(old, data_dir, devices):
    config = old.config()
    config.mesh.devices, config.data.dir = devices, str(data_dir)
    exp = experiment.build(config)
    state = checkpoint.restore(old.checkpoints, 3, exp.programs.state_like)
    assert int(state.step) == 3
    arrays = checkpoint.digests(state)
    recorded = records.read(old.digests)[-1]["arrays"]
    added = arrays.keys() - recorded.keys()
    assert added <= {"skips", "rewound"}  # What State got after 0.1.0a.
    assert {k: v for k, v in arrays.items() if k not in added} == recorded
    assert (int(state.skips), int(state.rewound.max())) == (0, -1)


def test_an_old_run_scores_what_it_scored(old, data_dir):
    record = records.read(old.metrics)[-1]
    exp = scoring.from_workdir(old, {"data.dir": str(data_dir)})
    weights = checkpoint.restore_weights(old.checkpoints, 3, exp.programs.state_like)
    n, values = score(exp, weights, "test", "data.test")
    assert (n, values["top1"], values["ema_top1"]) == (
        record["n"],
        record["top1"],
        record["ema_top1"],
    )
    assert values["loss"] == pytest.approx(record["loss"], rel=1e-4)


def test_an_old_run_goes_on_where_its_bits_are_computed(old, data_dir):
    final = old.metrics.read_text().splitlines()[-1]
    kept = old.metrics.read_text().removesuffix(final + "\n")
    old.metrics.write_text(kept)  # As if it had died before its last evaluation.
    config = old.config()
    config.data.dir = str(data_dir)
    with pytest.raises(InputError, match=f"go on with commit {COMMITS[0]} of jaxcls, or"):
        train.run(experiment.build(config), old.given)
    manifest = {"starts": [{"numerics": NUMERICS}]}  # As if it had computed these.
    (old.path / "manifest.json").write_text(json.dumps(manifest))
    result = train.run(experiment.build(config), old.given)
    assert not result.already
    assert result.record["best_step"] == 3
    shutil.rmtree(old.checkpoints)
