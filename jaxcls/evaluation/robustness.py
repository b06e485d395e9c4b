"""Scores a model on corrupted and attacked images."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxcls.evaluation import corruptions, figures, passes
from jaxcls.evaluation.attacks import Attack
from jaxcls.evaluation.corruptions import Corruption
from jaxcls.evaluation.figures import Attacked, Corrupted, Robustness, ScoreRow
from jaxcls.evaluation.passes import Columns, Keep, Subject


def assess(
    subject: Subject,
    corrupted_by: Mapping[str, Corruption],
    chosen: Sequence[Attack],
    keep: Keep,
) -> Robustness:
    """Returns the figures of the examples under corruptions, by name, and the attacks.

    Makes one pass over the examples for each corruption, and one for all attacks. keep:
    (logits, labels) -> "top1" and "loss" [B].
    """
    corrupted, means, mean = [], list[Columns](), None
    for name, corruption in corrupted_by.items():
        op = corruptions.at_every_strength(name, corruption)
        data = subject.given.data.through(op, corruptions.SEED)
        seen = subject._replace(given=subject.given._replace(data=data))
        scorer = passes.at_strengths(seen, corruptions.STRENGTHS, keep)
        columns = passes.scored(seen, scorer)
        means.append({what: columns[what].mean(1) for what in ("top1", "loss")})
        rows = _rows([f"{name}, {k + 1}" for k in range(corruptions.STRENGTHS)], columns)
        row = figures.row(name, means[-1])
        corrupted.append(Corrupted(name, corruption.kind, rows, row))
    if means:
        of_all = {what: np.mean([each[what] for each in means], 0) for what in means[0]}
        mean = figures.row(f"mean of {len(means)}", of_all)
    if not chosen:
        return Robustness(corrupted, mean, [])
    columns = passes.scored(subject, passes.under_attacks(subject, chosen, keep))
    rows = _rows([each.name for each in chosen], columns)
    attacked = [
        Attacked(each.kind, each.epsilon, row)
        for each, row in zip(chosen, rows, strict=True)
    ]
    return Robustness(corrupted, mean, attacked)


def _rows(names: Sequence[str], columns: Columns) -> list[ScoreRow]:
    """Returns the row of each column [n] of columns [n, names]."""
    return [
        figures.row(name, {what: values[:, k] for what, values in columns.items()})
        for k, name in enumerate(names)
    ]
