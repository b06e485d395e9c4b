"""The grid of training images: what the model sees, and what it is called."""

import numpy as np
import pytest
from PIL import Image

from jaxcls import commands, experiment
from jaxcls.errors import InputError
from jaxcls.experiment import show


def test_the_images_are_those_of_the_first_batch(tiny):
    exp = experiment.build(tiny(augment="", mix="", normalize="unit"))
    images, targets = show.pixels(exp)
    batch = next(exp.train_batches())
    np.testing.assert_allclose(images * 255, np.asarray(batch.image), atol=1e-3)
    assert targets.argmax(-1).tolist() == np.asarray(batch.label).tolist()


@pytest.mark.parametrize("normalize", ["imagenet", "cifar10"])
def test_normalisation_is_undone(tiny, normalize):
    ops = {"data.train_ops": "decode", "data.eval_ops": "decode", "normalize": normalize}
    exp = experiment.build(tiny(augment="", mix="", **ops))
    images, _ = show.pixels(exp)
    batch = next(exp.train_batches())
    np.testing.assert_allclose(images * 255, np.asarray(batch.image), atol=1e-2)


def test_images_normalised_by_themselves_are_shown_from_black_to_white(tiny):
    exp = experiment.build(tiny(augment="", mix="", normalize="per_image"))
    images, _ = show.pixels(exp)
    pixels = np.asarray(next(exp.train_batches()).image, np.float64)
    low, high = (f(pixels, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    np.testing.assert_allclose(images, (pixels - low) / (high - low), atol=1e-5)


@pytest.mark.slow
def test_augmentation_and_mixing_are_those_of_the_train_step(tiny):
    exp = experiment.build(tiny(augment="flip(1.0)", mix=""))
    plain = experiment.build(tiny(augment="", mix=""))
    flipped, straight = show.pixels(exp)[0], show.pixels(plain)[0]
    np.testing.assert_allclose(flipped, straight[:, :, ::-1], atol=1e-6)
    _, targets = show.pixels(experiment.build(tiny(mix="mixup(1.0)")))
    assert ((targets > 0.01).sum(-1) > 1).any()


def test_at_most_64_images_are_shown(tiny):
    images, targets = show.pixels(experiment.build(tiny(batch_size=128)))
    assert len(images) == len(targets) == 64


def test_a_caption_names_the_class_or_the_two_that_are_mixed():
    names = ("cat", "dog", "owl", "a name that is much too long for one line of it")
    assert show.caption(np.array([0, 1, 0, 0.0]), names) == "dog"
    smoothed = np.array([0.025, 0.025, 0.925, 0.025])
    assert show.caption(smoothed, names) == "owl"
    mixed = np.array([0.3, 0.0, 0.7, 0.0])
    assert show.caption(mixed, names) == "0.70 owl\n0.30 cat"
    assert len(show.caption(np.array([0, 0, 0, 1.0]), names)) <= 24


@pytest.mark.slow
def test_the_command_writes_a_picture(tmp_path, data_dir, capsys):
    out = tmp_path / "batch.png"
    config = ["--config=configs/digits.py", f"--config.data.dir={data_dir}"]
    assert commands.main(["prepare", f"--show={out}", *config]) == 0
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("L").getcolors()) > 20
    with pytest.raises(InputError, match=r"cannot be written .*--show=batch\.png"):
        commands.main(["prepare", f"--show={tmp_path}/no/batch.png", *config])
    with pytest.raises(InputError, match=r"cannot be written .*--show=batch\.png"):
        commands.main(["prepare", f"--show={tmp_path}/batch.xyz", *config])
    with pytest.raises(InputError, match=r"has no suffix; try --show=b\.png"):
        commands.main(["prepare", "--show=b", *config])
    with pytest.raises(InputError, match="needs --config=FILE"):
        commands.main(["prepare", f"--show={out}"])
