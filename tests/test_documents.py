"""The commands and the Python of the README and of docs/ work as they stand.

A training command runs for two steps, of a smaller net of its config's kind, in a folder of
its own; a study is only laid out.
"""

import importlib
import io
import json
import pathlib
import re
import shlex
import tarfile

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from jaxcls import commands, experiment
from jaxcls.commands import cli
from jaxcls.config import loading
from jaxcls.models import weights
from jaxcls.models.weights import hub
from jaxcls.studies import cells, reproducing, running
from jaxcls.training import train
from tests import run_folders
from tests.images import picture
from tests.modules import zeros_of
from tests.torchbytes import saved, zipped

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
README = PAGES["README.md"]


def blocks(language):
    """The different code blocks of a language, in the order of the pages."""
    pattern = rf"```{language}\n(.*?)```"
    found = (b for text in PAGES.values() for b in re.findall(pattern, text, re.DOTALL))
    return list(dict.fromkeys(found))


LINES = list(dict.fromkeys(line for b in blocks("bash") for line in b.splitlines()))
# What stands behind `jaxcls`, the verb first; a comment says what a reader needs for it.
COMMANDS = {
    line: shlex.split(f"{verb} {rest}", comments=True)
    for line in LINES
    for verb, rest in re.findall(r"^jaxcls (\w+) (.*)$", line)
    + [("train", rest) for rest in re.findall(r"python -m jaxcls\.main (.*)$", line)]
}
NEEDS = [line for line in COMMANDS if "  # needs " in line]


def of(*verbs):
    """The commands of verbs, each with its line for a name, but for those of NEEDS.

    Those of plug-ins are in tests/commands/test_plugins.py, each in a process of its own.
    """
    others = [*NEEDS, *(line for line in COMMANDS if "--plugins" in line)]
    found = {k: v for k, v in COMMANDS.items() if v[0] in verbs and k not in others}
    return pytest.mark.parametrize("command", found.values(), ids=found)


# Whole recipes take their steps in tests/experiment/test_recipes_run.py.
NETS = {
    "configs/digits.py": "cnn(widths=(4, 8), convs=2, dropout=0.5, batch_norm=True)",
    "configs/photos.py": "resnet18(width=8, stages=(1, 1, 1, 1))",
    "configs/tutorial_resnet.py": "resnet18(stem='small', width=8, stages=(1, 1))",
    "configs/tutorial_folder.py": "cnn(widths=(4, 4, 4), dense=8, dropout=0.5)",
    "configs/finetune.py": "resnet50(width=8, stages=(1, 1, 1, 1))",
    "configs/backbones.py": "convnextv2_atto(stages=(1, 1, 1, 1), width=8)",
    "configs/backbones.py:dinov2_s_14": "dinov2_s_14(depth=1)",
    "configs/resnet50.py": "resnet50(width=8, stages=(1, 1, 1, 1))",
    "configs/resnet50_rsb.py": "resnet50(width=8, stages=(1, 1, 1, 1))",
    "configs/vit_s16.py": "vit_s_16(depth=1)",
}


def smaller(command):
    """The flag for a smaller net, unless the command has a net or weights of its own."""
    (config,) = re.findall(r"--config=([^ :]+(?::dinov2_s_14)?)", " ".join(command))
    named = re.search(r"--config\.(model\.name=|init\.weights=hf:)", " ".join(command))
    return [f"--config.model.name={NETS[config]}"] if config in NETS and not named else []


