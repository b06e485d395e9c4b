"""The nearest images of a folder: what is found, said, kept, drawn and refused."""

import csv
import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from jaxcls import commands, experiment
from jaxcls.data.files import Bad
from jaxcls.errors import InputError
from jaxcls.evaluation import scoring
from jaxcls.predict import contact_sheet, inference, retrieval
from jaxcls.training import train
from tests import pngs
from tests.images import encode, write


def noise(i):
    return encode(np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8))


@pytest.fixture
def run(brief_run, tmp_path):
    """A copy of a run: a search writes into its folder."""
    return shutil.copytree(brief_run, tmp_path / "run")


@pytest.fixture
def folder(tmp_path):
    """A folder of 13 images, and one beside it that is none of them."""
    write(tmp_path, {"query.png": noise(99)})
    names = [*(f"a/{i}.png" for i in range(9)), "b/x, y.png", "b/\udcff.png", "c.png"]
    files = {name: noise(i) for i, name in enumerate(names)}
    return write(tmp_path / "mine", {os.fsencode(k): v for k, v in files.items()})


@pytest.fixture
def ask(run, folder, tmp_path, capsysbinary):
    """``ask(arguments...)`` -> (status, standard output, lines of standard error)."""

    def call(*arguments):
        given = [f"--workdir={run}", f"--gallery={folder}", *map(str, arguments)]
        status = commands.main(["search", *given])
        out, err = capsysbinary.readouterr()
        return status, out.decode("utf-8", "surrogateescape"), err.decode().splitlines()

    return call


def rows_of(out):
    _, *rows = csv.reader(io.StringIO(out, newline=""))
    return rows


def expected(run, paths, queries):
    """(order of paths, similarities) of each query, by scikit-learn."""
    exp, _, _, weights = scoring.load(str(run), "best", {})
    found = inference.predict(exp, weights, [*paths, *queries], embed=True)
    rows = np.array([each.embed for each in found], float)
    known = NearestNeighbors(n_neighbors=len(paths), metric="cosine", algorithm="brute")
    distances, index = known.fit(rows[: len(paths)]).kneighbors(rows[len(paths) :])
    return index, 1 - distances


def test_the_nearest_are_those_of_the_features_that_the_head_sees(
    run, folder, tmp_path, ask
):
    paths = sorted(str(path) for path in folder.rglob("*.png"))
    queries = [str(tmp_path / "query.png"), paths[-1], paths[3]]
    status, out, err = ask("--format=csv", "--top=5", "--sheet=", *queries)
    assert status == 0
    (cache,) = (run / "search").iterdir()
    assert err == [f"gallery: 12 images (12 new, 0 changed, 0 gone, 0 kept), {cache}"]
    rows = rows_of(out)
    assert [row[:2] for row in rows] == [[q, str(k)] for q in queries for k in range(1, 6)]
    index, similarity = expected(run, paths, queries)
    found = np.array([float(row[3]) for row in rows]).reshape(3, 5)
    np.testing.assert_allclose(found, similarity[:, :5], atol=2e-6)
    # Where the next is not as near as rounding is.
    for number in range(3):
        for rank in range(5):
            if (np.abs(similarity[number] - similarity[number, rank]) < 1e-5).sum() == 1:
                assert rows[5 * number + rank][2] == paths[index[number, rank]]
    again = ask("--format=csv", "--top=5", "--sheet=", *queries)
    assert again[1] == out
    assert again[2] == [f"gallery: 12 images (0 new, 0 changed, 0 gone, 12 kept), {cache}"]


def test_a_query_of_the_gallery_finds_itself_first_or_is_left_out(folder, ask):
    shutil.copy(folder / "a/7.png", folder / "a/0.png")  # As near, and before it.
    query = folder / "a/7.png"
    (found,) = json.loads(ask("--format=json", "--sheet=", query)[1])
    assert found["query"] == str(query)
    assert len(found["nearest"]) == 10
    assert [each["image"] for each in found["nearest"][:2]] == [
        str(query), str(folder / "a/0.png")
    ]  # fmt: skip
    assert [each["similarity"] for each in found["nearest"][:2]] == pytest.approx([1, 1])
    (found,) = json.loads(ask("--format=json", "--sheet=", "--exclude_self", query)[1])
    images = [each["image"] for each in found["nearest"]]
    assert str(query) not in images
    assert images[0] == str(folder / "a/0.png")


