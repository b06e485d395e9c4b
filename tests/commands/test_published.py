"""Weights as they are, by every verb: the answers of the run that they are of."""

import contextlib
import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import jaxcls
from jaxcls import commands
from jaxcls.data import sources
from jaxcls.errors import InputError
from jaxcls.evaluation import scoring
from jaxcls.experiment.published import scored_split
from jaxcls.models import naming, weights

MODEL = "cnn(widths=(4,), dense=8)"
OPS = "decode(1) | resize(8)"
DIGITS = tuple("0123456789")
GIVEN = [f"--config.data.eval_ops={OPS}", "--config.normalize=unit"]
ORDER = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]


@pytest.fixture(scope="module")
def tensors(brief_run):
    """The arrays of a run as PyTorch has them."""
    exp, _, _, saved = scoring.load(brief_run, "best", {})
    table = next(iter(exp.recipe.namings.values()))
    return naming.to_theirs(exp.recipe.variables(saved), table)


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory):
    """A file of them with the names of the classes, in another order."""
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    turned = {
        name: each[ORDER] if name.startswith("head.") else each
        for name, each in tensors.items()
    }
    assert sum(name.startswith("head.") for name in tensors) == 2
    weights.write(path, turned, None, [DIGITS[k] for k in ORDER])
    return path


@pytest.fixture
def published(file, data_dir, monkeypatch, tmp_path):
    """The flags of the file, in an empty folder in which nothing is to appear."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    monkeypatch.chdir(tmp_path)
    return [f"--model={MODEL}", f"--weights={file}", *GIVEN]


def said(verb, *arguments):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert commands.main([verb, *map(str, arguments)]) == 0
    return out.getvalue()


@pytest.fixture
def picture(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.fromarray(pixels).save(path)
    return path


def test_evaluate_gives_the_figures_and_answers_of_the_run(
    brief_run, published, tmp_path, capsys
):
    of_run, by_run = tmp_path / "run.json", tmp_path / "run.csv"
    flags = [f"--json={of_run}", f"--predictions={by_run}", "--split=test[:360]"]
    said("evaluate", f"--workdir={brief_run}", *flags)
    expected, rows = json.loads(of_run.read_text()), by_run.read_text()
    for each in (of_run, by_run):
        each.unlink()
    capsys.readouterr()
    there = tmp_path / "all.json", tmp_path / "all.csv"
    flags = [f"--json={there[0]}", f"--predictions={there[1]}", "--split=test[:360]"]
    line, *_ = said("evaluate", *published, "--data=digits", *flags).splitlines()
    found = json.loads(there[0].read_text())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["all.csv", "all.json"]
    assert there[1].read_text() == rows
    assert found["headline"] == expected["headline"]
    assert found["n"] == 360
    assert found["fingerprint"].startswith("sha256:")
    assert line.startswith(f"evaluate: model={MODEL} init.weights=")
    assert " split=test[:360] n=360 " in line
    notes = capsys.readouterr().err
    assert (
        "arrays, by pytorch's names\nclasses: 10 of the 10 there, by their names" in notes
    )
    assert f"images: {OPS}; normalize=unit" in notes


def test_some_of_the_classes_are_chosen_among(brief_run, published, tmp_path):
    run = jaxcls.load(brief_run)
    flags = ["--config.data.classes=3, 8", "--split=train[:100]", "--predictions=two.csv"]
    said("evaluate", *published, "--data=digits", *flags)
    rows = [*csv.DictReader(io.StringIO((tmp_path / "two.csv").read_text()))]
    images, labels = _digits(100)
    chosen = np.isin(labels, [3, 8])
    logits = np.log(run.predict(images[chosen]).probabilities[:, [3, 8]])
    likely = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert [row["label"] for row in rows] == [str(k) for k in labels[chosen]]
    found = [[float(row["p(3)"]), float(row["p(8)"])] for row in rows]
    np.testing.assert_allclose(found, likely, atol=1e-5)


def _digits(count):
    """The first images [n, 8, 8, 1] of digits' split train, and their labels."""
    records = sources.Dataset("digits", "").source("train", "data.train")
    read = [*records.read(np.arange(count))]
    images = [np.asarray(Image.open(io.BytesIO(data))) for data, _ in read]
    return np.stack(images)[..., None], np.array([label for _, label in read])


