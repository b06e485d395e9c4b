"""A folder for a hub: timm makes our model of it, with its labels and preprocessing."""

import ast
import json
import re

import jax
import numpy as np
import pytest
import yaml
from PIL import Image

from jaxcls import models
from jaxcls.errors import InputError
from jaxcls.export import writing
from jaxcls.export.formats import FORMATS, hub, timm
from jaxcls.export.formats.model import Asked
from jaxcls.models import weights
from jaxcls.models.weights import Preprocessing
from tests.export.formats.test_formats import drawn

LABELS = ("rose", "tulip: red", "lily", "`x`", "é", "5", "6", "7", "8", "9")
SMALL = "vit_ti_16(depth=1)"
TOLD = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), 64, 0.875, "bicubic", "center")
ABOUT = {
    "data": {"name": "flowers", "train": "train", "fingerprint": "0123abcd"},
    "checkpoint": {"step": 7, "is": "best"},
    "preprocessing": {"text": "decode | resize_short(73, 'bicubic') | center_crop(64)"},
    "evaluations": [
        {"kind": "eval", "split": "val", "n": 50, "top1": 0.5},
        {"kind": "final", "split": "test", "n": 200, "top1": 0.9, "loss": 0.25},
    ],
    "digest": "f00d",
}


def exported(folder, name, size=64, license="unknown", told=TOLD):
    model = drawn(name, size)
    model = model._replace(class_names=LABELS, preprocessing=told._replace(size=size))
    model = model._replace(about=ABOUT)
    pixels = np.random.default_rng(1).integers(0, 256, (3, size, size, 3), np.uint8)
    seen, asked = writing.Images(pixels, "noise"), Asked(license=license)
    facts = writing.export("hub", hub, model, asked, seen, folder)
    logits = jax.jit(model.apply)(model.variables, pixels)
    return model, facts, pixels, np.asarray(logits)


def test_config_and_card_tell_what_the_run_knows(tmp_path):
    _, facts, _, _ = exported(tmp_path, SMALL, 32, "apache-2.0")
    assert (facts["names"], facts["architecture"]) == ("timm", "vit_tiny_patch16_224")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224"
    assert config["model_args"] == {"img_size": [32, 32], "depth": 1}
    assert (config["num_classes"], config["label_names"]) == (10, list(LABELS))
    cfg = config["pretrained_cfg"]
    assert (cfg["mean"], cfg["std"]) == (list(TOLD.mean), list(TOLD.std))
    assert (cfg["input_size"], cfg["interpolation"]) == ([3, 32, 32], "bicubic")
    assert (cfg["crop_pct"], cfg["crop_mode"]) == (0.875, "center")
    assert (cfg["first_conv"], cfg["classifier"]) == ("patch_embed.proj", "head")
    read = weights.read(str(tmp_path), "init.weights")
    assert read.class_names == LABELS
    assert read.preprocessing == TOLD._replace(size=32)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith('---\nlicense: "apache-2.0"\nlibrary_name: timm\n')
    assert "10 classes, trained with jaxcls: timm's\n`vit_tiny_patch16_224`" in card
    # Wilson's interval of 180 of 200, as statsmodels gives it.
    assert "| top1 | 0.9000 | 0.8506 to 0.9343 |" in card
    assert "| loss | 0.2500 |  |" in card
    assert "On `test`, 200 examples" in card
    for told in ("`flowers`", "`0123abcd`", "best, step 7", "`f00d`", "center_crop(64)"):
        assert told in card
    assert "`'x'`" in card


def card_of(folder, about, name=SMALL, license="mit"):
    model = drawn(name, 32)._replace(about=about, preprocessing=TOLD._replace(size=32))
    hub.write(model, folder / "model.safetensors", Asked(license=license))
    return (folder / "README.md").read_text()


def test_a_card_is_yaml_and_python_whatever_the_names(tmp_path):
    name = 'vit_ti_16(depth=1, pool="mean")'
    card = card_of(tmp_path, ABOUT, name, license="no")
    assert yaml.safe_load(card.split("---")[1])["license"] == "no"
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    *_, made = [ast.parse(each) for each in blocks]
    assert made.body[-1].value.args[0].value == name


