"""How often the intervals of `evaluate` hold the truth, on simulated datasets.

The figures of all bootstrap replicates are computed by matrix products, in no code of ours;
the counts and the ends of an interval are those of `intervals`.
"""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn import metrics

from jaxcls.evaluation import figures, intervals
from jaxcls.evaluation.predictions import Predictions

CLASSES, DATASETS = 3, 2000
NAMES = (
    ["loss", "Brier score"]
    + [f"macro {name}" for name in ("precision", "recall", "F1")]
    + [f"weighted {name}" for name in ("precision", "recall", "F1")]
    + ["macro AUC"]
)


def drawn(rng, n, sharp=1.5):
    """Logits of a model, and labels of unequal classes.

    The model is calibrated at sharp=1, and overconfident above.
    """
    logits = 1.5 * rng.normal(size=(n, CLASSES)) + [0.5, 0.0, -0.5]
    likely = softmax(logits, axis=1)
    labels = (rng.random((n, 1)) > likely.cumsum(1)[:, :-1]).sum(1)
    return sharp * logits, labels


def pair_of(rng, n):
    """Logits of two models that share most, and labels."""
    logits, labels = drawn(rng, n)
    return logits, logits + 1.5 * rng.normal(size=logits.shape), labels


def columns(logits, labels):
    """The loss and the Brier score [n, 2] of each example."""
    loss = -np.take_along_axis(log_softmax(logits, 1), labels[:, None], 1)[:, 0]
    brier = ((softmax(logits, 1) - np.eye(CLASSES)[labels]) ** 2).sum(1)
    return np.stack([loss, brier], 1)


def of_cells(cells):
    """Macro and weighted precision, recall, F1 [m, 6] of confusion matrices [m, K, K]."""
    hits = np.einsum("mkk->mk", cells)
    support, taken = cells.sum(2), cells.sum(1)
    with np.errstate(invalid="ignore"):
        each = hits / taken, hits / support, 2 * hits / (taken + support)
    macro = [one.mean(1) for one in each]
    weighted = [(one * support).sum(1) / support.sum(1) for one in each]
    return np.nan_to_num(np.stack([*macro, *weighted], 1))


def of_ranks(likely, labels, counts):
    """The macro AUC [m] by all pairs, with counts [m, n] of the examples."""
    areas = []
    for k in range(CLASSES):
        own, other = likely[labels == k, k], likely[labels != k, k]
        w, v = counts[:, labels == k], counts[:, labels != k]
        won = ((w @ (own[:, None] > other).astype(np.float32)) * v).sum(1)
        areas.append(won / (w.sum(1) * v.sum(1)))
    return np.mean(areas, 0)


def every(logits, labels, counts):
    """The figures [m, 9] of `NAMES`, with counts [m, n] of the examples."""
    cell = np.eye(CLASSES**2)[labels * CLASSES + logits.argmax(1)]
    cells = (counts @ cell).reshape(-1, CLASSES, CLASSES)
    means = counts @ columns(logits, labels) / counts.sum(1, keepdims=True)
    area = of_ranks(softmax(logits, 1), labels, counts)
    return np.concatenate([means, of_cells(cells), area[:, None]], 1)


def truth(logits, labels):
    """The figures of `NAMES`, and top-1, of half a million examples."""
    predicted, likely = logits.argmax(1), softmax(logits, 1)
    found = [*columns(logits, labels).mean(0)]
    for average in ("macro", "weighted"):
        found += metrics.precision_recall_fscore_support(
            labels, predicted, average=average
        )[:3]
    area = metrics.roc_auc_score(labels, likely, multi_class="ovr")
    return np.array([*found, area]), (predicted == labels).mean()


def counts_of(n):
    return np.stack([*intervals.counts(n)]).astype(np.float32)


def test_the_figures_and_intervals_here_are_those_that_evaluate_prints():
    logits, labels = drawn(np.random.default_rng(3), 120)
    given = Predictions(logits.astype(np.float32), labels.astype(np.int32))
    scored = {
        "top1": (logits.argmax(1) == labels).astype(float),
        "loss": columns(logits, labels)[:, 0],
    }
    printed = figures.assess(given, "softmax", scored, 1.0, "").headline
    value = every(logits, labels, np.ones((1, 120)))[0]
    found = intervals.about(value, every(logits, labels, counts_of(120)), (0.0, 9.0))
    for name, interval in zip(NAMES, found, strict=True):
        assert printed[name] == pytest.approx(interval, abs=1e-5), name
    named = {*NAMES, "top1", "ECE"}
    assert printed.keys() == named  # A new figure needs its coverage here.


@pytest.mark.slow
def test_an_interval_of_a_difference_holds_it_in_93_to_97_of_100_datasets():
    n, counts = 100, counts_of(100)
    *both, labels = pair_of(np.random.default_rng(1), 500_000)
    (one, top1), (other, other_top1) = (truth(logits, labels) for logits in both)
    true, held = np.append(one - other, top1 - other_top1), np.zeros(len(NAMES) + 1)

    def apart(logits, labels, counts):
        hits = counts @ (logits.argmax(1) == labels) / counts.sum(1)
        return np.concatenate([every(logits, labels, counts), hits[:, None]], 1)

    for seed in range(DATASETS):
        *both, labels = pair_of(np.random.default_rng([n, seed]), n)
        value, replicates = (
            apart(both[0], labels, each) - apart(both[1], labels, each)
            for each in (np.ones((1, n)), counts)
        )
        found = intervals.about(value[0], replicates, (-9.0, 9.0))
        held += [one.low <= each <= one.high for one, each in zip(found, true, strict=True)]
    covered = dict(zip([*NAMES, "top1"], held / DATASETS, strict=True))
    assert all(0.93 <= share <= 0.97 for share in covered.values()), covered


@pytest.mark.slow
@pytest.mark.parametrize("sharp", [1.0, 1.5])
def test_an_interval_of_95_percent_holds_the_truth_in_93_to_97_of_100_datasets(sharp):
    n = 100
    many = drawn(np.random.default_rng(1), 500_000, sharp)
    (true, top1), counts = truth(*many), counts_of(n)
    held, accurate = np.zeros(len(NAMES)), 0
    for seed in range(DATASETS):
        logits, labels = drawn(np.random.default_rng([n, seed]), n, sharp)
        value = every(logits, labels, np.ones((1, n)))[0]
        found = intervals.about(value, every(logits, labels, counts), (0.0, 9.0))
        held += [one.low <= each <= one.high for one, each in zip(found, true, strict=True)]
        interval = intervals.proportion((logits.argmax(1) == labels).sum(), n)
        accurate += interval.low <= top1 <= interval.high
    covered = dict(zip([*NAMES, "top1"], [*held, accurate], strict=True))
    for count in covered.values():
        assert 0.93 <= count / DATASETS <= 0.97, covered
