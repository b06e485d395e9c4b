"""A trained run as a file for others, and back."""

import numpy as np
import pytest

from jaxcls import evaluate, experiment, export, sources, train, weights
from jaxcls.errors import InputError
from jaxcls.weights import Preprocessing

FACTS = sources.Facts("photos", "", (None, None, 3), 2, ("a", "b"), {"train": 50, "val": 9})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("export") / "run"


@pytest.fixture
def run(folder, tiny):
    """The folder of a finished tiny run."""
    if not folder.exists():
        short = tiny(**{"length": "3 steps", "data.eval_ops": "decode(1) | resize(8)"})
        train.run(experiment.build(short), str(folder))
    return str(folder)


def test_the_file_holds_what_predictions_are_made_with(run, tmp_path, capsys):
    out = tmp_path / "digits.safetensors"
    assert export.main([f"--workdir={run}", f"--out={out}", "--checkpoint=last"]) == 0
    said = capsys.readouterr().out
    assert said == f"done: step=3 at=last arrays=14 names=pytorch in {out}\n"
    read = weights.read(str(out), "x")
    _, _, _, saved = evaluate.load(run, "last", {})
    kernel = saved["params"]["stage1_conv1"]["kernel"]
    there = read.tensors["stage1_conv1.weight"]
    np.testing.assert_array_equal(there, np.transpose(kernel, (3, 2, 0, 1)))
    assert read.tensors["stage1_conv1_norm.running_var"].shape == (4,)
    assert read.class_names == tuple("0123456789")
    assert read.preprocessing == Preprocessing((0.0,), (1.0,), 8, 1.0, "bilinear", "squash")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--out=weights.pth"], "--out=weights.pth must end in .safetensors"),
        (["--format=onnx"], "--format=onnx is not written; try --format=safetensors"),
        (["--names=tim"], "unknown --names 'tim'.* known: pytorch"),
        (["--checkpoint=99"], "--checkpoint=99 is not in"),
    ],
)
def test_what_is_not_there_is_said_and_no_file_is_left(run, tmp_path, arguments, expected):
    out = tmp_path / "x.safetensors"
    given = arguments if "--out" in arguments[0] else [f"--out={out}", *arguments]
    with pytest.raises(InputError, match=expected):
        export.main([f"--workdir={run}", *given])
    assert not out.exists()


def test_a_file_that_exists_is_kept(run, tmp_path):
    out = tmp_path / "x.safetensors"
    out.write_text("mine")
    with pytest.raises(InputError, match="exists"):
        export.main([f"--workdir={run}", f"--out={out}"])
    assert out.read_text() == "mine"


def test_a_file_that_does_not_read_back_is_removed(run, tmp_path, monkeypatch, capsys):
    out, write = tmp_path / "x.safetensors", weights.write

    def damaged(path, tensors, *rest):
        write(path, {name: tensor + 1 for name, tensor in tensors.items()}, *rest)

    monkeypatch.setattr(weights, "write", damaged)
    assert export.main([f"--workdir={run}", f"--out={out}"]) == 4
    assert "did not read back" in capsys.readouterr().out
    assert not out.exists()


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("ops", "expected"),
    [
        (
            "decode | resize_short(256) | center_crop(224)",
            Preprocessing(*IMAGENET, 224, 0.875, "bilinear", "center"),
        ),
        (
            "decode | resize(96, 'bicubic')",
            Preprocessing(*IMAGENET, 96, 1.0, "bicubic", "squash"),
        ),
        ("decode | resize_short(256, 'area') | center_crop(224)", None),
        ("decode | resize_short(200) | center_crop(224)", None),
        ("decode | center_crop(224)", None),
        ("decode | resize((96, 64))", None),
        ("decode | resize(256) | resize(224)", None),
    ],
)
def test_preprocessing_is_told_where_others_can_do_it(tiny, ops, expected):
    made = tiny(
        **{
            "data.name": "photos",
            "model.name": "resnet18",
            "normalize": "imagenet",
            "data.train_ops": "decode | random_resized_crop(64)",
            "data.eval_ops": ops,
        }
    )
    found = export.preprocessing(experiment.build(made, FACTS))
    if expected is None:
        assert found is None
    else:
        assert found._replace(mean=(), std=()) == expected._replace(mean=(), std=())
        np.testing.assert_allclose(found[:2], expected[:2], atol=1e-6)


def test_nothing_is_told_where_each_image_is_normalised_by_itself(tiny):
    ops = {"data.train_ops": "decode(1)", "data.eval_ops": "decode(1) | resize(16)"}
    exp = experiment.build(tiny(**ops, normalize="per_image"))
    assert export.preprocessing(exp) is None
