"""A trained run from Python: the answers of the verbs, for images of every form."""

import csv
import doctest
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import jaxcls
from jaxcls import commands
from jaxcls.config import loading
from jaxcls.errors import InputError
from jaxcls.evaluation import scoring
from jaxcls.predict import inference, trained


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A hundred files, grey and RGB, of several sizes; their paths and pixels."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths, arrays = [], []
    for i in range(100):
        shape = (8 + i % 5, 8 + i % 3, *([3] if i % 2 else []))
        arrays.append(rng.integers(0, 256, shape, np.uint8))
        paths.append(str(folder / f"{i:03}.png"))
        Image.fromarray(arrays[-1]).save(paths[-1])
    return paths, arrays


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("count", [1, 3, 100])
def test_paths_pictures_and_arrays_get_the_answers_of_the_command(
    brief_run, pictures, devices, count, capsys
):
    run = jaxcls.load(brief_run, overrides={"mesh.devices": devices})
    paths, arrays = (each[:count] for each in pictures)
    command = ["predict", f"--workdir={brief_run}", "--format=csv", "--top=10", *paths]
    assert commands.main([*command, f"--config.mesh.devices={devices}"]) == 0
    _, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    found = run.predict(paths)
    assert (found.probabilities.shape, found.probabilities.dtype) == ((count, 10), "f4")
    assert found.class_names == run.class_names
    for row, name, likely in zip(rows, found.names, found.probabilities, strict=True):
        assert row[1] == name
        of_command = dict(zip(row[1::2], map(float, row[2::2]), strict=True))
        of_run = dict(zip(run.class_names, likely.tolist(), strict=True))
        assert of_command == pytest.approx(of_run, abs=1e-6)
    images = [Image.open(path) for path in paths]
    for other in (run.predict(arrays), run.predict(images), run.predict(iter(paths))):
        np.testing.assert_array_equal(other.probabilities, found.probabilities)
        assert other.names == found.names


def test_bits_are_those_of_predict_on_the_same_devices(brief_run, pictures):
    run = jaxcls.load(brief_run)
    exp, _, _, weights = scoring.load(brief_run, "best", {})
    expected = list(inference.predict(exp, weights, pictures[0], embed=True))
    found = run.predict(pictures[0]).probabilities
    np.testing.assert_array_equal(found, [each.probabilities for each in expected])
    np.testing.assert_array_equal(run.embed(pictures[0]), [each.embed for each in expected])


def test_one_image_or_many_in_one_array_or_none(brief_run, pictures, tmp_path):
    run, rng = jaxcls.load(brief_run), np.random.default_rng(1)
    many = rng.integers(0, 256, (3, 8, 8, 1), np.uint8)
    found = run.predict(many).probabilities
    np.testing.assert_array_equal(run.predict(jnp.asarray(many)).probabilities, found)
    alone = [run.predict(each).probabilities for each in (many[0], many[1, ..., 0])]
    np.testing.assert_allclose(np.concatenate(alone), found[:2], rtol=1e-5)
    Image.fromarray(many[2, ..., 0]).save(tmp_path / "2.png")
    for single in (tmp_path / "2.png", Image.open(tmp_path / "2.png")):
        np.testing.assert_allclose(run.predict(single).probabilities, found[2:], rtol=1e-5)
    none = run.predict([])
    assert (none.probabilities.shape, none.names) == ((0, 10), ())
    assert run.embed([]).shape == (0, run.embed(many[0]).shape[1])


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_picture_is_turned_by_its_exif_as_its_file_is(brief_run, tmp_path, orientation):
    pixels = np.random.default_rng(2).integers(0, 256, (9, 12, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    run = jaxcls.load(brief_run)
    found = [
        run.predict(each).probabilities
        for each in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png"))
    ]
    np.testing.assert_array_equal(*found)
    assert (found[0] != run.predict(pixels).probabilities).any()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((8, 8)), r"images\[1\]: an array of float64\[8, 8\]; give uint8"),
        (np.zeros((8, 8, 4), np.uint8), r"images\[1\]: an array of uint8\[8, 8, 4\]"),
        (np.zeros((0, 8), np.uint8), r"images\[1\]: an array of uint8\[0, 8\]"),
        ("none.png", r"images\[1\], none.png: No such file"),
        (3, r"images\[1\]: int is no image; give a path, an image of Pillow or an array"),
        (Image.new("F", (8, 8)), r"images\[1\]: 32 bits a sample"),
    ],
)
def test_an_image_that_cannot_be_read_is_named_by_its_place(brief_run, bad, message):
    good = np.zeros((8, 8), np.uint8)
    with pytest.raises(InputError, match=message):
        jaxcls.load(brief_run).predict([good, bad, good])


