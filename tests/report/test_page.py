"""The parts of a report: what is drawn, shown and said, and that it is safe HTML."""

import base64
import functools
import hashlib
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from jaxcls.config.knobs import KNOBS
from jaxcls.evaluation import figures
from jaxcls.evaluation.intervals import Interval
from jaxcls.evaluation.predictions import Predictions
from jaxcls.report import charts, images, page, tables
from jaxcls.report.contents import Cell, Look, Picture, Run, Scored

DEFAULTS = {key: knob.default for key, knob in KNOBS.items()}
NASTY = ("<script>alert(1)</script>", 'a" onload="alert(1)', "&amp; $x^2$ ]]> '")
NO_ROBUSTNESS = figures.Robustness([], None, [])
PACE = {"images_per_s": 100.0, "data_wait": 0.5, "train_s": 2.0, "eval_s": 0.0}


def parsed(text):
    """The elements of a page, which is well-formed XML, too.

    Each id is unique, links lead to ids, and headings skip no level.
    """
    root = ElementTree.fromstring(text)
    ids = [each.get("id") for each in root.iter() if each.get("id")]
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)
    assert {a or b for a, b in used} <= set(ids)
    levels = [int(x.tag[1]) for x in root.iter() if re.fullmatch("h[1-6]", x.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert np.diff(levels).max() <= 1
    return root


def said(element):
    """The text in an element, on one line."""
    return " ".join("".join(element.itertext()).split())


def rows(root, caption):
    """The rows of the one table of that caption, as texts."""
    (found,) = [t for t in root.iter("table") if t.findtext("caption").startswith(caption)]
    return [[said(cell) for cell in row] for row in found.iter("tr")]


def check_safe(root, names):
    """Each of `names` is the text of an element, and none of them became markup."""
    assert len(list(root.iter("script"))) == 1
    assert not [key for x in root.iter() for key in x.attrib if key.startswith("on")]
    assert set(names) <= {x.text for x in root.iter()}


@functools.cache
def scored(classes=3, n=40, seed=0, sure=1.5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n).astype(np.int32)
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), labels] += sure
    columns = {"loss": rng.random(n), "top1": (logits.argmax(-1) == labels).astype(float)}
    found = figures.assess(
        Predictions(logits, labels), "softmax", columns, 1.3, "data.eval"
    )
    pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
    picture = Picture(pixels, "b")
    pairs = np.argwhere(found.matrix - np.diag(np.diag(found.matrix)))[:4].tolist()
    cells = [Cell(a, b, int(found.matrix[a, b]), [picture]) for a, b in pairs]
    return Scored(8, "best", "test", "params", found, [picture], cells, NO_ROBUSTNESS)


def run(name="a", classes=("x", "y", "z"), **changes):
    metrics = [
        {"step": 4, "kind": "train", "loss": 2.0, "lr": 0.1, "top1": 0.25},
        {"step": 4, "kind": "eval", "split": "e", "n": 9, "loss": 1.5, "top1": 0.5},
        {"step": 8, "kind": "train", "loss": 1.0, "lr": 0.05, "top1": 0.5},
        {"step": 8, "kind": "eval", "split": "e", "n": 9, "loss": 1.25, "top1": 0.75},
        {"step": 8, "kind": "final", "split": "t", "n": 9, "loss": 1.2, "top1": 0.7},
    ]
    heat = np.arange(4, dtype=np.float32).reshape(2, 2)
    picture = Picture(np.full((8, 8, 1), 9, np.uint8), classes[0])
    facts = {"name": "d", "version": "1.0.0", "fingerprint": "f00d"}
    start = {"started": "then", "commit": "c0ffee", "devices": ["cpu"], "reason": "done"}
    values = {
        "name": name,
        "saved": {"config": dict(DEFAULTS), "implied": {"steps": 8, "facts": facts}},
        "metrics": metrics,
        "timing": [{"step": 4, **PACE}, {"step": 8, **PACE}],
        "digests": [{"step": 8, "digest": "d1"}],
        "starts": [{**start, "versions": {"jax": "9.9"}}],
        "class_names": tuple(classes),
        "scored": scored(len(classes)),
        "trained_on": [picture],
        "looks": [Look(picture, [(f"for {classes[0]}", heat)])],
        "looked_by": "Grad-CAM",
        **changes,
    }
    return Run(**values)


