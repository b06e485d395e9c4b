"""What `evaluate` says of a run besides its first line, and the passes that it takes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcls import (
    answers,
    assessment,
    calibration,
    examples,
    intervals,
    losses,
    mesh,
    scores,
)
from jaxcls.answers import Answer
from jaxcls.assessment import Row
from jaxcls.errors import InputError
from jaxcls.examples import Examples
from jaxcls.experiment import Experiment
from jaxcls.predictions import Predictions, mean_logits, probabilities
from jaxcls.views import View


class Member(NamedTuple):
    """A run of an ensemble: its folder as given, and what it predicts with."""

    path: str
    exp: Experiment
    variables: dict[str, Any]


class Asked(NamedTuple):
    """What is asked for besides the headline; empty where it is not.

    tta, views: as text and as built. seen: through which ops the same examples are seen
    again. real: for each example the classes that it may be called.
    """

    tta: str = ""
    views: Sequence[View] = ()
    seen: Examples | None = None
    members: Sequence[tuple[Member, Examples]] = ()
    real: Sequence[Sequence[int]] | None = None


class Evaluation(NamedTuple):
    """weights: whose headline it is, "params" or "ema". values: for the first line."""

    weights: str
    values: dict[str, float]
    found: Predictions
    assessed: assessment.Assessment
    rows: list[Row]
    fitted_on: str


def evaluated(
    exp: Experiment, weights: dict[str, Any], given: Examples, asked: Asked, size: int
) -> Evaluation:
    """Everything that is said of a run on the examples `given`, at `size` a batch."""
    sets = {"params": {k: weights[k] for k in ("params", "batch_stats")}}
    if weights["ema"]:
        sets["ema"] = weights["ema"]
    own = "ema" if exp.variables(weights) is weights["ema"] else "params"
    wanted = {
        name: answers.of_model(exp, variables, given.columns)
        for name, variables in sets.items()
    }
    if asked.views:
        each = exp, sets[own], given.columns, asked.views
        wanted["tta"] = answers.through_views(*each)
    logits, labels = _gathered(exp, given, wanted, size)
    by_set = {name: _columns(exp, Predictions(logits[name], labels)) for name in sets}
    values = {
        ("" if name == "params" else f"{name}_") + metric: scores.mean(column)
        for name, columns in by_set.items()
        for metric, column in columns.items()
    }
    found = Predictions(logits[own], labels)
    temperature, fitted_on = _temperature(exp, sets[own], given, found, size)
    assessed = assessment.assess(found, exp.link, by_set[own], temperature)
    rows = [
        _row(exp, f"{other}, not {own}", Predictions(logits[other], labels))
        for other in sets.keys() - {own}
    ]
    if asked.views:
        name = f"--tta={asked.tta!r} ({len(asked.views)} views)"
        rows.append(_row(exp, name, Predictions(logits["tta"], labels)))
    if asked.seen:
        answer = {"": answers.of_model(exp, sets[own], given.columns)}
        again, _ = _gathered(exp, asked.seen, answer, size)
        text = asked.seen.data.config.data.eval_ops
        rows.append(_row(exp, f"--eval_ops={text!r}", Predictions(again[""], labels)))
    if asked.members:
        together = _ensemble(exp, found, asked.members, size)
        rows.append(_row(exp, f"--ensemble of {len(asked.members) + 1} runs", together))
    if asked.real is not None:
        rows.append(_real(found.logits, asked.real))
    return Evaluation(own, values, found, assessed, rows, fitted_on)


def _gathered(
    exp: Experiment, given: Examples, wanted: Mapping[str, Answer], size: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The logits by name, and the labels as places among the classes asked about."""
    batches = given.data.eval_batches(given.split, given.key, mesh.round_up(size, exp.mesh))
    logits, labels = answers.gathered(given.n, batches, wanted, exp.mesh)
    return logits, given.labels[labels].astype(np.int32)


def _columns(exp: Experiment, found: Predictions) -> dict[str, np.ndarray]:
    """The value [n] of each example by the loss and every metric of a run."""

    @jax.jit
    def score(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        targets = losses.smooth(labels, logits.shape[1], 0.0)
        metrics = {m.name: m.function(logits, labels) for m in exp.metrics}
        return {"loss": exp.loss(logits, targets), **metrics}

    parts = [
        {name: np.asarray(x) for name, x in score(*(each[piece] for each in found)).items()}
        for piece in scores.in_pieces(len(found.labels))
    ]
    return {
        name: np.concatenate([part[name] for part in parts]).astype(np.float64)
        for name in ("loss", *(m.name for m in exp.metrics))
    }


def _row(exp: Experiment, name: str, found: Predictions) -> Row:
    hits = scores.top_hits(found.logits, found.labels, 1)
    return assessment.row(name, {"top1": hits, "loss": _columns(exp, found)["loss"]})


def _temperature(
    exp: Experiment,
    variables: dict[str, Any],
    given: Examples,
    found: Predictions,
    size: int,
) -> tuple[float, str]:
    """(the temperature, what it was fitted on), or (NaN, why there is none)."""
    split = exp.config.data.eval
    if not split:
        return math.nan, "the run has no data.eval to fit one on"
    if given.is_own and given.split == split:
        return _fitted(exp, found, f"these very examples, of data.eval={split}")
    own = examples.of_run(exp, "eval")
    try:
        own.data.records(split, "data.eval")
    except InputError as error:
        return math.nan, f"data.eval={split} cannot be read ({error})"
    answer = {"": answers.of_model(exp, variables, own.columns)}
    logits, labels = _gathered(exp, own, answer, size)
    on_them = Predictions(logits[""], labels)
    return _fitted(exp, on_them, f"the {own.n} examples of data.eval={split}")


def _fitted(exp: Experiment, found: Predictions, text: str) -> tuple[float, str]:
    temperature = calibration.fit_temperature(*found, exp.link)
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
    """The logits of the mean of the probabilities of this run and the members."""
    every, links = [found.logits], [exp.link]
    for member, given in members:
        answer = {"": answers.of_model(member.exp, member.variables, given.columns)}
        logits, labels = _gathered(member.exp, given, answer, size)
        if not np.array_equal(labels, found.labels):
            raise InputError(
                f"--ensemble={member.path} has other labels than --workdir for the same"
                " split; give runs of the same data"
            )
        every.append(logits[""])
        links.append(member.exp.link)
    joined = np.empty_like(found.logits)
    for piece in scores.in_pieces(len(joined)):
        likely = [
            probabilities(logits[piece], link)
            for logits, link in zip(every, links, strict=True)
        ]
        joined[piece] = mean_logits(likely, exp.link)
    return Predictions(joined, found.labels)


def _real(logits: np.ndarray, real: Sequence[Sequence[int]]) -> Row:
    """Top-1 where any of several classes is right, of the examples that have one."""
    predicted = scores.predicted(logits)
    hits = [k in right for k, right in zip(predicted.tolist(), real, strict=True) if right]
    return Row(
        "ReaL", len(hits), intervals.proportion(sum(hits), len(hits)), assessment.UNKNOWN
    )
