"""Assesses a run for `evaluate`: plans the passes over a split and computes all figures."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcls.config.plugins import Plugins
from jaxcls.errors import InputError
from jaxcls.evaluation import (
    calibration,
    examples,
    figures,
    intervals,
    passes,
    robustness,
    scores,
    scoring,
)
from jaxcls.evaluation.against import Against, compare
from jaxcls.evaluation.attacks import Attack
from jaxcls.evaluation.corruptions import Corruption
from jaxcls.evaluation.examples import Examples
from jaxcls.evaluation.figures import Robustness, ScoreRow
from jaxcls.evaluation.passes import Columns, Keep, Subject
from jaxcls.evaluation.predictions import Predictions, mean_logits, probabilities
from jaxcls.evaluation.views import View
from jaxcls.experiment import Experiment
from jaxcls.learning import losses, metrics
from jaxcls.learning.metrics import AVERAGED, LOSS


class Asked(NamedTuple):
    """The options of an assessment beyond the headline; an option is off if it is empty.

    tta, views: test-time augmentation as text and as functions. seen: the same examples
    through other eval_ops. members: of an ensemble, with the same examples. other: the run
    to compare with, likewise. real: for each example, its correct classes (ReaL).
    corruptions: by name. Corruptions and attacks use the images and weights of the
    headline.
    """

    tta: str = ""
    views: Sequence[View] = ()
    seen: Examples | None = None
    members: Sequence[Subject] = ()
    other: Subject | None = None
    real: Sequence[Sequence[int]] | None = None
    corruptions: Mapping[str, Corruption] = MappingProxyType({})
    attacks: Sequence[Attack] = ()


class Evaluation(NamedTuple):
    """The figures of a run. weights: the headline's weights, "params" or "ema".

    values: metrics for the first line; a prefix ``ema_`` marks those of the average.
    against: the comparison with another run, or None.
    """

    weights: str
    values: dict[str, float]
    found: Predictions
    assessed: figures.Assessment
    rows: list[ScoreRow]
    robustness: Robustness
    against: Against | None


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
    chosen = "ema" if exp.recipe.variables(weights) is weights["ema"] else "params"
    others, score = [name for name in sets if name != chosen], _scorer(exp)
    subject = Subject(exp, sets[chosen], given, size)
    scorers = {chosen: passes.of_model(subject)}
    for name in others:
        scorers[name] = passes.of_model(
            subject._replace(variables=sets[name]), _and_predicted(score)
        )
    if asked.views:
        scorers["tta"] = passes.through_views(subject, asked.views, score)
    kept, labels = passes.over_examples(subject, scorers)
    found = Predictions(kept[chosen]["logits"], labels)
    kept[chosen] = _in_pieces(score, found)
    values = {
        ("" if name == "params" else AVERAGED) + metric: scores.mean(kept[name][metric])
        for name in sets
        for metric in (LOSS, *(m.name for m in exp.recipe.metrics))
    }
    for name in sets:
        prefix = "" if name == "params" else AVERAGED
        is_headline = name == chosen
        predicted = scores.predicted(found.logits) if is_headline else kept[name]["class"]
        for of_split in exp.recipe.split_metrics:
            values[prefix + of_split.name] = of_split.function(predicted, labels)
    assessed = figures.assess(
        found, exp.recipe.link, kept[chosen], *_temperature(subject, found)
    )
    rows = {f"{name}, not {chosen}": kept[name] for name in others}
    if asked.views:
        rows[f"--tta={asked.tta!r} ({len(asked.views)} views)"] = kept["tta"]
    if asked.seen:
        again = subject._replace(given=asked.seen)
        text = asked.seen.data.config.data.eval_ops
        rows[f"--eval_ops={text!r}"] = passes.scored(again, passes.of_model(again, score))
    if asked.members:
        together = _ensemble(exp.recipe.link, asked.members, found)
        rows[f"--ensemble of {len(asked.members) + 1} runs"] = _in_pieces(score, together)
    made = [figures.row(name, columns) for name, columns in rows.items()]
    if asked.real is not None:
        made.append(_real(found.logits, asked.real))
    robust = robustness.assess(subject, asked.corruptions, asked.attacks, score)
    if robust.mean:
        values["corrupted_top1"] = robust.mean.top1.value
    against = None
    if asked.other:
        theirs = _ensemble(exp.recipe.link, [asked.other])
        columns = _in_pieces(score, theirs)
        against = compare(found, kept[chosen], theirs, columns, exp.recipe.link)
    return Evaluation(chosen, values, found, assessed, made, robust, against)


def compared(
    one: str, other: str, plugins: Plugins
) -> tuple[Against, list[str], Callable[[int], str]]:
    """Compares the best checkpoints of two runs' folders on data.test of the first.

    Without data.test it is data.eval. Returns the comparison, the names of the classes, and
    a function from the index of an example to its location. Raises `InputError` for a bad
    run, and unless both runs have these examples.
    """
    exp, _, _, weights = scoring.load(one, "best", {}, plugins)
    given = examples.of_run(exp, examples.default_role(exp) or "test")
    size = min(exp.config.eval.batch_size or exp.config.batch_size, given.n)
    theirs, _, _, found = scoring.load(other, "best", {}, plugins)
    same = examples.same_for(exp, given, theirs, f"--compare {other}")
    asked = Asked(other=Subject(theirs, theirs.recipe.variables(found), same, size))
    made = evaluated(exp, weights, given, asked, size).against
    assert made is not None
    where = given.data.selection.records(given.split, given.key).where
    return made, list(exp.selection.class_names), where


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


def _and_predicted(score: Keep) -> Keep:
    """Returns a function: the columns of `score`, and the predicted "class" int64 [B]."""
    return lambda logits, labels: {
        **score(logits, labels),
        "class": scores.predicted(logits),
    }


def _in_pieces(score: Keep, found: Predictions) -> Columns:
    """Returns the columns of `score` for all n examples, computed slice by slice."""
    pieces = scores.in_pieces(len(found.labels))
    parts = [score(*(each[piece] for each in found)) for piece in pieces]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _temperature(subject: Subject, found: Predictions) -> tuple[float, str]:
    """Returns (temperature, its examples), or (NaN, the reason that there is none)."""
    exp, given, split = subject.exp, subject.given, subject.exp.config.data.eval
    if not split:
        return math.nan, "the run has no data.eval to fit one on"
    text = f"these very examples, of data.eval={split}"
    if not given.is_own or given.split != split:
        labelled = examples.of_run(exp, "eval")
        try:
            found = passes.predictions(subject._replace(given=labelled))
        except InputError as error:
            return math.nan, f"data.eval={split} cannot be read ({error})"
        text = f"the {labelled.n} examples of data.eval={split}"
    temperature = calibration.fit_temperature(*found, exp.recipe.link)
    if temperature <= calibration.COLDEST:
        text += ", all of which it has right: the surest is the likeliest there, and no"
        text += " lower one is tried"
    return temperature, text


def _ensemble(
    link: str, members: Sequence[Subject], first: Predictions | None = None
) -> Predictions:
    """Returns the logits, for `link`, of the mean probabilities of the members.

    first: predictions of one more member, whose logits are for `link`. A single member's
    logits stay as they are if they are for `link`.
    """
    found = [(passes.predictions(each), each.exp.recipe.link) for each in members]
    found = [*([(first, link)] if first else []), *found]
    (leading, its_link), labels = found[0], found[0][0].labels
    if len(found) == 1 and its_link == link:
        return leading
    joined = np.empty_like(leading.logits)
    for piece in scores.in_pieces(len(joined)):
        likely = [probabilities(each.logits[piece], of) for each, of in found]
        joined[piece] = mean_logits(likely, link)
    return Predictions(joined, labels)


def _real(logits: np.ndarray, real: Sequence[Sequence[int]]) -> ScoreRow:
    """Returns the top-1 row, over examples that have a correct class (ReaL)."""
    predicted = scores.predicted(logits).tolist()
    hits = [k in right for k, right in zip(predicted, real, strict=True) if right]
    top1 = intervals.proportion(sum(hits), len(hits))
    return ScoreRow("ReaL", len(hits), top1, figures.UNKNOWN)