def test_the_table_and_the_sheet(run, folder, tmp_path, ask):
    status, out, err = ask("--top=2", folder / "c.png", tmp_path / "query.png")
    assert (status, err) == (0, [])
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert lines[0][:3] == ["gallery:", "12", "images"]
    assert lines[1] == ["query", "image", "similarity"]
    c = str(folder / "c.png")
    assert lines[3] == [c, "1", c, "1.0000"]
    assert [line[-3] for line in lines[4:7]] == ["2", "1", "2"]
    assert lines[-1] == ["sheet:", str(run / "search.png")]
    with Image.open(run / "search.png") as sheet:
        pixels = np.asarray(sheet)
    side = contact_sheet.SIDE
    assert pixels.shape[1] == 3 * (side + 4)
    small = np.asarray(Image.open(folder / "c.png").convert("RGB"))
    large = small.repeat(side // 8, 0).repeat(side // 8, 1)
    np.testing.assert_array_equal(pixels[:side, :side], large)
    np.testing.assert_array_equal(pixels[:side, side + 4 : 2 * side + 4], large)
    assert ask(folder / "a/1.png")[0] == 0  # It is replaced, being one.


def test_a_sheet_replaces_no_other_file_and_is_no_image_of_its_gallery(folder, ask):
    before = (folder / "c.png").read_bytes()
    with pytest.raises(InputError, match=r"c.png is a file already, and no sheet; try"):
        ask(f"--sheet={folder}/c.png", folder / "a")
    assert (folder / "c.png").read_bytes() == before
    for counts in ("12 new, 0 changed, 0 gone, 0", "0 new, 0 changed, 0 gone, 12"):
        out = ask(f"--sheet={folder}/sheet.png", folder / "a")[1]
        assert f"12 images ({counts} kept)" in out


def test_bad_files_are_named_counted_and_left_out(folder, tmp_path, ask):
    write(folder, {"a/bad.png": b"no image", "a/notes.txt": b"", "b/0.png.json": b"{}"})
    write(tmp_path, {"empty.png": b""})
    status, out, err = ask(
        "--format=csv", "--top=1", tmp_path / "empty.png", folder / "c.png", "no.png"
    )
    assert status == 2
    assert [row[0] for row in rows_of(out)] == [str(folder / "c.png")]
    assert err[0].startswith(f"error: {folder}/a/bad.png: not a readable image")
    assert err[1].startswith("gallery: 12 images (12 new, ")
    assert err[2:4] == [
        f"error: {tmp_path}/empty.png: empty, 0 bytes",
        "error: no.png: No such file or directory",
    ]
    named = f"{folder}/a/notes.txt, {folder}/b/0.png.json"
    assert err[-2:] == [
        f"note: left out, hidden, or not named as images: {named}",
        "1 answered, 2 bad, 1 bad in the gallery",
    ]


def test_a_cache_goes_where_it_is_asked_for_or_may_be(run, folder, tmp_path, ask):
    query = folder / "c.png"
    ask(f"--cache={tmp_path}/mine.npz", query)
    assert "12 kept" in ask(f"--cache={tmp_path}/mine.npz", query)[1]
    (tmp_path / "kept").mkdir()
    ask(f"--cache={tmp_path}/kept", query)
    (file,) = (tmp_path / "kept").iterdir()
    assert file.name.startswith("mine-")
    assert not (run / "search").exists()
    (run / "search").write_text("a file")
    with pytest.raises(InputError, match=r"search cannot be written .*; try --cache=gall"):
        ask(query)


def test_features_of_other_weights_are_not_used(run, folder, ask, monkeypatch):
    exp, _, _, weights = scoring.load(str(run), "best", {})
    key = retrieval.key_of(exp, weights)
    assert retrieval.key_of(exp, weights) == key
    other = {**weights, "params": {**weights["params"], "more": np.zeros(3)}}
    assert retrieval.key_of(exp, other) != key
    ask(folder / "c.png")
    monkeypatch.setattr(retrieval, "FEATURES", 2)
    out = ask(folder / "c.png")[1].splitlines()
    assert out[0].endswith(".npz is of another model or version; all are read anew")
    assert "12 new" in out[1]


def test_features_that_are_no_numbers_are_a_bad_file(monkeypatch):
    answers = [
        inference.Prediction("a", np.zeros(2), np.array([1, np.nan], np.float32)),
        Bad("b", "x"),
        inference.Prediction("c", np.zeros(2), np.array([1, 2], np.float32)),
    ]
    monkeypatch.setattr(inference, "predict", lambda *_, **__: iter(answers))
    a, b, c = retrieval.vectors(None, {}, iter("abc"), 2, 1)
    assert (a, b, c.tolist()) == (
        Bad("a", "its features are not finite"), Bad("b", "x"), [1, 2]
    )  # fmt: skip


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"^--workdir=.*/empty"):
        commands.main(
            ["search", f"--workdir={tmp_path}/empty", f"--gallery={tmp_path}", "x.png"]
        )


@pytest.mark.slow
def test_neighbours_of_digits_are_of_their_class(tiny, data_dir, tmp_path, capsys):
    values = {
        "augment": "", "mix": "", "ema.decay": 0.0, "length": "15 epochs",
        "eval.every": "5 epochs", "checkpoint.every": "5 epochs", "log.every": "50 steps",
        "model.name": "cnn(widths=(16, 32), dense=64)", "optim.weight_decay": 0.0,
    }  # fmt: skip
    train.run(experiment.build(tiny(**values)), str(tmp_path / "run"))
    folder = str(tmp_path / "digits")
    pngs.main(folder, str(data_dir))
    capsys.readouterr()
    asked = f"--workdir={tmp_path}/run", f"--gallery={folder}", "--exclude_self", "--sheet="
    assert commands.main(["search", *asked, "--format=json", folder]) == 0
    found = json.loads(capsys.readouterr().out)
    hits = []
    for each in found:
        near = [image["image"] for image in each["nearest"]]
        assert each["query"] not in near
        own = os.path.dirname(each["query"])
        hits += [os.path.dirname(path) == own for path in near]
    assert len(hits) == 3600
    assert np.mean(hits) > 0.93
