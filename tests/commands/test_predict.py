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

import jaxcls
from jaxcls import commands, experiment
from jaxcls.commands import predict as printed
from jaxcls.data import decode, sources
from jaxcls.data.files import Bad
from jaxcls.evaluation import scoring
from jaxcls.predict import inference
from tests.conftest import ROOT
from tests.images import encode, write

CLASSES = [("[red]x, y", 0.9999996), ('"quoted"', 4e-7)]
# Of two bytes that are no UTF-8.
PATHS = ["new\nline.png", "a\rb", "\r\n", 'q",\r"q', "☃.png", "\udcff\udcfe.png", "\x1b[0m"]
ROWS = [("b/é, 1.png", CLASSES), *((path, CLASSES) for path in PATHS)]


def test_csv_reads_back_as_the_rows(capsysbinary):
    printed.FORMATS["csv"](ROWS, 2)
    text = capsysbinary.readouterr().out.decode("utf-8", "surrogateescape")
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    assert header == ["image", "class_1", "probability_1", "class_2", "probability_2"]
    cells = ["[red]x, y", "1.000000", '"quoted"', "0.000000"]
    assert rows == [[path, *cells] for path, _ in ROWS]


def test_json_reads_back_as_the_rows(capsysbinary):
    printed.FORMATS["json"](ROWS, 2)
    text = capsysbinary.readouterr().out.decode("ascii")
    rows = [
        (row["image"], [(c["name"], c["probability"]) for c in row["classes"]])
        for row in json.loads(text)
    ]
    assert rows == ROWS
    assert len(text.splitlines()) == len(ROWS) + 2


def test_json_has_null_for_what_is_no_number(capsys):
    printed.FORMATS["json"]([("a.png", [("x", float("nan"))])], 1)
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert said[0]["classes"] == [{"name": "x", "probability": None}]


@pytest.mark.parametrize("form", ["csv", "json"])
def test_each_row_is_written_before_the_next_is_computed(form, capsys):
    said = []

    def rows():
        for path in ("1.png", "a.jpg"):
            yield path, CLASSES
            said.append(capsys.readouterr().out)

    printed.FORMATS[form](rows(), 2)
    assert ["1.png" in text for text in said] == [True, False]
    assert ["a.jpg" in text for text in said] == [False, True]


def test_the_table_shows_every_cell_as_it_is_on_one_line(capsys):
    printed.FORMATS["table"](ROWS, 2)
    out = capsys.readouterr().out
    header, _, *lines = [line for line in out.splitlines() if line.strip()]
    assert header.split() == ["image", "1", "p", "2", "p"]
    assert lines[0].split() == [
        "b/é,",
        "1.png",
        "[red]x,",
        "y",
        "1.000",
        '"quoted"',
        "0.000",
    ]
    assert len(lines) == len(ROWS)
    assert "\x1b" not in out


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


@pytest.fixture
def build(tiny):
    """``build(**overrides)`` -> an experiment of a dataset that is not there."""
    ops = "decode(1) | resize(8)"
    values = {
        "data.name": "mine", "data.eval_ops": ops, "data.train_ops": ops,
        "model.name": "cnn(widths=(4,), dense=8)", "optim.name": "sgd", "mesh.devices": 2,
    }  # fmt: skip
    facts = sources.Facts(
        "mine", "1.0.0", (None, None, 1), 3, ("x", "y", "z"), {"train": 9}
    )
    return lambda **more: experiment.build(tiny(**{**values, **more}), facts)


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
    weights = exp.init()._asdict()

    def answers(size, threads):
        given = {"batch_size": size, "threads": threads, "embed": True}
        return list(inference.predict(exp, weights, paths, **given))

    whole = answers(64, 1)
    for size, threads in ((1, 3), (2, 2), (7, 0)):
        for a, b in zip(answers(size, threads), whole, strict=True):
            if isinstance(b, Bad):
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
    said = "^9x7 pixels after data.eval_ops, and the model takes 8x8; give images of that"
    with pytest.raises(decode.DecodeError, match=said):
        inference.read(exp, str(tmp_path / "x.png"))


def test_an_image_that_an_op_cannot_take_is_named_and_the_others_are_answered(
    build, tmp_path, monkeypatch
):
    def narrow():
        return lambda image, rng: image[[0, 1, 2, 3, 4, 5, 6, 7]]

    monkeypatch.setattr(decode, "HOST_OPS", {**decode.HOST_OPS, "narrow": narrow})
    ops = "decode(1) | resize_short(400) | center_crop(8)"
    shapes = {"a.png": (8, 8), "b.png": (1, 101), "c.png": (7, 700), "d.png": (12, 8)}
    paths = [str(tmp_path / name) for name in shapes]
    for path, shape in zip(paths, shapes.values(), strict=True):
        Image.fromarray(np.zeros(shape, np.uint8)).save(path)
    exp = build(**{"data.eval_ops": ops})
    monkeypatch.setattr(decode, "MAX_PIXELS", 400 * 4_000)
    found = list(inference.predict(exp, exp.init()._asdict(), paths))
    assert [each.path for each in found] == paths
    assert [isinstance(each, Bad) for each in found] == [False, True, True, False]
    assert found[1].why == (
        "101x1 pixels, over 100 times as long as wide; crop it, or leave it out"
    )
    assert found[2].why == (
        "700x7 pixels become 40000x400, over the limit of 1600000; crop the image, leave it"
        " out, or use resize(400) in place of resize_short(400)"
    )
    exp = build(**{"data.eval_ops": "decode(1) | narrow | resize(8)"})
    found = list(inference.predict(exp, exp.init()._asdict(), [paths[2], paths[3]]))
    assert isinstance(found[1], inference.Prediction)
    assert found[0].why.startswith(
        "an op fails on an image of 700x7 pixels (IndexError: index 7 is out of bounds"
    )
    assert found[0].why.endswith("; mend the op, or leave the image out")


