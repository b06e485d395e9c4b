"""The command `evaluate`: what it prints and writes, against scikit-learn and by hand."""

import contextlib
import csv
import io
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax, softmax
from sklearn import metrics
from sklearn.datasets import load_digits

from jaxcls import commands, experiment
from jaxcls.errors import InputError
from jaxcls.evaluation import assess, attacks, examples, passes, scoring
from jaxcls.evaluation import table as tables
from jaxcls.training import train
from tests.scoring import predictions, score
from tests.settings import digits


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """The folder of a run of a second, with an average."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    train.run(experiment.build(settings(data_dir)), str(folder))
    return folder


def settings(data_dir, **overrides):
    values = {"length": "30 steps", "ema.decay": 0.8, "eval.every": "15 steps"}
    return digits(data_dir, **values, **overrides)


def said(*arguments):
    """What the command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert commands.main(["evaluate", *map(str, arguments)]) == 0
    return out.getvalue()


def table(file):
    return list(csv.DictReader(io.StringIO(file.read_text())))


@pytest.fixture(scope="module")
def told(run, tmp_path_factory):
    """(what is printed, the JSON, the rows of the CSV) of a run with rows of its own."""
    folder = tmp_path_factory.mktemp("told")
    same = shutil.copytree(run, tmp_path_factory.mktemp("runs") / "same")
    out = said(
        f"--workdir={run}",
        "--config.mesh.devices=1",
        "--tta=flip",
        f"--ensemble={same}",
        "--eval_ops=decode(1) | resize(8)",
        f"--json={folder}/all.json",
        f"--predictions={folder}/all.csv",
    )
    assert sorted(file.name for file in folder.iterdir()) == ["all.csv", "all.json"]
    rows = table(folder / "all.csv")
    return out, json.loads((folder / "all.json").read_text()), rows


@pytest.fixture(scope="module")
def loaded(run):
    """(experiment, params and statistics, the average's, logits, labels) of the run."""
    exp, _, _, weights = scoring.load(str(run), "best", {"mesh.devices": "1"})
    params = {k: weights[k] for k in ("params", "batch_stats")}
    found = predictions(exp, params, "test")
    return exp, params, weights["ema"], *found


def test_the_first_line_is_the_score_of_training(told, run, loaded):
    exp, params, ema, _, _ = loaded
    _, values = score(exp, {**params, "ema": ema}, "test", "data.test")
    pairs = " ".join(f"{name}={value:.4g}" for name, value in values.items())
    record = told[1]
    assert told[0].splitlines()[0] == (
        f"evaluate: step={record['step']} at=best split=test n=360 {pairs} workdir={run}"
    )


def test_the_headline_is_scikit_learns_on_the_predictions_that_are_written(told):
    _, record, rows = told
    labels = np.array([int(row["label"]) for row in rows])
    predicted = np.array([int(row["predicted"]) for row in rows])
    likely = np.array([[float(row[f"p({k})"]) for k in range(10)] for row in rows])
    assert [int(row["index"]) for row in rows] == list(range(360))
    assert rows[7]["where"].startswith("record 7 of split 'test'")
    np.testing.assert_array_equal(predicted, likely.argmax(1))
    expected = {
        "top1": metrics.accuracy_score(labels, predicted),
        "top5": metrics.top_k_accuracy_score(labels, likely, k=5),
        "loss": metrics.log_loss(labels, likely / likely.sum(1, keepdims=True)),
        "Brier score": ((likely - np.eye(10)[labels]) ** 2).sum(1).mean(),
        "macro AUC": metrics.roc_auc_score(
            labels, likely / likely.sum(1, keepdims=True), multi_class="ovr"
        ),
    }
    for kind in ("macro", "weighted"):
        found = metrics.precision_recall_fscore_support(
            labels, predicted, average=kind, zero_division=0
        )
        names = "precision", "recall", "F1"
        expected |= {f"{kind} {n}": x for n, x in zip(names, found[:3], strict=True)}
    headline = record["headline"]
    assert headline.keys() == {*expected, "ECE"}
    for name, value in expected.items():
        assert headline[name]["value"] == pytest.approx(value, rel=1e-4), name
        assert headline[name]["low"] <= value <= headline[name]["high"], name
    cells = np.zeros((10, 10), int)
    for truth, taken_for, count in record["confusion"]:
        cells[truth, taken_for] = count
    np.testing.assert_array_equal(cells, metrics.confusion_matrix(labels, predicted))
    supports = [each["support"] for each in record["classes"]]
    assert supports == np.bincount(labels).tolist()


