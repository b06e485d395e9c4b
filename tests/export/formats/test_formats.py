"""Files that others run: each format's own runtime, and the example beside it."""

import contextlib
import importlib.util
import io
import os
import pathlib
import re
import struct
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxcls import commands, experiment
from jaxcls.config import loading
from jaxcls.data import clean, decode, sources, stills
from jaxcls.evaluation import scoring
from jaxcls.export import facts, writing
from jaxcls.export.formats import FORMATS, example, safetensors
from jaxcls.export.formats.model import Asked, Model
from jaxcls.predict import inference
from jaxcls.training import train
from tests.images import (
    NOISE,
    before_pixels,
    chunk,
    encode,
    pixels,
    sampled,
    segment,
    write,
)
from tests.modules import built, shapes

FACTS = sources.Facts("photos", "", (None, None, 3), 2, ("a", "b"), {"train": 50, "val": 9})
PROGRAMS = ("stablehlo", "onnx", "tflite")


def needed(form):
    """Skip where a format's packages are not installed; .ci/run installs them all."""
    for module, distribution in FORMATS[form].NEEDS.items():
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{distribution} is not installed")


OPS = [
    "decode | resize_short(24) | center_crop(20)",
    "decode | resize_short(24, 'bicubic') | center_crop((20, 30))",
    "decode | resize_short(24, 'bilinear', 'truncate') | center_crop(20)",
    "decode | resize((20, 30))",
    "decode | resize(20, 'linear')",
    "decode | resize_short(21, 'area') | center_crop(20)",
    "decode(1) | resize(20)",
    "decode | center_crop(33)",
    "decode | letterbox((20, 31), (9, 200, 77), 'bicubic')",
    "decode(1) | resize_long(24, 'area') | pad((26, 25), 99)",
]
WIDE = np.arange(0, 64_000, 40, dtype=np.uint16).reshape(40, 40)
WIDE_JPEG = encode(np.ascontiguousarray(pixels(8, height=30, width=47)), "JPEG")
# Orientation 6, and a width that Pillow reads and cannot write.
EXIF = b"Exif\0\0II*\0" + struct.pack(
    "<IHHHIiHHIII", 8, 2, 0x100, 9, 1, -5, 0x112, 3, 1, 6, 0
)
FILES = {
    "wide.png": encode(np.ascontiguousarray(pixels(1, height=30, width=47))),
    "tall.png": encode(np.ascontiguousarray(pixels(2, height=61, width=26))),
    "small.png": encode(np.ascontiguousarray(pixels(3, height=7, width=8))),
    "alpha.png": encode(np.arange(4 * 40 * 40, dtype=np.uint8).reshape(40, 40, 4)),
    "grey.png": encode(np.arange(1600, dtype=np.uint8).reshape(40, 40)),
    "grey16.png": encode(WIDE),
    "grey16.tif": encode(WIDE, "TIFF"),
    "negative16.tif": encode(WIDE, "TIFF").replace(
        struct.pack("<HHII", 262, 3, 1, 1), struct.pack("<HHII", 262, 3, 1, 0)
    ),
    "palette.gif": encode(np.ascontiguousarray(pixels(5, height=30, width=47)), "GIF"),
    "wide.jpg": WIDE_JPEG,
    "jfif.jpg": WIDE_JPEG.replace(b"JFIF\0\1", b"JFIF\0\0", 1),
    "sampled.jpg": sampled([(4, 2), (1, 1), (1, 1)]),
    "turned.png": encode(np.ascontiguousarray(pixels(4, height=40, width=50)), exif=EXIF),
    "turned.webp": encode(
        np.ascontiguousarray(pixels(6, height=40, width=50)), "WEBP", exif=EXIF
    ),
    "profile.png": before_pixels(
        encode(np.ascontiguousarray(pixels(7, height=40, width=50))),
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2_000_000))),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes([97]) * 2_000_000)),
    ),
}


