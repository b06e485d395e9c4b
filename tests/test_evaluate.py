"""Every example counts once: scores against a plain loop in NumPy."""

import math

import numpy as np
import pytest

from jaxcls import batches, experiment
from jaxcls.evaluate import score

SPLIT = "test[:61]"


@pytest.fixture
def build(tiny):
    """``build(devices)`` -> an experiment with an average, and its first state."""

    def make(devices=1, **overrides):
        metrics = {"eval.metrics": "top1 | topk(5)", "mesh.devices": devices}
        exp = experiment.build(tiny(**metrics, **overrides))
        return exp, exp.init()._asdict()

    return make


def by_hand(exp, weights):
    """{metric: mean} of `SPLIT`, one example after the other, in float64."""
    source = exp.dataset.source(SPLIT, "data.test")
    scores = {"loss": [], "top1": [], "top5": []}
    images, labels = [], []
    for png, label in source.read(np.arange(len(source))):
        images.append(batches.transform(exp.eval_ops, png, None))
        labels.append(label)
    normalized = exp.normalize(np.stack(images))
    logits, _ = exp.model.apply(weights, normalized, False, None)
    for row, label in zip(np.asarray(logits, np.float64), labels, strict=True):
        ranked = np.argsort(-row, kind="stable")
        scores["loss"].append(np.log(np.exp(row - row[label]).sum()))
        scores["top1"].append(ranked[0] == label)
        scores["top5"].append(label in ranked[:5])
    return {name: np.mean(values) for name, values in scores.items()}


@pytest.mark.parametrize(
    ("devices", "batch_size"), [(1, 1), (1, 7), (1, 61), (1, 64), (8, 1), (8, 24), (8, 100)]
)
def test_scores_are_those_of_a_plain_loop_for_any_batch_and_devices(
    devices, batch_size, build
):
    exp, weights = build(devices)
    averaged = {k: np.ones_like(v) for k, v in weights["batch_stats"].items() if not k}
    assert not averaged
    n, found = score(exp, weights, SPLIT, "data.test", batch_size)
    assert n == 61
    variables = {k: weights[k] for k in ("params", "batch_stats")}
    expected = by_hand(exp, variables)
    expected |= {f"ema_{name}": value for name, value in expected.items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_the_average_is_scored_with_its_own_weights(build):
    import jax

    exp, weights = build()
    weights["ema"] = jax.tree.map(lambda x: x * 1.5, weights["ema"])
    _, found = score(exp, weights, SPLIT, "data.test")
    expected = by_hand(exp, weights["ema"])
    assert found["ema_loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["loss"] != pytest.approx(expected["loss"], rel=1e-3)


def test_without_an_average_there_are_no_scores_of_one(build):
    exp, weights = build(**{"ema.decay": 0.0})
    _, found = score(exp, weights, "test[:5]", "data.test")
    assert found.keys() == {"loss", "top1", "top5"}


def test_the_mean_is_the_same_bits_for_any_batch_size(build):
    exp, weights = build(**{"ema.decay": 0.0})
    found = [score(exp, weights, SPLIT, "data.test", size)[1]["top1"] for size in (5, 64)]
    assert found[0] == found[1] == math.fsum([found[0] * 61]) / 61


@pytest.mark.parametrize("fault", ["lost", "twice"])
def test_an_example_that_is_not_counted_once_is_an_error(fault, build, monkeypatch):
    exp, weights = build(**{"ema.decay": 0.0})
    given = list(exp.eval_batches("test[:20]", "data.test", 8))
    faulty = given[:-1] if fault == "lost" else [*given, given[0]]
    monkeypatch.setattr(exp, "eval_batches", lambda *_: iter(faulty))
    with pytest.raises(RuntimeError, match="scores for the 20 examples of test"):
        score(exp, weights, "test[:20]", "data.test")