def test_the_tables_say_what_the_json_says(told):
    out, record, _ = told
    ece = record["headline"].pop("ECE")  # Its bias is larger than an interval would be.
    assert (ece["low"], ece["high"]) == (None, None)
    assert ece["value"] == record["calibration"]["ece"]
    (line,) = [x for x in out.splitlines() if x.strip().startswith("ECE ")]
    assert line.split() == ["ECE", f"{ece['value']:.4f}", "-"]
    for name, each in record["headline"].items():
        (line,) = [x for x in out.splitlines() if x.strip().startswith(f"{name} ")]
        assert line.split()[len(name.split()) :] == [
            f"{each['value']:.4f}", f"{each['low']:.4f}", "to", f"{each['high']:.4f}"
        ]  # fmt: skip
    wrong = [cell for cell in record["confusion"] if cell[0] != cell[1]]
    truth, taken_for, count = max(wrong, key=lambda cell: cell[2])
    after = out[out.index("most confused") :].splitlines()
    assert any(
        line.split()[:3] == [f"{truth}", f"{taken_for}", f"{count}"] for line in after
    )
    assert "\x1b" not in out
    fitted = record["calibration"]
    assert fitted["fitted_on"] == "the 144 examples of data.eval=train[90%:]"
    assert f"temperature {fitted['temperature']:.4g}: ECE " in out
    assert "; fitted on the 144 examples of" in out
    said = f"debiased (l2) {fitted['with_temperature']['debiased']:.4f}; fitted on"
    assert said in out


def test_rows_of_their_own_are_what_they_say(told, loaded):
    _, record, _ = told
    exp, params, ema, logits, labels = loaded
    batches = exp.data.eval_batches("test", "data.test", 360)
    images = np.concatenate([np.asarray(each.image) for each in batches])

    def apply(variables, images):
        return np.asarray(
            exp.recipe.model.apply(variables, exp.recipe.normalize(images), False, None)[0]
        )

    mirrored = apply(params, images[:, :, ::-1])
    both = (softmax(logits.astype(float), 1) + softmax(mirrored.astype(float), 1)) / 2
    expected = {
        "ema, not params": log_softmax(apply(ema, images).astype(float), 1),
        "--tta='flip' (2 views)": np.log(both),
        "--eval_ops='decode(1) | resize(8)'": log_softmax(logits.astype(float), 1),
        "--ensemble of 2 runs": log_softmax(logits.astype(float), 1),
    }
    assert [row["name"] for row in record["rows"]] == list(expected)
    for row in record["rows"]:
        likely = expected[row["name"]]
        assert row["n"] == 360
        hits = (likely.argmax(1) == labels).mean()
        assert row["top1"]["value"] == pytest.approx(hits, abs=1e-9), row["name"]
        loss = -likely[np.arange(360), labels].mean()
        assert row["loss"]["value"] == pytest.approx(loss, rel=1e-4), row["name"]
        assert row["loss"]["low"] < loss < row["loss"]["high"]


def test_of_an_answer_only_what_is_asked_for_is_kept(loaded):
    exp, params, _, logits, labels = loaded
    turned = 9 - np.arange(10)
    given = examples.of_run(exp, "test")._replace(columns=turned, places=turned)
    subject = passes.Subject(exp, params, given, 49)  # The last batch is padded.

    def keep(logits, labels):
        return {"best": logits.argmax(1), "place": labels}

    scorer = {"model": passes.of_model(subject, keep)}
    kept, found = passes.over_examples(subject, scorer)
    assert kept.keys() == {"model"}
    assert kept["model"].keys() == {"best", "place"}
    np.testing.assert_array_equal(kept["model"]["best"], 9 - logits.argmax(1))
    np.testing.assert_array_equal(kept["model"]["place"], 9 - labels)
    np.testing.assert_array_equal(found, 9 - labels)


