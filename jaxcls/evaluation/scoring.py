"""Every example once -> metrics, and the experiment and weights of a run's folder."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxcls import experiment
from jaxcls.config.knobs import KNOBS
from jaxcls.config.loading import override
from jaxcls.data import sources
from jaxcls.devices import hosts
from jaxcls.errors import InputError
from jaxcls.evaluation import passes, scores
from jaxcls.learning.metrics import AVERAGED
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
    """{name: [n]} of exactly the n examples of `split`, in their order: loss, metrics.

    And int32 `label` and `predicted`, the class. weights: params, batch_stats and ema as
    in the state; where ema is on, all of it but `label` is there of the average too, as
    ``ema_<name>``. key: what `split` is called in messages.
    Raises RuntimeError if any example was not counted exactly once, and `Abandoned`, on
    all processes, when `abandon`, asked at each batch, says so on one.
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


def means(columns: Mapping[str, np.ndarray]) -> tuple[int, dict[str, float]]:
    """(n, {metric: mean}) of what `score_each` found."""
    classes = "label", "predicted", "ema_predicted"
    each = {name: column for name, column in columns.items() if name not in classes}
    return len(columns["label"]), {name: scores.mean(each[name]) for name in each}


def load(
    path: str, which: str, overrides: Mapping[str, str]
) -> tuple[experiment.Experiment, int, str, dict[str, Any]]:
    """(experiment, step, what it is, weights) of a run's folder.

    which: "best", "last" or a step; overrides: of operational config keys.
    """
    folder = Workdir(path)
    exp = from_workdir(folder, overrides)
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
    return exp, step, at, weights


def from_workdir(folder: Workdir, overrides: Mapping[str, str]) -> experiment.Experiment:
    """The experiment of a run's folder, which needs no dataset to be there.

    It uses all devices of this machine, the model whole on each, whatever the run used.
    `overrides`: as on a command line, of operational keys; raises `InputError` for what
    the run *is*.
    """
    facts = sources.facts_of(folder.read()["implied"])
    config = folder.config()
    config.mesh.devices, config.mesh.fsdp = 0, 1
    for key, text in overrides.items():
        override(config, key, text)
        if KNOBS[key].identity:
            raise InputError(
                f"--config.{key}: it is part of what the run is, and comes from its folder;"
                " leave it out"
            )
    return experiment.build(config, facts)
