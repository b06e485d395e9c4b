"""The report of real runs: what is in it, what is left out, and how a browser shows it."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxcls import commands, experiment
from jaxcls.commands import report
from jaxcls.errors import InputError
from jaxcls.evaluation import predictions, scoring
from jaxcls.report import gather, images
from jaxcls.runs import workdir
from jaxcls.training import train
from tests import browser
from tests.conftest import ROOT
from tests.scoring import predictions as predicted_of
from tests.settings import DIGITS, digits


def built(data_dir, **overrides):
    """The experiment of a run of a few steps on digits."""
    values = {
        "length": "6 steps", "eval.every": "3 steps", "checkpoint.every": "3 steps",
        "log.every": "1 steps", **overrides,
    }  # fmt: skip
    return experiment.build(digits(data_dir, **values))


def trained(data_dir, folder, **overrides):
    """The folder of such a run."""
    train.run(built(data_dir, **overrides), str(folder))
    return folder


def reported(tmp_path, *arguments):
    """The HTML that the command makes."""
    out = tmp_path / "r.html"
    assert commands.main(["report", *map(str, arguments), f"--output={out}"]) == 0
    return out.read_text()


@pytest.fixture(scope="module")
def young(data_dir, tmp_path_factory):
    """The folder of a run that was killed before its first checkpoint."""
    exp = built(data_dir)
    folder = workdir.Workdir(tmp_path_factory.mktemp("runs") / "young")
    folder.path.mkdir()
    folder.adopt(exp.config, exp.implied())
    folder.metrics.write_text(
        '{"step": 1, "kind": "train", "loss": 2.5}\n'
        '{"step": 2, "kind": "train", "loss": null}\n{"step": 3, "ki'
    )
    return folder.path


@pytest.fixture(scope="module")
def folder(data_dir, tmp_path_factory):
    return trained(data_dir, tmp_path_factory.mktemp("runs") / "first")


@pytest.mark.slow
def test_a_run_is_scored_and_looked_into(folder, capsys):
    assert commands.main(["report", f"--workdir={folder}"]) == 0
    file = folder / "report.html"
    assert capsys.readouterr().out.startswith(f"report: {file} (")
    text = file.read_text()
    exp, step, _, weights = scoring.load(str(folder), "best", {})
    found = predicted_of(exp, exp.recipe.variables(weights), "test")
    top1 = (found.logits.argmax(-1) == found.labels).mean()
    assert f"All 360 examples of test, by the checkpoint of step {step} (best)." in text
    assert f'<th scope="row">top1</th><td>{top1:.3f}</td>' in text
    # The surest mistake is the first picture, and its image is that of the example.
    likely = predictions.probabilities(found.logits).max(-1)
    worst = np.where(found.logits.argmax(-1) != found.labels, likely, 0).argmax()
    own, taken = found.labels[worst], found.logits[worst].argmax()
    source, *caption = re.search(
        r'<img src="([^"]+)"[^>]*><figcaption>(\d, 0\.\d+)\n(is \d)', text
    ).groups()
    assert caption == [f"{taken}, {likely[worst]:.3f}", f"is {own}"]
    batch = next(exp.eval_batches("test", "data.test", 360))
    assert source == images.source(np.asarray(batch.image)[worst])
    assert "Where it looks (Grad-CAM)" in text
    assert text.count("<figcaption>for ") == 3 * gather.LOOKS


@pytest.mark.slow
def test_without_the_data_the_rest_is_there(folder, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    saved = json.loads((moved / "config.json").read_text())
    saved["implied"]["facts"]["name"] = saved["config"]["data.name"] = "gone"
    (moved / "config.json").write_text(json.dumps(saved))
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(tmp_path / "grey.png")
    text = reported(tmp_path, f"--workdir={moved}", f"--images={tmp_path}/grey.png")
    for where in (text, capsys.readouterr().out):
        assert "Not scored here: " in where
        assert "Not shown: " in where
    assert "<figcaption>Loss</figcaption>" in text
    assert "<figcaption>grey.png\n" in text
    assert "Where it looks (Grad-CAM)" in text
    assert "Confusions" not in text


@pytest.mark.slow
def test_a_damaged_shard_leaves_out_what_is_made_of_it(folder, data_dir, tmp_path, capsys):
    shutil.copytree(data_dir, tmp_path / "data")
    (shard,) = (tmp_path / "data").glob("digits/*/*-test.array_record*")
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 3])
    given = [f"--workdir={folder}", f"--config.data.dir={tmp_path}/data"]
    text = reported(tmp_path, *given)
    for where in (text, capsys.readouterr().out):
        assert "Not scored here: record" in where
        assert "a shard is damaged" in where
    assert "Confusions" not in text
    assert text.count("<img") == gather.TRAINED_ON
    # Of a damaged split that the temperature alone is fitted on, that alone is missing.
    shutil.copy(next(data_dir.glob(f"digits/*/{shard.name}")), shard)
    (shard,) = (tmp_path / "data").glob("digits/*/*-train.array_record*")
    shard.write_bytes(shard.read_bytes()[:-1000])
    why = "No temperature: data.eval=train[90%:] cannot be read (record"
    assert why in reported(tmp_path, *given)


def test_a_run_without_a_checkpoint_has_its_curves_and_is_there_once(
    young, tmp_path, capsys
):
    again = f"--workdir={young.parent}/./{young.name}/../young"
    text = reported(tmp_path, f"--workdir={young}", again)
    said = capsys.readouterr().out
    assert "young: It has no checkpoint yet" in said
    assert "runs: 1)" in said
    assert "It has no checkpoint yet" in text
    assert "<figcaption>Loss</figcaption>" in text
    assert "not finished: step 2 of 6" in text
    assert text.count("<img") == gather.TRAINED_ON


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("manifest.json", "[1]"),
        ("metrics.jsonl", '[1]\n{"step": 2, "kind": "eval"}\n'),
        ("timing.jsonl", '{"step": 3}\n'),
    ],
)
def test_a_record_that_is_none_is_named(young, tmp_path, name, text):
    damaged = shutil.copytree(young, tmp_path / "damaged")
    (damaged / name).write_text(text)
    with pytest.raises(InputError, match=rf"{name}.* is no.* record"):
        commands.main(["report", f"--workdir={damaged}"])
    assert not (damaged / "report.html").exists()


def test_too_many_images_are_refused(young, tmp_path):
    for k in range(report.MOST_IMAGES + 1):
        (tmp_path / f"{k}.png").touch()
    with pytest.raises(InputError, match=r"are 65 images, and a report looks into at most"):
        commands.main(["report", f"--workdir={young}", "--images", str(tmp_path)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--images={tmp}/bad.png", "bad.png: not a readable image"),
        ("--split=no", "--split='no' is not a split"),
    ],
)
def test_what_a_run_does_not_have_is_named(folder, tmp_path, argument, message):
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(InputError) as refused:
        commands.main(["report", f"--workdir={folder}", argument.format(tmp=tmp_path)])
    assert message in str(refused.value)


def test_runs_are_called_by_their_folders_and_by_paths_where_these_tie():
    assert report.names_of(["a/x", "b/y/"]) == ["x", "y"]
    assert report.names_of(["a/x", "b/x"]) == ["a/x", "b/x"]


def test_the_surest_mistakes_come_first():
    logits = np.array([[0, 2], [0, 3], [np.nan, 1], [5, 0], [0, 3], [9, 0.0]], np.float32)
    found = predictions.Predictions(logits, np.array([0, 0, 0, 1, 0, 0]))
    assert gather.most_confident_mistakes(found, 9).tolist() == [3, 1, 4, 0]
    assert gather.most_confident_mistakes(found, 2).tolist() == [3, 1]
    # Two classes that are equally likely share the probability of a softmax, but not that
    # of a sigmoid.
    logits = np.float32([[5, 5, -9], [2, -9, -9]])
    found = predictions.Predictions(logits, np.int32([2, 1]))
    assert gather.most_confident_mistakes(found, 2).tolist() == [1, 0]
    assert gather.most_confident_mistakes(found, 2, "sigmoid").tolist() == [0, 1]


@pytest.mark.slow
def test_attention_is_shown_of_a_vit(data_dir, tmp_path):
    ops = "decode(1) | resize(32)"
    values = {"model.name": "vit_ti_16(width=24, depth=2, heads=3)"}
    values |= {"data.train_ops": ops, "data.eval_ops": ops}
    made = trained(data_dir, tmp_path / "vit", **values)
    text = reported(tmp_path, f"--workdir={made}")
    assert "Where it looks (attention rollout)" in text
    assert "whatever the class" in text
    assert text.count("<figcaption>attention rollout<") == 2 * gather.LOOKS


@pytest.fixture(scope="module")
def both(folder, data_dir, tmp_path_factory):
    """The report of two digits runs, made by the command."""
    other = trained(data_dir, folder.parent / "second", **{"seed": 1, "optim.lr": 0.03})
    out = tmp_path_factory.mktemp("page") / "both.html"
    runs = [f"--workdir={folder}", f"--workdir={other}"]
    assert commands.main(["report", *runs, f"--output={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    if not browser.BROWSER:
        pytest.skip("there is no Chromium; apt-get install chromium")
    with browser.opened(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.mark.slow
def test_a_browser_finds_nothing_to_complain_of(shown, both):
    shown.open(both, 1200)
    assert shown.evaluate("document.title") == "Report: first, second"
    for kind, count in (("svg", 8), ("table", 10), ("img", 60)):
        widths = shown.evaluate(
            f"[...document.querySelectorAll('{kind}')].filter(e => !e.closest('details'))"
            ".map(e => e.getBoundingClientRect().width)"
        )
        assert len(widths) >= count, kind
        assert min(widths) > 20, kind
    assert shown.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
    loaded = shown.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith("data:") for name in loaded)
    assert shown.messages == []


@pytest.mark.slow
def test_a_click_on_a_head_sorts(shown, both):
    shown.open(both, 1200)
    column = (
        "[...document.querySelector('table.sorts').tBodies[0].rows]"
        ".map(row => Number(row.cells[{}].textContent))"
    )
    click = "document.querySelectorAll('table.sorts thead button')[{}].click()"
    state = "document.querySelectorAll('table.sorts th')[{}].getAttribute('aria-sort')"
    before = [shown.evaluate(column.format(k)) for k in range(5)]
    assert before[0] == list(range(10))
    for k in (1, 4):
        for order, down in (("ascending", False), ("descending", True)):
            shown.evaluate(click.format(k))
            found = shown.evaluate(column.format(k))
            assert found == sorted(before[k], reverse=down)
            assert shown.evaluate(state.format(k)) == order
    assert shown.evaluate(state.format(1)) is None
    shown.evaluate(click.format(0))
    assert [shown.evaluate(column.format(k)) for k in range(5)] == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["both", "of_study"])
@pytest.mark.parametrize(("width", "dark"), [(320, True), (1200, False)])
def test_a_page_fits_a_phone_and_light_and_dark_are_the_readers_choice(
    shown, request, name, width, dark
):
    before = len(shown.messages)
    shown.open(request.getfixturevalue(name), width, dark=dark)
    shown.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    wide = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    scrolled, visible = shown.evaluate(wide)
    assert scrolled <= visible <= width
    letters = shown.evaluate(
        "[...document.querySelectorAll('svg text')].map(t => [t.getScreenCTM(), t]).map("
        "([m, t]) => Math.hypot(m.a, m.b) * parseFloat(getComputedStyle(t).fontSize))"
    )
    assert min(letters) >= (11 if width > 320 else 9)
    for kinds, style, least in (
        ("p, td, th, figcaption", "fontSize", 12),
        ("svg, table", "height", 60),
    ):
        found = f"[...document.querySelectorAll('{kinds}')].map(getComputedStyle)"
        sizes = shown.evaluate(f"{found}.map(style => parseFloat(style.{style}))")
        assert min(sizes) >= least, kinds

    def brightness(element, key):
        text = shown.evaluate(
            f"getComputedStyle(document.querySelector('{element}')).{key}"
        )
        return sum(map(int, re.findall(r"\d+", text)[:3])) / 3

    ink, paper = brightness("body", "color"), brightness("body", "backgroundColor")
    low, high = (paper, ink) if dark else (ink, paper)
    assert low < 60
    assert high > 200
    assert brightness(".chart svg text", "fill") == ink
    assert len(shown.messages) == before


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes(folder, both, command, tmp_path):
    again = tmp_path / "again.html"
    runs = [f"--workdir={folder}", f"--workdir={folder.parent / 'second'}"]
    done = command("report", *runs, f"--output={again}", devices=8)
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == both.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"format": 99, "cells": [], "headline": "", "metric": ""}',
            "study.json has format 99, and",
        ),
        ('{"format": 1}', "study.json is not what jaxcls study writes"),
        ("[]", "study.json is not what jaxcls study writes"),
        (
            '{"format": 1, "cells": [], "headline": "", "metric": ""}',
            "study.json is not what jaxcls study writes: unit is of another form",
        ),
        ('{"format": 1, "ce', "study.json cannot be read: "),
        (None, "has no study.json, which jaxcls study writes into its --workdir"),
    ],
)
def test_a_study_that_cannot_be_read_is_named(tmp_path, content, message):
    plan = {"format": 1, "config": {}, "cells": [1], "seeds": [0]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    with pytest.raises(InputError) as refused:
        commands.main(["report", f"--study={tmp_path}"])
    assert message in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert not (tmp_path / "report.html").exists()


@pytest.fixture(scope="module")
def of_study(data_dir, tmp_path_factory):
    """The report of a study of three cells, one of which diverges."""
    folder = tmp_path_factory.mktemp("studies") / "rates"
    settings = {
        **DIGITS, "length": "4 steps", "data.dir": data_dir, "augment": "",
        "optim.name": "sgd", "eval.every": "2 steps",
    }  # fmt: skip
    config = [f"--config={ROOT / 'configs' / 'digits.py'}", f"--workdir={folder}"]
    config += [f"--config.{key}={value}" for key, value in settings.items()]
    grid = ["--grid", "optim.lr=0.1,0.01,1e30", "--seeds=2"]
    assert commands.main(["study", *config, *grid]) == 0
    assert commands.main(["report", f"--study={folder}"]) == 0
    return folder / "report.html"


@pytest.mark.slow
def test_a_study_is_told_from_its_folder(of_study, tmp_path, capsys):
    folder, text = of_study.parent, of_study.read_text()
    found = json.loads((folder / "study.json").read_text())
    assert "<h1>Report: rates</h1>" in text
    assert "diverged: optim.lr=1e30, seed 0, 1; not in its figures" in text
    for name in ("optim.lr=0.1", "optim.lr=0.01"):
        runs = (folder / name).glob("seed-?/metrics.jsonl")
        final = [json.loads(file.read_text().splitlines()[-1])["top1"] for file in runs]
        assert f"<td>{np.mean(final):.4f}</td>" in text
    assert found["comparisons"]["test_best"]["optim.lr=0.01"]["words"] in text
    assert '<th scope="row">batch_size</th><td>64</td>' in text
    # A run beside it has its own part, and both are called by their folders.
    first = folder / "optim.lr=0.1" / "seed-0"
    text = reported(tmp_path, f"--study={folder}", f"--workdir={first}")
    assert "runs: 1, studies: 1" in capsys.readouterr().out
    assert "<h1>Report: rates, seed-0</h1>" in text
    assert text.index("Study: rates") < text.index('id="run1"')
    with pytest.raises(InputError, match="seed-0 is not a study's folder: it has no"):
        commands.main(["report", f"--study={first}"])
