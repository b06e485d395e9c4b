"""Image files -> classes: what is said of good and bad ones, and the formats."""

import contextlib
import csv
import io
import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit, softmax

from jaxcls import commands, experiment
from jaxcls.commands import predict as printed
from jaxcls.data import decode, sources
from jaxcls.data.files import Bad
from jaxcls.evaluation import scoring
from jaxcls.predict import inference
from tests.conftest import ROOT
from tests.images import encode, write

ROWS = [
    ("b/é, 1.png", [("tench, Tinca", 0.75), ('"quoted"', 0.25)]),
    ("a.jpg", [("[red]x", 0.9999996), ("tench, Tinca", 4e-7)]),
]


def test_csv_reads_back_as_the_rows(capsys):
    printed.FORMATS["csv"](ROWS, 2)
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header == ["image", "class_1", "probability_1", "class_2", "probability_2"]
    assert rows == [
        ["b/é, 1.png", "tench, Tinca", "0.750000", '"quoted"', "0.250000"],
        ["a.jpg", "[red]x", "1.000000", "tench, Tinca", "0.000000"],
    ]


# Of two bytes that are no UTF-8.
PATHS = ["new\nline.png", "a\rb", "\r\n", 'q",\r"q', "☃.png", "\udcff\udcfe.png", "\x1b[0m"]


def test_paths_of_any_bytes_come_back_from_csv(capsysbinary):
    printed.FORMATS["csv"]([(path, [("x", 1.0)]) for path in PATHS], 1)
    text = capsysbinary.readouterr().out.decode("utf-8", "surrogateescape")
    _, *rows = csv.reader(io.StringIO(text, newline=""))
    assert [row[0] for row in rows] == PATHS


def test_paths_of_any_bytes_come_back_from_json(capsysbinary):
    printed.FORMATS["json"]([(path, [("x", 1.0)]) for path in PATHS], 1)
    text = capsysbinary.readouterr().out.decode("ascii")
    assert [row["image"] for row in json.loads(text)] == PATHS
    assert len(text.splitlines()) == len(PATHS) + 2


def test_paths_of_any_bytes_are_a_line_of_the_table(capsys):
    printed.FORMATS["table"]([(path, [("x", 1.0)]) for path in PATHS], 1)
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if line.strip()]) == len(PATHS) + 2
    assert "\x1b" not in out


def test_json_reads_back_as_the_rows(capsys):
    printed.FORMATS["json"](ROWS, 2)
    found = json.loads(capsys.readouterr().out)
    rows = [
        (row["image"], [(c["name"], c["probability"]) for c in row["classes"]])
        for row in found
    ]
    assert rows == ROWS


def test_json_has_null_for_what_is_no_number(capsys):
    printed.FORMATS["json"]([("a.png", [("x", float("nan"))])], 1)
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert said[0]["classes"] == [{"name": "x", "probability": None}]


@pytest.mark.parametrize("form", ["csv", "json"])
def test_each_row_is_written_before_the_next_is_computed(form, capsys):
    said = []

    def rows():
        for row in ROWS:
            yield row
            said.append(capsys.readouterr().out)

    printed.FORMATS[form](rows(), 2)
    assert ["1.png" in text for text in said] == [True, False]
    assert ["a.jpg" in text for text in said] == [False, True]


def test_the_table_shows_every_cell_as_it_is(capsys):
    printed.FORMATS["table"](ROWS, 2)
    header, _, *lines = [x for x in capsys.readouterr().out.splitlines() if x.strip()]
    assert header.split() == ["image", "1", "p", "2", "p"]
    cells = [line.split() for line in lines]
    assert cells[0] == ["b/é,", "1.png", "tench,", "Tinca", "0.750", '"quoted"', "0.250"]
    assert cells[1] == ["a.jpg", "[red]x", "1.000", "tench,", "Tinca", "0.000"]


@pytest.mark.parametrize(("name", "text"), [("table", ""), ("json", "[]\n")])
def test_no_rows_give_an_empty_answer(name, text, capsys):
    printed.FORMATS[name]([], 3)
    assert capsys.readouterr().out == text