def made(*runs):
    return page.page(runs, DEFAULTS)


def test_a_page_is_whole_the_same_again_and_asks_for_nothing_from_anywhere():
    text = made(run("a"), run("b"))
    assert made(run("a"), run("b")) == text
    root = parsed(text)
    assert all(image.get("alt") for image in root.iter("img"))
    assert all(svg.get("aria-label") for svg in root.iter("svg"))
    for element in root.iter():
        assert element.tag not in {"link", "iframe", "object", "embed", "base"}
        for key in ("src", "href", "data", "srcset"):
            assert element.get(key, "#").startswith(("#", "data:image/"))
    policy = root.find(".//meta[@http-equiv]").get("content")
    assert policy.startswith("default-src 'none'; img-src data:;")
    script = root.findtext(".//script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_names_are_text_whatever_they_look_like():
    look = Look(Picture(np.zeros((4, 4, 1), np.uint8), NASTY[0]), [(NASTY[1], np.eye(2))])
    mean = run(
        NASTY[0], NASTY, looks=[look], missing={"scores": NASTY[0]},
        starts=[{"command": NASTY[0], "reason": NASTY[1]}],
    )  # fmt: skip
    mean.saved["config"]["augment"] = NASTY[0]
    check_safe(parsed(made(mean, run("b", NASTY))), NASTY)


def test_shares_below_a_percent_are_told_apart():
    timing = [{**PACE, "step": k, "data_wait": k / 1000} for k in range(1, 10)]
    *_, chart = charts.learning([run(metrics=[], timing=timing)])
    ticks = re.findall(r">([\d.]+)%<", chart.content)
    assert len(ticks) > 2
    assert len(set(ticks)) == len(ticks)


def test_curves_have_a_line_for_each_run_in_colours_of_the_page():
    found = charts.learning([run("a"), run("b")])
    assert [chart.title for chart in found] == [
        "Loss", "top1", "Learning rate", "Images a second",
        "Share of training time waiting for data",
    ]  # fmt: skip
    for title, _, _, svg, _ in found:
        assert not re.search("#[0-9a-fA-F]{6}", svg), title
        counts = [len(re.findall(rf"stroke: var\(--run{i}\)", svg)) for i in (1, 2, 3)]
        is_both = title in ("Loss", "top1")  # Of training, dotted, and evaluation.
        assert counts == ([2, 2, 0] if is_both else [1, 1, 0])
        assert svg.count("stroke-dasharray") == 2 * is_both
        assert "currentColor" in svg
        assert "var(--line)" in svg
    assert "1.25 at step 8" in found[0].about


def test_a_line_of_training_is_of_the_means_if_they_are_recorded():
    train = {"step": 8, "kind": "train", "loss": 9.0, "mean_loss": 2.5}
    loss, *others = charts.learning([run(metrics=[train], timing=[])])
    assert loss.title == "Loss"
    assert "2.5 at step 8" in loss.about
    assert not others


def epochs_of(chart):
    """{epoch: its place} on the axis of epochs of a chart; {} without one."""
    found = re.findall(r'<text[^>]*? x="([\d.]+)"[^>]*>([^<]+)</text>', chart.content)
    names = [name for _, name in found]
    ticks = found[: names.index("epoch")] if "epoch" in names else []
    return {float(name): float(x) for x, name in ticks}


def of_epochs(name, steps):
    """A run with losses alone, whose epochs have that many steps, 0 for unknown."""
    kept = ("step", "kind", "loss")
    losses = [{key: record[key] for key in kept} for record in run().metrics]
    made = run(name, metrics=losses, timing=[], scored=None, looks=[])
    made.saved["implied"]["examples"] = {
        "train": steps * made.saved["config"]["batch_size"]
    }
    return made


def test_epochs_stand_beside_steps_where_the_runs_agree_on_them():
    for runs, steps, said in (
        ([of_epochs("a", 2)], 2, ""),
        ([of_epochs("a", 2.5), of_epochs("b", 2.5)], 2.5, ""),
        ([of_epochs("a", 2), of_epochs("b", 2.5)], 0, "Steps of an epoch: a 2, b 2.5."),
        ([of_epochs("a", 2), of_epochs("b", 0)], 0, "Steps of an epoch: a 2."),
        ([of_epochs("a", 0)], 0, ""),
    ):
        (loss,) = charts.learning(runs)
        ticks, (start, wide) = epochs_of(loss), loss.readings["x"]
        assert (len(ticks) > 2) == bool(steps)
        for epoch, place in ticks.items():
            assert place == pytest.approx(start + wide * epoch * steps, abs=0.01)
        assert [line["epoch"] for line in loss.readings["lines"]] == [
            each.epoch for each in runs for _ in range(2)
        ]
        text = made(*runs)
        assert ("Steps of an epoch" in text) == bool(said)
        assert said in text


def test_what_a_chart_reads_is_what_it_draws():
    many = [{"step": k, "kind": "train", "loss": 90 / k} for k in range(1, 60)]
    lost = [{"step": 60, "kind": "train", "loss": None}]
    for metrics, is_log in ((run().metrics, False), (many + lost, True)):
        loss = charts.learning([run("a", metrics=metrics, timing=[])])[0]
        kinds = list(dict.fromkeys(r["kind"] for r in metrics if r["kind"] != "final"))
        found = loss.readings
        assert found["is_log"] == is_log
        assert [line["name"] for line in found["lines"]] == (
            ["a"] if is_log else ["a, training", "a, evaluation"]
        )
        # Matplotlib's own paths, of which the last move starts a line.
        drawn = re.findall(
            r'<path d="(M [^"]+)"[^>]*clip-path[^>]*var\(--run1', loss.content
        )
        for kind, line, path in zip(kinds, found["lines"], drawn, strict=True):
            known = [r for r in metrics if r["kind"] == kind and r["loss"] is not None]
            steps, values = np.array([[r["step"], r["loss"]] for r in known]).T
            np.testing.assert_array_equal([x for x, _ in line["points"]], steps)
            np.testing.assert_allclose([y for _, y in line["points"]], values, rtol=1e-4)
            corners = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path), float)
            x = found["x"][0] + found["x"][1] * steps
            heights = np.log10(values) if is_log else values
            y = found["y"][0] + found["y"][1] * heights
            ends = corners[[0, -1]]  # Points on a straight line between are left out.
            np.testing.assert_allclose(ends, np.stack([x, y], 1)[[0, -1]], atol=0.01)


