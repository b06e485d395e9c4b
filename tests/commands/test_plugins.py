"""Every verb on a run of a plug-in, whose source is part of it."""

import json
import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

import jaxcls
from jaxcls import commands
from jaxcls.config import plugins
from jaxcls.errors import InputError
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
    if verb == "search":  # It gives no features.
        with pytest.raises(InputError, match="gives no features; return"):
            commands.main([*command, f"--plugins={EXAMPLE}"])
        return
    with pytest.raises(InputError, match=r"was trained with a plug-in .*squeeze.py'$"):
        commands.main(command)
    assert commands.main([*command, f"--plugins={EXAMPLE}"]) == 0
    assert capsys.readouterr().out


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
    text = (ROOT / "docs/plugins.md").read_text()
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
        (ROOT / "docs/plugins.md").read_text(),
        re.DOTALL,
    )[1]
    (tmp_path / "nnx_net.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    given = {
        "plugins": "nnx_net.py", "model.name": "nnx_net(16, channels=1)",
        "length": "150 steps", "optim.lr": 0.02, "data.dir": data_dir,
        "log.tensorboard": False,
    }  # fmt: skip
    run = jaxcls.train("configs/digits.py", tmp_path / "run", given)
    assert run.metrics()[-1]["top1"] > 0.3  # By chance 0.1.
    assert {*run.variables["batch_stats"]["norm"]} == {"mean", "var"}
    assert run.evaluate("test")["n"] == 360
