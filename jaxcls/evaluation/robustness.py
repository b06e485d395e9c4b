"""Scores a model on corrupted and attacked images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcls.evaluation import corruptions, figures, passes
from jaxcls.evaluation.attacks import Attack
from jaxcls.evaluation.examples import Examples
from jaxcls.evaluation.figures import Attacked, Corrupted, Robustness
from jaxcls.evaluation.passes import Columns, Keep
from jaxcls.experiment import Experiment


def assess(
    exp: Experiment,
    variables: dict[str, Any],
    given: Examples,
    names: Sequence[str],
    chosen: Sequence[Attack],
    keep: Keep,
    size: int,
) -> Robustness:
    """Returns the figures of the examples under the corruptions `names` and the attacks.

    Makes one pass over the examples for each corruption, and one for all attacks, with
    `size` examples a batch. keep: (logits, labels) -> "top1" and "loss" [B].
    """
    corrupted: list[Corrupted] = []
    total: Columns = {}
    for name in names:
        columns = _through(exp, variables, given, name, keep, size)
        means = {what: columns[what].mean(1) for what in ("top1", "loss")}
        rows = [
            figures.row(f"{name}, {k}", _column(columns, k - 1))
            for k in range(1, corruptions.STRENGTHS + 1)
        ]
        kind = corruptions.CORRUPTIONS[name].kind
        corrupted.append(Corrupted(name, kind, rows, figures.row(name, means)))
        total = {what: total.get(what, 0) + mean for what, mean in means.items()}
    mean = None
    if names:
        of_all = {what: values / len(names) for what, values in total.items()}
        mean = figures.row(f"mean of {len(names)}", of_all)
    attacked = _attacked(exp, variables, given, chosen, keep, size) if chosen else []
    return Robustness(corrupted, mean, attacked)


def _through(
    exp: Experiment,
    variables: dict[str, Any],
    given: Examples,
    name: str,
    keep: Keep,
    size: int,
) -> Columns:
    """Returns the kept columns of a corruption, [n, strengths]."""
    op = corruptions.at_every_strength(name)
    seen = given._replace(data=given.data.through(op, corruptions.SEED))
    scorer = passes.at_strengths(exp, variables, given.columns, corruptions.STRENGTHS, keep)
    return passes.over_examples(exp, seen, {name: scorer}, size)[0][name]


def _attacked(
    exp: Experiment,
    variables: dict[str, Any],
    given: Examples,
    chosen: Sequence[Attack],
    keep: Keep,
    size: int,
) -> list[Attacked]:
    scorer = passes.under_attacks(exp, variables, given.columns, given.places, chosen, keep)
    columns = passes.over_examples(exp, given, {"": scorer}, size)[0][""]
    return [
        Attacked(each.kind, each.epsilon, figures.row(each.name, _column(columns, k)))
        for k, each in enumerate(chosen)
    ]


def _column(columns: Columns, k: int) -> dict[str, np.ndarray]:
    return {what: values[:, k] for what, values in columns.items()}
