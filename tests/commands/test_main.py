"""The commands, and what they say to bad input."""

import json
import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from jaxcls import commands, experiment
from jaxcls.errors import InputError
from jaxcls.predict import inference

DIGITS = "--config=configs/digits.py"
SHORT = (
    "--config.length=2 epochs",
    "--config.model.name=cnn(widths=(16, 32), batch_norm=True)",
    "--config.mesh.devices=1",
)
LEARNS = "--config.optim.lr=0.01"


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
            *SHORT[0].split("="), *SHORT[1:], LEARNS,
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


def test_a_run_ends_with_one_line_and_a_finished_one_says_so(trained, capsys):
    folder, out = trained
    last = out.splitlines()[-1]
    assert re.fullmatch(
        r"done: step=40 at=best best_step=\d+ split=test n=360 loss=\S+ top1=\S+"
        rf" workdir={re.escape(str(folder))}",
        last,
    )
    assert "images/s, data wait" in out
    arguments = [*SHORT, LEARNS]
    assert commands.main(["train", DIGITS, f"--workdir={folder}", *arguments]) == 0
    said = last.replace("done", "already finished")
    assert capsys.readouterr().out == f"{folder}: loading JAX\n{said}\n"


def test_evaluate_repeats_the_score_and_takes_any_split_devices_and_checkpoint(
    trained, data_dir, capsys
):
    folder, out = trained
    run = f"--workdir={folder}"
    assert commands.main(["evaluate", run]) == 0
    said = capsys.readouterr().out.split()
    scored = {word for word in said if word.startswith(("n=", "top1=", "loss="))}
    assert scored <= set(out.split())
    here = [f"--config.data.dir={data_dir}", "--config.mesh.devices=8"]
    assert commands.main(["evaluate", run, *here]) == 0
    assert next(word for word in scored if "top1" in word) in capsys.readouterr().out
    other = ["--split=train[:50]", "--checkpoint=last"]
    assert commands.main(["evaluate", run, *other]) == 0
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
    given = ["--dry_run", f"--workdir={workdir}", "--config.optim.lr=0.5"]
    assert commands.main(["train", DIGITS, *given]) == 0
    out = capsys.readouterr().out
    assert "optim.lr = 0.5\n" in out
    assert "808 of 64 examples" in out
    assert not workdir.exists()


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
        ("--workdir=/tmp/a[1]", r"holds a '\[' or '\]'"),
        pytest.param(
            "--config.batch_size=1000000",
            r"batch_size=1000000 needs .* about batch_size=\d+ fits",
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
    said = (
        r"optim.lr 0.01 -> 0.5.* start this one with --workdir=\S+run-2, and to go on from"
        r" its weights --config.init.weights=\S+run"
    )
    given = [*SHORT, "--config.optim.lr=0.5"]
    bad(said, DIGITS, f"--workdir={folder}", *given)
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
    assert first.stdout.readline() == f"{tmp_path}: loading JAX\n"
    assert first.stdout.readline() == "starting from step 0\n"
    with pytest.raises(InputError, match=rf"in use by host \S+, pid {first.pid}, since"):
        commands.main(["train", *arguments, "--config.mesh.devices=1"])
    while not first.stdout.readline().startswith("step"):
        pass
    first.send_signal(signal.SIGINT)
    _, said = first.communicate()
    assert first.returncode == 75
    assert said.splitlines()[-1].startswith("stopped: asked to; the state after step ")
    again = command("train", *arguments)
    assert again.returncode == 0
    starts = json.loads((tmp_path / "manifest.json").read_text())["starts"]
    assert [start["reason"] for start in starts] == ["stopped", "done"]


def test_a_foreign_config_json_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    bad(r"its config.json is another program's", DIGITS, f"--workdir={tmp_path}")
    assert (tmp_path / "config.json").read_text() == '{"model_type": "vit"}'


def test_predictions_use_the_average_where_it_chose_the_best(tiny, pictures):
    exp = experiment.build(tiny(**{"best.metric": "ema_loss"}))
    state, file = exp.init()._asdict(), str(pictures / "3.png")
    average = jax.tree.map(lambda x: x + 0.1, state["ema"])
    ((_, found, _),) = inference.predict(exp, {**state, "ema": average}, [file])
    images = inference.read(exp, file)[None].repeat(8, 0)
    expected = exp.programs.probabilities_step(average, images)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
def test_a_run_outlives_the_reader_of_its_output(tmp_path, data_dir):
    process = subprocess.run(
        f"{sys.executable} -m jaxcls.main {DIGITS} --workdir={tmp_path}"
        " --config.length='3 epochs' --config.model.name='cnn(widths=(4,))'"
        " --config.mesh.devices=1 | head -n 1",
        shell=True, check=False, env={**os.environ, "TFDS_DATA_DIR": str(data_dir)},
    )  # fmt: skip
    assert process.returncode == 0
    starts = json.loads((tmp_path / "manifest.json").read_text())["starts"]
    assert starts[-1]["reason"] == "done"


@pytest.mark.parametrize(
    "name", ["cnn(widths=(0,))", "cnn(dense=-1)", "cnn(dropout=2)", "resnet18(width=0)",
             "resnet18(block=3)", "cnn(name='x')", "cnn(dropout=1e999)"],
)  # fmt: skip
def test_options_that_a_model_cannot_have_are_one_line(name):
    bad(r"model.name", DIGITS, "--dry_run", f"--config.model.name={name}")