@pytest.mark.parametrize("ops", OPS)
def test_an_example_sees_the_pixels_that_predict_sees(tiny, tmp_path, ops):
    values = {"data.name": "photos", "data.train_ops": ops, "data.eval_ops": ops}
    exp = experiment.build(tiny(**values), FACTS)
    steps, shape = facts.steps(exp), exp.data.eval_shape
    text = example.source(("import jax", ""), steps, shape, "softmax")
    text = text[: text.index("\n\n\nstatus = 0")]
    (tmp_path / "model.json").write_text('{"labels": []}')
    names = {"__file__": str(tmp_path / "example.py")}
    exec(text, names)
    folder = write(tmp_path / "files", FILES)
    for file in sorted(folder.iterdir()):
        seen = names["pixels"](file)
        assert seen.shape == shape
        ours = inference.read(exp, str(file)).astype(int)
        # Grey is rounded otherwise by OpenCV.
        assert np.abs(seen.astype(int) - ours).max() <= shape[-1] % 3, file


@pytest.mark.parametrize("ops", [OPS[0], "decode(1) | resize(20)"])
def test_an_example_halves_and_refuses_what_predict_does(tiny, tmp_path, ops, monkeypatch):
    values = {"data.name": "photos", "data.train_ops": ops, "data.eval_ops": ops}
    exp = experiment.build(tiny(**values), FACTS)
    shape = exp.data.eval_shape
    text = example.source(("import jax", ""), facts.steps(exp), shape, "softmax")
    text = text[: text.index("\n\n\nstatus = 0")]
    (tmp_path / "model.json").write_text('{"labels": []}')
    names = {"__file__": str(tmp_path / "example.py")}
    exec(text, names)
    for module in (stills, decode):
        monkeypatch.setattr(module, "MAX_PIXELS", 1_000)
    monkeypatch.setattr(stills, "MAX_HALVED", 3_000)
    names |= {"MAX_PIXELS": 1_000, "MAX_HALVED": 3_000}
    large = np.ascontiguousarray(pixels(3, height=45, width=61))
    folder = write(tmp_path / "files", {
        "large.jpg": encode(large, "JPEG"),
        "turned.jpg": segment(encode(large, "JPEG"), 0xE1, EXIF),
        "grey.jpg": encode(large, "JPEG", "L"),
        "large.png": encode(large), "line.gif": encode(np.zeros((1, 101), np.uint8), "GIF"),
        "progressive.jpg": encode(large, "JPEG", progressive=True),
        "larger.jpg": encode(np.zeros((55, 61), np.uint8), "JPEG"),
    })  # fmt: skip
    for file in sorted(folder.iterdir()):
        if file.name in ("large.jpg", "turned.jpg", "grey.jpg"):
            seen = names["pixels"](file).astype(int)
            ours = inference.read(exp, str(file)).astype(int)
            assert np.abs(seen - ours).max() <= shape[-1] % 3, file
            continue
        with pytest.raises(decode.DecodeError) as refused:
            inference.read(exp, str(file))
        with pytest.raises(
            names["DecodeError"], match=f"^{re.escape(str(refused.value))}$"
        ):
            names["pixels"](file)


# One of each family, and of what differs in one, with few blocks. VGG has no part that
# AlexNet and ResNet lack, and takes ONNX a minute.
FAMILIES = [
    ("alexnet", 224),
    ("cnn(widths=(8, 16), batch_norm=True)", 16),
    ("convnext_tiny(stages=(1, 1, 2))", 64),
    ("dinov3_s_16(depth=1, width=96)", 64),
    ("siglip_b_16(depth=1, width=96, gelu='quick', pre_norm=True)", 64),
    ("convnextv2_atto(stages=(1,))", 32),
    ("efficientnet_b0", 64),
    ("mixer_s_32(depth=2)", 64),
    ("mobilenet_v2", 65),
    ("mobilenet_v3_small", 65),
    ("resnet18(stages=(1, 2, 1))", 65),
    ("resnet18(stem='small', stages=(1, 2, 1))", 32),
    ("resnext50_32x4d(stages=(1, 2))", 64),
    ("swin_t(stages=(2, 2), heads=(1, 2), width=32)", 65),
    ("vit_ti_16(depth=2)", 64),
    ("vit_ti_16(pool='mean', depth=2)", 64),
    ("wrn16_4(depth=10)", 32),
]


