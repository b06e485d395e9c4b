"""Every example counts once: scores against scikit-learn's of a plain forward pass."""

import jax
import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics

from jaxcls import experiment
from jaxcls.data import batches
from jaxcls.evaluation.scoring import score_each
from tests.scoring import predictions, score

SPLIT = "test[:61]"


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


def plain(exp, weights):
    """(logits, labels, {metric: mean}) of `SPLIT` in one batch; weights: of one model."""
    records = list(exp.selection.dataset.source(SPLIT, "data.test").read(np.arange(61)))
    images = [batches.transform(exp.data.eval_ops, png, None) for png, _ in records]
    labels = np.array([label for _, label in records])
    variables = {k: weights[k] for k in ("params", "batch_stats")}
    normalized = exp.recipe.normalize(np.stack(images))
    logits = np.asarray(exp.recipe.model.apply(variables, normalized, False, None)[0])
    means = {
        "loss": metrics.log_loss(
            labels, softmax(logits.astype(float), 1), labels=range(10)
        ),
        "top1": metrics.accuracy_score(labels, logits.argmax(1)),
        "top5": metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(10)),
    }
    return logits, labels, means


@pytest.mark.parametrize(
    ("devices", "batch_size"), [(1, 1), (1, 7), (1, 61), (1, 64), (8, 1), (8, 24), (8, 100)]
)
def test_scores_are_those_of_a_plain_pass_for_any_batch_and_devices(
    devices, batch_size, build
):
    exp, weights = build(devices)
    n, found = score(exp, weights, SPLIT, "data.test", batch_size)
    assert n == 61
    _, _, expected = plain(exp, weights)
    expected |= {f"ema_{name}": value for name, value in expected.items()}
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 7), (8, 24)])
def test_logits_and_classes_are_in_the_order_of_the_split(devices, batch_size, build):
    exp, weights = build(devices)
    turned = jax.tree.map(lambda x: -1.5 * x, weights["ema"]["params"])
    weights["ema"] = {**weights["ema"], "params": turned}
    found = score_each(exp, weights, SPLIT, "data.test", batch_size)
    for prefix, variables in (("", weights), ("ema_", weights["ema"])):
        logits, labels, _ = plain(exp, variables)
        given = {k: variables[k] for k in ("params", "batch_stats")}
        ours = predictions(exp, given, SPLIT, batch_size)
        np.testing.assert_allclose(ours.logits, logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(ours.labels, labels)
        np.testing.assert_array_equal(found["label"], labels)
        predicted = found[f"{prefix}predicted"]
        np.testing.assert_array_equal(predicted, logits.argmax(1))
        np.testing.assert_array_equal(found[f"{prefix}top1"], predicted == labels)
    assert (found["predicted"] != found["ema_predicted"]).any()


def test_without_an_average_there_are_no_scores_of_one(build):
    exp, weights = build()
    _, found = score(exp, {**weights, "ema": {}}, "test[:5]", "data.test")
    assert found.keys() == {"loss", "top1", "top5"}


@pytest.mark.parametrize("fault", ["lost", "twice"])
def test_an_example_that_is_not_counted_once_is_an_error(fault, build, monkeypatch):
    exp, weights = build()
    given = list(exp.eval_batches("test[:20]", "data.test", 8))
    faulty = given[:-1] if fault == "lost" else [*given, given[0]]
    monkeypatch.setattr(exp, "eval_batches", lambda *_: iter(faulty))
    with pytest.raises(RuntimeError, match="scores for 20 examples"):
        score(exp, weights, "test[:20]", "data.test")
