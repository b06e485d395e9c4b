"""A probe: features once, the best head on data.eval, and a run like others."""

import json
import re
import shutil

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jaxcls import commands, experiment
from jaxcls.config import loading, rules
from jaxcls.errors import InputError
from jaxcls.evaluation import passes, scoring
from jaxcls.models import naming
from jaxcls.training import probe, train
from jaxcls.training.probe import Features
from tests.conftest import ROOT

CONFIG = ROOT / "configs/digits.py"
MODEL = "cnn(widths=(8, 16), dense=32)"


@pytest.fixture(scope="module")
def probed(tmp_path_factory, data_dir):
    """(folder of a probe, what it printed), and the folder of its cache."""
    folder = tmp_path_factory.mktemp("probe")

    def run(name, *flags, capsys):
        given = [f"--config={CONFIG}", f"--workdir={folder / name}", *flags]
        given += [f"--config.data.dir={data_dir}", f"--config.model.name={MODEL}"]
        given += ["--config.mesh.devices=1", f"--config.probe.cache={folder / 'cache'}"]
        assert commands.main(["probe", *given]) == 0
        return folder / name, capsys.readouterr().out

    return run


def features_of(exp, weights, split, key):
    variables = {name: weights[name] for name in ("params", "batch_stats")}
    scorer = passes.Scorer(
        lambda batch: exp.programs.embed_step(variables, batch.image),
        lambda embed, _: {"embed": embed},
    )
    n, places = exp.selection.count(split, key), np.arange(exp.selection.num_classes)
    batches = exp.eval_batches(split, key)
    kept, labels = passes.over(n, batches, places, {"": scorer}, exp.mesh)
    return kept[""]["embed"], labels