def test_an_attack_is_against_the_label_wherever_its_column_is(loaded):
    exp, params, _, _, _ = loaded
    turned, given = 9 - np.arange(10), examples.of_run(exp, "test")

    def hits(given):
        subject = passes.Subject(exp, params, given, 60)
        chosen = attacks.named("fgsm(8)", "--attacks")
        scorer = passes.under_attacks(
            subject, chosen, lambda x, y: {"hit": x.argmax(1) == y}
        )
        return passes.scored(subject, scorer)["hit"]

    found = hits(given)
    assert 0 < found.mean() < 0.9
    np.testing.assert_array_equal(
        hits(given._replace(columns=turned, places=turned)), found
    )


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A folder of two datasets: 30 digits of 3 and 8 only, and 40 of all classes.

    The latter are named as ImageNet's validation files are.
    """
    folder, root = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("prepared")
    digits = load_digits()
    of = digits.target
    numbers = {
        "odd": np.flatnonzero(np.isin(of, (3, 8)))[:30],
        "named": np.concatenate([np.flatnonzero(of == k)[:4] for k in range(10)]),
        "strange": np.flatnonzero(of < 2)[:8],
    }
    for name, rows in numbers.items():
        for place, row in enumerate(rows, 1):
            label = "nought" if name == "strange" and not of[row] else f"{of[row]}"
            for split in ("test", "train"):
                file = folder / name / split / label / f"ILSVRC2012_val_{place:08}.JPEG"
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = (digits.images[row] * 15.9375).astype(np.uint8)
                Image.fromarray(pixels).save(file, "PNG")
        given = f"--source={folder / name}", f"--name={name}", f"--data_dir={root}"
        assert commands.main(["prepare", *given]) == 0
    return root


def asked_all(exp, variables, given):
    """The logits of all ten classes, and the labels as the other dataset numbers them."""
    every = given._replace(columns=np.arange(10), places=np.arange(10))
    return passes.predictions(passes.Subject(exp, variables, every, given.n))


@pytest.mark.slow
def test_another_dataset_is_scored_among_the_classes_that_it_has(
    run, loaded, others, tmp_path
):
    exp, params, _, _, _ = loaded
    file = tmp_path / "other.json"
    out = said(
        f"--workdir={run}", "--dataset=odd", f"--data_dir={others}", f"--json={file}",
        f"--predictions={tmp_path}/top.csv", "--top=1", "--config.mesh.devices=1",
        "--attacks=fgsm(8)",
    )  # fmt: skip
    assert " dataset=odd classes=2/10 split=test n=30 loss=" in out.splitlines()[0]
    given = examples.of_dataset(exp, "odd", str(others), "test")
    logits, labels = asked_all(exp, params, given)
    likely = log_softmax(logits[:, [3, 8]].astype(float), 1)
    record = json.loads(file.read_text())
    assert [each["name"] for each in record["classes"]] == ["3", "8"]
    hits = likely.argmax(1) == labels
    assert record["headline"]["top1"]["value"] == pytest.approx(hits.mean())
    loss = -likely[np.arange(30), labels].mean()
    assert record["headline"]["loss"]["value"] == pytest.approx(loss, rel=1e-5)
    rows, (attack,) = table(tmp_path / "top.csv"), record["attacks"]
    assert attack["loss"]["value"] > loss
    assert [row["class_1"] for row in rows] == ["38"[k] for k in likely.argmax(1)]
    assert [row["label"] for row in rows] == ["38"[k] for k in labels]


def test_real_labels_are_found_by_file_and_any_of_them_is_right(loaded, others, tmp_path):
    exp, params, _, _, _ = loaded
    given = examples.of_dataset(exp, "named", str(others), "test")
    logits, labels = asked_all(exp, params, given)
    predicted = logits.argmax(1)
    # In the order of the files: none of the first ten, then the class and its neighbour.
    listed = [[] if k < 10 else [k // 4, (k // 4 + 1) % 10] for k in range(40)]
    listed[39] = [0]
    file = tmp_path / "real.json"
    file.write_text(json.dumps(listed))
    real = examples.real_labels(str(file), given)
    weights = {**params, "ema": {}}
    done = assess.evaluated(exp, weights, given, assess.Asked(real=real), 16)
    (row,) = done.rows
    names = given.data.selection.records("test", "--split").names(np.arange(40))
    place = [int(name[-13:-5]) - 1 for name in names]
    hits = [p in listed[i] for p, i in zip(predicted, place, strict=True) if listed[i]]
    assert (row.name, row.n) == ("ReaL", 30)
    assert row.top1.value == pytest.approx(np.mean(hits))
    np.testing.assert_array_equal(labels, np.array(place) // 4)
    # A dataset without such names, and a file of other labels.
    with pytest.raises(InputError, match=r"record 0 of .* has .*, and must have that of"):
        examples.real_labels(str(file), examples.of_run(exp, "test"))
    file.write_text("[[11]]")
    with pytest.raises(InputError, match=r"class numbers, 0 to 9, one for each ILSVRC"):
        examples.real_labels(str(file), given)
    file.write_text("[[1]]")
    with pytest.raises(InputError, match=r"one of 1 files such as ILSVRC2012_val_0000"):
        examples.real_labels(str(file), given)


def test_logits_that_are_no_numbers_are_said_and_count_as_wrong(loaded, capsys):
    exp, params, *_ = loaded
    broken = jax.tree.map(lambda x: x * np.nan, params)
    given = examples.of_run(exp, "test")
    done = assess.evaluated(exp, {**broken, "ema": {}}, given, assess.Asked(), 64)
    assert done.assessed.non_finite == 360
    assert done.assessed.headline["top1"].value == 0
    assert done.assessed.headline["macro F1"].value == 0
    names = list("0123456789")
    whole = tables.as_json(done, names, {})
    json.dumps(whole, allow_nan=False)
    assert whole["non_finite"] == 360
    assert whole["headline"]["loss"] == {"value": None, "low": None, "high": None}
    tables.show(done, names, about="", every_class=False)
    assert "360 of 360 examples have non-finite logits" in capsys.readouterr().out


def test_a_dataset_of_unknown_classes_is_refused_by_name(loaded, others):
    with pytest.raises(InputError, match=r"--dataset=strange: 1 of its classes are not .*"
                                         r"'nought'"):  # fmt: skip
        examples.of_dataset(loaded[0], "strange", str(others), "test")


def test_an_ensemble_is_of_the_same_classes_and_split(loaded, data_dir):
    exp = loaded[0]
    given = examples.of_run(exp, "test")
    fewer = experiment.build(settings(data_dir, **{"data.classes": "1, 3, 5"}))
    with pytest.raises(InputError, match=r"--ensemble=b tells other classes apart \(3 of"):
        examples.same_for(exp, given, fewer, "--ensemble=b")
    elsewhere = experiment.build(settings(data_dir, **{"data.test": "test[:50%]"}))
    with pytest.raises(
        InputError, match=r"--ensemble=b has digits 'test\[:50%\]' where the f"
    ):
        examples.same_for(exp, given, elsewhere, "--ensemble=b")
    both = examples.of_run(exp, "test[:9]")
    assert examples.same_for(exp, both, elsewhere, "--ensemble=b").n == 9


@pytest.fixture(scope="module")
def wider(data_dir, tmp_path_factory):
    """The folder of another run of the same data, with another seed and rate."""
    folder = tmp_path_factory.mktemp("runs") / "wider"
    changed = settings(data_dir, **{"seed": 1, "optim.lr": 0.0005})
    train.run(experiment.build(changed), str(folder))
    return folder


def test_a_study_compares_two_single_runs_as_evaluate_does(run, wider):
    evaluated = said(f"--workdir={wider}", f"--against={run}")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert commands.main(["study", "--compare", str(run), str(wider)]) == 0
    compared = out.getvalue().replace(str(wider), "this run")
    assert "cannot be compared: no seed in common" in compared
    by_example = evaluated[evaluated.index("right: both") :]
    assert by_example.count("\n") > 10
    assert compared.endswith(by_example)


@pytest.mark.slow
def test_two_runs_are_compared_example_by_example(run, wider, tmp_path):
    rows = {}
    for name, folder in (("one", run), ("other", wider)):
        file = tmp_path / f"{name}.csv"
        said(f"--workdir={folder}", "--config.mesh.devices=1", f"--predictions={file}")
        rows[name] = table(file)
    out = said(
        f"--workdir={run}", f"--against={wider}", f"--json={tmp_path / 'all.json'}",
        "--config.mesh.devices=1",
    )  # fmt: skip
    found = json.loads((tmp_path / "all.json").read_text())["against"]
    one, other = ([row["predicted"] for row in rows[name]] for name in ("one", "other"))
    labels = [row["label"] for row in rows["one"]]
    pairs = [(a == y, b == y) for a, b, y in zip(one, other, labels, strict=True)]
    counts = {
        "both": pairs.count((True, True)),
        "only": pairs.count((True, False)),
        "only_other": pairs.count((False, True)),
        "neither": pairs.count((False, False)),
    }
    assert (found["run"], found["n"], found["right"]) == (str(wider), 360, counts)
    assert counts["only"] + counts["only_other"] > 10
    top1 = found["differences"]["top1"]
    assert top1["value"] == pytest.approx((counts["only"] - counts["only_other"]) / 360)
    assert top1["low"] <= top1["value"] <= top1["high"]
    expected = [
        {
            "index": i,
            "where": rows["one"][i]["where"],
            "label": y,
            "predicted": a,
            "other": b,
        }
        for i, (a, b, y) in enumerate(zip(one, other, labels, strict=True))
        if a != b
    ]
    assert found["differing"] == expected
    assert len(expected) > 10
    assert f"{len(expected)} examples in different classes, 10 of them" in out
    assert out.count(" of split 'test'") == 10
    assert (
        f"right: both {counts['both']}, only this run {counts['only']}, only {wider}"
        f" {counts['only_other']}, neither {counts['neither']}; McNemar's exact test: p ="
    ) in out
    assert out.splitlines()[-1].startswith("one seed each: whether the recipes differ")


def test_a_run_is_not_compared_with_itself_or_on_other_data(run):
    with pytest.raises(InputError, match=r"--against=.*first/ is --workdir, too; give the"):
        said(f"--workdir={run}", f"--against={run}/")
    with pytest.raises(InputError, match=r"--against=.*/none: "):
        said(f"--workdir={run}", f"--against={run}/none")
    exp = scoring.load(str(run), "best", {})[0]
    exp, elsewhere = (
        experiment.build(exp.config, exp.selection.facts._replace(fingerprint=digit * 64))
        for digit in "01"
    )
    with pytest.raises(
        InputError, match=r"--against=b was trained on another digits \(its"
    ):
        examples.same_for(exp, examples.of_run(exp, "test"), elsewhere, "--against=b")


def test_without_an_evaluation_split_there_is_no_temperature(loaded, data_dir):
    _, params, _, _, _ = loaded
    alone = experiment.build(settings(data_dir, **{"data.eval": "", "best.metric": "loss"}))
    done = assess.evaluated(
        alone, {**params, "ema": {}}, examples.of_run(alone, "test"), assess.Asked(), 64
    )
    assert done.assessed.calibration.fitted_on == "the run has no data.eval to fit one on"
    assert np.isnan(done.assessed.calibration.after.ece)


class Closed(io.StringIO):
    """A pipe whose reader is gone."""

    def write(self, text):
        raise BrokenPipeError


def test_files_are_written_before_a_broken_pipe_ends_the_print(run, tmp_path):
    files = tmp_path / "all.json", tmp_path / "all.csv"
    arguments = [f"--workdir={run}", f"--json={files[0]}", f"--predictions={files[1]}"]
    with contextlib.redirect_stdout(Closed()), pytest.raises(BrokenPipeError):
        commands.main(["evaluate", *arguments])
    assert json.loads(files[0].read_text())["n"] == len(table(files[1])) == 360


def test_without_a_test_split_the_evaluation_split_is_scored_and_said(
    run, data_dir, tmp_path, capsys
):
    folder = shutil.copytree(run, tmp_path / "run")
    given = f"--workdir={folder}"

    def now_without(*keys):
        saved = json.loads((run / "config.json").read_text())
        saved["config"] |= dict.fromkeys(keys, "")
        (folder / "config.json").write_text(json.dumps(saved))
        (folder / "manifest.json").unlink(missing_ok=True)  # It has a seal of the other.

    now_without("data.test")
    assert " split=train[90%:] n=144 " in said(given).splitlines()[0]
    assert capsys.readouterr().err == (
        "the run has no data.test; these are scores of data.eval=train[90%:]\n"
    )
    with pytest.raises(InputError, match=r"^--split=test: the run has no data\.test; try"):
        commands.main(["evaluate", given, "--split=test"])
    now_without("data.test", "data.eval")
    with pytest.raises(InputError, match=r"no data\.test; try --split=train"):
        commands.main(["evaluate", given])


@pytest.mark.slow
def test_means_over_classes_choose_the_best_step_and_are_scored_again(data_dir, tmp_path):
    texts = {
        "eval.metrics": "macro_f1 | top1 | macro_recall",
        "best.metric": "ema_macro_f1",
    }
    exp = experiment.build(settings(data_dir, **texts))
    done = train.run(exp, str(tmp_path / "run"))
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    best = max(
        (each["ema_macro_f1"], -each["step"]) for each in records if each["kind"] == "eval"
    )
    assert done.record["best_step"] == -best[1]
    assert not any("macro_f1" in each for each in records if each["kind"] == "train")
    file = tmp_path / "all.csv"
    given = f"--workdir={tmp_path}/run", f"--predictions={file}", "--config.mesh.devices=1"
    shown = said(*given).splitlines()[0].split()
    names = "macro_f1", "macro_recall", "ema_macro_f1", "ema_macro_recall"
    for name in names:
        assert f"{name}={done.record[name]:.4g}" in shown
    labels, predicted = (
        [int(each[name]) for each in table(file)] for name in ("label", "predicted")
    )
    f1 = metrics.f1_score(labels, predicted, average="macro", zero_division=0)
    assert done.record["ema_macro_f1"] == pytest.approx(f1, rel=1e-12)


@pytest.mark.parametrize("metric", ["f1", "macro_f1", "ema_macro_recall"])
def test_a_best_metric_that_is_not_evaluated_is_refused_with_those_that_can_be(
    metric, data_dir
):
    says = (
        rf"best\.metric='{metric}' is not evaluated; .* macro_f1, macro_recall, top1, topk"
    )
    with pytest.raises(InputError, match=says):
        _ = experiment.build(
            settings(data_dir, **{"best.metric": metric})
        ).recipe.higher_is_better
    values = {"best.metric": "macro_f1", "eval.metrics": "macro_f1"}
    exp = experiment.build(settings(data_dir, **values))
    assert exp.recipe.higher_is_better


def test_a_config_that_was_changed_answers_nothing(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    file = folder / "config.json"
    text = file.read_text()
    for old, new in (('"normalize": "', '"normalize": " '), ('"seed": 0', '"seed": 1')):
        assert old in text
        file.write_text(text.replace(old, new))
        with pytest.raises(
            InputError, match=r"config\.json is not as the run's last start"
        ):
            commands.main(["evaluate", f"--workdir={folder}"])
    file.write_text(text)
    assert commands.main(["evaluate", f"--workdir={folder}"]) == 0
    # An earlier version sealed nothing, and a folder may come without its manifest.
    file.write_text(text.replace('"seed": 0', '"seed": 1'))
    (folder / "manifest.json").unlink()
    assert commands.main(["evaluate", f"--workdir={folder}"]) == 0