def test_bad_files_are_counted_and_said_on_one_line_each(capsys):
    found = [
        Bad("a\nb.png", "not\n  so"),
        inference.Prediction("c.png", np.array([0.2, 0.5, 0.3], np.float32), np.zeros(0)),
    ]
    counts = printed.write("csv", found, ("x", "y", "z"), 9)
    assert counts == {"answered": 1, "bad": 1}
    out, err = capsys.readouterr()
    assert err == "error: 'a\\nb.png': not so\n"
    assert out.splitlines()[1] == "c.png,y,0.500000,z,0.300000,x,0.200000"


@pytest.fixture(scope="module")
def facts():
    return sources.Facts("mine", "1.0.0", (None, None, 1), 3, ("x", "y", "z"), {"train": 9})


@pytest.fixture
def build(tiny, facts):
    ops = "decode(1) | resize(8)"
    values = {
        "data.name": "mine", "data.eval_ops": ops, "data.train_ops": ops,
        "model.name": "cnn(widths=(4,), dense=8)", "optim.name": "sgd", "mesh.devices": 2,
    }  # fmt: skip
    return lambda **more: experiment.build(tiny(**values, **more), facts)


@pytest.fixture
def seven(tmp_path):
    """(paths, {row: pixels}) of seven files: one is no image and one is not there."""
    rng, pixels, paths = np.random.default_rng(0), {}, []
    for i in range(7):
        paths.append(str(tmp_path / f"{6 - i}.png"))
        if i == 2:
            (tmp_path / f"{6 - i}.png").write_text("no image")
        elif i != 5:
            pixels[i] = rng.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels[i]).save(paths[i])
    return paths, pixels


@pytest.mark.parametrize(
    ("loss", "link"), [("softmax", softmax), ("sigmoid", lambda x, axis: expit(x))]
)
def test_each_file_gets_the_models_probabilities_and_a_bad_one_its_reason(
    build, seven, loss, link
):
    exp, (paths, pixels) = build(**{"loss.name": loss}), seven
    given = [*paths[:3], Bad("folder", "Permission denied"), *paths[3:]]
    weights = exp.init()._asdict()
    found = list(inference.predict(exp, weights, given, batch_size=3, embed=True))
    assert found.pop(3) == Bad("folder", "Permission denied")
    assert [each.path for each in found] == paths
    assert found[2].why.startswith("not a readable image")
    assert found[5].why == "No such file or directory"
    images = np.stack(list(pixels.values()))[..., None]
    variables = {k: weights[k] for k in ("params", "batch_stats")}
    logits, _ = exp.recipe.model.apply(variables, exp.recipe.normalize(images), False, None)
    logits = np.asarray(logits)
    expected = np.asarray(
        exp.programs.embed_step(variables, images[[*range(5), 4]])
    )  # Over two devices.
    for row, i in enumerate(pixels):
        np.testing.assert_allclose(
            found[i].probabilities, link(logits[row], axis=-1), rtol=1e-5
        )
        np.testing.assert_allclose(found[i].embed, expected[row], rtol=1e-5)


def test_answers_do_not_depend_on_the_batch_size_or_the_threads(build, seven):
    exp, (paths, _) = build(), seven
    weights, whole = exp.init()._asdict(), None
    for size, threads in ((64, 1), (1, 3), (2, 2), (7, 0)):
        found = list(
            inference.predict(
                exp, weights, paths, batch_size=size, threads=threads, embed=True
            )
        )
        whole = whole or found
        assert [type(x) for x in found] == [type(x) for x in whole]
        for a, b in zip(found, whole, strict=True):
            if isinstance(a, Bad):
                assert a == b
            else:
                np.testing.assert_allclose(a.probabilities, b.probabilities, rtol=1e-5)
                np.testing.assert_allclose(a.embed, b.embed, rtol=1e-4, atol=1e-6)


def test_paths_are_taken_as_they_are_needed(build, seven):
    exp, (paths, _) = build(), seven
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield paths[0]

    found = inference.predict(exp, exp.init()._asdict(), endless(), batch_size=4)
    for _ in range(9):
        next(found)
    assert len(taken) <= 9 + 3 * 4 + 4
    found.close()


def test_features_come_from_the_same_pass_as_probabilities(build):
    exp = build()
    variables = {k: exp.init()._asdict()[k] for k in ("params", "batch_stats")}
    images = np.zeros((2, 8, 8, 1), np.uint8)

    def flops(step):
        return step.lower(variables, images).compile().cost_analysis()["flops"]

    both = flops(inference._step(exp, True))
    assert both < 1.1 * flops(exp.programs.probabilities_step)