def drawn(name, size):
    """A model of random arrays, with no 0 and no 1, which would hide a mistake."""
    module, rng = built(name, num_classes=10), np.random.default_rng(0)

    def draw(path, like):
        text = jax.tree_util.keystr(path)
        if "kernel" in text:
            deviation = np.sqrt(1.5 / np.prod(like.shape[:-1]))
            return np.float32(rng.normal(0, deviation, like.shape))
        if "var" in text or "scale" in text:
            return np.float32(rng.uniform(0.5, 1.5, like.shape))
        return np.float32(rng.normal(0, 0.1, like.shape))

    _, like = shapes(module, size)
    variables = jax.tree_util.tree_map_with_path(draw, dict(like))

    def apply(variables, images):
        return module.apply(variables, images.astype(jnp.float32) / 128 - 1, False).logits

    shape, names = (size, size, 3), tuple("0123456789")
    return Model(name, apply, variables, shape, names, module.namings(), None)


# A graph is made of each; the others are XLA's, and large models are not other ones.
CASES = [("onnx", *family) for family in FAMILIES]
CASES += [("onnx", "efficientnet_lite0(padding='same')", 65)]
CASES += [("tflite", *family) for family in FAMILIES if family[1] < 224]
CASES += [("stablehlo", name, size) for name, size in FAMILIES if name.startswith("res")]


@pytest.mark.slow
@pytest.mark.parametrize(("form", "name", "size"), CASES)
def test_a_model_of_each_family_gives_its_logits(form, name, size, tmp_path):
    needed(form)
    images = np.random.default_rng(1).integers(0, 256, (9, size, size, 3), np.uint8)
    seen = writing.Images(images, "noise")
    model = drawn(name, size)
    asked = Asked(batch_size=2)
    made = writing.export(form, FORMATS[form], model, asked, seen, tmp_path)
    found = made["verified"]
    assert found["images"] == 9
    # Folding BatchNorm into convolutions changes logits by less than 1e-5 of the largest.
    most = 0.1 if form == "onnx" else 1
    assert found["largest_difference"] < most * found["tolerance"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory, data_dir):
    """The folder of a run on digits that has learned something."""
    folder = tmp_path_factory.mktemp("formats") / "digits"
    values = {
        "length": "4 epochs",
        "data.dir": str(data_dir),
        "model.name": "cnn(widths=(8, 16), convs=2, dropout=0.5, batch_norm=True)",
        "mesh.devices": "1",
    }
    train.run(experiment.build(loading.load("configs/digits.py", values)), str(folder))
    return folder


def every_test_image(exp):
    """The images of the test split [n, H, W, C]."""
    batches = list(exp.eval_batches("test", "data.test", 64))
    return np.concatenate([np.asarray(b.image)[np.asarray(b.mask)] for b in batches])


@pytest.mark.slow
@pytest.mark.parametrize("form", PROGRAMS)
def test_all_digits_get_the_models_logits_at_three_batch_sizes(form, digits, tmp_path):
    needed(form)
    out = tmp_path / "out"
    given = [f"--workdir={digits}", f"--format={form}", f"--out={out}"]
    assert commands.main(["export", *given]) == 0
    exp, _, _, saved = scoring.load(str(digits), "best", {"mesh.devices": "1"})
    images = every_test_image(exp)
    assert len(images) == 360
    expected = exp.programs.logits_step(exp.recipe.variables(saved), images)
    run = FORMATS[form].load(None, out / f"model.{form}", {"batch_size": 1})
    for size in (1,) if form == "tflite" else (1, 7, 64):
        found = [run(images[i : i + size]) for i in range(0, 360, size)]
        np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-4)


