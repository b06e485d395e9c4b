"""Compares two models on the same examples: McNemar's test and paired differences.

It says whether two trained models differ on this distribution of examples. Whether two
recipes differ takes several seeds of each (`jaxcls study`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcls import console
from jaxcls.console import as_text
from jaxcls.evaluation import figures, intervals, scores
from jaxcls.evaluation.intervals import Interval
from jaxcls.evaluation.predictions import Predictions, probabilities
from jaxcls.learning.metrics import LOSS

# The most examples to print.
LISTED = 10
_LIMIT = "one seed each: whether the recipes differ is not tested; jaxcls study tests that"


class Against(NamedTuple):
    """A model and another one, on the same n examples.

    both, only, only_other, neither: the counts of examples by which model is right. p: of
    McNemar's exact test. differences: figures of the model minus those of the other, with
    paired bootstrap intervals. labels [n]; predicted, other [n]: the class that each
    predicts, or -1.
    """

    both: int
    only: int
    only_other: int
    neither: int
    p: float
    differences: dict[str, Interval]
    labels: np.ndarray
    predicted: np.ndarray
    other: np.ndarray

    @property
    def differing(self) -> np.ndarray:
        """Returns the indices of the examples that the two put in different classes."""
        return np.flatnonzero(self.predicted != self.other)


def mcnemar(only: int, only_other: int) -> float:
    """Returns the two-sided p of McNemar's exact test (McNemar, 1947).

    only, only_other: the examples that one model alone has right. If the models are equally
    accurate, each such example is a fair coin. p is 1 if there are none.
    """
    import scipy.stats  # The import takes a second; training does not need it.

    if not only + only_other:
        return 1.0
    return float(scipy.stats.binomtest(only, only + only_other).pvalue)


def compare(
    one: Predictions,
    columns: Mapping[str, np.ndarray],
    other: Predictions,
    other_columns: Mapping[str, np.ndarray],
    link: str,
) -> Against:
    """Returns the comparison of two models, whose logits `link` turns into probabilities.

    columns, other_columns: the metrics [n] of each example. Raises RuntimeError if the
    labels differ, for then the examples do.
    """
    if not np.array_equal(one.labels, other.labels):
        raise RuntimeError("the two models were scored on examples of different labels")
    predicted = [scores.predicted(each.logits) for each in (one, other)]
    right, other_right = (each == one.labels for each in predicted)
    pairs = (one, predicted[0], columns), (other, predicted[1], other_columns)
    differences = _differences([_means(*each, link) for each in pairs], len(one.labels))
    if one.logits.shape[1] <= figures.AUC_CLASSES:
        areas = [_area(each, link) for each in (one, other)]
        replicates = figures.auc_replicates(one.logits.size)
        differences |= _differences(areas, len(one.labels), replicates)
    only, only_other = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    return Against(
        both=int((right & other_right).sum()),
        only=only,
        only_other=only_other,
        neither=int((~right & ~other_right).sum()),
        p=mcnemar(only, only_other),
        differences=differences,
        labels=one.labels,
        predicted=predicted[0],
        other=predicted[1],
    )


_Figures = Callable[[np.ndarray], dict[str, float]]


def _means(
    found: Predictions, predicted: np.ndarray, columns: Mapping[str, np.ndarray], link: str
) -> _Figures:
    """Returns a function: counts of the examples [n] -> means and figures by class."""
    brier = figures.brier(*found, link)
    names = sorted(columns, key=lambda name: (name == LOSS, name))  # Loss is last.
    every = {**{name: columns[name] for name in names}, "Brier score": brier}
    # The difference of two infinite losses is unknown, too.
    finite = {
        name: np.where(np.isfinite(each), each, math.nan) for name, each in every.items()
    }

    def of(weights: np.ndarray) -> dict[str, float]:
        n = weights.sum()
        means = {name: float(weights @ each / n) for name, each in finite.items()}
        classes = found.logits.shape[1]
        return means | scores.by_class(predicted, found.labels, classes, weights)[1]

    return of


def _area(found: Predictions, link: str) -> _Figures:
    """Returns a function: counts of the examples [n] -> the macro AUC."""
    areas_of = scores.class_auc(probabilities(found.logits, link), found.labels)
    return lambda weights: {"macro AUC": figures.mean_area(areas_of(weights))}


def _differences(
    pair: Sequence[_Figures], n: int, replicates: int = intervals.REPLICATES
) -> dict[str, Interval]:
    """Returns the differences of two models' figures; a replicate draws for both."""
    names = [*pair[0](np.ones(n))]

    def apart(weights: np.ndarray) -> np.ndarray:
        one, other = (figures_of(weights) for figures_of in pair)
        return np.array([one[name] - other[name] for name in names])

    found = intervals.bootstrap(apart, n, replicates=replicates)
    return dict(zip(names, found, strict=True))


def show(
    found: Against,
    name: str,
    class_names: Sequence[str],
    where: Callable[[int], str],
    this: str = "this run",
) -> None:
    """Prints the comparison of `this` with the run `name`.

    where: the location of an example.
    """
    out, n = console.console(), len(found.labels)
    title = f"{this} minus {name}, on the same {n} examples"
    made = console.table(title, "", "difference", "95 % interval")
    for figure, (value, low, high) in found.differences.items():
        ends = f"{as_text(low)} to {as_text(high)}" if math.isfinite(low) else "-"
        made.add_row(figure, as_text(value), ends)
    out.print(made)
    out.print(
        f"right: both {found.both}, only {this} {found.only}, only {name}"
        f" {found.only_other}, neither {found.neither}; McNemar's exact test:"
        f" p = {found.p:.3g}",
        soft_wrap=True,
    )
    differing = found.differing
    if differing.size:
        most = f", {LISTED} of them" if differing.size > LISTED else ""
        title = f"{differing.size} examples in different classes{most}"
        made = console.table(title, "example", "class", "this run", "the other", texts=4)
        for index in differing[:LISTED].tolist():
            made.add_row(where(index), *_classes(found, index, class_names))
        out.print(made)
    out.print(_LIMIT, soft_wrap=True)


def as_json(
    found: Against, name: str, class_names: Sequence[str], where: Callable[[int], str]
) -> dict[str, Any]:
    """Returns the comparison as JSON values, with all examples that differ."""
    counts = "both", "only", "only_other", "neither"
    keys = "label", "predicted", "other"
    return {
        "run": name,
        "n": len(found.labels),
        "right": {count: getattr(found, count) for count in counts},
        "mcnemar_p": found.p,
        "differences": {each: one._asdict() for each, one in found.differences.items()},
        "differing": [
            {"index": index, "where": where(index)}
            | dict(zip(keys, _classes(found, index, class_names), strict=True))
            for index in found.differing.tolist()
        ],
    }


def _classes(found: Against, index: int, names: Sequence[str]) -> list[str]:
    """Returns the names of an example's class and of the two predictions; "" for none."""
    each = found.labels[index], found.predicted[index], found.other[index]
    return [names[k] if k >= 0 else "" for k in each]
