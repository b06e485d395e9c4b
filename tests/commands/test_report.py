"""The report of real runs: what is in it, what is left out, and how a browser shows it."""

import collections
import html
import html.parser
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import jaxcls
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
    manifest = json.loads((moved / "manifest.json").read_text())
    del manifest["seal"], manifest["starts"][-1]["config"]  # Of an earlier version.
    (moved / "manifest.json").write_text(json.dumps(manifest))
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
def test_a_damaged_shard_leaves_out_what_is_made_of_it(
    folder, data_dir, tmp_path, capsys, undrawn
):
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
def test_attention_is_shown_of_a_vit(data_dir, tmp_path, undrawn):
    ops = "decode(1) | resize(32)"
    values = {"model.name": "vit_ti_16(width=24, depth=2, heads=3)"}
    values |= {"data.train_ops": ops, "data.eval_ops": ops}
    made = trained(data_dir, tmp_path / "vit", **values)
    text = reported(tmp_path, f"--workdir={made}")
    assert "Where it looks (attention rollout)" in text
    assert "whatever the class" in text
    assert text.count("<figcaption>attention rollout<") == 2 * gather.LOOKS


class Cells(html.parser.HTMLParser):
    """The folded cells of a report: {id: [summary, captions of its images]}."""

    def __init__(self, text):
        super().__init__()
        self.found, self._path = {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "details" and "name" in given:
            self._path = [given["id"]]
            self.found[given["id"]] = ["", []]
        elif self._path and tag in ("summary", "figcaption"):
            self._path.append(tag)
            if tag == "figcaption":
                self.found[self._path[0]][1].append("")

    def handle_endtag(self, tag):
        if tag == "details":
            self._path = []
        elif tag in self._path:
            self._path.remove(tag)

    def handle_data(self, data):
        if self._path[1:] == ["summary"]:
            self.found[self._path[0]][0] += " ".join(data.split())
        elif self._path[1:] == ["figcaption"]:
            self.found[self._path[0]][1][-1] += data


CLASSES = ("a cat", "dog & co", "fox")


@pytest.fixture(scope="module")
def of_files(tmp_path_factory):
    """(run folder, folder of originals) of a run that tells classes by their grey.

    A test image may have the grey of any class, so that all are taken for one another.
    """
    place = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for split, counts in (("train", (9, 20, 5)), ("test", (15, 15, 15))):
        for number, (name, count) in enumerate(zip(CLASSES, counts, strict=True)):
            (place / "images" / split / name).mkdir(parents=True)
            for k in range(count):
                grey = 80 * (number if split == "train" else max(0, rng.integers(-4, 3)))
                pixels = (grey + rng.integers(0, 60, (12, 12))).astype(np.uint8)
                file = place / "images" / split / name / f"{name[0]}-{split}-{k}.png"
                Image.fromarray(pixels).save(file)
    given = [f"--source={place}/images", "--name=noise", f"--data_dir={place}/data"]
    assert commands.main(["prepare", *given]) == 0
    values = {
        "data.name": "noise", "data.train": "train", "data.eval": "test", "batch_size": 8,
        "length": "150 steps", "eval.every": "50 steps", "checkpoint.every": "50 steps",
    }  # fmt: skip
    return trained(place / "data", place / "run", **values), place / "images"


@pytest.mark.slow
def test_the_images_of_a_cell_are_those_that_the_model_takes_so(
    of_files, tmp_path, undrawn
):
    folder, originals = of_files
    text = reported(tmp_path, f"--workdir={folder}")
    expected = collections.defaultdict(list)
    model = jaxcls.load(str(folder))
    for truth, name in enumerate(CLASSES):
        paths = sorted(map(str, (originals / "test" / name).iterdir()))
        answers = model.predict(paths)
        for path, likely in zip(paths, answers.probabilities, strict=True):
            if (taken := int(likely.argmax())) != truth:
                file = str(pathlib.Path(path).relative_to(originals))
                caption = f"{likely[taken]:.3f}, {likely[truth]:.3f}", file
                expected[truth, taken].append((-likely[taken], caption))
    assert max(collections.Counter(truth for truth, _ in expected).values()) == 2
    assert any(len(each) > gather.IN_A_CELL for each in expected.values())
    found = Cells(text).found
    order = sorted(expected, key=lambda pair: (-len(expected[pair]), pair))
    assert [*found] == [f"run1-{a}-{b}" for a, b in order]
    for (truth, taken), (summary, captions) in zip(order, found.values(), strict=True):
        count, least = len(expected[truth, taken]), gather.IN_A_CELL
        cut = f", {least} shown" if count > least else ""
        assert summary == f"{CLASSES[truth]} taken for {CLASSES[taken]}: {count}{cut}"
        surest = [caption for _, caption in sorted(expected[truth, taken])][:least]
        assert [tuple(each.split("\n")) for each in captions] == surest
    # What was trained on is counted in the folder of originals.
    counts = {name: len([*(originals / "train" / name).iterdir()]) for name in CLASSES}
    seen = re.findall(r'<tr><th scope="row">([^<]+)</th><td>(\d+)</td><td>15</td>', text)
    assert {html.unescape(name): int(count) for name, count in seen} == counts


@pytest.mark.slow
def test_images_of_cells_are_few_bytes_and_what_is_left_out_is_said(
    of_files, tmp_path, monkeypatch, undrawn
):
    folder, _ = of_files
    whole = Cells(reported(tmp_path, f"--workdir={folder}")).found
    monkeypatch.setattr(gather, "CELLS", len(whole) - 1)
    text = reported(tmp_path, f"--workdir={folder}")
    assert [*Cells(text).found.items()] == [*whole.items()][:-1]
    said = f"Of {len(whole)} confused pairs the {len(whole) - 1} with the most examples."
    assert said in text
    sources = re.findall(r'<img src="([^"]+)"', text.split("Its most confident")[0])
    monkeypatch.setattr(gather, "CELL_BYTES", sum(map(len, sources)) - 1)
    text = reported(tmp_path, f"--workdir={folder}")
    assert [*Cells(text).found.items()] == [*whole.items()][:-2]


@pytest.mark.slow
def test_labels_are_counted_unless_that_reads_a_large_dataset(
    folder, of_files, tmp_path, monkeypatch, undrawn
):
    counted = '<button type="button">in training</button>'
    assert counted in reported(tmp_path, f"--workdir={folder}")
    monkeypatch.setattr(gather, "MOST_READ", 10)
    assert counted not in reported(tmp_path, f"--workdir={folder}")
    assert counted in reported(tmp_path, f"--workdir={of_files[0]}")  # They are in a file.


@pytest.fixture(scope="module")
def noise(of_files):
    """The report of that run."""
    assert commands.main(["report", f"--workdir={of_files[0]}"]) == 0
    return of_files[0] / "report.html"


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
    for kind, count in (("svg", 8), ("table", 8), ("img", 60)):
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
@pytest.mark.parametrize("name", ["both", "noise", "of_study"])
@pytest.mark.parametrize(
    ("width", "dark"),
    [(320, True), (360, False), (768, True), (1280, False)],
)
def test_a_page_fits_a_phone_and_light_and_dark_are_the_readers_choice(
    shown, request, name, width, dark
):
    before = len(shown.messages)
    shown.open(request.getfixturevalue(name), width, dark=dark)
    shown.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    wide = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    scrolled, visible = shown.evaluate(wide)
    assert scrolled <= visible <= width
    outside = shown.evaluate(
        "[...document.querySelectorAll('main *')]"
        ".filter(e => !e.closest('.scroll *, svg *'))"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 0.5)"
        ".map(e => e.outerHTML.slice(0, 99))"
    )
    assert outside == []
    broken = shown.evaluate(
        "[...document.querySelectorAll('.code tbody th')].map(e => {"
        "const range = document.createRange(); range.selectNodeContents(e);"
        "return range.getClientRects().length})"
    )
    assert set(broken) == {1}
    letters = shown.evaluate(
        "[...document.querySelectorAll('svg text')].map(t => [t.getScreenCTM(), t]).map("
        "([m, t]) => Math.hypot(m.a, m.b) * parseFloat(getComputedStyle(t).fontSize))"
    )
    assert min(letters) >= (11 if width > 360 else 9)
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


