"""Every example counts once: scores against a plain loop in NumPy."""

import jax
import numpy as np
import pytest

from jaxcls import experiment
from jaxcls.data import batches
from jaxcls.evaluation.scoring import means, score_each
from tests.scoring import predictions, score

SPLIT = "test[:61]"
TOPS = "top1", "top5"


@pytest.fixture(scope="module")
def built():
    return {}


@pytest.fixture
def build(tiny, built):
    """``build(devices)`` -> an experiment with an average, and its first weights."""

    def make(devices=1):
        if devices not in built:
            metrics = {"eval.metrics": "top1 | topk(5)", "mesh.devices": devices}
            exp = experiment.build(tiny(**metrics))
            built[devices] = exp, exp.init()._asdict()
        exp, weights = built[devices]
        return exp, dict(weights)

    return make


def by_hand(exp, weights):
    """{metric: mean} of `SPLIT`, one example after the other, in float64."""
    source = exp.selection.dataset.source(SPLIT, "data.test")
    scores = {"loss": [], "top1": [], "top5": []}
    images, labels = [], []
    for png, label in source.read(np.arange(len(source))):
        images.append(batches.transform(exp.data.eval_ops, png, None))
        labels.append(label)
    normalized = exp.recipe.normalize(np.stack(images))
    logits, _ = exp.recipe.model.apply(weights, normalized, False, None)
    for row, label in zip(np.asarray(logits, np.float64), labels, strict=True):
        ranked = np.argsort(-row, kind="stable")
        scores["loss"].append(np.log(np.exp(row - row[label]).sum()))
        scores["top1"].append(ranked[0] == label)
        scores["top5"].append(label in ranked[:5])
    return {name: np.mean(values) for name, values in scores.items()}


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 7), (8, 24)])
def test_predictions_are_logits_and_labels_in_the_order_of_the_split(
    devices, batch_size, build
):
    exp, weights = build(devices)
    variables = {k: weights[k] for k in ("params", "batch_stats")}
    found = predictions(exp, variables, SPLIT, "data.test", batch_size)
    records = list(exp.selection.dataset.source(SPLIT, "data.test").read(np.arange(61)))
    np.testing.assert_array_equal(found.labels, [label for _, label in records])
    images = [batches.transform(exp.data.eval_ops, png, None) for png, _ in records]
    expected, _ = exp.recipe.model.apply(
        variables, exp.recipe.normalize(np.stack(images)), False, None
    )
    np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("devices", "batch_size"), [(1, 1), (1, 7), (1, 61), (1, 64), (8, 1), (8, 24), (8, 100)]
)
def test_scores_are_those_of_a_plain_loop_for_any_batch_and_devices(
    devices, batch_size, build
):
    exp, weights = build(devices)
    n, found = score(exp, weights, SPLIT, "data.test", batch_size)
    assert n == 61
    variables = {k: weights[k] for k in ("params", "batch_stats")}
    expected = by_hand(exp, variables)
    expected |= {f"ema_{name}": value for name, value in expected.items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_the_average_is_scored_with_its_own_weights(build):
    exp, weights = build()
    weights["ema"] = jax.tree.map(lambda x: x * 1.5, weights["ema"])
    _, found = score(exp, weights, SPLIT, "data.test")
    expected = by_hand(exp, weights["ema"])
    assert found["ema_loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["loss"] != pytest.approx(expected["loss"], rel=1e-3)


def test_without_an_average_there_are_no_scores_of_one(build):
    exp, weights = build()
    _, found = score(exp, {**weights, "ema": {}}, "test[:5]", "data.test")
    assert found.keys() == {"loss", "top1", "top5"}


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 7), (8, 24)])
def test_the_class_of_every_example_is_told_in_the_order_of_the_split(
    devices, batch_size, build
):
    exp, weights = build(devices)
    opposite = jax.tree.map(lambda x: -x, weights["ema"]["params"])
    weights["ema"] = {**weights["ema"], "params": opposite}
    found = score_each(exp, weights, SPLIT, "data.test", batch_size)
    variables = {k: weights[k] for k in ("params", "batch_stats")}
    for prefix, each in (("", variables), ("ema_", weights["ema"])):
        logits, labels = predictions(exp, each, SPLIT, "data.test", batch_size)
        np.testing.assert_array_equal(found["label"], labels)
        predicted = found[f"{prefix}predicted"]
        np.testing.assert_array_equal(predicted, logits.argmax(-1))
        np.testing.assert_array_equal(found[f"{prefix}top1"], predicted == labels)
    assert (found["predicted"] != found["ema_predicted"]).any()
    n, values = means(found)
    assert n == 61
    assert set(values) == {
        f"{e}{m}" for e in ("", "ema_") for m in ("loss", "top1", "top5")
    }


@pytest.mark.parametrize("fault", ["lost", "twice"])
def test_an_example_that_is_not_counted_once_is_an_error(fault, build, monkeypatch):
    exp, weights = build()
    given = list(exp.eval_batches("test[:20]", "data.test", 8))
    faulty = given[:-1] if fault == "lost" else [*given, given[0]]
    monkeypatch.setattr(exp, "eval_batches", lambda *_: iter(faulty))
    with pytest.raises(RuntimeError, match="scores for 20 examples"):
        score(exp, weights, "test[:20]", "data.test")
