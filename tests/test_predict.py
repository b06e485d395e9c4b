"""Image files -> classes: which files, what is said of bad ones, and the formats."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from jaxcls import decode, experiment, predict, sources
from jaxcls.errors import InputError

ROWS = [
    ("b/é, 1.png", [("tench, Tinca", 0.75), ('"quoted"', 0.25)]),
    ("a.jpg", [("[red]x", 0.9999996), ("tench, Tinca", 4e-7)]),
]


@pytest.fixture
def folder(tmp_path):
    for name in ("b.JPG", "a.png", "sub/c.webp", "sub/a.tiff", "notes.txt", "x.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_a_folder_gives_its_images_by_path_and_files_come_as_given(folder):
    inside = ["a.png", "b.JPG", "sub/a.tiff", "sub/c.webp"]
    paths = [str(folder / "x.npy"), str(folder), str(folder / "a.png")]
    expected = [folder / name for name in ("x.npy", *inside, "a.png")]
    assert predict.images(paths) == expected


def test_a_path_that_is_not_there_is_named(folder):
    with pytest.raises(InputError) as refused:
        predict.images([str(folder / "a.png"), "no/such.png"])
    assert str(refused.value) == "no/such.png is not a file; give image files or folders"


def test_a_folder_without_images_says_what_an_image_is(tmp_path):
    with pytest.raises(InputError) as refused:
        predict.images([str(tmp_path)])
    assert str(refused.value).startswith(f"{tmp_path} holds no image; .bmp, .gif, .heic")


def test_csv_reads_back_as_the_rows(capsys):
    predict.FORMATS["csv"](ROWS, 2)
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header == ["image", "class_1", "probability_1", "class_2", "probability_2"]
    assert rows == [
        ["b/é, 1.png", "tench, Tinca", "0.750000", '"quoted"', "0.250000"],
        ["a.jpg", "[red]x", "1.000000", "tench, Tinca", "0.000000"],
    ]


def test_json_reads_back_as_the_rows(capsys):
    predict.FORMATS["json"](ROWS, 2)
    found = json.loads(capsys.readouterr().out)
    rows = [
        (row["image"], [(c["name"], c["probability"]) for c in row["classes"]])
        for row in found
    ]
    assert rows == ROWS


def test_the_table_shows_every_cell_as_it_is(capsys):
    predict.FORMATS["table"](ROWS, 2)
    header, _, *lines = [x for x in capsys.readouterr().out.splitlines() if x.strip()]
    assert header.split() == ["image", "1", "p", "2", "p"]
    cells = [line.split() for line in lines]
    assert cells[0] == ["b/é,", "1.png", "tench,", "Tinca", "0.750", '"quoted"', "0.250"]
    assert cells[1] == ["a.jpg", "[red]x", "1.000", "tench,", "Tinca", "0.000"]


@pytest.mark.parametrize(("name", "text"), [("table", ""), ("json", "[]\n")])
def test_no_rows_give_an_empty_answer(name, text, capsys):
    predict.FORMATS[name]([], 3)
    assert capsys.readouterr().out == text


@pytest.fixture(scope="module")
def facts():
    return sources.Facts("mine", "1.0.0", (None, None, 1), 3, ("x", "y", "z"), {"train": 9})


@pytest.fixture
def exp(tiny, facts):
    ops = "decode(1) | resize(8)"
    names = {"data.name": "mine", "data.eval_ops": ops, "data.train_ops": ops}
    model = {"model.name": "cnn(widths=(4,), dense=8)", "optim.name": "sgd"}
    return experiment.build(tiny(**names, **model, **{"mesh.devices": 2}), facts)


def test_each_file_gets_the_models_probabilities_and_a_bad_one_its_reason(
    exp, tmp_path, monkeypatch
):
    monkeypatch.setattr(predict, "BATCH_SIZE", 4)
    rng, pixels, paths = np.random.default_rng(0), {}, []
    for i in range(7):
        paths.append(tmp_path / f"{i}.png")
        if i == 2:
            paths[i].write_text("no image")
        elif i != 5:
            pixels[i] = rng.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels[i]).save(paths[i])
    weights = exp.init()._asdict()
    found = list(predict.predict(exp, weights, paths))
    assert [path for path, _ in found] == paths
    assert found[2][1].startswith("not a readable image")
    assert found[5][1] == "No such file or directory"
    images = np.stack(list(pixels.values()))[..., None]
    variables = {k: weights[k] for k in ("params", "batch_stats")}
    logits, _ = exp.model.apply(variables, exp.normalize(images), False, None)
    for i, row in zip(pixels, np.asarray(logits), strict=True):
        np.testing.assert_allclose(found[i][1], softmax(row), rtol=1e-5)


def test_a_file_is_seen_upright_and_on_white(exp, tmp_path):
    upright = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(upright[::-1, ::-1]).save(tmp_path / "turned.png", exif=exif)
    seen = predict.read(exp, tmp_path / "turned.png")
    np.testing.assert_array_equal(seen[:, :, 0], upright)
    Image.new("LA", (5, 5), (0, 0)).save(tmp_path / "clear.png")
    assert (predict.read(exp, tmp_path / "clear.png") == 255).all()


def test_an_image_of_another_size_than_the_models_is_refused_with_both(tiny, tmp_path):
    exp = experiment.build(tiny())
    Image.new("L", (9, 7)).save(tmp_path / "x.png")
    with pytest.raises(decode.DecodeError) as refused:
        predict.read(exp, tmp_path / "x.png")
    said = "9x7 pixels after data.eval_ops, and the model takes 8x8"
    assert str(refused.value) == said