# What stands in for the hub's weights: zeros, by the model they are of.
HUB = {
    "resnet50.a1_in1k": "resnet50",
    "vit_small_patch14_dinov2.lvd142m": "dinov2_s_14(depth=1)",
    "vit_small_patch16_224.augreg_in21k_ft_in1k": "vit_s_16",
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, data_dir):
    """A working directory as the README supposes one, and a stand-in for the hub.

    A folder of photographs of two classes, an archive of ten, runs in runs/digits and
    runs/photos, an image in IMAGE_OR_FOLDER, weights as torch saves them, and as the hub
    has them in hub/.
    """
    folder = tmp_path_factory.mktemp("checkout")
    for name, photograph in zip("ab", load_sample_images().images, strict=True):
        (folder / "my_photos" / name).mkdir(parents=True)
        for i in range(32):
            part = photograph[8 * i : 8 * i + 160, 12 * i : 12 * i + 200]
            Image.fromarray(part).save(folder / "my_photos" / name / f"{i}.jpg")
    (folder / "IMAGE_OR_FOLDER").mkdir()
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(
        folder / "IMAGE_OR_FOLDER" / "a.png"
    )
    with tarfile.open(folder / "cifar10_jpg.tgz", "w:gz") as archive:
        for i in range(200):
            name = f"{'test' if i % 10 == 9 else 'train'}/class_{i // 20}/{i}.jpg"
            member, data = tarfile.TarInfo(name), picture(i % 50, height=32, width=32)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    short = {"length": "20 steps", "data.dir": str(data_dir)}
    short["model.name"] = NETS["configs/digits.py"]
    loaded = loading.load("configs/digits.py", short)
    for name in ("digits", "wider"):
        train.run(experiment.build(loaded), str(folder / "runs" / name))
    rates = folder / "runs" / "rates"
    for rate in ("0.001", "0.004"):
        for seed in range(5):
            run = rates / f"optim.lr={rate}" / f"seed-{seed}"
            run_folders.write(run, run_folders.scored(0.9 + seed / 100), seed=seed)
    made = cells.make(["optim.lr=0.001,0.004"], [], 0, 0, "all")
    of_rates = running.Study(loaded, made, list(range(5)), rates)
    running.conclude(of_rates, "top1", made[0].name)
    published = saved(zeros_of(NETS["configs/finetune.py"]), zipped)
    (folder / "resnet50-11ad3fa6.pth").write_bytes(published)
    for name, model in HUB.items():
        there = folder / "hub" / name
        there.mkdir(parents=True)
        told = weights.Preprocessing((0.5,) * 3, (0.5,) * 3, 224, 0.95, "bicubic")
        zeros = zeros_of(model, "timm")
        if "dinov2" in name:  # Published without a head.
            zeros = {key: x for key, x in zeros.items() if not key.startswith("head.")}
        weights.write(there / "model.safetensors", zeros, told, ())
        timm = {"mean": told.mean, "std": told.std, "interpolation": told.interpolation}
        beside = {"architecture": name.partition(".")[0], "pretrained_cfg": timm}
        (there / "config.json").write_text(json.dumps(beside))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TFDS_DATA_DIR", str(data_dir))
        for line, command in COMMANDS.items():
            if command[0] != "prepare" or line in NEEDS:
                continue
            assert commands.main(command) == 0
        small = {"model.name": "cnn(widths=(4, 4, 4, 4), dense=8)", "length": "2 steps"}
        train.run(experiment.build(loading.load("configs/photos.py", small)), "runs/photos")
    return folder


@pytest.fixture(autouse=True)
def _as_a_reader(checkout, data_dir, monkeypatch):
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    monkeypatch.setenv("WANDB_MODE", "offline")

    def fetch(repository, name):
        file = checkout / "hub" / repository.name.removeprefix("timm/") / name
        return file if file.is_file() else None

    monkeypatch.setattr(hub, "fetch", fetch)


def test_every_command_of_the_documents_is_one_of_these():
    said = [line for line in LINES if "jaxcls" in line]
    assert len(COMMANDS) == len(said)
    assert {command[0] for command in COMMANDS.values()} < set(commands.VERBS)


def alone(line):
    """A command as one process alone has it, so that those of several are one."""
    return tuple(a for a in COMMANDS[line] if not re.match("--(coordinator|process)", a))


