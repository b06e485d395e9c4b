"""Assesses a run for `evaluate`: plans the passes over a split and computes all figures."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcls.errors import InputError
from jaxcls.evaluation import (
    calibration,
    examples,
    figures,
    intervals,
    passes,
    robustness,
    scores,
)
from jaxcls.evaluation.attacks import Attack
from jaxcls.evaluation.examples import Examples
from jaxcls.evaluation.figures import Robustness, ScoreRow
from jaxcls.evaluation.passes import Columns, Keep
from jaxcls.evaluation.predictions import Predictions, mean_logits, probabilities
from jaxcls.evaluation.views import View
from jaxcls.experiment import Experiment
from jaxcls.learning import losses, metrics
from jaxcls.learning.metrics import AVERAGED, LOSS


class Member(NamedTuple):
    """A run of an ensemble. path: its folder, as given. variables: for its predictions."""

    path: str
    exp: Experiment
    variables: dict[str, Any]


class Asked(NamedTuple):
    """The options of an assessment beyond the headline; an option is off if it is empty.

    tta, views: test-time augmentation as text and as functions. seen: the same examples
    through other eval_ops. real: for each example, its correct classes (ReaL). corruptions:
    names. Corruptions and attacks use the images and weights of the headline.
    """

    tta: str = ""
    views: Sequence[View] = ()
    seen: Examples | None = None
    members: Sequence[tuple[Member, Examples]] = ()
    real: Sequence[Sequence[int]] | None = None
    corruptions: Sequence[str] = ()
    attacks: Sequence[Attack] = ()


class Evaluation(NamedTuple):
    """The figures of a run. weights: the headline's weights, "params" or "ema".

    values: metrics for the first line; a prefix ``ema_`` marks those of the average.
    """

    weights: str
    values: dict[str, float]
    found: Predictions
    assessed: figures.Assessment
    rows: list[ScoreRow]
    robustness: Robustness


def evaluated(
    exp: Experiment, weights: dict[str, Any], given: Examples, asked: Asked, size: int
) -> Evaluation:
    """Returns all figures of a run on the examples `given`, with `size` examples a batch.

    Keeps all logits of the headline and of each ensemble member, 4 bytes for each example
    and class: the temperature, the ensemble mean and the predictions file need them.
    """
    sets = {"params": {k: weights[k] for k in ("params", "batch_stats")}}
    if weights["ema"]:
        sets["ema"] = weights["ema"]
    own = "ema" if exp.recipe.variables(weights) is weights["ema"] else "params"
    others, score = [name for name in sets if name != own], _scorer(exp)
    scorers = {own: passes.of_model(exp, sets[own], given.columns)}
    for name in others:
        scorers[name] = passes.of_model(exp, sets[name], given.columns, score)
    if asked.views:
        scorers["tta"] = passes.through_views(
            exp, sets[own], given.columns, asked.views, score
        )
    kept, labels = passes.over_examples(exp, given, scorers, size)
    found = Predictions(kept[own]["logits"], labels)
    kept[own] = _in_pieces(score, found)
    values = {
        ("" if name == "params" else AVERAGED) + metric: scores.mean(kept[name][metric])
        for name in sets
        for metric in (LOSS, *(m.name for m in exp.recipe.metrics))
    }
    fit = _temperature(exp, sets[own], given, found, size)
    assessed = figures.assess(found, exp.recipe.link, kept[own], *fit)
    rows = [figures.row(f"{name}, not {own}", kept[name]) for name in others]
    if asked.views:
        name = f"--tta={asked.tta!r} ({len(asked.views)} views)"
        rows.append(figures.row(name, kept["tta"]))
    if asked.seen:
        scorer = {"": passes.of_model(exp, sets[own], given.columns, score)}
        again, _ = passes.over_examples(exp, asked.seen, scorer, size)
        text = asked.seen.data.config.data.eval_ops
        rows.append(figures.row(f"--eval_ops={text!r}", again[""]))
    if asked.members:
        name = f"--ensemble of {len(asked.members) + 1} runs"
        together = _ensemble(exp, found, asked.members, size)
        rows.append(figures.row(name, _in_pieces(score, together)))
    if asked.real is not None:
        rows.append(_real(found.logits, asked.real))
    robust = robustness.assess(
        exp, sets[own], given, asked.corruptions, asked.attacks, score, size
    )
    if robust.mean:
        values["corrupted_top1"] = robust.mean.top1.value
    return Evaluation(own, values, found, assessed, rows, robust)


def _scorer(exp: Experiment) -> Keep:
    """Returns a function: logits, labels -> loss and metrics of each example, float64 [B].

    The metrics are those of the run, top1, and top5 if there are more than five classes.
    """

    @jax.jit
    def score(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        count = logits.shape[1]
        usual = [metrics.top1(), *([metrics.topk(5)] if count > 5 else [])]
        made = {m.name: m.function(logits, labels) for m in (*usual, *exp.recipe.metrics)}
        return {LOSS: exp.recipe.loss(logits, losses.smooth(labels, count, 0.0)), **made}

    def keep(logits: np.ndarray, labels: np.ndarray) -> Columns:
        columns = score(logits, labels)
        return {name: np.asarray(each, np.float64) for name, each in columns.items()}

    return keep


def _in_pieces(score: Keep, found: Predictions) -> Columns:
    """Returns the columns of `score` for all n examples, computed slice by slice."""
    pieces = scores.in_pieces(len(found.labels))
    parts = [score(*(each[piece] for each in found)) for piece in pieces]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _temperature(
    exp: Experiment,
    variables: dict[str, Any],
    given: Examples,
    found: Predictions,
    size: int,
) -> tuple[float, str]:
    """Returns (temperature, its examples), or (NaN, the reason that there is none)."""
    split = exp.config.data.eval
    if not split:
        return math.nan, "the run has no data.eval to fit one on"
    if given.is_own and given.split == split:
        return _fitted(exp, found, f"these very examples, of data.eval={split}")
    own = examples.of_run(exp, "eval")
    scorer = {"": passes.of_model(exp, variables, own.columns)}
    try:
        kept, labels = passes.over_examples(exp, own, scorer, size)
    except InputError as error:
        return math.nan, f"data.eval={split} cannot be read ({error})"
    on_them = Predictions(kept[""]["logits"], labels)
    return _fitted(exp, on_them, f"the {own.n} examples of data.eval={split}")


def _fitted(exp: Experiment, found: Predictions, text: str) -> tuple[float, str]:
    temperature = calibration.fit_temperature(*found, exp.recipe.link)
    if temperature <= calibration.COLDEST:
        text += ", all of which it has right: the surest is the likeliest there, and no"
        text += " lower one is tried"
    return temperature, text


def _ensemble(
    exp: Experiment,
    found: Predictions,
    members: Sequence[tuple[Member, Examples]],
    size: int,
) -> Predictions:
    """Returns the logits of the mean probabilities of this run and the members."""
    every, links = [found.logits], [exp.recipe.link]
    for member, given in members:
        scorer = {"": passes.of_model(member.exp, member.variables, given.columns)}
        kept, labels = passes.over_examples(member.exp, given, scorer, size)
        if not np.array_equal(labels, found.labels):
            raise InputError(
                f"--ensemble={member.path} has other labels than --workdir for the same"
                " split; give runs of the same data"
            )
        every.append(kept[""]["logits"])
        links.append(member.exp.recipe.link)
    joined = np.empty_like(found.logits)
    for piece in scores.in_pieces(len(joined)):
        likely = [
            probabilities(logits[piece], link)
            for logits, link in zip(every, links, strict=True)
        ]
        joined[piece] = mean_logits(likely, exp.recipe.link)
    return Predictions(joined, found.labels)


def _real(logits: np.ndarray, real: Sequence[Sequence[int]]) -> ScoreRow:
    """Returns the top-1 row, over examples that have a correct class (ReaL)."""
    predicted = scores.predicted(logits)
    hits = [k in right for k, right in zip(predicted.tolist(), real, strict=True) if right]
    return ScoreRow(
        "ReaL", len(hits), intervals.proportion(sum(hits), len(hits)), figures.UNKNOWN
    )