def test_a_cell_of_the_matrix_leads_to_its_images(undrawn):
    labels = np.array([0] * 9 + [1] * 5 + [2] * 4)
    taken = np.array([0] * 4 + [1] * 3 + [2] * 2 + [1] * 4 + [0] + [2] * 4)
    logits = np.eye(3, dtype=np.float32)[taken] * 9
    found = figures.assess(
        Predictions(logits, labels), "softmax",
        {"loss": np.ones(18), "top1": np.ones(18)}, float("nan"), "nothing",
    )  # fmt: skip
    picture = Picture(np.zeros((4, 4, 1), np.uint8), "0.9, 0.1\nfile 1.png")
    cells = [Cell(0, 1, 3, [picture] * 2), Cell(0, 2, 2, [picture] * 2)]
    text = made(run(scored=scored()._replace(assessed=found, cells=cells)))
    root = parsed(text)
    (matrix,) = [t for t in root.iter("table") if t.get("class") == "heat"]
    body = [[*row][1:] for row in [*matrix.iter("tr")][1:]]
    expected = np.zeros((3, 3), int)
    np.add.at(expected, (labels, taken), 1)
    assert [[int(said(cell) or 0) for cell in row] for row in body] == expected.tolist()
    links = {
        (a, b): link.get("href")
        for a, row in enumerate(body)
        for b, cell in enumerate(row)
        for link in cell.iter("a")
    }
    assert [*links] == [(0, 1), (0, 2)]
    summaries = {
        f"#{each.get('id')}": said(each.find("summary"))
        for each in root.iter("details")
        if each.get("name")
    }
    assert [summaries[link] for link in links.values()] == [
        "x taken for y: 3, 2 shown", "x taken for z: 2",
    ]  # fmt: skip
    assert "Of 3 confused pairs the 2 with the most examples." in text
    assert text.count("file 1.png</figcaption>") == 4


