"""Metrics against scikit-learn, and ties by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, top_k_accuracy_score

from jaxcls.learning.metrics import METRICS, predicted

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