def answered(out, files, prelude=""):
    """What example.py of an export prints in a process in which there is no jaxcls."""
    code = (
        f"import sys; sys.modules['jaxcls'] = None; {prelude}\n"
        "import runpy; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(out / "example.py"), *map(str, files)],
        capture_output=True,
        text=True,
        cwd=out.parent,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("form", PROGRAMS)
def test_an_example_answers_as_predict_does_without_jaxcls(form, digits, tmp_path):
    needed(form)
    out = tmp_path / "out"
    size = ["--batch_size=3"] if form == "tflite" else []
    arguments = [f"--workdir={digits}", f"--format={form}", f"--out={out}", *size]
    with contextlib.redirect_stdout(io.StringIO()):
        assert commands.main(["export", *arguments]) == 0
    exp, _, _, saved = scoring.load(str(digits), "best", {"mesh.devices": "1"})
    files = []
    for i, image in enumerate(every_test_image(exp)[:4]):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(image[:, :, 0]).save(files[-1])
    check_answers(answered(out, files), exp, saved, files)


def check_answers(said, exp, saved, files):
    """What an example printed is what `predict` says of the files."""
    ours = inference.predict(exp, saved, map(str, files))
    for line, file, each in zip(said, files, ours, strict=True):
        best = int(each.probabilities.argmax())
        start, probability = line.rsplit(" ", 1)
        assert start == f"{file}: {exp.selection.class_names[best]}"
        assert abs(float(probability) - each.probabilities[best]) < 1e-3


# torchvision's compiled operators do not load without CUDA; as in tests/conftest.py.
TORCHVISION = """
import torch, types
for name in ("_meta_registrations", "_autograd_registrations"):
    sys.modules["torchvision." + name] = types.ModuleType(name)
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vit_b_32"])
def test_an_example_with_torchvision_answers_as_predict_does(
    torchvision, tiny, tmp_path, name
):
    ops = "decode | resize_short(72) | center_crop(64)"
    values = {"data.name": "photos", "data.train_ops": ops, "data.eval_ops": ops}
    options = {"model.name": name, "normalize": "imagenet", "ema.decay": 0.0}
    exp = experiment.build(tiny(**values, **options), FACTS)
    rng, shapes = np.random.default_rng(0), exp.programs.state_shapes

    def drawn(like):  # The initialisation of 88 million parameters takes a minute.
        return (0.05 * rng.standard_normal(like.shape, np.float32)).astype(like.dtype)

    stats = jax.tree.map(lambda x: 1 + np.abs(drawn(x)), shapes.batch_stats)
    params = jax.tree.map(drawn, shapes.params)
    saved = {"params": params, "batch_stats": stats, "ema": None}
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        image = Image.fromarray(np.ascontiguousarray(pixels(i, height=90, width=100)))
        image.save(file)
    model, out = writing.model_of(exp, saved), tmp_path / "out"
    out.mkdir()
    seen = writing.of_files(exp, [str(tmp_path)])
    found = writing.export("safetensors", safetensors, model, Asked(), seen, out)
    about = {"preprocessing": {"steps": facts.steps(exp)}}
    told = {**about, "output": {"link": exp.recipe.link}, "labels": model.class_names}
    writing.describe("safetensors", safetensors, model, found | told, out)
    check_answers(answered(out, files, TORCHVISION), exp, saved, files)


REFUSED = {
    "empty.png": b"",
    "text.png": b"a line of text",
    "cut.png": FILES["wide.png"][:-3],
    "cut.jpg": FILES["wide.jpg"][:-200],
    "byte.jpg": encode(NOISE, "JPEG", "L")[:-1],
    "pages.tif": encode(
        Image.new("L", (9, 9)),
        "TIFF",
        save_all=True,
        append_images=[Image.new("L", (9, 9), 1)],
    ),
    "range.tif": encode(np.zeros((2, 2), np.int32), "TIFF"),
    "drawing.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
}


def test_an_example_refuses_what_predict_refuses_in_the_same_words(tmp_path):
    steps = [{"op": "decode", "channels": 3}]
    run = "", "def logits(images):\n    return images.mean((1, 2))"
    out = write(tmp_path, {"model.json": b'{"labels": ["red", "green", "blue"]}'})
    red = encode(np.broadcast_to(np.array([9, 0, 0], np.uint8), (20, 24, 3)))
    (out / "example.py").write_text(example.source(run, steps, (20, 24, 3), "softmax"))
    folder = write(tmp_path / "files", {**REFUSED, "red.png": red})
    files = sorted(map(str, folder.iterdir()))
    done = subprocess.run(
        [sys.executable, "-I", str(out / "example.py"), *files],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == f"{folder}/red.png: red 0.9998\n"
    expected = []
    for file in files:
        try:
            clean.pixels(pathlib.Path(file).read_bytes(), decode.Decode(3))
        except decode.DecodeError as error:
            expected.append(f"error: {file}: {error}")
    assert len(expected) == len(REFUSED)
    assert done.stderr.splitlines() == expected
    assert done.returncode == 2
