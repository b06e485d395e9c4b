"""The commands, and what they say to bad input."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from jaxcls import commands
from jaxcls.errors import InputError
from jaxcls.evaluation import scoring
from jaxcls.predict import inference

DIGITS = "--config=configs/digits.py"


@pytest.fixture(autouse=True)
def _in_a_checkout(data_dir, monkeypatch, pytestconfig):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    monkeypatch.chdir(pytestconfig.rootpath)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """A short run of the shipped config, its stdout, and its folder."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    process = subprocess.run(
        [
            sys.executable, "-m", "jaxcls.main", DIGITS, f"--workdir={folder}",
            "--config.length", "2 epochs", "--config.mesh.devices=1",
        ],
        capture_output=True, text=True, check=True,
        env={**os.environ, "TFDS_DATA_DIR": str(data_dir)},
    )  # fmt: skip
    return folder, process.stdout


@pytest.fixture
def pictures(tmp_path):
    """Six digits as people's files, one of them larger, one broken."""
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    for i in range(5):
        Image.fromarray(pixels[i]).save(tmp_path / f"{digits.target[i]}.png")
    big = Image.fromarray(pixels[7]).resize((64, 64)).convert("RGB")
    (tmp_path / "sub").mkdir()
    big.save(tmp_path / "sub" / "big.jpg")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path


def bad(said, *arguments, verb="train"):
    with pytest.raises(InputError, match=said) as caught:
        commands.main([verb, *arguments])
    assert "\n" not in str(caught.value)


def config_file(tmp_path, line):
    path = tmp_path / "mine.py"
    path.write_text(
        "from jaxcls.config import base\n\n\ndef get_config():\n    c = base()\n"
        f"    {line}\n    return c\n"
    )
    return f"--config={path}"


def test_a_run_ends_with_one_line(trained):
    folder, out = trained
    last = out.splitlines()[-1]
    assert re.fullmatch(
        r"done: step=40 at=best best_step=\d+ split=test n=360 loss=\S+ top1=\S+"
        rf" workdir={re.escape(str(folder))}",
        last,
    )
    assert "images/s, data wait" in out


def test_a_finished_run_says_so(trained, capsys):
    folder, out = trained
    arguments = ["--config.length=2 epochs", "--config.mesh.devices=1"]
    assert commands.main(["train", DIGITS, f"--workdir={folder}", *arguments]) == 0
    assert (
        capsys.readouterr().out
        == out.splitlines()[-1].replace("done", "already finished") + "\n"
    )


def test_evaluate_repeats_the_final_score(trained, capsys):
    folder, out = trained
    assert commands.main(["evaluate", f"--workdir={folder}"]) == 0
    said = capsys.readouterr().out.split()
    assert {w for w in said if w.startswith(("n=", "top1=", "loss="))} <= set(out.split())


def test_evaluate_takes_any_split_and_checkpoint(trained, capsys):
    folder, _ = trained
    assert (
        commands.main(
            ["evaluate", f"--workdir={folder}", "--split=train[:50]", "--checkpoint=last"]
        )
        == 0
    )
    assert "step=40 at=last split=train[:50] n=50 " in capsys.readouterr().out


def test_predict_names_the_classes_and_the_broken_file(trained, pictures, command):
    folder, _ = trained
    done = command(
        "predict", f"--workdir={folder}", "--format=csv", "--top=2", str(pictures),
        TFDS_DATA_DIR="/nonexistent",
    )  # fmt: skip
    assert done.returncode == 2
    said, counted = done.stderr.splitlines()
    assert counted == "6 answered, 1 bad"
    assert re.fullmatch(rf"error: {pictures}/broken.png: not a readable image \(.+\)", said)
    rows = [line.split(",") for line in done.stdout.splitlines()]
    assert rows[0] == ["image", "class_1", "probability_1", "class_2", "probability_2"]
    assert [os.path.basename(r[0]) for r in rows[1:]] == [
        "0.png", "1.png", "2.png", "3.png", "4.png", "big.jpg"
    ]  # fmt: skip
    hits = [os.path.basename(row[0])[0] == row[1] for row in rows[1:6]]
    assert sum(hits) >= 4


