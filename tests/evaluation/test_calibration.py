"""Calibration against loops over bins, and temperatures against other minimisers."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
from scipy.special import expit, softmax
from sklearn.metrics import brier_score_loss, log_loss

from jaxcls.evaluation import calibration, figures

RNG = np.random.default_rng(0)


def drawn(n=2000, num_classes=5, scale=2.0):
    """Logits, and labels that are as likely as their softmax says."""
    logits = RNG.normal(size=(n, num_classes)).astype(np.float32) * scale
    likely = softmax(logits.astype(float), axis=1)
    labels = (RNG.random((n, 1)) > likely.cumsum(1)[:, :-1]).sum(1)
    return logits, labels.astype(np.int32)


@pytest.mark.parametrize("bins", [1, 15])
def test_reliability_and_its_error_are_those_of_a_loop_over_bins(bins):
    logits, labels = drawn(500)
    likely = softmax(3 * logits.astype(float), axis=1)
    confidence, hits = calibration.confidence(3 * logits), likely.argmax(1) == labels
    np.testing.assert_allclose(confidence, likely.max(1), rtol=1e-6)
    found, error = calibration.reliability(confidence, hits, bins), 0.0
    for b in range(bins):
        inside = (b / bins < confidence) & (confidence <= (b + 1) / bins)
        assert found.count[b] == inside.sum()
        if not inside.any():
            assert math.isnan(found.confidence[b])
            assert math.isnan(found.accuracy[b])
            continue
        sure, right = confidence[inside].mean(), hits[inside].mean()
        assert found.confidence[b] == pytest.approx(sure)
        assert found.accuracy[b] == pytest.approx(right)
        error += inside.mean() * abs(sure - right)
    assert calibration.errors(confidence, hits, bins).ece == pytest.approx(error)


@pytest.mark.parametrize("n", [150, 500, 507])
def test_bins_of_equal_counts_are_slices_of_the_sorted_examples(n):
    logits, labels = drawn(n)
    sure = calibration.confidence(3 * logits)
    hits = logits.argmax(1) == labels
    order, error = np.argsort(sure), 0.0
    cuts = [math.ceil(n * k / 15) for k in range(16)]
    for low, high in itertools.pairwise(cuts):
        part = order[low:high]
        error += len(part) / n * abs(hits[part].mean() - sure[part].mean())
    assert calibration.errors(sure, hits).adaptive == pytest.approx(error, abs=1e-12)


def test_equal_confidences_are_in_one_bin_whatever_their_order():
    sure, hits = np.full(100, 0.75), np.arange(100) < 75
    for order in (np.arange(100), np.arange(100)[::-1]):
        assert calibration.errors(sure, hits[order]) == pytest.approx((0, 0, 0))


def test_the_debiased_error_is_that_of_kumar_where_a_bin_has_one_confidence():
    confidence = np.repeat([0.31, 0.55, 0.95], [20, 30, 50])
    hits = np.concatenate([np.arange(20) < 11, np.arange(30) < 20, np.arange(50) < 35])
    squared = 0.0
    for share, sure, n, right in (
        (0.2, 0.31, 20, 11),
        (0.3, 0.55, 30, 20),
        (0.5, 0.95, 50, 35),
    ):
        y = right / n
        squared += share * ((sure - y) ** 2 - y * (1 - y) / (n - 1))
    assert calibration.errors(confidence, hits).debiased == pytest.approx(
        math.sqrt(squared)
    )


def test_the_debiased_error_has_no_bias_and_that_of_a_calibrated_model_is_about_0():
    rng, n = np.random.default_rng(5), 300
    sure = np.concatenate(
        [np.linspace(0.30, 0.33, n // 3), np.linspace(0.7, 0.99, n - n // 3)]
    )
    where = np.ceil(sure * 15).astype(int) - 1
    for off in (0.0, 0.2):
        true = sure - off
        squared = [
            calibration._squared(where, (rng.random(n) < true) - sure) for _ in range(3000)
        ]
        error = np.std(squared) / math.sqrt(3000)
        assert np.mean(squared) == pytest.approx(off**2, abs=4 * error)
        assert error < 0.0005
    calibrated = [calibration.errors(sure, rng.random(n) < sure) for _ in range(200)]
    assert np.median([each.debiased for each in calibrated]) < 0.02
    assert np.mean([each.ece for each in calibrated]) > 0.04  # The bias of chance.


def test_an_edge_belongs_to_the_bin_below_it_and_ends_to_the_last_and_first():
    bins = calibration.bin_of(np.array([0, 0.1, 0.25, 0.2500001, 0.5, 1]), 4)
    assert bins.tolist() == [0, 0, 0, 1, 1, 3]


def test_what_has_no_numbers_is_in_no_bin_and_nothing_has_no_error():
    sure, hits = np.array([0.9, np.nan, 0.8]), np.array([True, False, False])
    assert calibration.reliability(sure, hits, 10).count.sum() == 2
    found = calibration.errors(sure, hits, 10)
    assert found.ece == pytest.approx((0.1 + 0.8) / 2)
    assert math.isnan(found.debiased)  # No bin has two examples.
    for nothing in (sure[1:2], sure[:0]):
        assert np.isnan(calibration.errors(nothing, nothing > 0)).all()


def test_a_brier_score_is_that_of_scikit_learn():
    logits, labels = drawn(300)
    found = figures.brier(logits, labels)
    expected = brier_score_loss(
        labels, softmax(logits.astype(float), 1), labels=range(5), scale_by_half=False
    )
    assert found.mean() == pytest.approx(expected, rel=1e-12)
    right, wrong = np.array([[900.0, 0, 0]]), np.array([[0.0, 900, 0]])
    assert [*figures.brier(np.concatenate([right, wrong]), np.array([0, 0]))] == [0, 2]
    assert figures.brier(np.zeros((1, 2)), np.array([1]), "sigmoid") == 0.5
    assert np.isnan(figures.brier(np.full((1, 2), np.nan), np.array([1]))).all()


def sigmoid_loss(labels, logits):
    own, likely = np.eye(5)[labels], expit(logits)
    return -(own * np.log(likely) + (1 - own) * np.log1p(-likely)).sum(1).mean()


@pytest.mark.parametrize(
    ("link", "factor", "loss"),
    [
        *(("softmax", x, lambda y, z: log_loss(y, softmax(z, 1))) for x in (0.4, 1.0, 5.0)),
        ("sigmoid", 1.0, sigmoid_loss),
    ],
)
def test_the_temperature_is_where_the_log_loss_is_least(link, factor, loss):
    logits, labels = drawn()
    logits *= factor
    found = calibration.fit_temperature(logits, labels, link)
    best = scipy.optimize.minimize_scalar(
        lambda temperature: loss(labels, logits.astype(float) / temperature),
        bounds=(0.05, 50),
        method="bounded",
        options={"xatol": 1e-6},
    )
    assert found == pytest.approx(best.x, rel=1e-3)
    if link == "softmax":
        assert found == pytest.approx(factor, rel=0.1)  # What made them too sure.


def test_where_no_temperature_is_the_best_it_is_at_an_end():
    logits = np.array([[5.0, 0, 0], [0, 3, 0]], np.float32)
    assert calibration.fit_temperature(logits, np.array([0, 1])) == calibration.COLDEST
    assert calibration.fit_temperature(logits, np.array([1, 2])) == calibration.HOTTEST


def test_rows_without_numbers_do_not_change_the_temperature():
    logits, labels = drawn(200)
    worse = np.concatenate([logits, [[np.nan, 0, 0, 0, 0], [np.inf, 0, 0, 0, 0]]])
    labels_too = np.append(labels, [0, 0])
    expected = calibration.fit_temperature(logits, labels)
    assert calibration.fit_temperature(worse.astype(np.float32), labels_too) == expected
    assert math.isnan(calibration.fit_temperature(worse[-2:], labels_too[-2:]))