def test_a_size_of_batch_below_1_is_refused(brief_run):
    with pytest.raises(InputError, match="batch_size=0 must be at least 1, such as 64"):
        jaxcls.load(brief_run).predict([], batch_size=0)


def test_figures_are_those_of_the_command_and_count_every_example_once(brief_run, capsys):
    commands.main(["evaluate", f"--workdir={brief_run}", "--split=train[:100]"])
    line = capsys.readouterr().out.splitlines()[0]
    found = jaxcls.evaluate(brief_run, "train[:100]")
    assert found["n"] == 100
    for name in ("split", "n", "loss", "top1"):
        value = found[name]
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        assert f" {name}={text} " in line


def test_a_run_tells_its_config_records_and_step(brief_run):
    run = jaxcls.load(brief_run, checkpoint="last")
    assert run.step == 2
    assert run.config.model.name == "cnn(widths=(4,), dense=8)"
    assert run.class_names == tuple("0123456789")
    assert [record["step"] for record in run.metrics()][-1] == 2
    assert repr(run) == (
        f"TrainedRun({brief_run!r}, step=2, model='cnn(widths=(4,), dense=8)')"
    )
    with pytest.raises(InputError, match="--checkpoint=1 is not in"):
        jaxcls.load(brief_run, checkpoint=1)


def test_apply_is_a_pure_function_of_variables_and_images(brief_run):
    run = jaxcls.load(brief_run)
    images = np.random.default_rng(3).integers(0, 256, (8, 8, 8, 1), np.uint8)
    logits = jax.jit(run.apply)(run.variables, images)
    likely = run.predict(images).probabilities
    np.testing.assert_allclose(jax.nn.softmax(logits), likely, rtol=1e-5, atol=1e-7)
    zeros = jax.tree.map(np.zeros_like, run.variables)
    assert not run.apply(zeros, images).any()


@pytest.mark.slow
def test_training_from_python_goes_on_and_is_done_once(data_dir, tmp_path):
    given = {"length": "2 steps", "data.dir": data_dir, "log.tensorboard": False}
    given |= {"mesh.devices": 1, "model.name": "cnn(widths=(4,), dense=8)"}
    run = jaxcls.train("configs/digits.py", tmp_path / "run", given)
    assert run.metrics()[-1]["kind"] == "final"
    config = loading.load("configs/digits.py", {k: str(v) for k, v in given.items()})
    again = jaxcls.train(config, tmp_path / "run")
    assert again.metrics() == run.metrics()
    with pytest.raises(InputError, match="unknown config key 'epochs'"):
        jaxcls.train(config, tmp_path / "run", {"epochs": 3})


@pytest.mark.slow
def test_the_examples_of_the_docstrings_run(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    images, labels = load_digits(return_X_y=True)
    for name, digit in {"seven.png": 7, "two.png": 2}.items():
        # Digits runs from 0 to 16, and its dataset from 0 to 255.
        pixels = images[np.flatnonzero(labels == digit)[0]].reshape(8, 8) * (255 / 16)
        Image.fromarray(np.uint8(np.rint(pixels))).save(name)
    given = {"length": "5 epochs", "mesh.devices": 1, "log.tensorboard": False}
    jaxcls.train("configs/digits.py", "runs/digits", given)
    for module in (jaxcls, trained):
        found = doctest.testmod(module, extraglobs={"jaxcls": jaxcls})
        assert (found.failed, found.attempted > 2) == (0, True)
