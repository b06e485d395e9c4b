"""Calibration against loops over bins, and temperatures against other minimisers."""

import math

import numpy as np
import pytest
import scipy.optimize
from scipy.special import expit, softmax
from sklearn.metrics import log_loss

from jaxcls.evaluation import calibration

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
    ece = calibration.error(confidence, hits, bins)
    assert ece(np.ones(500)) == pytest.approx(error)
    # Where examples count other than once it is that of the examples repeated.
    counts = RNG.integers(0, 3, 500)
    repeated = [np.repeat(each, counts) for each in (confidence, hits)]
    again = calibration.error(*repeated, bins)(np.ones(counts.sum()))
    assert ece(counts.astype(float)) == pytest.approx(again)


def test_an_edge_belongs_to_the_bin_below_it_and_ends_to_the_last_and_first():
    bins = calibration.bin_of(np.array([0, 0.1, 0.25, 0.2500001, 0.5, 1]), 4)
    assert bins.tolist() == [0, 0, 0, 1, 1, 3]


def test_what_has_no_numbers_is_in_no_bin_and_nothing_has_no_error():
    sure, hits = np.array([0.9, np.nan, 0.8]), np.array([True, False, False])
    assert calibration.reliability(sure, hits, 10).count.sum() == 2
    error = calibration.error(sure, hits, 10)
    assert error(np.ones(3)) == pytest.approx((0.1 + 0.8) / 2)
    assert error(np.array([1.0, 5, 0])) == pytest.approx(0.1)
    assert math.isnan(error(np.array([0.0, 1, 0])))


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