@pytest.mark.parametrize(
    ("which", "top1", "loss"), [("ema", "0.9000", "0.2500"), ("params", "0.5000", "2.0000")]
)
def test_a_card_has_the_figures_of_the_weights_in_the_file(tmp_path, which, top1, loss):
    values = {"top1": 0.5, "ema_top1": 0.9, "loss": 2.0, "ema_loss": 0.25}
    about = {
        "checkpoint": {"step": 7, "is": "best", "weights": which},
        "evaluations": [{"split": "test", "n": 200, **values}],
    }
    card = card_of(tmp_path, about)
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| (.*) \|$", card, re.MULTILINE)
    assert [row[:2] for row in rows] == [("top1", top1), ("loss", loss)]
    assert " to " in rows[0][2]


def test_a_card_of_published_weights_knows_no_training_data(tmp_path):
    checkpoint = {"init.weights": "hf:timm/a.b", "fingerprint": "sha256:12"}
    card = card_of(tmp_path, {"checkpoint": checkpoint})
    assert "trained with jaxcls" not in card
    assert "10 classes, converted by jaxcls: timm's" in card
    assert (
        "- Dataset: unknown\n- Weights: from `hf:timm/a.b`, fingerprint `sha256:12`" in card
    )


def test_probabilities_of_a_sigmoid_are_refused(tmp_path):
    model = drawn(SMALL, 32)._replace(about={"output": {"link": "sigmoid"}})
    with pytest.raises(InputError, match=r"a sigmoid of each logit; try --format=onnx"):
        hub.write(model, tmp_path / "model.safetensors", Asked())


def test_a_folder_is_initial_weights(tmp_path):
    model, _, _, _ = exported(tmp_path, SMALL, 32)
    _, read = models.create(SMALL, 10, image_shape=(32, 32, 3), weights=str(tmp_path))
    for ours, there in zip(
        jax.tree.leaves(dict(model.variables)), jax.tree.leaves(read), strict=True
    ):
        np.testing.assert_array_equal(ours, there)


def test_a_folder_read_as_another_form_is_refused_and_said_without_our_metadata(
    tmp_path,
):
    text, plain = "vit_ti_16(depth=1, gelu='tanh')", "vit_ti_16(depth=1)"
    file = tmp_path / "model.safetensors"
    model = drawn(text, 32)._replace(class_names=LABELS, preprocessing=TOLD, about=ABOUT)
    FORMATS["hub"].write(model, file, Asked())
    read = {"image_shape": (32, 32, 3), "weights": str(tmp_path)}
    with pytest.raises(
        InputError, match=r"gelu='tanh' \(here 'exact'\); give model\.name="
    ):
        models.create(plain, 10, **read)
    library = pytest.importorskip("safetensors.numpy")
    library.save_file(library.load_file(file), file)
    with pytest.warns(UserWarning, match=r"224\(act_layer='gelu_tanh'\), not vit_ti_16\(d"):
        models.create(plain, 10, **read)


@pytest.mark.parametrize(
    "name",
    [
        *("cnn", "alexnet", "wrn16_4", "resnet50(stem='small')", "mixer_s_32(depth=2)"),
        "vgg11",
        *(
            "dinov3_s_16(gelu='tanh')",
            "dinov3_s_16(pool='map')",
            "vit_s_16(position='rope')",
        ),
        "swin_t",
    ],
)
def test_a_model_that_timm_lacks_is_one_line(name):
    with pytest.raises(InputError) as refused:
        timm.counterpart(name, (64, 64, 3))
    said = str(refused.value)
    assert re.search(rf"no architecture .* model\.name={re.escape(name)}", said)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("name", "architecture", "args"),
    [
        ("efficientnet_b4", "efficientnet_b4", {}),
        ("efficientnet_v2_m", "efficientnetv2_m", {"bn_eps": 1e-3}),
        ("efficientnet_v2_s(padding='same')", "tf_efficientnetv2_s", {}),
        (
            "mobilenet_v2(padding='same')",
            "mobilenetv2_100",
            {"pad_type": "same", "bn_eps": 1e-5},
        ),
        ("mobilenet_v3_large(norm_epsilon=1e-5)", "mobilenetv3_large_100", {}),
    ],
)
def test_padding_and_epsilon_are_in_timms_name_or_its_arguments(name, architecture, args):
    assert timm.counterpart(name, (64, 64, 3)) == (architecture, args)


