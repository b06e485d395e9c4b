"""Every verb on a run of a plug-in, whose source is part of it."""

import json
import pathlib
import re
import shlex
import shutil
import zlib

import numpy as np
import pytest
from PIL import Image

import jaxcls
from jaxcls import commands, experiment
from jaxcls.config import plugins
from jaxcls.errors import InputError
from jaxcls.experiment import checks
from tests.conftest import ROOT

EXAMPLE = ROOT / "examples/squeeze.py"
OPTIONS = [
    *("--config=configs/digits.py", "--config.length=40 steps"),
    *("--config.log.tensorboard=false", "--config.model.name=squeeze(width=8)"),
    *("--config.augment=dim(0.3)", "--config.loss.name=hinge", "--config.mesh.devices=1"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory, data_dir):
    """(folder of a run of the example, flags that trained it)."""
    folder = tmp_path_factory.mktemp("plug") / "run"
    data = f"--config.data.dir={data_dir}"
    flags = [*OPTIONS, data, f"--plugins={EXAMPLE}", f"--workdir={folder}"]
    assert commands.main(["train", *flags]) == 0
    return folder, flags


@pytest.fixture
def pictures(tmp_path):
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


def test_an_example_is_forty_lines():
    lines = EXAMPLE.read_text().split('"""\n', 1)[1].splitlines()
    assert len([line for line in lines if line.strip()]) <= 40


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "flags"),
    [
        ("evaluate", []),
        ("predict", ["{pictures}"]),
        ("search", ["--gallery={pictures}", "--sheet=", "{pictures}/0.png"]),
        ("export", ["--format=safetensors", "--out={pictures}/out"]),
        ("export", ["--format=stablehlo", "--out={pictures}/out"]),
        ("report", ["--output={pictures}/report.html"]),
        ("reproduce", []),
        ("train", OPTIONS),
    ],
)
def test_a_verb_works_with_the_plug_in_and_says_the_flag_without(
    verb, flags, made, pictures, capsys, monkeypatch, data_dir
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    monkeypatch.setattr("jaxcls.studies.reproducing._set_environment", lambda start: None)
    given = [each.format(pictures=pictures) for each in flags]
    command = [verb, f"--workdir={made[0]}", *given]
    with pytest.raises(InputError, match=r"was trained with a plug-in .*squeeze.py'$"):
        commands.main(command)
    assert commands.main([*command, f"--plugins={EXAMPLE}"]) == 0
    assert capsys.readouterr().out


@pytest.mark.slow
def test_a_study_takes_a_plug_in(tmp_path, data_dir, capsys):
    command = [
        "study",
        *OPTIONS,
        f"--config.data.dir={data_dir}",
        f"--workdir={tmp_path}/study",
        "--seeds=2",
    ]
    with pytest.raises(InputError, match=r"unknown model\.name 'squeeze'"):
        commands.main(command)
    assert commands.main([*command, f"--plugins={EXAMPLE}"]) == 0
    assert "done: cells=1 done=2" in capsys.readouterr().out


def test_its_run_is_loaded_from_python_with_the_plug_in(made, pictures):
    with pytest.raises(InputError, match="was trained with a plug-in"):
        jaxcls.load(made[0])
    run = jaxcls.load(made[0], plugins=str(EXAMPLE))
    assert run.predict(pictures / "0.png").probabilities.shape == (1, 10)


@pytest.mark.slow
def test_a_plug_in_beside_a_config_trains_from_python_from_any_folder(
    tmp_path, data_dir, monkeypatch
):
    (tmp_path / "squeeze_beside.py").write_text(EXAMPLE.read_text())
    config = (ROOT / "configs/digits.py").read_text()
    named = '    c.plugins, c.model.name = "squeeze_beside.py", "squeeze"\n    return c'
    (tmp_path / "mine.py").write_text(config.replace("    return c", named))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    given = {"length": "2 steps", "data.dir": data_dir, "log.tensorboard": False}
    given["mesh.devices"] = 1
    run = jaxcls.train(str(tmp_path / "mine.py"), tmp_path / "run", given)
    assert run.config.model.name == "squeeze"
    assert run.step == 2


def test_changed_source_is_refused_and_the_runs_own_is_kept(made, tmp_path, monkeypatch):
    folder, flags = made
    kept = folder / "plugins/squeeze/squeeze.py"
    assert kept.read_text() == EXAMPLE.read_text()
    starts = json.loads((folder / "manifest.json").read_text())["starts"]
    assert list(starts[0]["plugins"]) == ["squeeze/squeeze.py"]
    changed = tmp_path / "squeeze.py"
    changed.write_text(EXAMPLE.read_text().replace("nn.relu(x)", "nn.gelu(x)") + "#\n")
    others = [flag for flag in flags if not flag.startswith("--plugins")]
    monkeypatch.delitem(__import__("sys").modules, "squeeze")
    with pytest.raises(InputError, match=r"squeeze/squeeze.py of its plug-in changed"):
        commands.main(["train", *others, f"--plugins={changed}"])
    with pytest.raises(InputError, match=r"squeeze/squeeze.py of its plug-in changed"):
        commands.main(["evaluate", f"--workdir={folder}", f"--plugins={changed}"])
    monkeypatch.delitem(__import__("sys").modules, "squeeze")
    # The copy in the folder is the very source: it may be given, by a user who wants it.
    assert commands.main(["evaluate", f"--workdir={folder}", f"--plugins={kept}"]) == 0
    monkeypatch.delitem(__import__("sys").modules, "squeeze")
    for file in [file for file in plugins._LOADED if file.endswith("squeeze.py")]:
        del plugins._LOADED[file]


def test_a_hostile_folder_imports_nothing(made, pictures, tmp_path):
    hostile = tmp_path / "hostile"
    shutil.copytree(made[0], hostile)
    trap = tmp_path / "trap.py"
    trap.write_text(
        f"open({str(tmp_path / 'sprung')!r}, 'w')\nMODELS = {{'squeeze': dict}}\n"
    )
    shutil.copy(trap, hostile / "plugins/squeeze/squeeze.py")
    saved = json.loads((hostile / "config.json").read_text())
    saved["config"]["plugins"] = f"{trap}, {hostile}/plugins/squeeze/squeeze.py"
    (hostile / "config.json").write_text(json.dumps(saved))
    manifest = json.loads((hostile / "manifest.json").read_text())
    del manifest["seal"], manifest["starts"][-1]["config"]  # As a forger would.
    (hostile / "manifest.json").write_text(json.dumps(manifest))
    for command in (
        ["evaluate"],
        ["predict", str(pictures / "0.png")],
        ["export", f"--out={tmp_path}/out"],
        ["reproduce"],
        ["report"],
    ):
        with pytest.raises(InputError, match="if you trust its code, give --plugins="):
            commands.main([command[0], f"--workdir={hostile}", *command[1:]])
    assert not (tmp_path / "sprung").exists()


def test_the_archive_has_its_digest_and_source_and_no_path(made, tmp_path):
    file = tmp_path / "run.tar.gz"
    command = ["reproduce", f"--workdir={made[0]}", f"--pack={file}"]
    assert commands.main(command) == 0
    shutil.unpack_archive(file, tmp_path / "out", filter="data")
    saved = json.loads((tmp_path / "out/run/config.json").read_text())
    assert saved["config"]["plugins"] == "squeeze.py"
    (digest,) = saved["implied"]["plugins"].values()
    assert re.fullmatch("[0-9a-f]{16}", digest)
    source = pathlib.Path(tmp_path / "out/run/plugins/squeeze/squeeze.py")
    assert source.read_text() == EXAMPLE.read_text()


@pytest.mark.slow
def test_the_commands_of_the_documents_run_as_they_stand(command, tmp_path):
    text = (ROOT / "docs/howto/plugins.md").read_text()
    first, second = re.findall(r"^jaxcls (\w+) (.*)$", text, re.MULTILINE)
    for verb, rest in (first, second):
        flags = shlex.split(rest.replace("runs/squeeze", str(tmp_path / "run")))
        if verb == "train":
            flags.append("--config.length=2 epochs")
        done = command(verb, *flags)
        assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("evaluate: step=")


@pytest.mark.slow
def test_a_module_of_nnx_trains_as_the_documents_show(tmp_path, data_dir, monkeypatch):
    text = re.search(
        r"```python\n(# nnx_net\.py\n.*?)```",
        (ROOT / "docs/howto/plugins.md").read_text(),
        re.DOTALL,
    )[1]
    (tmp_path / "nnx_net.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    given = {
        "plugins": "nnx_net.py", "model.name": "nnx_net(16, channels=1)",
        "length": "150 steps", "optim.lr": 0.02, "data.dir": data_dir,
        "log.tensorboard": False, "mesh.devices": 1,
    }  # fmt: skip
    run = jaxcls.train("configs/digits.py", tmp_path / "run", given)
    assert run.metrics()[-1]["top1"] > 0.2  # By chance 0.1, with a deviation of 0.016.
    assert {*run.variables["batch_stats"]["norm"]} == {"mean", "var"}
    assert run.evaluate("test")["n"] == 360


# Entries of the tables that no config names, and host ops.
WHOLE = """
import json
import numpy as np
from jaxcls.data.importers.listing import ImageSource, of_arrays
from jaxcls.evaluation.corruptions import Corruption


def negative():
    return lambda image, rng: 255 - image


def dark(most=0.5):
    return lambda image, rng: np.uint8(image * (1 - most * rng.random()))


def stripes(levels, amount, rng):
    striped = levels.copy()
    striped[::2] = amount
    return striped


def npz(path, scratch):
    if path.suffix != ".npz":
        return None
    with np.load(path) as file:
        splits = {
            split: of_arrays({split: (file[f"{split}_x"], file[f"{split}_y"])})
            for split in ("train", "test")
        }
    return ImageSource("arrays of NumPy", ("left", "right"), 1, splits, [], [])


class Pieces:
    ABOUT, NEEDS = "params as one file of NumPy, run by jaxcls", {}

    def write(model, path, asked):
        import jax
        leaves, structure = jax.tree.flatten(model.variables)
        with path.open("wb") as file:
            np.savez(file, *leaves)
        return {"arrays": len(leaves)}

    def load(model, path, facts):
        import jax
        with np.load(path) as file:
            leaves = [file[f"arr_{i}"] for i in range(facts["arrays"])]
        variables = jax.tree.unflatten(jax.tree.structure(model.variables), leaves)
        return lambda images: model.apply(variables, images)

    def example(model, facts):
        return "import numpy as np", "def logits(images):\\n    return images"


HOST_OPS = {"negative": negative}
RANDOM_HOST_OPS = {"dark": dark}
CORRUPTIONS = {"stripes": Corruption("mine", stripes, (0.1, 0.2, 0.3, 0.4, 1), (0,) * 5)}
IMPORTERS = {"npz": npz}
FORMATS = {"pieces": Pieces}
"""


def halves(n, seed):
    """Images [n, 8, 8, 1] that are bright on the left (class 0) or right, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    images = rng.integers(0, 60, (n, 8, 8, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 4 * label : 4 * label + 4] += 150
    return images, labels


@pytest.mark.slow
def test_a_plug_in_imports_data_decodes_corrupts_and_exports(tmp_path, capsys):
    plug = tmp_path / "plug_whole.py"
    plug.write_text(WHOLE)
    arrays = {}
    for split, n, seed in (("train", 300, 0), ("test", 90, 1)):
        arrays[f"{split}_x"], arrays[f"{split}_y"] = halves(n, seed)
    np.savez(tmp_path / "halves.npz", **arrays)
    given, run = f"--plugins={plug}", f"--workdir={tmp_path}/run"
    source = [f"--source={tmp_path}/halves.npz", "--name=halves"]
    prepare = ["prepare", *source, f"--data_dir={tmp_path}/data"]
    with pytest.raises(InputError, match=r"halves\.npz"):
        commands.main(prepare)
    with pytest.raises(InputError, match="has splits of its own"):
        commands.main([*prepare, given, "--val_fraction=0.2"])
    assert commands.main([*prepare, given]) == 0
    assert "arrays of NumPy, 2 classes, train=300 test=90" in capsys.readouterr().out
    flags = [
        *("train", "--config=configs/digits.py", "--config.data.name=halves", given, run),
        *(f"--config.data.dir={tmp_path}/data", "--config.length=60 steps"),
        *("--config.augment=", "--config.log.tensorboard=false"),
        *("--config.model.name=cnn(widths=(4, 8))", "--config.mesh.devices=1"),
        "--config.data.train_ops=decode(1) | dark(0.3) | negative",
        "--config.data.eval_ops=decode(1) | negative",
    ]
    assert commands.main(flags) == 0
    capsys.readouterr()
    table = tmp_path / "all.json"
    asked = ["evaluate", run, "--corruptions=stripes, contrast", f"--json={table}"]
    with pytest.raises(InputError, match=r"unknown --corruptions 'stripes'"):
        commands.main(asked)
    assert commands.main([*asked, given]) == 0
    figures = json.loads(table.read_text())
    assert figures["n"] == 90
    assert figures["headline"]["top1"]["value"] > 0.95
    found, _ = figures["corruptions"]
    assert (found["name"], found["kind"], len(found["strengths"])) == ("stripes", "mine", 5)
    out = tmp_path / "out"
    export = ["export", run, "--format=pieces", f"--out={out}"]
    with pytest.raises(InputError, match=r"unknown --format 'pieces'"):
        commands.main(export)
    assert commands.main([*export, given]) == 0
    about = json.loads((out / "model.json").read_text())
    assert about["verified"]["largest_difference"] < 1e-5
    assert [step["op"] for step in about["preprocessing"]["steps"]] == [
        "decode",
        "negative",
    ]
    # Nobody else has the host op.
    assert about["example"] is None
    assert not (out / "example.py").exists()


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ("decode(1) | still", "'still' draws at random; put it into .*RANDOM_HOST_OPS"),
        ("decode(1) | wide", r"its ops give float64 \[8, 8, 1\], and must give uint8"),
        ("decode(1) | broken", r"an op fails on an image of 8x8 .*ZeroDivisionError: "),
        ("still | decode(1)", "must begin with decode, and decode once"),
    ],
)
def test_a_host_op_is_tried_when_the_experiment_is_checked(tiny, tmp_path, ops, message):
    file = tmp_path / f"plug_{zlib.crc32(ops.encode())}.py"
    file.write_text(
        "def still(): return lambda image, rng: image if rng.random() else image\n"
        "def wide(): return lambda image, rng: image / 2\n"
        "def broken(): return lambda image, rng: 1 // 0\n"
        "HOST_OPS = {'still': still, 'wide': wide, 'broken': broken}\n"
    )
    loaded = plugins.load(str(file), "--plugins")
    config = tiny(**{"data.train_ops": ops, "data.eval_ops": "decode(1)"})
    with pytest.raises(InputError, match=f"^data.train_ops.*{message}"):
        checks.check(experiment.build(config, plugins=loaded))


def test_random_host_ops_keep_no_images_and_draw_by_the_example(tiny, tmp_path):
    file = tmp_path / "plug_random.py"
    file.write_text(
        "import numpy as np\n"
        "def dark(): return lambda image, rng: np.uint8(image * rng.random())\n"
        "RANDOM_HOST_OPS = {'dark': dark}\n"
    )
    loaded = plugins.load(str(file), "--plugins")
    config = tiny(**{"data.train_ops": "decode(1) | dark"})
    exp = experiment.build(config, plugins=loaded)
    assert not exp.data.is_train_resident
    first, again = (np.asarray(next(exp.train_batches()).image) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    plain = np.asarray(next(experiment.build(tiny()).train_batches()).image)
    shares = first.max((1, 2, 3)) / plain.max((1, 2, 3))
    assert shares.min() < 0.2 < 0.8 < shares.max()