def move(page, x, y):
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)


def press(page, key):
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)


PLOT = "[...document.querySelectorAll('.plot')][{}]"
READ = "[...{}.querySelector('.readout').children].map(e => e.textContent)"


def read(page, number=0):
    """What a chart reads now: its head, and {line: value}."""
    head, *each = page.evaluate(READ.format(PLOT.format(number))) or [""]
    lines = dict(line.rsplit(": ", 1) for line in each)
    return head, {name: float(value) for name, value in lines.items()}


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_hovering_reads_the_values_of_the_records(shown, both, folder, width):
    shown.open(both, width)
    plot = PLOT.format(0)
    shown.evaluate(f"{plot}.scrollIntoView({{block: 'center'}})")
    box = shown.evaluate(
        f"(b => [b.x, b.y, b.width, b.height])({plot}.getBoundingClientRect())"
    )
    seen = {}
    for place in np.linspace(0.02, 0.98, 33):
        move(shown, box[0] + place * box[2], box[1] + box[3] / 2)
        head, lines = read(shown)
        step, epoch = map(
            float, re.fullmatch(r"step (\d+) / epoch ([\d.]+)", head).groups()
        )
        assert epoch == pytest.approx(step * 64 / 1293, rel=0.06)  # Two digits.
        seen.setdefault(int(step), lines)
        over = shown.evaluate(
            f"(b => [b.left, b.right])({plot}.lastChild.getBoundingClientRect())"
        )
        assert 0 <= over[0] < over[1] <= width
    expected = {}
    kinds = {"train": ", training", "eval": ", evaluation"}
    for name in ("first", "second"):
        for line in (folder.parent / name / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record["kind"] in kinds:
                at = expected.setdefault(record["step"], {})
                at[name + kinds[record["kind"]]] = record.get("mean_loss", record["loss"])
    assert len(expected) == 6
    assert {step: pytest.approx(at, rel=1e-4) for step, at in expected.items()} == seen
    move(shown, 1, 1)
    assert read(shown) == ("", {})


@pytest.mark.slow
def test_arrow_keys_read_a_chart_and_escape_leaves_it(shown, both):
    shown.open(both, 1280)
    shown.evaluate(f"{PLOT.format(1)}.focus()")
    steps = [read(shown, 1)[0].split()[1]]
    for key in ("ArrowLeft", "Home", "ArrowLeft", "ArrowRight", "End", "ArrowRight"):
        press(shown, key)
        steps.append(read(shown, 1)[0].split()[1])
    assert steps == ["6", "5", "1", "1", "2", "6", "6"]
    press(shown, "Escape")
    assert read(shown, 1) == ("", {})


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_choosing_a_cell_shows_its_images_alone(shown, noise, width):
    shown.open(noise, width)
    links = shown.evaluate("[...document.querySelectorAll('.heat a')].map(a => a.hash)")
    assert len(links) > 1
    for link in reversed(links):
        shown.evaluate(f"document.querySelector('.heat a[href=\"{link}\"]').click()")
        opened = "[...document.querySelectorAll('details[open]')].map(e => '#' + e.id)"
        assert shown.evaluate(opened) == [link]
        assert shown.evaluate(f"document.activeElement.parentNode.id == '{link[1:]}'")
        first = f"document.querySelector('{link} img').getBoundingClientRect()"
        top, width_of = shown.evaluate(f"(b => [b.top, b.width])({first})")
        assert 0 <= top <= 900
        assert width_of > 40
    assert shown.messages == []


@pytest.mark.slow
def test_without_scripts_all_is_there(shown, noise):
    shown.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        shown.open(noise, 768)
        assert shown.evaluate("document.querySelectorAll('.readout').length") == 0
        shown.evaluate("document.querySelectorAll('details summary')[2].click()")
        assert shown.evaluate("document.querySelectorAll('details[open] img').length") > 0
        sizes = shown.evaluate(
            "[...document.querySelectorAll('svg, .matrix table')]"
            ".map(e => e.getBoundingClientRect().height)"
        )
        assert min(sizes) > 40
    finally:
        shown.call("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.slow
@pytest.mark.parametrize("dark", [True, False])
def test_a_table_that_goes_on_has_a_shadow_at_its_edge(shown, both, tmp_path, dark):
    shown.open(both, 360, dark=dark)
    box = "document.querySelector('.scroll')"
    assert shown.evaluate(f"{box}.scrollWidth > {box}.clientWidth")
    found = []
    for place in (0, 9999):
        x, y = shown.evaluate(
            f"{box}.scrollLeft = {place}, (b => [b.right, b.top])"
            f"({box}.getBoundingClientRect())"
        )
        shown.screenshot(tmp_path / "shot.png", whole=False)
        with Image.open(tmp_path / "shot.png") as image:
            at = image.convert("L").getpixel((int(x) - 3, int(y) + 4))
            paper = image.convert("L").getpixel((2, int(y) + 4))
        found.append(abs(at - paper))
    assert found[0] > 40
    assert found[1] == 0


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
