"""Every example once -> metrics. ``python -m jaxcls.evaluate --workdir=RUN``."""

import argparse
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcls import (
    atomic,
    attacks,
    checkpoint,
    cli,
    corruptions,
    evaluation,
    evaluation_table,
    examples,
    experiment,
    hosts,
    logs,
    memory,
    passes,
    pipeline,
    scores,
    sources,
    views,
)
from jaxcls.config import override
from jaxcls.errors import InputError
from jaxcls.knobs import KNOBS
from jaxcls.metrics import AVERAGED
from jaxcls.passes import Abandoned as Abandoned
from jaxcls.predictions import write_csv
from jaxcls.workdir import Workdir


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


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    rest, overrides = cli.split_overrides(argv)
    args = _parser().parse_args(rest)
    batch_size = cli.whole_number(args.batch_size, "--batch_size")
    top = cli.whole_number(args.top, "--top")
    file_of = _files(args, top)
    if args.data_dir and not args.dataset:
        raise InputError(
            f"--data_dir={args.data_dir} is where --dataset is; for the run's own data give"
            f" --config.data.dir={args.data_dir}"
        )
    seen_as = views.build(args.tta, "--tta") if args.tta else []
    corrupted, attacked = robustness_of(args)
    exp, step, at, weights = load(args.workdir, args.checkpoint, overrides)
    if args.dataset:
        given = examples.of_dataset(exp, args.dataset, args.data_dir, args.split)
    else:
        given = examples.of_run(exp, args.split)
    asked = evaluation.Asked(
        tta=args.tta,
        views=seen_as,
        seen=examples.seen_through(exp, given, args.eval_ops) if args.eval_ops else None,
        members=_members(args, exp, given, overrides),
        real=examples.real_labels(args.real, given) if args.real else None,
        corruptions=corrupted,
        attacks=attacked,
    )
    size = batch_size or exp.config.eval.batch_size or exp.config.batch_size
    size = min(size, given.n)
    with memory.explained("--batch_size", size):
        done = evaluation.evaluated(exp, weights, given, asked, size)
    names = [exp.selection.class_names[k] for k in given.columns]
    record: dict[str, Any] = {"step": step, "at": at}
    if args.dataset:
        shares = f"{len(names)}/{exp.selection.num_classes}"
        record |= {"dataset": args.dataset, "classes": shares}
    record |= {"split": given.split, "n": given.n}
    print(f"evaluate: {logs.summary({**record, **done.values}, args.workdir)}", flush=True)
    evaluation_table.show(
        done.assessed,
        done.rows,
        done.robustness,
        names,
        about=f"{given.split}, {done.weights}",
        every_class=args.classes == "all",
    )
    if "--predictions" in file_of:
        where = given.data.selection.records(given.split, given.key).where
        write_csv(file_of["--predictions"], done.found, exp.recipe.link, names, where, top)
    if "--json" in file_of:
        record |= {"weights": done.weights}
        found = done.assessed, done.rows, done.robustness
        whole = evaluation_table.as_json(*found, names, record)
        atomic.write(file_of["--json"], json.dumps(whole, allow_nan=False) + "\n")
    return cli.DONE


def add_robustness(parser: argparse.ArgumentParser) -> None:
    """The flags of what is done to images before a model sees them."""
    group = parser.add_argument_group("how robust it is")
    add = group.add_argument
    add("--corruptions", default="", help='all, or such as "contrast, gaussian_noise"')
    add("--attacks", default="", help='such as "fgsm(2) | pgd(2, steps=10)", of 255 levels')


def robustness_of(args: argparse.Namespace) -> tuple[list[str], list[attacks.Attack]]:
    """(names of corruptions, attacks) of those flags; raises `InputError` for bad ones."""
    names = corruptions.named(args.corruptions, "--corruptions") if args.corruptions else []
    made = pipeline.build(args.attacks, attacks.ATTACKS, "--attacks")
    called = [each.name for each in made]
    twice = next((name for name in called if called.count(name) > 1), "")
    if twice:
        raise InputError(f"--attacks={args.attacks!r} has {twice} twice; name it once")
    return names, made


def _files(args: argparse.Namespace, top: int) -> dict[str, pathlib.Path]:
    """{flag: the file to write}; raises `InputError` where one cannot be, or is of two."""
    flags = (
        ("--predictions", args.predictions, "all.csv"),
        ("--json", args.json, "all.json"),
    )
    found = {flag: cli.new_file(text, flag, good) for flag, text, good in flags if text}
    if len(set(found.values())) < len(found):
        raise InputError(
            f"--json={args.json} is --predictions, too; try --json=all.json"
            " --predictions=all.csv"
        )
    if top and not args.predictions:
        raise InputError(
            f"--top={top} is of --predictions; give --predictions=all.csv, too, or leave it"
            " out"
        )
    return found


def _parser() -> cli.Parser:
    about = "Score a trained run on every example of a split."
    parser = cli.Parser("evaluate", about, cli.OF_A_RUN)
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument(
        "--checkpoint", default="best", help="best (default), last or a step"
    )
    parser.add_argument(
        "--split", default="test", help="test (default), eval, train, or a TFDS split"
    )
    parser.add_argument("--batch_size", default="0", help="examples a batch; 0: the run's")
    parser.add_argument(
        "--classes", default="worst", choices=("worst", "all"), help="which are shown"
    )
    parser.add_argument(
        "--predictions", default="", metavar="FILE.csv", help="every example's answer"
    )
    parser.add_argument(
        "--top", default="0", help="classes listed of each there; 0: a column for each"
    )
    parser.add_argument("--json", default="", metavar="FILE", help="all figures")
    group = parser.add_argument_group("rows of their own")
    group.add_argument("--tta", default="", help='views, such as "flip | crops(5)"')
    group.add_argument("--eval_ops", default="", help="other host ops, another resolution")
    group.add_argument(
        "--ensemble", default=[], action="append", metavar="RUN", help="once for each run"
    )
    group.add_argument("--real", default="", metavar="real.json", help="ImageNet ReaL")
    add_robustness(parser)
    group = parser.add_argument_group("another dataset")
    group.add_argument("--dataset", default="", help="one whose classes are the model's")
    group.add_argument("--data_dir", default="", help="where it is; the run's data.dir")
    return parser


def _members(
    args: argparse.Namespace,
    exp: experiment.Experiment,
    given: examples.Examples,
    overrides: Mapping[str, str],
) -> list[tuple[evaluation.Member, examples.Examples]]:
    """The runs of --ensemble, each with the same examples as it sees them."""
    folders = [Workdir(path).path for path in (args.workdir, *args.ensemble)]
    twice = next(
        (
            p
            for p, f in zip(args.ensemble, folders[1:], strict=True)
            if folders.count(f) > 1
        ),
        "",
    )
    if twice:
        raise InputError(
            f"--ensemble={twice} is in it already; give the folder of another run, and not"
            " that of --workdir"
        )
    which = args.checkpoint if args.checkpoint in ("best", "last") else "best"
    return [
        (member, examples.same_for(exp, given, member.exp, member.path))
        for member in (_member(path, which, overrides) for path in args.ensemble)
    ]


def _member(path: str, which: str, overrides: Mapping[str, str]) -> evaluation.Member:
    """A run of an ensemble; raises `InputError` where it is none."""
    try:
        exp, _, _, weights = load(path, which, overrides)
    except InputError as error:
        raise InputError(f"--ensemble={path}: {error}") from None
    return evaluation.Member(path, exp, exp.recipe.variables(weights))


if __name__ == "__main__":
    cli.run(main)