def test_predict_as_json_and_table(trained, pictures, capsys):
    folder, _ = trained
    image = str(pictures / "3.png")
    assert commands.main(["predict", f"--workdir={folder}", "--format=json", image]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["image"] == image
    assert len(row["classes"]) == 3
    assert commands.main(["predict", f"--workdir={folder}", image]) == 0
    assert row["classes"][0]["name"] in capsys.readouterr().out


def test_dry_run_needs_no_data_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", "/nonexistent")
    workdir = tmp_path / "run"
    assert (
        commands.main(
            ["train", DIGITS, "--dry_run", f"--workdir={workdir}", "--config.optim.lr=0.5"]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "optim.lr = 0.5\n" in out
    assert "808 of 64 examples" in out
    assert not workdir.exists()


@pytest.mark.slow
def test_resnet50_has_the_published_number_of_parameters(capsys):
    assert commands.main(["train", "--config=configs/resnet50.py", "--dry_run"]) == 0
    assert "25,557,032 parameters" in capsys.readouterr().out


def test_help_is_quick_to_read(command):
    done = command("train", "--help")
    assert done.returncode == 0
    assert "optim.warmup" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 140


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("c.optim.lrr = 0.1", r"mine.py:6: .*'lrr' \(did you mean 'lr'\?\)"),
        ("c.batch_size = '64'", r"mine.py:6: batch_size=64 is str, and must be int"),
        ("c.optim.lr = float('nan')", r"optim.lr=nan is not a finite number; try 0.1"),
        ("c.optim = {}", r"config.optim was replaced as a whole.*c.optim.name = 'sgd'"),
        ("import nothing_like_it", r"mine.py:6: ModuleNotFoundError: .*nothing_like_it"),
        ("c = 3", r"must return the ConfigDict of base\(\)"),
    ],
)
def test_a_bad_config_file_is_named_with_its_line(tmp_path, line, said):
    bad(said, config_file(tmp_path, line), "--dry_run")


def test_a_missing_config_is_answered_with_the_near_one():
    bad(
        r"configs/digit.py is not a file \(did you mean 'digits.py'\?\)",
        "--config=configs/digit.py",
    )
    bad(r"required: --config")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        (
            "--config.data.name=imagenet2012",
            r"ILSVRC2012_img_train.tar.*prepare --source=FOLDER --name=imagenet2012",
        ),
        ("--config.data.name=cifar11", r"'cifar11' is not prepared in .*'cifar10'.*digits"),
        ("--workdir=gs://bucket/run", r"gs://bucket/run is a URL, and must be a folder"),
        ("--workdir=pyproject.toml", r"pyproject.toml is a file; name a folder"),
        ("--workdir=configs", r"configs holds .* and no run; .*--workdir=configs/run"),
        ("--workdir=pyproject.toml/run", r"cannot be written \(Not a directory\)"),
        pytest.param(
            "--config.batch_size=10000000",
            r"batch_size=10000000 needs .* about batch_size=\d+ fits",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_that_cannot_start_says_why_and_leaves_no_run(tmp_path, argument, said):
    arguments = [DIGITS, "--config.length=80e6 examples", argument]
    if "--workdir" not in argument:
        arguments.append(f"--workdir={tmp_path}/run")
    bad(said, *arguments)
    assert not list(tmp_path.rglob("checkpoints/*"))


def test_an_old_folder_keeps_what_it_is(trained):
    folder, _ = trained
    before = (folder / "config.json").read_bytes()
    said = r"optim.lr 0.002 -> 0.5.* start this one with --workdir=\S+run-2"
    bad(
        said,
        DIGITS,
        f"--workdir={folder}",
        "--config.length=2 epochs",
        "--config.optim.lr=0.5",
    )
    assert (folder / "config.json").read_bytes() == before


@pytest.mark.slow
def test_a_folder_in_use_is_refused_and_ctrl_c_frees_it(tmp_path, command, data_dir):
    small = ["--config.length=9 epochs", "--config.model.name=cnn(widths=(4, 8))"]
    arguments = [DIGITS, f"--workdir={tmp_path}", *small]
    first = subprocess.Popen(
        [sys.executable, "-m", "jaxcls.main", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TFDS_DATA_DIR": str(data_dir), "JAX_NUM_CPU_DEVICES": "1"},
    )  # fmt: skip
    assert first.stdout.readline() == "starting from step 0\n"
    with pytest.raises(InputError, match=rf"in use by host \S+, pid {first.pid}, since"):
        commands.main(["train", *arguments, "--config.mesh.devices=1"])
    while not first.stdout.readline().startswith("step"):
        pass
    first.send_signal(signal.SIGINT)
    _, said = first.communicate()
    assert first.returncode == 75
    assert said.startswith("stopped: asked to; the state after step ")
    again = command("train", *arguments)
    assert again.returncode == 0
    starts = json.loads((tmp_path / "manifest.json").read_text())["starts"]
    assert [start["reason"] for start in starts] == ["stopped", "done"]


def test_evaluate_points_from_a_checkpoint_to_its_run(trained, tmp_path):
    folder, _ = trained
    bad(
        rf"the run's folder is {re.escape(str(folder))}",
        f"--workdir={folder}/checkpoints/40",
        verb="evaluate",
    )
    bad(
        r"is not a run's folder: it has no config.json",
        f"--workdir={tmp_path}",
        verb="evaluate",
    )


def test_a_foreign_config_json_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    bad(r"its config.json is another program's", DIGITS, f"--workdir={tmp_path}")
    assert (tmp_path / "config.json").read_text() == '{"model_type": "vit"}'


def test_a_path_that_checkpoints_cannot_be_read_from_is_refused(tmp_path):
    bad(r"holds a '\[' or '\]'", DIGITS, f"--workdir={tmp_path}/a[1]")


def test_evaluate_takes_the_devices_and_data_of_this_machine(trained, data_dir, capsys):
    folder, out = trained
    arguments = [f"--workdir={folder}", f"--config.data.dir={data_dir}"]
    assert commands.main(["evaluate", *arguments, "--config.mesh.devices=8"]) == 0
    top1 = next(word for word in out.split()[::-1] if word.startswith("top1="))
    assert top1 in capsys.readouterr().out


@pytest.mark.slow
def test_predictions_use_the_average_where_it_chose_the_best(tiny, tmp_path, pictures):
    from jaxcls import experiment
    from jaxcls.training import train

    folder = str(tmp_path / "ema")
    train.run(experiment.build(tiny(**{"best.metric": "ema_loss"})), folder)
    exp, _, _, weights = scoring.load(folder, "best", {})
    ((_, found, _),) = inference.predict(exp, weights, [str(pictures / "3.png")])
    images = inference.read(exp, str(pictures / "3.png"))[None].repeat(8, 0)
    expected = exp.programs.probabilities_step(weights["ema"], images)[0]
    raw = {k: weights[k] for k in ("params", "batch_stats")}
    np.testing.assert_array_equal(found, np.asarray(expected))
    assert not np.array_equal(
        found, np.asarray(exp.programs.probabilities_step(raw, images)[0])
    )


@pytest.mark.slow
def test_a_run_outlives_the_reader_of_its_output(tmp_path, data_dir):
    process = subprocess.run(
        f"{sys.executable} -m jaxcls.main {DIGITS} --workdir={tmp_path}"
        " --config.length='3 epochs' --config.model.name='cnn(widths=(4,))'"
        " --config.mesh.devices=1 | head -n 1",
        shell=True, check=False, env={**os.environ, "TFDS_DATA_DIR": str(data_dir)},
    )  # fmt: skip
    assert process.returncode == 0
    assert (
        json.loads((tmp_path / "manifest.json").read_text())["starts"][-1]["reason"]
        == "done"
    )


@pytest.mark.parametrize(
    "name", ["cnn(widths=(0,))", "cnn(dense=-1)", "cnn(dropout=2)", "resnet18(width=0)",
             "resnet18(block=3)", "cnn(name='x')", "cnn(dropout=1e999)"],
)  # fmt: skip
def test_options_that_a_model_cannot_have_are_one_line(name):
    bad(r"model.name", DIGITS, "--dry_run", f"--config.model.name={name}")
