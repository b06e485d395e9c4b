"""Two models on the same examples: against arithmetic by hand, SciPy and scikit-learn."""

import math

import numpy as np
import pytest
import scipy.stats
from scipy.special import log_softmax
from sklearn import metrics

from jaxcls.evaluation import against
from jaxcls.evaluation.predictions import Predictions


@pytest.mark.parametrize(
    ("only", "other", "p"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (3, 3, 1.0),
        (0, 5, 2 / 2**5),  # Five coins on one side, of either side.
        (5, 0, 2 / 2**5),
        (1, 9, 2 * (1 + 10) / 2**10),
        (2, 8, 2 * (1 + 10 + 45) / 2**10),
        (12, 5, 2 * sum(math.comb(17, k) for k in range(6)) / 2**17),
    ],
)
def test_mcnemars_p_is_counted_in_coins(only, other, p):
    assert against.mcnemar(only, other) == pytest.approx(p, rel=1e-12)


def columns(found):
    logits, labels = found
    loss = -np.take_along_axis(log_softmax(logits.astype(float), 1), labels[:, None], 1)
    return {"top1": (logits.argmax(1) == labels).astype(float), "loss": loss[:, 0]}


def drawn(n=300, apart=0.7):
    """Two models whose logits of three classes share most of their noise."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, n).astype(np.int32)
    shared = rng.normal(size=(n, 3)) + 1.2 * np.eye(3)[labels]
    return [
        Predictions((shared + apart * rng.normal(size=(n, 3))).astype(np.float32), labels)
        for _ in range(2)
    ]


def compared(one, other):
    return against.compare(one, columns(one), other, columns(other), "softmax")


def test_figures_are_the_differences_of_scikit_learns():
    one, other = drawn()
    found = compared(one, other)
    values = []
    for logits, labels in (one, other):
        likely = np.exp(log_softmax(logits.astype(float), 1))
        each = {
            "top1": metrics.accuracy_score(labels, logits.argmax(1)),
            "loss": metrics.log_loss(labels, likely),
            "Brier score": metrics.brier_score_loss(labels, likely, scale_by_half=False),
            "macro AUC": metrics.roc_auc_score(labels, likely, multi_class="ovr"),
        }
        for kind in ("macro", "weighted"):
            scored = metrics.precision_recall_fscore_support(
                labels, logits.argmax(1), average=kind
            )[:3]
            names = "precision", "recall", "F1"
            each |= {f"{kind} {n}": x for n, x in zip(names, scored, strict=True)}
        values.append(each)
    assert found.differences.keys() == values[0].keys()
    for name, (value, low, high) in found.differences.items():
        assert value == pytest.approx(values[0][name] - values[1][name], abs=1e-6), name
        assert low <= value <= high
    right, other_right = (each.logits.argmax(1) == each.labels for each in (one, other))
    (both, only), (only_other, neither) = (
        [int((a & b).sum()) for b in (other_right, ~other_right)] for a in (right, ~right)
    )
    assert found[:4] == (both, only, only_other, neither)
    differing = np.flatnonzero(one.logits.argmax(1) != other.logits.argmax(1))
    assert found.differing.tolist() == differing.tolist()


def test_an_interval_is_of_pairs_so_what_both_share_does_not_widen_it():
    one, other = drawn(apart=0.3)
    interval = compared(one, other).differences["loss"]
    apart = columns(one)["loss"] - columns(other)["loss"]
    expected = scipy.stats.ttest_1samp(apart, 0).confidence_interval()
    width = expected.high - expected.low
    assert interval[1:] == pytest.approx([*expected], abs=0.1 * width)
    alone = scipy.stats.ttest_ind(columns(one)["loss"], columns(other)["loss"])
    unpaired = alone.confidence_interval()
    assert interval.high - interval.low < 0.6 * (unpaired.high - unpaired.low)


def test_a_model_against_itself_differs_in_nothing():
    one, _ = drawn(50)
    found = compared(one, one)
    assert {(0.0, 0.0, 0.0)} == {tuple(each) for each in found.differences.values()}
    assert (found.only, found.only_other, found.p, found.differing.size) == (0, 0, 1.0, 0)


def test_an_infinite_loss_makes_its_difference_unknown_and_no_other():
    one, other = drawn(50)
    worse = columns(one) | {"loss": np.where(np.arange(50) == 7, np.inf, 1.0)}
    found = against.compare(one, worse, other, columns(other), "softmax").differences
    assert np.isnan(found["loss"]).all()
    assert np.isfinite(found["top1"]).all()


def test_examples_of_other_labels_are_no_pairs():
    one, other = drawn(50)
    with pytest.raises(RuntimeError, match="examples of different labels"):
        compared(one, other._replace(labels=2 - other.labels))


@pytest.mark.slow
def test_of_equal_models_mcnemar_calls_few_different_and_intervals_hold_0():
    rng, p, held = np.random.default_rng(4), [], []
    for _ in range(300):
        labels = rng.integers(0, 3, 150).astype(np.int32)
        shared = rng.normal(size=(150, 3)) + 1.2 * np.eye(3)[labels]
        pair = [
            Predictions((shared + rng.normal(size=(150, 3))).astype(np.float32), labels)
            for _ in range(2)
        ]
        only = [each.logits.argmax(1) == labels for each in pair]
        p.append(against.mcnemar(*((a & ~b).sum() for a, b in (only, only[::-1]))))
        if len(held) < 40:
            found = compared(*pair).differences
            held.append([found[name].low <= 0 <= found[name].high for name in found])
    assert np.mean(np.array(p) <= 0.05) <= 0.06
    assert (np.mean(held, axis=0) >= 0.85).all()