def test_results_stand_before_configs_and_provenance(undrawn):
    other = {**DEFAULTS, "seed": 3}
    text = made(run("a"), run("b", saved={"config": other, "implied": {"steps": 8}}))
    places = [text.index(part) for part in (
        ">Learning curves<", 'id="run1"', ">Confusions<", ">Mistakes by class<",
        'id="run2"', ">Configs<", ">Where a comes from<", ">Where b comes from<",
    )]  # fmt: skip
    assert places == sorted(places)


def test_a_run_says_how_far_it_is(undrawn):
    empty = run(metrics=[], timing=[], digests=[], starts=[], scored=None, looks=[])
    assert "No run has a record yet" in made(empty)
    assert empty.state == "not finished: step 0 of 8"
    for start, how in (({"reason": "diverged"}, "diverged"), ({}, "not finished")):
        half = run(metrics=run().metrics[:2], starts=[start])
        assert half.state == f"{how}: step 4 of 8"
    assert run().state == "done, 8 steps"


def test_values_that_were_not_finite_are_gaps():
    records = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "lr": 1.0}]
    steps, values = charts.points(records, "loss")
    np.testing.assert_array_equal(steps, [1, 2])
    np.testing.assert_array_equal(values, [2.0, np.nan])


def test_many_points_become_means_of_neighbours():
    many = np.arange(2 * charts.MOST_POINTS)
    steps, values = charts.thinned(many + 1, 1.0 * many)
    np.testing.assert_array_equal(steps, many[::2] + 2)
    np.testing.assert_array_equal(values, many[::2] + 0.5)
    np.testing.assert_array_equal(charts.thinned(steps, values)[1], values)


def test_the_confusions_are_the_matrix():
    matrix = np.array([[5, 1, 0], [0, 7, 0], [2, 0, 3]])
    found = tables.heat_map(matrix, ["a", "b", "c"])
    assert [name for name, _ in found] == ["a", "b", "c"]
    counts, depths = np.moveaxis([cells for _, cells in found], -1, 0)
    np.testing.assert_array_equal(counts, matrix)
    right = np.diag(np.diag(matrix))
    expected = matrix / matrix.sum(1, keepdims=True) + 0.15 * (right != matrix)
    np.testing.assert_allclose(depths[counts > 0], expected[counts > 0])
    assert tables.confused(matrix) == 2


def test_of_many_classes_the_most_confused_are_shown():
    names = [f"n{k}" for k in range(1000)]
    matrix = np.eye(1000, dtype=np.int64) * 50
    matrix[700, 3], matrix[3, 999], matrix[12, 14] = 30, 20, 1
    found = dict(tables.heat_map(matrix, names))
    assert [*found] == ["n3", "n12", "n14", "n700", "n999"]
    assert [count for count, _ in found["n700"]] == [30, 0, 0, 50, 0]
    assert tables.in_matrix(matrix) == [3, 12, 14, 700, 999]
    busy = np.random.default_rng(0).integers(0, 9, (1000, 1000))
    busy[5, 6] = 99
    found = dict(tables.heat_map(busy, names))
    assert len(found) == tables.PART
    assert {"n5", "n6"} <= set(found)


def test_no_mistake_is_said(undrawn):
    text = made(run(scored=scored(sure=99)._replace(mistakes=[], cells=[])))
    assert "No example is taken for another class" in text
    assert "There is none" in text
    assert "Choose a cell" not in text


def test_each_class_has_its_figures(undrawn):
    found = figures.assess(
        Predictions(np.eye(3, dtype=np.float32)[[0, 0, 1, 2]] * 4, np.array([0, 1, 1, 2])),
        "softmax", {"loss": np.ones(4), "top1": np.array([1.0, 0, 1, 1])}, float("nan"),
        "nothing",
    )  # fmt: skip
    alone = scored()._replace(assessed=found, cells=[])
    figured = [
        ["x", "1", "0.500", "1.000", "0.667"],
        ["y", "2", "1.000", "0.500", "0.667"],
        ["z", "1", "1.000", "1.000", "1.000"],
    ]
    head, *each = rows(parsed(made(run(scored=alone))), "Each class")
    assert head == ["class", "examples", "precision", "recall", "F1", "AUC"]
    assert [row[:5] for row in each] == figured
    counted = parsed(made(run(scored=alone, class_counts=[70, 0, 5])))
    head, *each = rows(counted, "Each class")
    assert head[:3] == ["class", "in training", "examples"]
    assert [row[1] for row in each] == ["70", "0", "5"]
    assert [row[:1] + row[2:6] for row in each] == figured


