"""A trained run as a folder for others, and back."""

import importlib.util
import json

import jax
import numpy as np
import pytest

from jaxcls import commands, experiment
from jaxcls.data import sources
from jaxcls.errors import InputError
from jaxcls.evaluation import scoring
from jaxcls.export import facts, writing
from jaxcls.export.formats import stablehlo
from jaxcls.models import weights
from jaxcls.models.weights import Preprocessing
from jaxcls.runs.workdir import Workdir
from jaxcls.training import train
from tests.images import picture

FACTS = sources.Facts("photos", "", (None, None, 3), 2, ("a", "b"), {"train": 50, "val": 9})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("export") / "run"


@pytest.fixture
def run(folder, tiny):
    """The folder of a finished tiny run."""
    if not folder.exists():
        values = {"augment": "", "mix": "", "data.eval_ops": "decode(1) | resize(8)"}
        short = tiny(**{"length": "3 steps", **values})
        train.run(experiment.build(short), str(folder))
    return str(folder)


def exported(run, out, *flags):
    """The exit status of `jaxcls export`."""
    return commands.main(["export", f"--workdir={run}", f"--out={out}", *flags])


def described(out):
    return json.loads((out / "model.json").read_text())


def test_weights_are_what_predictions_are_made_with(run, tmp_path, capsys):
    out = tmp_path / "digits"
    assert exported(run, out, "--checkpoint=last") == 0
    said = capsys.readouterr().out
    assert said.startswith("done: step=3 at=last format=safetensors n=256 largest_")
    assert said.endswith(f" in {out}\n")
    read = weights.read(str(out / "model.safetensors"), "x")
    _, _, _, saved = scoring.load(run, "last", {})
    kernel = saved["params"]["stage1_conv1"]["kernel"]
    there = read.tensors["stage1_conv1.weight"]
    np.testing.assert_array_equal(there, np.transpose(kernel, (3, 2, 0, 1)))
    assert read.tensors["stage1_conv1_norm.running_var"].shape == (4,)
    assert read.class_names == tuple("0123456789")
    assert read.preprocessing == Preprocessing((0.0,), (1.0,), 8, 1.0, "bilinear", "squash")
    told = described(out)
    assert (told["names"], told["arrays"], told["example"]) == ("pytorch", 14, None)


def test_stablehlo_gives_the_runs_logits_at_any_batch_size(run, tmp_path):
    out = tmp_path / "new" / "digits"
    assert exported(run, out, "--format=stablehlo") == 0
    read = (out / "model.stablehlo").read_bytes()
    program = jax.export.deserialize(bytearray(read))
    assert program.platforms == ("cpu", "cuda", "tpu")
    exp, step, _, saved = scoring.load(run, "best", {"mesh.devices": "1"})
    rng = np.random.default_rng(0)
    for size in (1, 7):
        images = rng.integers(0, 256, (size, 8, 8, 1), np.uint8)
        expected = exp.programs.logits_step(exp.recipe.variables(saved), images)
        np.testing.assert_allclose(program.call(images), expected, atol=1e-5)
    told = described(out)
    assert told["labels"] == list("0123456789")
    assert told["checkpoint"] == {"step": step, "is": "best", "weights": "params"}
    assert told["verified"]["images"] == writing.MOST_IMAGES
    assert told["verified"]["batch_sizes"] == [1, 7, 56, 64]
    assert told["verified"]["largest_difference"] < 1e-5
    assert [each["kind"] for each in told["evaluations"]] == ["eval", "final"]
    assert told["state_digest"]
    assert told["versions"]["jax"] == jax.__version__
    assert sorted(each.name for each in out.iterdir()) == [
        "example.py",
        "model.json",
        "model.stablehlo",
    ]


