"""The parts of a report: what is drawn, shown and said, and that it is safe HTML."""

import base64
import hashlib
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from jaxcls.config.knobs import KNOBS
from jaxcls.evaluation import figures
from jaxcls.evaluation.intervals import Interval
from jaxcls.evaluation.predictions import Predictions
from jaxcls.report import curves, images, markup, page, tables
from jaxcls.report.contents import Look, Picture, Run, Scored

DEFAULTS = {key: knob.default for key, knob in KNOBS.items()}
NASTY = ("<script>alert(1)</script>", 'a" onload="alert(1)', "&amp; $x^2$ ]]> '")
NO_ROBUSTNESS = figures.Robustness([], None, [])
VOID = {"img", "meta", "br", "wbr"}


class Parsed(html.parser.HTMLParser):
    """Elements, texts, ids and headings of a page whose tags must match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts, self.headings = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def check_whole(text):
    """Each id of a page is unique, links lead to ids, and headings skip no level."""
    parsed = Parsed(text)
    ids = [found["id"] for _, found in parsed.elements if "id" in found]
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)
    assert {a or b for a, b in used} <= set(ids)
    assert parsed.headings[0] == 1
    assert parsed.headings.count(1) == 1
    assert np.diff(parsed.headings).max() <= 1
    return parsed


def scored(classes=3, n=40, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n).astype(np.int32)
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), labels] += 1.5
    columns = {"loss": rng.random(n), "top1": (logits.argmax(-1) == labels).astype(float)}
    found = figures.assess(
        Predictions(logits, labels), "softmax", columns, 1.3, "data.eval"
    )
    pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
    return Scored(8, "best", "test", "params", found, [Picture(pixels, "b")], NO_ROBUSTNESS)


def run(name="a", classes=("x", "y", "z"), **changes):
    metrics = [
        {"step": 4, "kind": "train", "loss": 2.0, "lr": 0.1, "top1": 0.25},
        {"step": 4, "kind": "eval", "split": "e", "n": 9, "loss": 1.5, "top1": 0.5},
        {"step": 8, "kind": "train", "loss": 1.0, "lr": 0.05, "top1": 0.5},
        {"step": 8, "kind": "eval", "split": "e", "n": 9, "loss": 1.25, "top1": 0.75},
        {"step": 8, "kind": "final", "split": "t", "n": 9, "loss": 1.2, "top1": 0.7},
    ]
    pace = {"images_per_s": 100.0, "data_wait": 0.5, "train_s": 2.0, "eval_s": 0.0}
    heat = np.arange(4, dtype=np.float32).reshape(2, 2)
    picture = Picture(np.full((8, 8, 1), 9, np.uint8), classes[0])
    facts = {"name": "d", "version": "1.0.0", "fingerprint": "f00d"}
    start = {"started": "then", "commit": "c0ffee", "devices": ["cpu"], "reason": "done"}
    values = {
        "name": name,
        "saved": {"config": dict(DEFAULTS), "implied": {"steps": 8, "facts": facts}},
        "metrics": metrics,
        "timing": [{"step": 4, **pace}, {"step": 8, **pace}],
        "digests": [{"step": 8, "digest": "d1"}],
        "starts": [{**start, "versions": {"jax": "9.9"}}],
        "class_names": tuple(classes),
        "scored": scored(len(classes)),
        "trained_on": [picture],
        "looks": [Look(picture, [(f"for {classes[0]}", heat)])],
        "looked_by": "Grad-CAM",
        "missing": {},
        **changes,
    }
    return Run(**values)


def made(*runs):
    return page.page(runs, DEFAULTS)


def test_a_page_is_whole_well_formed_and_the_same_again():
    text = made(run("a"), run("b"))
    parsed = check_whole(text)
    assert all(found.get("alt") for found in parsed.all("img"))
    assert all(found.get("aria-label") for found in parsed.all("svg"))
    assert made(run("a"), run("b")) == text


def test_a_page_says_what_its_figures_and_lines_are():
    text = str(tables.headline(run().scored.assessed))
    for word in ("top1", "loss", "macro", "weighted", "recall", "ECE", "AUC"):
        assert f"<li><strong>{word}</strong>: " in text
    assert "<strong>top5</strong>" not in text  # Which three classes do not have.
    assert "Dashed" not in curves.learning([run()])
    averaged = [*run().metrics, {"step": 9, "kind": "eval", "ema_loss": 1.0}]
    assert "Dashed: evaluation of the averaged weights." in curves.learning(
        [run(metrics=averaged)]
    )


def test_shares_below_a_percent_are_told_apart():
    pace = {"images_per_s": 100.0, "train_s": 2.0, "eval_s": 0.0}
    timing = [{"step": k, "data_wait": k / 1000, **pace} for k in range(1, 10)]
    shown = curves.learning([run(timing=timing)])
    ticks = re.findall(r"<!-- ([\d.]+)% -->", shown) or re.findall(r">([\d.]+)%<", shown)
    assert len(ticks) > 2
    assert len(set(ticks)) == len(ticks)


def test_a_page_asks_for_nothing_from_anywhere():
    text = made(run())
    parsed = Parsed(text)
    for tag, found in parsed.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        for key in ("src", "href", "xlink:href", "data", "srcset"):
            assert found.get(key, "#").startswith(("#", "data:image/"))
    (policy,) = (m["content"] for m in parsed.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'; img-src data:;")
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_names_are_text_whatever_they_look_like():
    look = Look(Picture(np.zeros((4, 4, 1), np.uint8), NASTY[0]), [(NASTY[1], np.eye(2))])
    mean = run(
        NASTY[0], NASTY, looks=[look], missing={"scores": NASTY[1]},
        starts=[{"command": NASTY[0], "reason": NASTY[1]}],
    )  # fmt: skip
    mean.saved["config"]["augment"] = NASTY[0]
    parsed = Parsed(made(mean, run("b", NASTY)))
    assert len(parsed.all("script")) == 1
    assert len(parsed.all("style")) == 1
    named = [k for _, found in parsed.elements for k in found if k.startswith("on")]
    assert not named
    # Of each class a row of the table; its name is a text there, as it was given.
    for name in NASTY:
        assert name in parsed.texts


def test_text_is_escaped_and_markup_is_not():
    made = markup.tag("p", "a<b", markup.tag("i", 'x"'), title='"<', id_=None)
    assert made == '<p title="&quot;&lt;">a&lt;b<i>x&quot;</i></p>'


def test_an_element_without_parts_is_empty():
    empty = markup.Markup("")
    assert markup.group([empty, ""], "charts") == empty
    assert markup.details("more", empty) == empty
    assert markup.table(["a"], [], "b") == empty


def test_curves_have_a_line_for_each_run_in_colours_of_the_page():
    text = curves.learning([run("a"), run("b")])
    charts = re.findall(r"<figcaption>(.*?)</figcaption>(<svg.*?</svg>)", text, re.S)
    titles = [title for title, _ in charts]
    assert titles == [
        "Loss", "top1", "Learning rate", "Images a second",
        "Share of training time waiting for data",
    ]  # fmt: skip
    for title, svg in charts:
        assert not re.search("#[0-9a-fA-F]{6}", svg), title
        counts = [len(re.findall(rf"stroke: var\(--run{i}\)", svg)) for i in (1, 2, 3)]
        assert counts == ([2, 2, 0] if title in ("Loss", "top1") else [1, 1, 0])
        assert "currentColor" in svg
        assert "var(--line)" in svg
    assert "1.25 at step 8" in charts[0][1]


def test_a_run_that_has_no_record_yet_says_so():
    empty = run(metrics=[], timing=[], digests=[], starts=[], scored=None, looks=[])
    assert "No run has a record yet" in made(empty)
    assert empty.state == "not finished: step 0 of 8"


def test_a_run_says_how_far_it_is():
    for start, how in (({"reason": "diverged"}, "diverged"), ({}, "not finished")):
        half = run(metrics=run().metrics[:2], starts=[start])
        assert half.state == f"{how}: step 4 of 8"
    assert run().state == "done, 8 steps"


def test_values_that_were_not_finite_are_gaps():
    records = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "lr": 1.0}]
    steps, values = curves.points(records, "loss")
    np.testing.assert_array_equal(steps, [1, 2])
    np.testing.assert_array_equal(values, [2.0, np.nan])


def test_many_points_become_means_of_neighbours():
    steps, values = np.arange(1, 11), np.arange(10.0)
    found = curves.thinned(steps, values, 5)
    np.testing.assert_array_equal(found[0], [2, 4, 6, 8, 10])
    np.testing.assert_array_equal(found[1], [0.5, 2.5, 4.5, 6.5, 8.5])
    np.testing.assert_array_equal(curves.thinned(steps, values, 10)[1], values)


def cells(text):
    """The rows of the first table of `text`, as texts."""
    rows = re.findall("<tr>(.*?)</tr>", text[: text.index("</table>")])
    return [
        [re.sub("<.*?>", "", c) for c in re.split("</t[hd]>", row)[:-1]] for row in rows
    ]


def test_the_confusions_are_the_matrix():
    matrix = np.array([[5, 1, 0], [0, 7, 0], [2, 0, 3]])
    text = tables.confusions(matrix, ["a", "b", "c"])
    assert cells(text) == [
        ["", "a", "b", "c"], ["a", "5", "1", ""], ["b", "", "7", ""], ["c", "2", "", "3"],
    ]  # fmt: skip
    depths = [int(d) for d in re.findall(r"--depth: (\d+)%", text)]
    assert depths == [83, 32, 100, 55, 60]
    worst = text[text.index("The most confused pairs") :]
    assert cells(worst)[1:] == [["c", "a", "2"], ["a", "b", "1"]]


def test_of_many_classes_the_most_confused_are_shown():
    matrix = np.eye(1000, dtype=np.int64) * 50
    matrix[700, 3], matrix[3, 999], matrix[12, 14] = 30, 20, 1
    text = tables.confusions(matrix, [f"n{k}" for k in range(1000)])
    assert cells(text)[0] == ["", "n3", "n12", "n14", "n700", "n999"]
    assert cells(text)[4] == ["n700", "30", "", "", "50", ""]
    rng = np.random.default_rng(0)
    busy = rng.integers(0, 9, (1000, 1000))
    busy[5, 6] = 99
    text = tables.confusions(busy, [f"n{k}" for k in range(1000)])
    assert len(cells(text)) == tables.PART + 1
    assert {"n5", "n6"} <= set(cells(text)[0])


def test_no_mistake_is_said():
    text = tables.confusions(np.diag([3, 4]), ["a", "b"])
    assert "No example is taken for another class" in text
    assert "most confused pairs" not in text


def test_each_class_has_its_figures():
    found = figures.assess(
        Predictions(np.eye(3, dtype=np.float32)[[0, 0, 1, 2]] * 4, np.array([0, 1, 1, 2])),
        "softmax", {"loss": np.ones(4), "top1": np.array([1.0, 0, 1, 1])}, float("nan"),
        "nothing",
    )  # fmt: skip
    head, *rows = cells(tables.by_class(found, ["x", "y", "z"]))
    assert head == ["class", "examples", "precision", "recall", "F1", "AUC"]
    assert [row[:5] for row in rows] == [
        ["x", "1", "0.500", "1.000", "0.667"],
        ["y", "2", "1.000", "0.500", "0.667"],
        ["z", "1", "1.000", "1.000", "1.000"],
    ]


def test_a_figure_has_its_interval():
    assert tables.figure(Interval(0.97777, 0.9571, 0.9888)) == "0.978 (0.957 to 0.989)"
    assert tables.figure(Interval(0.5, float("nan"), float("nan"))) == "0.500"
    assert tables.figure(Interval(*[float("nan")] * 3)) == "unknown"


def test_only_keys_that_differ_are_listed():
    first, second = run("a"), run("b")
    second.saved["config"] |= {"seed": 5, "augment": ""}
    del second.saved["config"]["optim.sam"]  # As of an older run.
    rows = cells(tables.differences([first, second], DEFAULTS))
    assert rows == [
        ["key", "a", "b"],
        ["seed", "0", "5"],
        ["optim.sam", "0.0", "(not there)"],
    ]
    assert "are the same" in tables.differences([first, first], DEFAULTS)
    alone = run()
    alone.saved["config"]["batch_size"] = 7
    assert cells(tables.differences([alone], DEFAULTS))[1] == ["batch_size", "7", "128"]


def test_where_a_run_comes_from_is_told():
    found = dict(row for row in cells(tables.provenance(run()))[1:])
    assert found["commit"] == "c0ffee"
    assert found["jax"] == "9.9"
    assert found["fingerprint of the data"] == "f00d"
    assert found["digest of the state at step 8"] == "d1"
    assert "no manifest.json" in tables.provenance(run(starts=[]))


def test_waiting_for_data_is_hinted_at():
    assert "a waits for its data 50% of the time" in tables.overview([run()])
    quick = [{**record, "data_wait": 0.01} for record in run().timing]
    assert "waits" not in tables.overview([run(timing=quick)])


def decoded(text):
    data = re.search(r"base64,([^\"]+)", text)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_small_images_are_exact_and_large_ones_smaller():
    rng = np.random.default_rng(0)
    for shape in ((8, 9, 3), (48, 30, 1)):
        pixels = rng.integers(0, 256, shape, np.uint8)
        np.testing.assert_array_equal(
            decoded(images.image(pixels, "x", 112)), pixels.squeeze()
        )
    flat = np.full((300, 200, 3), 128, np.uint8)
    found = decoded(images.image(flat, "x", 112))
    assert found.shape == (112, 75, 3)
    assert abs(found.astype(int) - 128).max() <= 2


def test_heat_is_laid_over_where_it_is():
    pixels = np.full((16, 16, 1), 100, np.uint8)
    heat = np.zeros((4, 4), np.float32)
    heat[1, 2] = 3
    warm = images.overlay(pixels, heat).astype(int)
    assert warm.shape == (128, 128, 3)
    np.testing.assert_array_equal(warm[100:, :30], 100)
    changed = abs(warm - 100).sum(-1)
    y, x = np.unravel_index(changed.argmax(), changed.shape)
    assert 32 <= y < 64 <= x < 96
    np.testing.assert_array_equal(images.overlay(pixels, heat * 0), 100)


def figured(name, top1):
    value = Interval(top1, top1 - 0.01, top1 + 0.01)
    return figures.ScoreRow(name, 40, value, Interval(1.5, 1.25, 1.75))


def test_robustness_is_a_chart_for_each_kind_and_one_of_attacks():
    names = {"shot_noise": "noise", "contrast": "light", "pixelate": "light"}
    corrupted = [
        figures.Corrupted(
            name,
            kind,
            [figured(name, 0.9 - 0.1 * k - 0.01 * place) for k in range(5)],
            figured(name, 0.7 - 0.01 * place),
        )
        for place, (name, kind) in enumerate(names.items())
    ]
    attacked = [
        figures.Attacked(kind, float(k), figured(f"{kind}({k})", 0.8 / k))
        for kind in ("fgsm", "pgd")
        for k in (8, 2)
    ]
    found = figures.Robustness(corrupted, figured("mean of 3", 0.69), attacked)
    text = made(run("a", scored=scored()._replace(robustness=found)), run("b"))
    parsed = Parsed(text)
    titles = [x for x in parsed.texts if x.startswith(("Corruptions: ", "Attacks"))]
    assert titles == ["Corruptions: noise", "Corruptions: light", "Attacks"]
    assert text.count(">Robustness</h3>") == 1  # The other run was not asked.
    for name in ("shot_noise", "contrast", "pixelate"):
        assert name in text
    *_, mean = cells(text[text.index("top1 of corrupted images") :])
    by_strength = ["0.890", "0.790", "0.690", "0.590", "0.490"]
    assert mean == ["mean of 3", "0.690 (0.680 to 0.700)", *by_strength]
    labels = [x["aria-label"] for x in parsed.all("svg")]
    assert "Corruptions: light: means contrast 0.690; pixelate 0.680" in labels
    assert any(x.startswith("Attacks: fgsm(8) 0.100; fgsm(2) 0.400;") for x in labels)


def test_captions_keep_their_lines():
    text = images.figure(np.zeros((4, 4, 1), np.uint8), "cat, 0.9\nis dog, 0.1", 99)
    assert "<span>cat, 0.9</span><span>is dog, 0.1</span>" in text
    assert 'alt="cat, 0.9; is dog, 0.1"' in text


@pytest.mark.slow
def test_a_thousand_classes_and_large_images_stay_a_small_file():
    rng = np.random.default_rng(0)
    names = tuple(f"a class of some length, {k}" for k in range(1000))
    noise = rng.integers(0, 256, (10, 28, 28, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    pictures = [Picture(noise[i % 10], "what is said of it\nand more") for i in range(24)]
    looks = [Look(p, [("for this", rng.random((7, 7)))] * 2) for p in pictures[:12]]
    found = scored(1000, 4000)._replace(mistakes=pictures)
    log = [
        {"step": k, "kind": "train", "loss": rng.random(), "lr": 0.1} for k in range(20_000)
    ]
    runs = [
        run(f"r{i}", names, scored=found, trained_on=pictures, looks=looks, metrics=log)
        for i in range(2)
    ]
    text = made(*runs)
    Parsed(text)
    assert len(text.encode()) < 5_000_000