def test_a_file_is_seen_upright_and_on_white(build, tmp_path):
    exp = build()
    upright = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(upright[::-1, ::-1]).save(tmp_path / "turned.png", exif=exif)
    seen = inference.read(exp, str(tmp_path / "turned.png"))
    np.testing.assert_array_equal(seen[:, :, 0], upright)
    Image.new("LA", (5, 5), (0, 0)).save(tmp_path / "clear.png")
    assert (inference.read(exp, str(tmp_path / "clear.png")) == 255).all()


def test_an_image_of_another_size_than_the_models_is_refused_with_both(tiny, tmp_path):
    exp = experiment.build(tiny())
    Image.new("L", (9, 7)).save(tmp_path / "x.png")
    with pytest.raises(decode.DecodeError) as refused:
        inference.read(exp, str(tmp_path / "x.png"))
    said = "9x7 pixels after data.eval_ops, and the model takes 8x8"
    assert str(refused.value) == said


# The command, on a run of two steps.


@pytest.fixture(scope="module")
def run(brief_run):
    return brief_run


def _digit(i, form="PNG", mode=None):
    return encode(np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8), form, mode)


@pytest.fixture
def mixed(tmp_path):
    """A folder of good and bad files, the good ones' paths in order, the bad ones'."""
    good = ["a, b.png", "c.JPG", "d/e\nf.png", "d/é☃.webp", b"d/\xff.png", "z.gif"]
    bad = ["b/cut.png", "c/empty.jpg", "d/a.heic", "d/text.png"]
    files = dict.fromkeys(good[:3] + good[4:5], _digit(0))
    for i, (name, form) in enumerate(zip(good, ["PNG", "JPEG", "PNG", "WEBP", "PNG", "GIF"],
                                         strict=True)):  # fmt: skip
        files[name] = _digit(i, form, "RGB" if form == "WEBP" else None)
    files |= {
        "b/cut.png": _digit(0)[:60], "c/empty.jpg": b"", "d/text.png": b"hello",
        "d/a.heic": b"\0\0\0\x18ftypheic" + bytes(50), "notes.txt": b"none", ".x.png": b"",
    }  # fmt: skip
    folder = write(tmp_path / "mixed", files)
    paths = [
        [os.path.join(folder, os.fsdecode(name)) for name in names] for names in (good, bad)
    ]
    # By name, code point by code point.
    return str(folder), sorted(paths[0]), paths[1]


def _from_csv(data):
    text = data.decode("utf-8", "surrogateescape")
    _, *rows = csv.reader(io.StringIO(text, newline=""))
    return rows


