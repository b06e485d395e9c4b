"""Scores every example of a split once, and loads the experiment and weights of a run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcls import experiment
from jaxcls.config.knobs import KNOBS
from jaxcls.config.loading import override
from jaxcls.config.plugins import NONE, Plugins
from jaxcls.data import sources
from jaxcls.devices import hosts
from jaxcls.errors import InputError
from jaxcls.evaluation import passes, scores
from jaxcls.experiment import published
from jaxcls.experiment.published import Published
from jaxcls.learning.metrics import AVERAGED, OfSplit
from jaxcls.runs import checkpoint
from jaxcls.runs.workdir import Workdir


def score_each(
    exp: experiment.Experiment,
    weights: dict[str, Any],
    split: str,
    key: str,
    batch_size: int = 0,
    abandon: Callable[[], bool] = lambda: False,
) -> dict[str, np.ndarray]:
    """Returns {name: [n]}: loss and metrics of exactly the n examples of `split`, in order.

    Also returns int32 `label` and `predicted`. With ema, ``ema_<name>`` repeats every
    column but `label` for the average. weights: params, batch_stats and ema, as in the
    state. key: the name of `split` in messages. Raises RuntimeError unless every example
    counts exactly once. Raises `Abandoned` on all processes if `abandon`, called at each
    batch, returns True on one.
    """
    n = exp.selection.count(split, key)
    hosts.agree({key: f"{split}, {n} examples, {batch_size} a batch"})
    sets = {"": {k: weights[k] for k in ("params", "batch_stats")}}
    if weights["ema"]:
        sets[AVERAGED] = weights["ema"]
    kept, labels = passes.over(
        n,
        exp.eval_batches(split, key, batch_size),
        np.arange(exp.selection.num_classes),
        {prefix: passes.of_evaluation(exp, each) for prefix, each in sets.items()},
        exp.mesh,
        abandon,
    )
    scored = {
        f"{prefix}{name}": values
        for prefix, columns in kept.items()
        for name, values in columns.items()
    }
    return {"label": labels, **scored}


def means(
    columns: Mapping[str, np.ndarray], split_metrics: Sequence[OfSplit] = ()
) -> tuple[int, dict[str, float]]:
    """Returns (n, {metric: mean or value}) of the columns of `score_each`.

    split_metrics: the metrics of a whole split, which come after the means.
    """
    classes, labels = ("label", "predicted", "ema_predicted"), columns["label"]
    found = {name: scores.mean(columns[name]) for name in columns if name not in classes}
    for prefix in ("", AVERAGED):
        if f"{prefix}predicted" in columns:
            predicted = columns[f"{prefix}predicted"]
            for metric in split_metrics:
                found[f"{prefix}{metric.name}"] = metric.function(predicted, labels)
    return len(labels), found


class Loaded(NamedTuple):
    """A model in hand: its experiment, and where its weights are from.

    step, at: of the checkpoint; `at` is what `checkpoint.find` calls it, or "published".
    weights: {"params", "batch_stats", "ema"}; "ema" is {} without an average.
    """

    exp: experiment.Experiment
    step: int
    at: str
    weights: dict[str, Any]


def load(
    place: str | Published,
    which: str,
    overrides: Mapping[str, str],
    plugins: Plugins = NONE,
) -> Loaded:
    """Returns the model of a run's folder, or of published weights.

    which: "best", "last" or a step of a run. overrides: of operational config keys; with
    published weights, of any. plugins: what the model may be of.
    Raises `InputError` if there is no such checkpoint, or it is not whole, and for weights
    of another model or other classes.
    """
    if isinstance(place, Published):
        exp = published.build(place, overrides, plugins)
        return Loaded(exp, 0, "published", published.variables(exp))
    return _of_run(place, which, overrides, plugins)


def _of_run(
    path: str, which: str, overrides: Mapping[str, str], plugins: Plugins
) -> Loaded:
    folder = Workdir(path)
    exp = from_workdir(folder, overrides, plugins)
    step, at = checkpoint.find(folder.checkpoints, which)
    try:
        weights = checkpoint.restore_weights(
            folder.checkpoints, step, exp.programs.state_like
        )
    except checkpoint.CorruptError as error:
        others = [s for s in checkpoint.steps(folder.checkpoints) if s != step]
        remedy = f"try --checkpoint={others[-1]}" if others else "there is no other"
        raise InputError(
            f"checkpoint {step} of --workdir={path} is not whole ({error}); {remedy}"
        ) from None
    return Loaded(exp, step, at, weights)


def from_workdir(
    folder: Workdir, overrides: Mapping[str, str], plugins: Plugins = NONE
) -> experiment.Experiment:
    """Returns the experiment of a run's folder; it needs no dataset.

    It uses all devices of this machine and replicates the model, for any mesh of the run.
    overrides: of operational config keys, as on a command line. Raises `InputError` for a
    key of the run's identity, and for plug-ins that are not those of the run.
    """
    facts = sources.facts_of(folder.implied())
    folder.check_config()
    folder.check_plugins(plugins.digests)
    config = folder.config()
    config.mesh.devices, config.mesh.fsdp = 0, 1
    for key, text in overrides.items():
        override(config, key, text)
        if KNOBS[key].identity:
            raise InputError(
                f"--config.{key}: it is part of what the run is, and comes from its folder;"
                " leave it out"
            )
    return experiment.build(config, facts, plugins=plugins)
