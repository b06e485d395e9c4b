"""Every example once -> metrics. ``python -m jaxcls.evaluate --workdir=RUN``."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxcls import checkpoint, cli, experiment, hosts, logs, memory, mesh, sources
from jaxcls.config import override
from jaxcls.errors import InputError
from jaxcls.knobs import KNOBS
from jaxcls.predictions import Predictions
from jaxcls.workdir import Workdir


class Abandoned(Exception):
    """An evaluation that was not made to its end."""


def score(
    exp: experiment.Experiment,
    weights: dict[str, Any],
    split: str,
    key: str,
    batch_size: int = 0,
    abandon: Callable[[], bool] = lambda: False,
) -> tuple[int, dict[str, float]]:
    """(n, {metric: mean over exactly the n examples of `split`}); see `score_each`."""
    return means(score_each(exp, weights, split, key, batch_size, abandon))


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
    n = exp.data.count(split, key)
    hosts.agree({key: f"{split}, {n} examples, {batch_size} a batch"})
    sets = {"": {k: weights[k] for k in ("params", "batch_stats")}}
    if weights["ema"]:
        sets["ema_"] = weights["ema"]
    pending: list[dict[str, Any]] = []
    found: list[dict[str, np.ndarray]] = []
    for each in exp.eval_batches(split, key, batch_size):
        is_asked = abandon()
        if is_asked and hosts.count() == 1:
            raise Abandoned
        batch = mesh.with_flag(exp.mesh, each, is_asked)
        outs = {
            prefix: exp.eval_step(variables, batch) for prefix, variables in sets.items()
        }
        pending.append(outs)
        if len(pending) > 1:  # One batch behind, so that the device never waits for us.
            found.append(_fetch(pending.pop(0)))
    found += [_fetch(outs) for outs in pending]
    columns = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    index = columns.pop("index")
    order = np.argsort(index)
    if not np.array_equal(index[order], np.arange(n)):
        raise RuntimeError(f"{len(index)} scores for the {n} examples of {split}")
    return {name: values[order] for name, values in columns.items()}


def means(columns: Mapping[str, np.ndarray]) -> tuple[int, dict[str, float]]:
    """(n, {metric: mean}) of what `score_each` found."""
    classes = "label", "predicted", "ema_predicted"
    scores = {name: each for name, each in columns.items() if name not in classes}
    return len(columns["label"]), {name: _mean(each) for name, each in scores.items()}


def predictions(
    exp: experiment.Experiment,
    variables: dict[str, Any],
    split: str,
    key: str,
    batch_size: int = 0,
) -> Predictions:
    """The logits and labels of exactly the n examples of `split`, in their order.

    variables: as `exp.variables` gives them; key: what `split` is called in messages.
    Raises RuntimeError if any example was not seen exactly once.
    """
    n = exp.data.count(split, key)
    logits = np.full((n, exp.data.num_classes), np.nan, np.float32)
    labels, seen = np.zeros(n, np.int32), np.zeros(n, np.int64)
    everywhere = jax.jit(lambda *columns: columns, out_shardings=mesh.replicated(exp.mesh))
    for batch in exp.eval_batches(split, key, batch_size):
        found = exp.logits_step(variables, batch["image"])
        columns = everywhere(batch["index"], batch["label"], batch["mask"])
        index, label, mask = map(np.asarray, columns)
        index = index[mask]
        logits[index], labels[index] = np.asarray(found)[mask], label[mask]
        seen[index] += 1
    if not (seen == 1).all():
        raise RuntimeError(f"{seen.sum()} predictions for the {n} examples of {split}")
    return Predictions(logits, labels)


def _mean(values: np.ndarray) -> float:
    """The mean; fsum is exact, so no batch size and no order of adding can change it."""
    return (
        math.fsum(values.tolist()) / len(values) if np.isfinite(values).all() else math.nan
    )


def _fetch(outs: dict[str, Any]) -> dict[str, np.ndarray]:
    """The scores of a batch's real examples, as numpy, by prefixed name.

    Raises `Abandoned` where a process asked for it at that batch.
    """
    rows: dict[str, np.ndarray] = {}
    for prefix, out in outs.items():
        host = {name: np.asarray(values) for name, values in out.items()}
        if host.pop("asked", False):
            raise Abandoned
        mask = host.pop("mask")
        rows |= {name: host.pop(name)[mask] for name in ("index", "label")}
        rows |= {f"{prefix}{name}": values[mask] for name, values in host.items()}
    return rows


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
        weights = checkpoint.restore_weights(folder.checkpoints, step, exp.state_like)
    except checkpoint.CorruptError as error:
        others = [s for s in checkpoint.steps(folder.checkpoints) if s != step]
        remedy = f"try --checkpoint={others[-1]}" if others else "there is no other"
        raise InputError(
            f"checkpoint {step} of --workdir={path} is not whole ({error}); {remedy}"
        ) from None
    return exp, step, at, weights


def from_workdir(folder: Workdir, overrides: Mapping[str, str]) -> experiment.Experiment:
    """The experiment of a run's folder, which needs no dataset to be there.

    It uses all devices of this machine, whatever the run used. `overrides`: as on a
    command line, of operational keys; raises `InputError` for what the run *is*.
    """
    facts = sources.facts_of(folder.read()["implied"])
    config = folder.config()
    config.mesh.devices = 0
    for key, text in overrides.items():
        override(config, key, text)
        if KNOBS[key].identity:
            raise InputError(
                f"--config.{key}: it is part of what the run is, and comes from its folder;"
                " leave it out"
            )
    return experiment.build(config, facts)


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    parser = cli.Parser("evaluate", "Score a trained run on every example of a split.")
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument(
        "--checkpoint", default="best", help="best (default), last or a step"
    )
    parser.add_argument(
        "--split", default="test", help="test (default), eval, train, or a TFDS split"
    )
    parser.add_argument("--batch_size", default="0", help="examples a batch; 0: the run's")
    rest, overrides = cli.split_overrides(argv)
    args = parser.parse_args(rest)
    batch_size = cli.whole_number(args.batch_size, "--batch_size")
    exp, step, at, weights = load(args.workdir, args.checkpoint, overrides)
    role = args.split if args.split in ("test", "eval", "train") else ""
    split = exp.config.data[role] if role else args.split
    if not split:
        raise InputError(f"--split={role}: the run has no data.{role}; try --split=train")
    size = batch_size or exp.config.eval.batch_size or exp.config.batch_size
    with memory.explained("--batch_size", size):
        n, values = score(exp, weights, split, f"data.{role}" if role else "--split", size)
    record = {"step": step, "at": at, "split": split, "n": n, **values}
    print(f"evaluate: {logs.summary(record, args.workdir)}")
    return cli.DONE


if __name__ == "__main__":
    cli.run(main)