@pytest.mark.slow
def test_it_is_a_run_whose_head_is_as_good_as_scikit_learns(probed, tmp_path, capsys):
    folder, said = probed("first", "--config.probe.penalties=1e-2, 1e-4", capsys=capsys)
    assert "features of data.train=train[:90%]: 1,293 of 32 numbers" in said
    exp, step, at, weights = scoring.load(str(folder), "best", {})
    assert (step, at) == (1, "best")
    start = naming.flatten({"params": exp.init().params})
    for path, array in naming.flatten({"params": weights["params"]}).items():
        if not path.startswith("params/head/"):
            np.testing.assert_array_equal(array, start[path])
    train_set = features_of(exp, weights, "train[:90%]", "data.train")
    test_set = features_of(exp, weights, "test", "data.test")
    records = [
        json.loads(each) for each in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert [each["kind"] for each in records] == ["probe", "eval", "final"]
    chosen, found, final = records
    assert chosen["top1"] == pytest.approx(found["top1"])
    assert chosen["loss"] == pytest.approx(found["loss"], rel=1e-4)
    n = len(train_set[1])
    theirs = LogisticRegression(C=1 / (n * chosen["penalty"]), tol=1e-6, max_iter=20_000)
    theirs.fit(*train_set)
    assert abs(theirs.score(*test_set) - final["top1"]) <= 1 / 360  # 0.3 points: one image.
    out, written = tmp_path / "out", str(folder)
    assert commands.main(["evaluate", f"--workdir={folder}", "--split=test"]) == 0
    assert f"top1={final['top1']:.4g}" in capsys.readouterr().out
    assert commands.main(["export", f"--workdir={folder}", f"--out={out}"]) == 0
    assert (out / "model.safetensors").stat().st_size > 1000
    assert commands.main(["report", f"--workdir={written}"]) == 0
    capsys.readouterr()
    _, said = probed("first", "--config.probe.penalties=1e-2, 1e-4", capsys=capsys)
    assert said.splitlines()[-1].startswith("already finished: step=1")
    # Without the features that are kept: spoilt ones would show.
    for file in (folder.parent / "cache").iterdir():
        with np.load(file) as kept:
            np.savez(file, features=kept["features"] + 1, labels=kept["labels"])
    assert commands.main(["reproduce", f"--workdir={folder}"]) == 0
    assert "features of data.train" in capsys.readouterr().out
    shutil.rmtree(folder.parent / "cache")


@pytest.mark.slow
def test_another_probe_takes_the_features_that_are_there(probed, capsys):
    probed("kept", "--config.probe.penalties=1e-2, 1e-4", capsys=capsys)
    folder, said = probed("second", "--config.probe.penalties=1e-3", capsys=capsys)
    lines = re.findall(r"features of data\.\w+=.*", said)
    assert len(lines) == 2
    assert all(".npz" in line for line in lines)
    # Other pixels are other features.
    _, said = probed("third", "--config.normalize=symmetric", capsys=capsys)
    assert ".npz" not in said
    (one, *_) = sorted((folder.parent / "cache").iterdir())
    one.write_bytes(one.read_bytes()[:100])  # What is not whole is made anew.
    _, said = probed("fourth", "--config.probe.penalties=1e-3", capsys=capsys)
    digests = [
        (folder.parent / name / "digests.jsonl").read_text()
        for name in ("second", "fourth")
    ]
    assert digests[0] == digests[1]


def test_the_best_on_data_eval_is_chosen_of_equals_the_least_loss():
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((3, 6)) * 2
    labels = rng.integers(0, 3, 300)
    features = (centers[labels] + rng.standard_normal((300, 6))).astype(np.float32)
    parts = Features(features[:200], labels[:200]), Features(features[200:], labels[200:])
    said = []
    chosen = probe.best(*parts, 3, (1e-1, 10.0, 1e-3), said.append)
    assert len(said) == 3
    assert said[0].startswith("penalty 10: ")  # The largest first.
    figures = [
        (
            float(re.search(r"top1=(\S+)", line)[1]),
            -float(re.search(r"loss=([^ ,]+)", line)[1]),
        )
        for line in said
    ]
    assert (
        pytest.approx(chosen.top1, abs=1e-4),
        pytest.approx(-chosen.loss, rel=1e-3),
    ) == max(figures)


def of_probe(tiny, **more):
    values = {**loading.flat(tiny()), **rules.PROBE, "probe.penalties": "1e-2"}
    values |= {"data.train_ops": values["data.eval_ops"], "optim.name": "sgd"}
    return loading.from_flat({**values, **more})


def test_it_is_a_function_of_its_config(tiny, tmp_path):
    config = of_probe(tiny)
    for name in "ab":
        train.run(experiment.build(config), str(tmp_path / name))
    for file in ("digests.jsonl", "metrics.jsonl"):
        one, other = ((tmp_path / name / file).read_bytes() for name in "ab")
        assert one == other


def test_a_setting_that_is_given_is_refused_and_not_ignored(
    tmp_path, data_dir, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    given = [f"--config={CONFIG}", f"--config.data.dir={data_dir}", "--config.augment=flip"]
    with pytest.raises(InputError, match="augment='flip' has no part in a probe"):
        commands.main(["probe", *given])
    # Beside the run of `train`.
    assert capsys.readouterr().out == "runs/digits-probe: loading JAX\n"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"mix": "mixup(0.2)"}, "mix='mixup.0.2.' has no part in a probe"),
        ({"length": "2 epochs"}, "length='2 epochs' has no part"),
        ({"data.train_ops": "decode(1) | resize(8)"}, "data.train_ops='decode.1. | resize"),
        ({"data.eval": ""}, "chooses its penalty on data.eval"),
        ({"probe.penalties": "1e-2; 3"}, "must be numbers from 0 on with commas"),
        ({"probe.penalties": "-1"}, "must be numbers from 0 on"),
        ({"probe.penalties": "nan"}, "must be numbers from 0 on"),
    ],
)
def test_what_has_no_part_in_a_probe_is_refused(tiny, tmp_path, more, said):
    with pytest.raises(InputError, match=said):
        train.run(experiment.build(of_probe(tiny, **more)), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