def test_predict_and_search_and_python_give_those_of_the_run(
    brief_run, published, picture, file, tmp_path
):
    expected = said(
        "predict", f"--workdir={brief_run}", "--format=csv", "--top=10", picture
    )
    assert said("predict", *published, "--format=csv", "--top=10", picture) == expected
    gallery = [f"--gallery={picture.parent}", "--format=csv", picture]
    of_run = [f"--workdir={brief_run}", "--sheet=", "--cache=c.npz"]
    there = said("search", *of_run, *gallery)
    (tmp_path / "c.npz").unlink()
    assert said("search", *published, *gallery) == there
    overrides = {"data.eval_ops": OPS, "normalize": "unit"}
    run = jaxcls.load(model=MODEL, weights=file, overrides=overrides)
    trained = jaxcls.load(brief_run)
    # Without data, the classes are in the order of the file.
    assert run.class_names == tuple(DIGITS[k] for k in ORDER)
    likely = trained.predict(str(picture)).probabilities
    np.testing.assert_allclose(
        run.predict(str(picture)).probabilities, likely[:, ORDER], atol=1e-6
    )
    assert (run.step, run.metrics()) == (0, [])
    assert len(run.notes) == 3
    found = jaxcls.evaluate(model=MODEL, weights=file, data="digits", overrides=overrides)
    assert found == trained.evaluate("test[:360]") | {"split": "test"}
    assert [*tmp_path.iterdir()] == []


def test_export_and_report_go_where_they_are_told(published, picture, tmp_path):
    line = said("export", *published, "--format=stablehlo", "--data=digits").strip()
    assert line.startswith("done: step=0 at=published format=stablehlo n=256 ")
    about = json.loads((tmp_path / "cnn-stablehlo/model.json").read_text())
    assert about["labels"] == list(DIGITS)
    assert about["checkpoint"]["init.weights"] == "net.safetensors"
    assert about["checkpoint"]["fingerprint"].startswith("sha256:")
    assert "data" not in about  # What they are checked on is not what they were trained on.
    flags = ["--format=safetensors", "--out=there", f"--images={picture}"]
    said("export", *published, *flags)
    about = json.loads((tmp_path / "there/model.json").read_text())
    assert about["labels"] == [DIGITS[k] for k in ORDER]
    said("report", *published, "--data=digits", "--output=a.html")
    page = (tmp_path / "a.html").read_text()
    assert "All 360 examples of test, by published weights." in page
    assert "Learning curves" not in page
    assert "manifest.json" not in page