def test_the_features_of_no_image_have_their_width(run, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no image")
    for given in ("-", str(tmp_path / "bad.png")):
        file = tmp_path / "features.npz"
        with _standard_input(b"", tmp_path):
            commands.main(["predict", f"--workdir={run}", f"--embed={file}", given])
        with np.load(file) as found:
            assert found["embed"].shape == (0, jaxcls.load(run).embed([]).shape[1])
            assert found["path"].shape == (0,)
    assert jaxcls.load(run).embed([]).shape[1] == 8


# The command, on a run of two steps.


@pytest.fixture
def run(brief_run):
    return brief_run


def _digit(i, form="PNG", mode=None):
    return encode(np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8), form, mode)


@pytest.fixture
def mixed(tmp_path):
    """A folder of good and bad files, the good ones' paths in order, the bad ones'."""
    good = ["a, b.png", "c.JPG", "d/e\nf.png", "d/é☃.webp", b"d/\xff.png", "z.gif"]
    bad = ["b/cut.png", "c/empty.jpg", "d/a.heic", "d/text.png"]
    forms = "PNG", "JPEG", "PNG", "WEBP", "PNG", "GIF"
    files = {}
    for i, (name, form) in enumerate(zip(good, forms, strict=True)):
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
    *said, left_out, counted = err.decode().splitlines()
    assert counted == "6 answered, 4 bad"
    assert left_out.startswith("note: left out, hidden, or not named as images: ")
    assert f"{folder}/notes.txt" in left_out
    assert [line.split(": ")[:2] for line in said] == [["error", path] for path in bad]
    exp, _, _, weights = scoring.load(run, "best", {})
    expected = list(inference.predict(exp, weights, good, embed=True))
    with np.load(file) as features:
        assert features["path"].tolist() == good
        np.testing.assert_allclose(
            features["embed"], [each.embed for each in expected], rtol=1e-5
        )
    for row, each in zip(rows, expected, strict=True):
        assert row[1] == exp.selection.class_names[each.probabilities.argmax()]
        assert float(row[2]) == pytest.approx(each.probabilities.max(), abs=1e-6)


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


def test_what_is_left_out_of_a_folder_is_counted(brief_run, tmp_path, capsys):
    files = {"a/1.png": encode(np.zeros((8, 8), np.uint8)), "a/1.png.json": b"{}"}
    root = write(tmp_path / "some", {**files, "b/notes.txt": b"", "a/@eaDir/2.png": b""})
    arguments = ["predict", f"--workdir={brief_run}", "--format=csv"]
    assert commands.main([*arguments, str(root)]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    paths = ", ".join(
        f"{root}/{path}" for path in ("a/1.png.json", "b/notes.txt", "a/@eaDir/")
    )
    assert err == f"note: left out, hidden, or not named as images: {paths}\n"
    assert commands.main([*arguments, f"{root}/a/1.png"]) == 0
    assert capsys.readouterr().err == ""


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


@pytest.mark.slow
def test_a_thousand_files_keep_their_order_and_the_broken_are_named(run, tmp_path):
    names = [f"{k % 7}/{k:04d}.jpg" for k in range(1000)]
    broken = names[5::97]
    for k, name in enumerate(names):
        data = _digit(k % 20, "JPEG")
        kept = k % 89 if name in broken else len(data)
        write(tmp_path / "many", {name: data[:kept]})
    command = [
        sys.executable, "-m", "jaxcls", "predict", f"--workdir={run}", "--format=csv",
        "--top=1", "--embed=features.npz",
    ]  # fmt: skip
    settings = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    done = subprocess.run([*command, "many"], capture_output=True, **settings)
    assert done.returncode == 2
    answered = [f"many/{name}" for name in sorted(names) if name not in broken]
    assert [row[0] for row in _from_csv(done.stdout)] == answered
    *said, counted = done.stderr.decode().splitlines()
    assert counted == f"{1000 - len(broken)} answered, {len(broken)} bad"
    bad = [f"many/{name}" for name in sorted(broken)]
    assert [line.split(": ")[1] for line in said] == bad
    with np.load(tmp_path / "features.npz") as features:
        assert features["path"].tolist() == answered
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
