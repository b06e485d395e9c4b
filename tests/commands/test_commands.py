"""``jaxcls VERB``: the list of verbs, a typo, the ways to start it, what is refused."""

import importlib.util
import pathlib
import pkgutil
import shlex
import subprocess
import sys
import tomllib

import pytest

from jaxcls import commands
from jaxcls.errors import InputError
from jaxcls.studies import reproducing
from tests.conftest import ROOT
from tests.images import picture

# How a command line begins -> (how it goes on, what the line says).
# {run} is the folder of a run, {photos} one of images, {tmp} an empty one.
REFUSED = {
    "evaluate --workdir={run} --split=train": [
        ("--tta=flop", r"unknown --tta 'flop' \(did you mean 'flip'"),
        ("--top=-1", "--top=-1 must be a whole number, at least 0; try --top=8"),
        ("--top=3", "--top=3 is of --predictions; give --predictions=all.csv"),
        ("--json=a --predictions=a", "--json=a is --predictions, too; try --json="),
        ("--ensemble={run}", "--ensemble=.* is in it already; give the folder of anoth"),
        ("--json={run}/config.json", "config.json belongs to the run in that folder"),
        ("--data_dir=/x", "--data_dir=/x is where --dataset is; for the run's own"),
        ("--ensemble=/nowhere", "--ensemble=/nowhere: .*is not a run's folder"),
        ("--real=/nowhere", "--real=/nowhere must be a JSON file, .*; give the real.json"),
        ('"--eval_ops=decode(1) | resize(16)"', "trained on 8x8x1 cannot take the 16x16"),
        ('"--eval_ops=resize(8)"', "--eval_ops: data.eval_ops must begin"),
        ("--dataset=nothing", "--dataset=nothing.* is not prepared in"),
    ],
    "evaluate --workdir=/nowhere": [
        ("--corruptions=nose", "unknown --corruptions 'nose'; known: all, brightness"),
        ('"--attacks=fgsm(300)"', "--attacks: fgsm: epsilon=300 must be above 0 and at"),
        ('"--attacks=fgsm(1) | fgsm(1.0)"', r"has fgsm\(1\) twice; name it once"),
    ],
    "evaluate": [
        ("--workdir={run}/checkpoints/2", "the run's folder is {run}$"),
        ("--workdir={tmp}", "is not a run's folder: it has no config.json"),
    ],
    "evaluate --workdir={run}": [
        ("--split=", "--split= is empty; try --split=train"),
        ("--checkpoint=7", "--checkpoint=7 is not in .*there are .*last, "),
        ("--split=tset", r"--split='tset' is not a split \(did you mean 'test'\?\)"),
        ("--config.seed=1", "--config.seed: it is part of what the run is"),
    ],
    "predict --workdir={run}": [
        ("--null x.png", "--null is of a list on standard input"),
        ("--embed=x.npy x.png", "--embed=x.npy must end in .npz"),
        ("--threads=two x.png", "--threads=two must be a whole number, at least 0"),
        ("/nowhere/x.jpg", "/nowhere/x.jpg is not a file"),
        ("tests/golden", "tests/golden holds no image"),
        ("", "required: IMAGE_OR_FOLDER"),
    ],
    "report": [
        ("--workdir={tmp}", "is not a run's folder"),
        ("--workdir={run}/../rnu", "there are run; try --workdir={run}/../run"),
        ("--workdir={run} --output={run}/config.json", "belongs to the run"),
        ("--workdir={run} --images={tmp}/no.png", "no.png is not a file"),
        ("", "nothing to report on; give --workdir=RUN or --study=DIR"),
        ("--study={tmp}", "is not a study's folder: it has no study.json"),
        ("--study={tmp} --split=train", "--split is of runs, and there is none"),
        ("--workdir={tmp} --corruptions=nose", "unknown --corruptions 'nose'"),
        ("--study={tmp} --config.data.dir=x", "--config is of runs"),
    ],
    "export --workdir={run} --out={tmp}/x": [
        ("--format=onx", "unknown --format 'onx' .did you mean 'onnx'.*tflite"),
        ("--names=tim", "unknown --names 'tim'.* known: pytorch"),
        ("--names=timm --format=stablehlo", "--names is of --format=safetensors"),
        ("--batch_size=2", "--batch_size is of --format=tflite"),
        ("--batch_size=0 --format=tflite", "--batch_size=0 must be a whole number"),
        ("--opset=18", "--opset is of --format=onnx"),
        ("--push=a/b", "--push is of --format=hub"),
        ("--format=hub --public", "--public is of --push=ORG/NAME"),
        ("--format=hub --push=name", "--push=name must be ORG/NAME; try --push=me/"),
        ("--format=hub --license='MIT License'", "must be an identifier, as apache-2.0"),
        ("--format=hub", "needs a model that timm has, .* model.name=cnn"),
        ("--opset=9 --format=onnx", "--opset=9 must be 17 to 23; leave it out"),
        ("--images no.png", "no.png is not a file"),
        ("--config.data.dir=/dev/null", "checked on real images.* --images=.*data.dir"),
    ],
    "study": [
        ("", "was given nothing"),
        ("--config=a.py --verify=b.py", "was given --config and --verify"),
        ("--compare a a", "a is no folder of a run"),
        ("--verify=configs/tutorial_folder.py", "nothing is recorded of this recipe"),
        ("--compare a b --seeds=2", "--seeds says nothing beside --compare"),
        ("--compare a b --config.seed=1", "--config.seed says nothing beside"),
        ("--verify=configs/digits.py --metric=loss", "--metric says nothing beside"),
    ],
    "study --config=configs/digits.py --workdir={tmp}/study": [
        ("--record --grid optim.lr=1", "one recipe"),
        ("--record --margin=0", "--margin must be above 0"),
        ("--record --margin=x", "must be a number"),
        ("--record --metric=loss", "loss: --margin must be above 0"),
        ("--record --config.optim.lr=1", "--config.optim.lr changes it"),
        ("--record --seeds=1", "two seeds at least"),
        ("--margin=1", "nothing without --record"),
        ("--search_seed=1", "nothing without --random"),
        ("--cells=3", "nothing without --random"),
        ("--random=optim.lr=1,2", "nothing without --cells"),
        ("--grid optim.lr=0.1,x", "cell optim.lr=x: "),
        ("--grid optim.lr=0.1,0.10", "the same recipe"),
        ("--grid optim.lr=0.1,0.1", "names a value twice"),
        (
            "--vary=order --config.seeds.order=1",
            "--config.seeds.order is what --seeds varies",
        ),
        ("--seeds=0", "--seeds=0 must be how many there are"),
        ("--shard=2/2", "--shard=2/2 must be i/n with i below n"),
        ("--config.seed=3", r"--config\.seed is what --seeds varies"),
        ("--baseline=x", "--baseline=x is no cell; there are: base"),
        ("--cells=x --random=a=1", "--cells=x must be a whole number"),
        ("--grid optim.lr=a,b", r"--config\.optim\.lr=a must be a number"),
        ("--grid batch_size=64,0", "cell batch_size=0: batch_size=0 must be at least 1"),
        ("--grid model.name=cnn,cmn", r"cell model\.name=cmn: unknown .*'cmn'"),
        ("--seeds=2 --metric=top3", "--metric='top3' is not evaluated; one of loss"),
    ],
    "train": [
        ("--config=configs/digit.py", r"configs/digit.py is not a file \(did you mean 'di"),
        ("", "required: --config"),
    ],
    "train --config=configs/digits.py --dry_run": [
        ("--config.optim.lrr=0.1", r"'optim.lrr' \(did you mean 'optim.lr'\?\)"),
        ("--config.optim.lr=nan", "optim.lr=nan is not a finite number; the default is"),
        ("--config.model.name=resnt50", r"'resnt50' \(did you mean 'resnet50'\?\); known:"),
        ('"--config.model.name=cnn(width=3)"', r"cnn .* it takes cnn\(widths="),
        ("--config.optim.name=adamv", r"'adamv' \(did you mean 'adam'\?\)"),
        ("--config.batch_size=60", "batch_size=60 does not divide over 8 devices; try 56 "),
        ("--config.mesh.devices=9", "mesh.devices=9, and host 0 has 8 cpu devices"),
        ("--config.mesh.fsdp=3", "fsdp=3 does not divide .*, 8; give one of 1, 2, 4, 8$"),
        ("--config.mesh.fsdp=0", "mesh.fsdp=0 must be at least 1"),
        (
            "--config.model.remat=all",
            r"model.remat='all' must be one of \('', 'blocks', 'elem",
        ),
        ("--config.model.remat=blocks", "model.name=.* is not made of blocks, as 'vit"),
        ("--devices=some", "--devices=some must be a whole number, at least 0"),
        ("--config.data.train=trian", "data.train='trian' .*did you mean 'train'.*n=1437"),
        ('"--config.optim.warmup=50 epochs"', "50 epochs.* 1010 steps .* 808; try"),
        ("--config.normalize=imagenet", "3 channels and the images have 1; try 'unit'"),
        ("--config.best.metric=top5", "best.metric='top5' .*one of loss, top1"),
        ('"--config.data.train_ops=resize(8)"', "must begin with decode"),
        ('"--config.data.train_ops=decode(1)|resize((16,24))"', "24x16 .* cannot take 16x"),
        ("--workdr=x", "unknown flag --workdr"),
    ],
    "prepare": [
        ("", "give one of --source=FOLDER_OR_ARCHIVE, --tfds=NAME and --show=PNG"),
        ("--source=x --tfds=y", "give one of --source"),
        ("--source= --name=x", "--source= is empty; give a folder or an archive"),
        ("--source=~nobody_at_all/x --name=x", "--source=~nobody_at_all/x: "),
        ("--source={photos}/gone --name=x", "--source=.*/gone is not there; give"),
        ("--source={photos}/1.jpg --name=x", "1.jpg is no folder and no archive; give a f"),
    ],
    "prepare --data_dir={tmp}/data --source={photos}": [
        ("", "--name= must be small letters.*such as --name=some_photos"),
        ("--name=9lives", "--name=9lives must be small"),
        ("--name=cifar10", "--name='cifar10': split train holds 2 exam"),
    ],
    "prepare --data_dir={tmp}/data --source={photos} --name=x": [
        ("--val_fraction=2", "--val_fraction=2.0 must be below 1; try 0.2"),
        ("--val_fraction=much", "=much must be a number, at least 0"),
        ("--val_fraction=1e-9", "split val empty: train keeps a file of each class"),
        ("--test_fraction=1", "--test_fraction=1.0 must be below 1; try 0.2"),
        ("--val_fraction=0.5 --test_fraction=0.5", "below 1 together; try 0.2 and 0.1"),
        ("--shrink=1.5", "--shrink=1.5 must be a whole numb"),
        ("--quality=101", "--quality=101 must be at most 100"),
        ("--config.seed=1", "--config belongs to --show"),
    ],
    "prepare --source={photos} --name=x": [
        ("--data_dir=gs://b", "--data_dir=gs://b is a URL"),
        ("--data_dir={photos}", "/x lies in --source=.*; give a"),
    ],
    "search --workdir={run} --gallery={photos}": [
        ("--sheet=x.jpg {photos}/1.jpg", "^--sheet=x.jpg must end in .png, as search.png "),
        ("--cache=x.npy {photos}/1.jpg", "^--cache=x.npy must be a folder, or end in .npz"),
        ("--null {photos}/1.jpg", "^--null is of a list on standard input"),
        ("nowhere.png", "^nowhere.png is not a file; give image files or folders"),
        ("", "^the following arguments are required: QUERY; .* --help shows"),
    ],
    "reproduce --workdir={run}": [
        ("--steps=three", "^--steps=three must be a whole number, at least 0"),
        ("--tolerance=nan", "^--tolerance=nan must be a number, at least 0"),
        ("--config.optim.lr=1", "--config.optim.lr comes from the run's folder"),
        ("--pack=/dev/null", "--pack=/dev/null is a stream, and must be a file"),
    ],
    "reproduce": [
        ("--workdir=nowhere", "--workdir=nowhere is not a run's folder"),
        ("--workdir=README.md", "README.md is no archive of a run"),
    ],
}