def test_a_config_beside_the_file_names_and_prepares(tensors, published, tmp_path):
    file = tmp_path / "net.safetensors"
    save_file(tensors, file)
    flags = [f"--model={MODEL}", f"--weights={file}", "--data=digits"]
    with pytest.raises(InputError, match="does not tell what images it was made for; give"):
        said("evaluate", *flags)
    # Ten classes without names are the data's ten numbers.
    first = said("evaluate", *flags, *GIVEN).splitlines()[0].partition(" split")[2]
    told = {"input_size": [1, 8, 8], "mean": [0], "std": [1], "crop_pct": 1}
    told |= {"architecture": "cnn", "label_names": ["a", *DIGITS[1:]]}
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert first.startswith("=test n=360 ")
    with pytest.raises(InputError, match="10 classes such as 'a', and '0' of the data is"):
        said("evaluate", *flags)
    told["label_names"] = DIGITS
    (tmp_path / "config.json").write_text(json.dumps(told))
    again = said("evaluate", *flags).splitlines()[0].partition(" split")[2]
    assert again == first


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("--workdir=runs/x --model=cnn", "--workdir=runs/x is a run, and --model=cnn is"),
        ("", "there is no model; give --workdir=RUN, or published weights: --model="),
        ("--model=cnn", "--model=cnn is of published weights; give both --model=resnet50"),
        ("--data=digits", "--data=digits is of published weights; give both"),
        ("{weights} --model=cnn", "weights have no examples; give data, such as --data="),
        ("{weights} {given} --model=cnn --data=digits", "it does not fit by pytorch's"),
        ("{weights} {given} --model=cmm --data=digits", "unknown model.name 'cmm'; know"),
        ("{weights} {model} {given} --data=digit", "data.name='digit' is not prepared in"),
        ("{weights} {model} {given} --data=digits --checkpoint=3", "--checkpoint=3 is of"),
        ("--weights=no.pth {model} --data=digits", "no.pth: there is no such file"),
        ("--weights=no.pth {model} {given} --data=digits", "no.pth: there is no such file"),
        ("{all} --config.init.skip=head", "skip=head is of training, and weights are used"),
        ("{all} --config.init.head=fresh", "head=fresh is of training, and a head of"),
        ("{all} --config.init.weights=w.pth", "w.pth is what --weights says; give --wei"),
        ("{all} --config.model.name=cnn", "name=cnn is what --model says; give --model="),
        ("{all} --config.data.name=mnist", "mnist is what --data says; give --data=NAME"),
        ("{all} --config.data.train_ops=decode", "decode is of training, and nothing is"),
        ("--weights={run} {model} --data=digits", "is a run's folder, .*; give --workdir="),
        ("{weights} {model} {given} --data=digits --split=val", "--split='val' is not a"),
        ("{weights} {model} {given} --data=digits --against=no", "is not a run's folder"),
    ],
)  # fmt: skip
def test_what_does_not_go_is_one_line(
    arguments, why, file, brief_run, data_dir, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    every = "{weights} {model} {given} --data=digits"
    filled = [
        text.replace("{run}", brief_run)
        for part in arguments.replace("{all}", every).split()
        for text in {
            "{weights}": [f"--weights={file}"],
            "{model}": [f"--model={MODEL}"],
            "{given}": GIVEN,
        }.get(part, [part])
    ]
    with pytest.raises(InputError, match=why) as refused:
        commands.main(["evaluate", *filled])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "splits", "found"),
    [
        ("imagenet2012", ("train", "validation", "test"), "validation"),
        ("photos", ("train", "validation", "test"), "test"),
        ("photos", ("train", "validation"), "validation"),
        ("photos", ("train",), ""),
    ],
)
def test_a_split_with_labels_is_scored(name, splits, found):
    facts = sources.Facts(name, "", (None, None, 3), 2, (), dict.fromkeys(splits, 9))
    assert scored_split(facts) == found


def test_without_data_nothing_is_said_of_a_dataset(published, file, tmp_path, capsys):
    why = "published weights have no examples; give data, such as --data=imagenet2012"
    overrides = {"data.eval_ops": OPS, "normalize": "unit"}
    for split in ("test", "train"):
        with pytest.raises(InputError, match=why):
            jaxcls.evaluate(model=MODEL, weights=file, split=split, overrides=overrides)
    run = jaxcls.load(model=MODEL, weights=file, overrides=overrides)
    assert run.config.data.name == ""
    assert why in said("report", *published, "--output=a.html")
    assert why in (tmp_path / "a.html").read_text()


def test_other_verbs_and_python_need_a_model_and_images(published):
    with pytest.raises(InputError, match="checked on real images, and published weights"):
        commands.main(["export", *published])
    with pytest.raises(InputError, match=r"no folder for report.html; give --output=repo"):
        commands.main(["report", *published, "--data=digits"])
    with pytest.raises(InputError, match=r"--workdir=a is a run, and --model="):
        commands.main(["report", "--workdir=a", *published])
    for given in (
        {},
        {"model": "cnn"},
        {"folder": "runs/x", "model": "cnn", "weights": "w"},
    ):
        with pytest.raises(
            InputError, match=r"^load takes a run, load\('runs/digits'\), or"
        ):
            jaxcls.load(**given)