@pytest.mark.parametrize(
    ("form", "package"), [("onnx", "jax2onnx"), ("tflite", "litert-converter")]
)
def test_an_extra_that_is_missing_is_named(run, tmp_path, form, package, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as refused:
        exported(run, tmp_path / "x", f"--format={form}")
    wanted = f"--format={form} needs {package}; pip install 'jaxcls[{form}]'"
    assert str(refused.value) == wanted


def test_a_folder_that_exists_is_kept(run, tmp_path):
    with pytest.raises(InputError, match="exists, and is not replaced"):
        exported(run, tmp_path)
    assert not list(tmp_path.iterdir())


def test_images_of_files_do_where_the_dataset_is_elsewhere(run, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / "images" / f"{i}.png").write_bytes(picture(i, "PNG"))
    elsewhere = ["--config.data.dir=/dev/null", "--images", str(tmp_path / "images")]
    assert exported(run, tmp_path / "x", *elsewhere) == 0
    found = described(tmp_path / "x")["verified"]
    assert (found["images"], found["batch_sizes"]) == (3, [1, 2])
    assert found["source"] == "--images=images"  # No path of this machine.
    (tmp_path / "images" / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"--images=.*1.png: not a readable image"):
        exported(run, tmp_path / "y", *elsewhere)
    assert not (tmp_path / "y").exists()


def test_weights_that_do_not_read_back_leave_nothing(run, tmp_path, monkeypatch, capsys):
    write = weights.write

    def damaged(path, tensors, *rest):
        write(path, {name: tensor + 1 for name, tensor in tensors.items()}, *rest)

    monkeypatch.setattr(weights, "write", damaged)
    assert exported(run, tmp_path / "x") == 4
    assert "does not read back" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("off", [0.01, np.nan])
def test_a_program_with_other_logits_leaves_nothing(
    run, tmp_path, monkeypatch, capsys, off
):
    export = stablehlo.export.export

    def other(jitted, **options):
        return export(jax.jit(lambda images: jitted(images) + off), **options)

    monkeypatch.setattr(stablehlo.export, "export", other)
    assert exported(run, tmp_path / "x", "--format=stablehlo") == 4
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith(
        "--format=stablehlo: model.stablehlo gives other logits than the model: "
        + ("nan apart" if np.isnan(off) else "0.01 apart")
    )
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_converted_is_one_line(run, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise NotImplementedError("no rule for\nthis")  # As JAX's of an op it cannot.

    monkeypatch.setattr(stablehlo.export, "export", fails)
    with pytest.raises(InputError, match=r"cannot be made of .*NotImpl.*: no rule for\)"):
        exported(run, tmp_path / "x", "--format=stablehlo")
    assert not list(tmp_path.iterdir())


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
        ("decode | resize_short(256, 'linear') | center_crop(224)", None),
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
    found = facts.preprocessing(experiment.build(made, FACTS))
    if expected is None:
        assert found is None
    else:
        assert found._replace(mean=(), std=()) == expected._replace(mean=(), std=())
        np.testing.assert_allclose(found[:2], expected[:2], atol=1e-6)


@pytest.mark.parametrize("which", ["params", "ema"])
def test_the_weights_of_the_file_are_told(tiny, which, tmp_path):
    prefix = {"params": "", "ema": "ema_"}[which]
    exp = experiment.build(tiny(**{"best.metric": f"{prefix}top1"}))

    def filled(value):
        return jax.tree.map(lambda x: np.full(x.shape, value), exp.recipe.variables_like)

    model = writing.model_of(exp, {**filled(0.0), "ema": filled(1.0)})
    told = facts.described(exp, Workdir(tmp_path), 3, "best", model)
    assert told["checkpoint"]["weights"] == which
    found = {float(each.max()) for each in jax.tree.leaves(model.variables)}
    assert found == {float(which == "ema")}


def test_nothing_is_told_where_each_image_is_normalised_by_itself(tiny):
    ops = {"data.train_ops": "decode(1)", "data.eval_ops": "decode(1) | resize(16)"}
    exp = experiment.build(tiny(**ops, normalize="per_image"))
    assert facts.preprocessing(exp) is None


def test_steps_are_the_host_ops_with_all_their_arguments(tiny):
    ops = "decode | resize_short(64) | center_crop((32, 48))"
    values = {"data.name": "photos", "data.train_ops": ops, "data.eval_ops": ops}
    assert facts.steps(experiment.build(tiny(**values), FACTS)) == [
        {"op": "decode", "channels": 3},
        {"op": "resize_short", "size": 64, "filter": "bilinear", "rounding": "round"},
        {"op": "center_crop", "height": 32, "width": 48},
    ]
