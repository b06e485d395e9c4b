"""The grid of training images: what the model sees, and what it is called."""

import numpy as np
import pytest
from PIL import Image

from jaxcls import commands, experiment
from jaxcls.errors import InputError
from jaxcls.experiment import show


@pytest.mark.parametrize("normalize", ["unit", "imagenet", "per_image"])
def test_the_images_are_those_of_the_first_batch_before_normalisation(tiny, normalize):
    ops = {"data.train_ops": "decode(3)", "data.eval_ops": "decode(3)"}
    exp = experiment.build(tiny(**ops, augment="", mix="", normalize=normalize))
    images, targets = show.pixels(exp)
    batch = next(exp.train_batches())
    np.testing.assert_allclose(images * 255, np.asarray(batch.image), atol=1e-3)
    assert targets.argmax(-1).tolist() == np.asarray(batch.label).tolist()


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
def test_the_command_writes_a_picture(tmp_path, data_dir, capsys, monkeypatch):
    def half_a_picture(self, file, *more):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    out = tmp_path / "batch.png"
    config = ["--config=configs/digits.py", f"--config.data.dir={data_dir}"]
    assert commands.main(["prepare", f"--show={out}", *config]) == 0
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("L").getcolors()) > 20
    before = out.read_bytes()
    with monkeypatch.context() as broken:
        broken.setattr(Image.Image, "save", half_a_picture)
        with pytest.raises(InputError, match=r"batch.png cannot be written \(No space"):
            commands.main(["prepare", f"--show={out}", *config])
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]
    for given, said in {
        f"--show={tmp_path}/no/batch.png": r"cannot be written .*--show=batch\.png",
        f"--show={tmp_path}/batch.xyz": r"cannot be written .*--show=batch\.png",
        "--show=b": r"has no suffix; try --show=b\.png",
    }.items():
        with pytest.raises(InputError, match=said):
            commands.main(["prepare", given, *config])
    with pytest.raises(InputError, match="needs --config=FILE"):
        commands.main(["prepare", f"--show={out}"])