def test_a_folder_of_mixed_files_is_answered_in_order_and_the_bad_are_named(
    run, mixed, tmp_path, capsysbinary, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", "/nonexistent")
    folder, good, bad = mixed
    file = str(tmp_path / "features.npz")
    status = commands.main(
        ["predict", f"--workdir={run}", "--format=csv", f"--embed={file}", folder]
    )
    out, err = capsysbinary.readouterr()
    assert status == 2
    rows = _from_csv(out)
    assert [row[0] for row in rows] == good
    *said, counted = err.decode().splitlines()
    assert counted == "6 answered, 4 bad"
    assert [line.split(": ")[:2] for line in said] == [["error", path] for path in bad]
    exp, _, _, weights = scoring.load(run, "best", {})
    images = np.stack([inference.read(exp, path) for path in good])
    images = np.concatenate([images, np.zeros_like(images)[:2]])  # Over eight devices.
    variables = exp.recipe.variables(weights)
    with np.load(file) as features:
        assert features["path"].tolist() == good
        expected = np.asarray(exp.programs.embed_step(variables, images))[:6]
        np.testing.assert_allclose(features["embed"], expected, rtol=1e-5)
    probabilities = np.asarray(exp.programs.probabilities_step(variables, images))[:6]
    best = [exp.selection.class_names[k] for k in probabilities.argmax(1)]
    assert [row[1] for row in rows] == best
    np.testing.assert_allclose(
        [float(row[2]) for row in rows], probabilities.max(1), atol=1e-6
    )


@contextlib.contextmanager
def _standard_input(data, tmp_path):
    (tmp_path / "stdin").write_bytes(data)
    old = os.dup(0)
    with (tmp_path / "stdin").open("rb") as file:
        os.dup2(file.fileno(), 0)
    try:
        yield
    finally:
        os.dup2(old, 0)
        os.close(old)


@pytest.mark.parametrize("end", [b"\n", b"\0"])
def test_a_list_on_standard_input_is_answered_in_its_place(
    run, mixed, tmp_path, capsysbinary, end
):
    _, good, bad = mixed
    plain = [path for path in good if "\n" not in path or end == b"\0"]
    listed = [*plain[::-1], bad[0], "/nowhere/x.png"]
    null = ["--null"] if end == b"\0" else []
    with _standard_input(end.join(map(os.fsencode, listed)), tmp_path):
        status = commands.main(
            ["predict", f"--workdir={run}", "--format=csv", *null, good[1], "-", good[0]]
        )
    out, err = capsysbinary.readouterr()
    assert status == 2
    assert [row[0] for row in _from_csv(out)] == [good[1], *plain[::-1], good[0]]
    assert b"error: /nowhere/x.png: No such file or directory\n" in err
    assert err.endswith(b"%d answered, 2 bad\n" % (len(plain) + 2))


def test_an_empty_list_is_an_empty_answer(run, tmp_path, capsys):
    with _standard_input(b"", tmp_path):
        assert commands.main(["predict", f"--workdir={run}", "--format=json", "-"]) == 0
    assert capsys.readouterr() == ("[]\n", "no image was given\n")


def test_only_bad_files_are_counted_too(run, tmp_path, capsys):
    write(tmp_path, {"a.png": b"x", "b.png": b""})
    assert (
        commands.main(["predict", f"--workdir={run}", "--format=csv", str(tmp_path)]) == 2
    )
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert err.splitlines()[-1] == "0 answered, 2 bad"


@pytest.mark.slow
def test_a_thousand_files_keep_their_order_and_the_broken_are_named(run, tmp_path):
    whole, broken = [_digit(k, "JPEG") for k in range(20)], []
    rng = np.random.default_rng(0)
    names = [f"{k % 7}/{k:04d}.jpg" for k in range(1000)]
    for k, name in enumerate(names):
        if k % 97 == 5:
            broken.append(name)
        data = whole[k % 20]
        kept = rng.integers(len(data) // 2) if name in broken else len(data)
        write(tmp_path / "many", {name: data[:kept]})
    order = sorted(names)
    command = [
        sys.executable, "-m", "jaxcls", "predict", f"--workdir={run}", "--format=csv",
        "--top=1", "--embed=features.npz",
    ]  # fmt: skip
    settings = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    done = subprocess.run([*command, "many"], capture_output=True, **settings)
    assert done.returncode == 2
    rows = _from_csv(done.stdout)
    answered = [f"many/{name}" for name in order if name not in broken]
    assert [row[0] for row in rows] == answered
    *said, counted = done.stderr.decode().splitlines()
    assert counted == f"{1000 - len(broken)} answered, {len(broken)} bad"
    bad = [f"many/{name}" for name in order if name in broken]
    assert [line.split(": ")[1] for line in said] == bad
    with np.load(tmp_path / "features.npz") as features:
        assert features["path"].tolist() == answered
    # The same picture has the same answer wherever it comes.
    by_picture = {}
    for row in rows:
        by_picture.setdefault(int(row[0][-8:-4]) % 20, set()).add(tuple(row[1:]))
    assert all(len(answers) == 1 for answers in by_picture.values())
    # A reader that has seen enough ends it, and nothing is left of the features.
    (tmp_path / "features.npz").unlink()
    text = f"yes many/{names[0]} | ({shlex.join(command)} -; echo $? >status) | head -n 3"
    head = subprocess.run(["sh", "-c", text], capture_output=True, timeout=300, **settings)
    assert [len(_from_csv(head.stdout)), head.stderr] == [2, b""]
    assert (tmp_path / "status").read_text() == "0\n"
    assert not (tmp_path / "features.npz").exists()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_is_one_line_and_status_2(run, tmp_path):
    write(tmp_path, {"a.png": _digit(0)})
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "jaxcls", "predict", f"--workdir={run}", str(tmp_path)],
            stdout=full, stderr=subprocess.PIPE, cwd=ROOT,
        )  # fmt: skip
    said = b"error: the answers cannot be written (No space left on device); make room\n"
    assert (done.returncode, done.stderr) == (2, said)