def test_without_a_verb_each_is_listed_on_a_line(capsys):
    for argv in ([], ["--help"], ["-h"]):
        assert commands.main(argv) == 0
        listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
        assert listed[1:-1] == list(commands.VERBS)


def test_each_verb_is_a_file_and_each_file_a_verb():
    files = {file.stem for file in pathlib.Path(commands.__file__).parent.glob("*.py")}
    assert files - {"__init__", "cli", "dry_run"} == set(commands.VERBS)


def test_an_unknown_verb_is_one_line_with_the_nearest_name(command):
    done = command("evalute", "--workdir=x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: unknown verb 'evalute' (did you mean 'evaluate'?); known: completion, e"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("verb", commands.VERBS)
def test_the_help_of_a_verb_names_it_and_the_exit_statuses(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        commands.main([verb, "--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: jaxcls {verb} ")
    assert "75 stopped on request after saving" in said


def test_the_console_script_and_both_modules_are_one_program(monkeypatch, capsys):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    script = pkgutil.resolve_name(project["scripts"]["jaxcls"])
    monkeypatch.setattr(sys, "argv", ["/bin/jaxcls", "train", "--dry_run"])
    with pytest.raises(SystemExit, match="2"):
        script()
    said = capsys.readouterr().err
    assert said == (
        "error: the following arguments are required: --config; jaxcls train --help shows"
        " what there is\n"
    )
    for program in (["jaxcls", "train"], ["jaxcls.main"]):
        done = subprocess.run(
            [sys.executable, "-m", *program, "--dry_run"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (2, said)


def test_a_list_of_verbs_and_the_help_of_train_import_no_jax():
    code = (
        "import sys\n"
        "from jaxcls.__main__ import main\n"
        "sys.argv = ['jaxcls', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as left: assert not left.code\n"
        "assert not {'jax', 'numpy'} & set(sys.modules)\n"
    )
    for argv in ([], ["train", "--help"]):
        subprocess.run(
            [sys.executable, "-c", code, *argv],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )


@pytest.mark.parametrize(
    ("line", "said"),
    [(f"{begin} {rest}", said) for begin, rows in REFUSED.items() for rest, said in rows],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    line, said, brief_run, data_dir, tmp_path, monkeypatch
):
    photos = tmp_path / "some_photos"
    for i, name in enumerate(["a/1.jpg", "b/2.jpg", "1.jpg"]):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(picture(i))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    # Devices have started long ago; and extras are there, or else they are what is said.
    monkeypatch.setattr(reproducing, "_set_environment", lambda start: None)
    if line.startswith("export"):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for name, path in {"run": brief_run, "photos": photos, "tmp": tmp_path}.items():
        line, said = (text.replace(f"{{{name}}}", str(path)) for text in (line, said))
    with pytest.raises(InputError, match=said) as refused:
        commands.main(shlex.split(line))
    assert "\n" not in str(refused.value)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == [
        path for path in before if path.is_file()
    ]