@pytest.mark.parametrize("command", dict.fromkeys(map(alone, NEEDS)), ids=" ".join)
def test_a_command_that_needs_more_than_a_laptop_is_right(command, capsys):
    if command[0] in ("train", "probe"):
        assert commands.main([*command, *smaller(command), "--dry_run"]) == 0
        assert capsys.readouterr().out
        return
    # The dataset, the network or a package may not be here: the flags are.
    assert command[0] in ("prepare", "evaluate", "predict")
    parser = importlib.import_module(f"jaxcls.commands.{command[0]}").parser()
    rest, overrides = cli.split_overrides(command[1:])
    args = parser.parse_args(rest)
    for key, text in overrides.items():
        loading.override(loading.base(), key, text)
    if command[0] != "prepare":
        assert cli.place(args)


# Two steps, so that each is compiled, run, evaluated and saved.
SHORT = {
    "length": "2 steps",
    "batch_size": "16",
    "mesh.devices": "1",
    "optim.warmup": "0 steps",
    "optim.cooldown": "0 steps",
    "optim.head_first": "0 steps",
}


@of("train")
def test_a_training_command_trains(command, capsys, tmp_path):
    if "--help" in command:
        with pytest.raises(SystemExit, match="0"):
            commands.main(command)
        assert capsys.readouterr().out
        return
    if "--dry_run" in command:
        assert commands.main([*command, *smaller(command)]) == 0
        assert capsys.readouterr().out
        return
    given = [a for a in command if not re.match("--(workdir=|config.length=)", a)]
    rest = [a for a in given if not any(a.startswith(f"--config.{k}=") for k in SHORT)]
    short = [f"--config.{key}={value}" for key, value in SHORT.items()]
    given = [*rest, *smaller(command), *short, f"--workdir={tmp_path / 'run'}"]
    assert commands.main(given) == 0
    assert "done: step=2 " in capsys.readouterr().out


@of("study")
def test_a_study_is_right(command, capsys):
    more = [] if "--compare" in command else ["--dry_run"]
    assert commands.main([*command, *more]) == 0
    assert capsys.readouterr().out


def test_photos_are_prepared_and_shown_as_it_says(checkout, data_dir):
    (said,) = re.findall(r"^my_photos: .*, (train=.*)$", README, re.MULTILINE)
    manifest = json.loads((data_dir / "photos/1.0.0/manifest.json").read_text())
    counts = {split: sum(n) for split, n in manifest["examples"].items()}
    assert " ".join(f"{split}={n}" for split, n in counts.items()) == said
    assert f"done: photos {said} classes=2 rejected=0 sha256:" in README
    with Image.open(checkout / "batch.png") as picture:
        assert picture.width > 1000


@of("evaluate", "predict", "search", "export", "report", "reproduce", "completion")
def test_a_command_on_a_run_is_right(command, capsys, monkeypatch):
    # Its devices have started long ago.
    monkeypatch.setattr(reproducing, "_set_environment", lambda start: None)
    assert commands.main(command) == 0
    assert capsys.readouterr().out


PYTHON = [block for block in blocks("python") if "import jaxcls\n" in block]
LOADING = [block for block in PYTHON if block.startswith("import jaxcls\n")]


@pytest.mark.parametrize(
    "code", [LOADING, *([block] for block in PYTHON if block not in LOADING)]
)
def test_the_python_of_the_documents_runs_in_a_fresh_process(code, checkout, started):
    """What loads a run asks for the same of jaxcls each time: one process does it all."""
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(checkout / "seven.png")
    process = started("-c", 'print("--")\n'.join(code), cwd=checkout)
    said, wrong = process.communicate(timeout=300)
    assert process.returncode == 0, wrong
    answer = r"^\('\d',\) \[0\.\d+\]\n0\.\d+$|^3 \d\.\d+$|^\d 0\.\d+$"
    parts = said.split("--\n")
    assert len(parts) == len(code)
    for part in parts:
        assert re.search(answer, part, re.MULTILINE), said


def test_the_dry_run_shown_is_what_is_printed(capsys):
    shown = re.search(
        r"```\n(model: +resnet50.*?)```", PAGES["docs/howto/devices.md"], re.S
    )[1]
    commands.main(
        ["train", "--config=configs/resnet50.py", "--dry_run", "--config.mesh.devices=1"]
    )
    assert shown in capsys.readouterr().out
