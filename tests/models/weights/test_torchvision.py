"""The images that torchvision's own files are for, against torchvision's metadata."""

import hashlib
import math
import re

import numpy as np
import pytest

from jaxcls.models import MODELS
from jaxcls.models.weights import preprocessing, read
from jaxcls.models.weights import torchvision as ours
from tests.torchbytes import saved, zipped


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A file whose name has the digits of its content, as one of torchvision's."""
    content = saved({"w": np.zeros(2, np.float32)}, zipped)
    digits = hashlib.sha256(content).hexdigest()[:8]
    monkeypatch.setitem(ours.FILES, digits, (224, 232, "bilinear"))
    file = tmp_path / f"net-{digits}.pth"
    file.write_bytes(content)
    return file


def test_a_published_file_tells_its_images(published):
    told = preprocessing(str(published), "init.weights")
    assert (told.mean, told.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (told.size, told.interpolation, told.crop_mode) == (224, "bilinear", "center")
    assert math.floor(told.size / told.crop) == 232
    assert read(str(published), "init.weights").preprocessing == told


def test_another_file_of_that_name_tells_none(published):
    published.write_bytes(published.read_bytes() + b"\0")
    assert ours.preprocessing(published) is None
    other = published.rename(published.with_name("net.pth"))
    assert ours.preprocessing(other) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_every_classifier_of_torchvision_is_here_as_it_states(torchvision):
    stated = {}
    for name in torchvision.models.list_models(torchvision.models):
        for weights in torchvision.models.get_model_weights(name) if name in MODELS else ():
            made = weights.transforms()
            if not weights.meta["categories"]:
                continue  # It has no head.
            assert (made.mean, made.std) == ([*ours._MEAN], [*ours._STD])
            digits = re.search(r"-([0-9a-f]{8})\.pth$", weights.url)[1]
            (size,), (side,) = made.crop_size, made.resize_size
            stated[digits] = size, side, made.interpolation.value
    assert stated == ours.FILES