def test_a_figure_has_its_interval():
    assert tables.figure(Interval(0.97777, 0.9571, 0.9888)) == "0.978 (0.957 to 0.989)"
    assert tables.figure(Interval(0.5, float("nan"), float("nan"))) == "0.500"
    assert tables.figure(Interval(*[float("nan")] * 3)) == "unknown"


def test_only_keys_that_differ_are_listed(undrawn):
    first, second = dict(DEFAULTS), {**DEFAULTS, "seed": 5, "augment": ""}
    del second["optim.sam"]  # As of an older run.
    assert tables.differing([first, second]) == [
        ["seed", 0, 5],
        ["optim.sam", 0.0, "(not there)"],
    ]
    assert tables.differing([second], DEFAULTS) == [["seed", 5, 0]]
    assert "All configs are the same." in made(run("a"), run("b"))


def test_where_a_run_comes_from_is_told():
    found = dict(tables.provenance(run()))
    assert found["commit"] == "c0ffee"
    assert found["jax"] == "9.9"
    assert found["fingerprint of the data"] == "f00d"
    assert found["digest of the state at step 8"] == "d1"


def test_waiting_for_data_is_hinted_at(undrawn):
    quick = [{**record, "data_wait": 0.01} for record in run().timing]
    text = made(run("a"), run("b", timing=quick))
    assert "a waits for its data 50% of the time" in text
    assert text.count("waits for its data") == 1


def decoded(source):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))


def test_small_images_are_exact_and_large_ones_smaller():
    rng = np.random.default_rng(0)
    for shape in ((8, 9, 3), (48, 30, 1)):
        pixels = rng.integers(0, 256, shape, np.uint8)
        np.testing.assert_array_equal(decoded(images.source(pixels)), pixels.squeeze())
    found = decoded(images.source(np.full((300, 200, 3), 128, np.uint8)))
    assert found.shape == (128, 85, 3)
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
    robust = figures.Robustness(corrupted, figured("mean of 3", 0.69), attacked)
    found = scored()
    clean = found.assessed.headline["top1"].value
    root = parsed(made(run("a", scored=found._replace(robustness=robust)), run("b")))
    labels = [svg.get("aria-label") for svg in root.iter("svg")]
    assert [x for x in labels if x.startswith(("Corruptions: ", "Attacks"))] == [
        f"Corruptions: noise: shot_noise {clean:.3f}, 0.900, 0.800, 0.700, 0.600, 0.500",
        f"Corruptions: light: contrast {clean:.3f}, 0.890, 0.790, 0.690, 0.590, 0.490;"
        f" pixelate {clean:.3f}, 0.880, 0.780, 0.680, 0.580, 0.480",
        f"Attacks: FGSM {clean:.3f}, 0.400, 0.100; PGD {clean:.3f}, 0.400, 0.100",
    ]
    # The other run was not asked.
    assert [said(each) for each in root.iter("h3")].count("Robustness") == 1
    by_strength = ["0.890", "0.790", "0.690", "0.590", "0.490"]
    assert rows(root, "top1 of corrupted images")[-1] == [
        "mean of 3", "0.690 (0.680 to 0.700)", *by_strength,
    ]  # fmt: skip


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
    each = [
        run(f"r{i}", names, scored=found, trained_on=pictures, looks=looks, metrics=log)
        for i in range(2)
    ]
    text = made(*each)
    parsed(text)
    assert len(text.encode()) < 5_000_000


def test_the_cost_of_a_run_is_where_it_comes_from(undrawn):
    start = {"devices": ["TPU v4"] * 2, "seconds": 1800.5, "process_bytes": 2**30}
    root = parsed(made(run(starts=[{**start}, {**start, "seconds": 0.5}, {}])))
    (where,) = (e for e in root.iter("details") if "Where it comes" in said(e))
    assert rows(where, "Cost of every start")[1:] == [
        ["device-seconds, TPU v4", "3,602.0 (1:00:02)"],
        ["peak memory of the process", "1.00 GiB"],
    ]
    assert "1 more left no record" in said(where)
