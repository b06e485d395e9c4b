"""What a model sees in evaluation is, pixel by pixel, what its weights' authors show it.

Needs torchvision and timm, as tests/models/test_parity.py.
"""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from jaxcls.config import calls
from jaxcls.data import batches
from jaxcls.data.decode import HOST_OPS
from jaxcls.experiment import initial
from jaxcls.models.weights import facts
from tests.images import encode

pytest.importorskip("torch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]

TORCHVISION = [
    "ResNet50_Weights.IMAGENET1K_V1",
    "ResNet50_Weights.IMAGENET1K_V2",
    "ViT_B_16_Weights.IMAGENET1K_V1",
    "ConvNeXt_Tiny_Weights.IMAGENET1K_V1",
    "EfficientNet_B0_Weights.IMAGENET1K_V1",
    "EfficientNet_B1_Weights.IMAGENET1K_V2",
    "MobileNet_V2_Weights.IMAGENET1K_V1",
    "MobileNet_V2_Weights.IMAGENET1K_V2",
]
TIMM = [
    "resnet50.a1_in1k",
    "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "convnext_tiny.fb_in1k",
    "deit3_small_patch16_224.fb_in1k",
    "efficientnet_b0.ra_in1k",
    "mobilenetv2_100.ra_in1k",
    "mixer_b16_224.miil_in21k_ft_in1k",
    "mixer_b16_224.goog_in21k_ft_in1k",
]


@pytest.fixture(scope="module")
def photographs():
    """Twenty parts of scikit-learn's two photographs, enlarged or reduced to odd sizes.

    Each is (image, the bytes of its file).
    """
    rng = np.random.default_rng(0)
    found = []
    for i in range(20):
        image = Image.fromarray(load_sample_images().images[i % 2])
        width, height = (int(n) for n in rng.integers((300, 200), (640, 427)))
        left, top = image.width - width, image.height - height
        part = image.crop((left, top, left + width, top + height))
        scale = rng.uniform(0.5, 2.5)
        size = [round(scale * n) | 1 for n in part.size]
        found.append(part.resize(size if i % 3 else size[::-1], Image.Resampling.LANCZOS))
    assert len({image.size for image in found}) == 20
    return [(image, encode(image, compress_level=1)) for image in found]


def ours(text, data):
    """uint8 [H, W, 3]: what data.eval_ops make of the bytes of a file."""
    ops = calls.build(text, HOST_OPS, "data.eval_ops")
    return batches.transform(ops, data, batches.example_rng(0, 0))


def levels(tensor, mean, std):
    """uint8 [H, W, 3] of a normalised tensor [3, H, W]; each is near a whole level."""
    exact = tensor.numpy().transpose(1, 2, 0) * np.float64(std) + np.float64(mean)
    whole = np.round(255 * exact)
    assert np.abs(255 * exact - whole).max() < 1e-2
    return whole.astype(np.uint8)


def check(text, transform, mean, std, photographs):
    assert "'truncate'" in text
    for image, data in photographs:
        expected = levels(transform(image), mean, std)
        np.testing.assert_array_equal(ours(text, data), expected, err_msg=str(image.size))
    rounded = text.replace(", 'truncate'", "")
    assert any(
        (ours(rounded, data) != levels(transform(image), mean, std)).any()
        for image, data in photographs
    )


def texts_of(config, tmp_path):
    """What stands for "weights" in a config, told by a hub's config.json."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    told = facts.of_config(file, strict=True).preprocessing
    return initial._texts("hf:x/y", told, list(initial.TOLD))


@pytest.mark.parametrize("name", TORCHVISION)
def test_pixels_are_those_of_torchvisions_preset(torchvision, name, tmp_path, photographs):
    kind, version = name.split(".")
    preset = getattr(getattr(torchvision.models, kind), version).transforms()
    (size,), (side,) = preset.crop_size, preset.resize_size
    config = {
        "architecture": kind,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            # As a float it is a hair above, and its floor a pixel below.
            "crop_pct": np.nextafter(size / side, 0),
            "interpolation": preset.interpolation.value,
            "mean": preset.mean,
            "std": preset.std,
        },
    }
    text = texts_of(config, tmp_path)["data.eval_ops"]
    assert f"resize_short({side}, " in text
    check(text, preset, preset.mean, preset.std, photographs)


@pytest.mark.parametrize("name", TIMM)
def test_pixels_are_those_of_timms_transform(torchvision, name, tmp_path, photographs):
    timm = pytest.importorskip("timm")
    known = dataclasses.asdict(timm.models.get_pretrained_cfg(name))
    config = {"architecture": name.partition(".")[0], "pretrained_cfg": known}
    told = timm.data.resolve_data_config(pretrained_cfg=known)
    text = texts_of(config, tmp_path)["data.eval_ops"]
    transform = timm.data.create_transform(**told, is_training=False)
    check(text, transform, told["mean"], told["std"], photographs)
