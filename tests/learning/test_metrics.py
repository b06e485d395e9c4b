"""Metrics against scikit-learn, and ties by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    top_k_accuracy_score,
)

from jaxcls.learning.metrics import METRICS, directions, predicted

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((200, 7)).astype(np.float32)
LABELS = RNG.integers(0, 7, 200).astype(np.int32)


def scores(metric, logits, labels):
    got = metric.function(jnp.asarray(logits), jnp.asarray(labels))
    assert got.dtype == jnp.float32
    return got.tolist()


def test_top1_is_the_accuracy():
    metric = METRICS["top1"]()
    got = scores(metric, LOGITS, LABELS)
    assert got == (LOGITS.argmax(-1) == LABELS).tolist()
    assert np.mean(got) == pytest.approx(accuracy_score(LABELS, LOGITS.argmax(-1)))
    assert (metric.name, metric.higher) == ("top1", True)


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_topk_is_that_of_scikit_learn(k):
    metric = METRICS["topk"](k)
    expected = top_k_accuracy_score(LABELS, LOGITS, k=k, labels=range(7))
    assert np.mean(scores(metric, LOGITS, LABELS)) == pytest.approx(expected)
    assert (metric.name, metric.higher) == (f"top{k}", True)


def test_topk_of_all_classes_or_more_is_always_a_hit():
    assert set(scores(METRICS["topk"](9), LOGITS, LABELS)) == {1.0}


@pytest.mark.parametrize(
    ("name", "k", "hits"),
    [
        ("top1", {}, [1, 0, 0, 0]),
        ("topk", {"k": 2}, [1, 1, 0, 0]),
        ("topk", {"k": 3}, [1, 1, 1, 0]),
    ],
)
def test_the_lower_class_wins_a_tie(name, k, hits):
    logits = np.float32([[2, 2, 2, 1]] * 4)
    assert scores(METRICS[name](**k), logits, np.int32([0, 1, 2, 3])) == hits


@pytest.mark.parametrize("metric", [METRICS["top1"](), METRICS["topk"](2)])
def test_a_logit_that_is_no_number_is_never_a_hit(metric):
    nan = float("nan")
    logits = np.float32([[nan, nan, nan], [nan, 0, 1], [0, 1, nan]])
    assert scores(metric, logits, np.int32([0, 0, 2])) == [0, 0, 0]


def test_the_class_predicted_is_the_largest_the_lowest_of_a_tie_and_none_of_no_number():
    rows = [[0.0, 2.0, 1.0], [3.0, 3.0, 1.0], [0.0, np.nan, 1.0], [0.0, np.inf, 1.0]]
    found = predicted(jnp.array(rows))
    assert found.tolist() == [1, 0, -1, -1]


@pytest.mark.parametrize("rare", [0, 3, 6])
def test_means_over_classes_are_those_of_scikit_learn(rare):
    rng = np.random.default_rng(rare)
    # One class does not occur, one is never predicted, and one is rare.
    labels = rng.choice([k for k in range(9) if k != 5], 300)
    labels[(labels == rare) & (rng.random(300) < 0.9)] = 8
    predicted = np.where(rng.random(300) < 0.5, labels, rng.integers(0, 7, 300))
    predicted[predicted == 2] = 1
    f1, recall = METRICS["macro_f1"](), METRICS["macro_recall"]()
    expected = f1_score(labels, predicted, average="macro", zero_division=0)
    assert f1.function(predicted, labels) == pytest.approx(expected, rel=1e-12)
    here = np.isin(predicted, labels)  # scikit-learn warns of a class that is unknown.
    expected = balanced_accuracy_score(labels[here], predicted[here])
    got = recall.function(predicted[here], labels[here])
    assert got == pytest.approx(expected, rel=1e-12)
    assert directions([f1, recall])["ema_macro_f1"] is True


def test_no_prediction_is_a_miss_of_its_class_and_no_class():
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, -1, 1, 1])
    assert METRICS["macro_recall"]().function(predicted, labels) == 0.75
    assert METRICS["macro_f1"]().function(predicted, labels) == (2 / 3 + 1) / 2
    nothing = np.full(4, -1)
    assert METRICS["macro_f1"]().function(nothing, labels) == 0
    assert METRICS["macro_recall"]().function(nothing, labels) == 0