def test_a_preprocessing_that_timm_lacks_is_one_line(tmp_path):
    model = drawn(SMALL, 32)
    with pytest.raises(InputError, match="tells timm how to preprocess"):
        FORMATS["hub"].write(model, tmp_path / "model.safetensors", Asked())


# ConvNeXt-T, ConvNeXt V2 Atto, EfficientNet-B0 and VGG-11 at 224 pixels agree too, and take
# longer.
CASES = [
    ("resnet18(dropout=0.1)", 64),
    ("mobilenet_v3_small(padding='same', norm_epsilon=1e-4)", 65),
    ("efficientnet_lite0(padding='same', norm_epsilon=1e-3)", 65),
    ("mixer_s_32", 64),
    ("swin_t(stages=(2, 2), heads=(1, 2), width=32, window=4)", 64),
    ("vit_ti_16(depth=1, pool='patch_mean')", 64),
    ("dinov2_s_14_reg4(depth=1, width=96, pool='norm_patch_mean')", 56),
    ("dinov3_s_16(depth=1, width=96, layer_scale=0.1)", 64),
    ("clip_b_16(depth=1, width=96, gelu='quick')", 224),
    ("siglip_b_16(depth=1, width=96, gelu='tanh', reg_tokens=1)", 64),
    ("vit_ti_16(depth=2)", 64),
    ("vit_s_32(depth=2, pool='mean', position='sincos', gelu='tanh')", 96),
    ("vit_ti_16(depth=2, layer_scale=1e-4, token_position=False)", 224),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), CASES)
def test_timm_makes_the_same_logits_of_a_folder(torchvision, tmp_path, name, size):
    theirs, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    model, _, pixels, logits = exported(tmp_path, name, size)
    made = theirs.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    told = theirs.data.resolve_model_data_config(made)
    assert (*told["mean"], *told["std"]) == TOLD.mean + TOLD.std
    assert tuple(told["input_size"]) == (3, size, size)
    assert (told["interpolation"], told["crop_pct"]) == ("bicubic", 0.875)
    images = np.moveaxis(pixels.astype(np.float32) / 128 - 1, 3, 1)  # As `drawn` does.
    with torch.no_grad():
        found = made(torch.from_numpy(np.ascontiguousarray(images))).numpy()
    largest = np.abs(logits).max()
    np.testing.assert_allclose(found, logits, atol=1e-5 * largest, rtol=0)
    # And with a head of other classes, as a fine-tune begins.
    if name.startswith("resnet18"):
        other = theirs.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3)
        assert other(torch.zeros(1, 3, size, size)).shape == (1, 3)
    assert len(model.class_names) == made.num_classes


@pytest.mark.slow
def test_the_pipeline_of_transformers_says_our_answers(torchvision, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("timm")
    middle = (128 / 255,) * 3  # As `drawn` normalises.
    told = Preprocessing(middle, middle, 64, 1.0, "bicubic", "center")
    _, _, pixels, logits = exported(tmp_path, "resnet18", 64, told=told)
    classify = transformers.pipeline("image-classification", str(tmp_path), top_k=10)
    for image, row in zip(pixels, logits, strict=True):
        found = {each["label"]: each["score"] for each in classify(Image.fromarray(image))}
        expected = np.asarray(jax.nn.softmax(row))
        assert [found[label] for label in LABELS] == pytest.approx(expected, abs=1e-5)
