"""``jaxcls evaluate --workdir=RUN``: score a trained run on every example of a split.

It prints a first line for scripts (``evaluate: step=... at=... split=... n=...``, the loss
and the metrics of the run, ``workdir=...``; with published weights ``model=...
init.weights=...`` in place of the run). Then `evaluation/table.py` prints each figure
with its 95 % interval, a row for each other way to score (averages, views, ensembles),
corruptions and attacks, the classes, the pairs most confused, and the calibration with its
temperature.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcls import atomic, experiment
from jaxcls.commands import cli
from jaxcls.config.knobs import KNOBS
from jaxcls.config.plugins import Plugins
from jaxcls.devices import memory
from jaxcls.errors import DONE, InputError
from jaxcls.evaluation import (
    against,
    assess,
    attacks,
    corruptions,
    examples,
    scoring,
    table,
    views,
)
from jaxcls.evaluation.passes import Subject
from jaxcls.evaluation.predictions import write_csv
from jaxcls.runs import records
from jaxcls.runs.workdir import Workdir


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    rest, overrides = cli.split_overrides(argv)
    args = parser().parse_args(rest)
    batch_size = cli.whole_number(args.batch_size, "--batch_size")
    top = cli.whole_number(args.top, "--top")
    predictions, whole = _files(args, top)
    place = cli.place(args)
    if not (isinstance(place, str) or args.data or args.dataset):
        raise InputError(examples.NONE)
    if args.data_dir and not args.dataset:
        raise InputError(
            f"--data_dir={args.data_dir} is where --dataset is; for the run's own data give"
            f" --config.data.dir={args.data_dir}"
        )
    seen_as = views.build(args.tta, "--tta") if args.tta else []
    plugins = cli.plugins(args)
    corrupted = corruptions.named(args.corruptions, "--corruptions", plugins)
    attacked = attacks.named(args.attacks, "--attacks")
    exp, step, at, weights = cli.loaded(args, overrides)
    if args.dataset:
        split = "test" if args.split is None else args.split
        given = examples.of_dataset(exp, args.dataset, args.data_dir, split)
    else:
        given = _own_examples(exp, args.split)
    size = batch_size or exp.config.eval.batch_size or exp.config.batch_size
    size = min(size, given.n)
    others = _others(args, exp, given, size, overrides, plugins)
    asked = assess.Asked(
        tta=args.tta,
        views=seen_as,
        seen=examples.seen_through(exp, given, args.eval_ops) if args.eval_ops else None,
        members=others[:-1] if args.against else others,
        other=others[-1] if args.against else None,
        real=examples.real_labels(args.real, given) if args.real else None,
        corruptions=corrupted,
        attacks=attacked,
    )
    with memory.explained("--batch_size", size):
        done = assess.evaluated(exp, weights, given, asked, size)
    names = [exp.selection.class_names[k] for k in given.columns]
    record: dict[str, Any] = {"step": step, "at": at}
    if not isinstance(place, str):
        record = {"model": place.model, "init.weights": place.weights}
    if args.dataset:
        shares = f"{len(names)}/{exp.selection.num_classes}"
        record |= {"dataset": args.dataset, "classes": shares}
    record |= {"split": given.split, "n": given.n}
    where = given.data.selection.records(given.split, given.key).where
    if predictions:  # Files come first: a pipe to head breaks in mid-print.
        write_csv(predictions, done.found, exp.recipe.link, names, where, top)
    if whole:
        found = table.as_json(done, names, record | {"weights": done.weights})
        if not isinstance(place, str) and exp.initial:
            found["fingerprint"] = exp.initial.fingerprint
        if done.against:
            found["against"] = against.as_json(done.against, args.against, names, where)
        atomic.write(whole, json.dumps(atomic.finite(found), allow_nan=False) + "\n")
    line = {**record, **done.values, **({"workdir": place} if args.workdir else {})}
    print(f"evaluate: {records.pairs(line)}", flush=True)
    about = f"{given.split}, {done.weights}"
    table.show(done, names, about=about, every_class=args.classes == "all")
    if done.against:
        against.show(done.against, args.against, names, where)
    return DONE


def _own_examples(exp: experiment.Experiment, split: str | None) -> examples.Examples:
    """Returns the examples of a split of the run's data.

    split: as `examples.of_run` takes it. None is test, or else eval, which is said on
    standard error.
    """
    if split is not None:
        return examples.of_run(exp, split)
    role = examples.default_role(exp)
    given = examples.of_run(exp, role or "test")
    if role == "eval":
        print(
            f"the run has no data.test; these are scores of data.eval={given.split}",
            file=sys.stderr,
        )
    return given


def _files(
    args: argparse.Namespace, top: int
) -> tuple[pathlib.Path | None, pathlib.Path | None]:
    """Returns the files of --predictions and --json; raises `InputError` for a bad one."""
    predictions, whole = (
        cli.new_file(text, flag, good) if text else None
        for text, flag, good in (
            (args.predictions, "--predictions", "all.csv"),
            (args.json, "--json", "all.json"),
        )
    )
    if whole and whole == predictions:
        raise InputError(
            f"--json={args.json} is --predictions, too; try --json=all.json"
            " --predictions=all.csv"
        )
    if top and not predictions:
        raise InputError(
            f"--top={top} is of --predictions; give --predictions=all.csv, too, or leave it"
            " out"
        )
    return predictions, whole


def parser() -> cli.Parser:
    """Returns the parser of the command's flags."""
    about = "Score a trained run on every example of a split."
    parser = cli.Parser("evaluate", about, cli.OF_A_RUN, bare="--workdir")
    cli.add_run(parser)
    parser.add_argument(
        "--split",
        help="test (default; eval if the run has none), eval, train, or a TFDS split",
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
    group.add_argument(
        "--against", default="", metavar="RUN", help="a run to compare with, by example"
    )
    group.add_argument("--real", default="", metavar="real.json", help="ImageNet ReaL")
    cli.add_robustness(parser)
    group = parser.add_argument_group("another dataset")
    group.add_argument("--dataset", default="", help="one whose classes are the model's")
    group.add_argument("--data_dir", default="", help="where it is; the run's data.dir")
    return parser


def _others(
    args: argparse.Namespace,
    exp: experiment.Experiment,
    given: examples.Examples,
    size: int,
    overrides: Mapping[str, str],
    plugins: Plugins,
) -> list[Subject]:
    """Returns the runs of --ensemble, and that of --against last.

    Each has the same examples through its eval_ops. Raises `InputError` for a bad run or a
    repeated folder.
    """
    which = args.checkpoint if args.checkpoint in ("best", "last") else "best"
    own = [Workdir(args.workdir).path] if args.workdir else []
    if not own:  # Those of published weights may be of any key.
        overrides = {k: v for k, v in overrides.items() if not KNOBS[k].identity}
    folders = [*own, *(Workdir(path).path for path in args.ensemble)]
    for path, folder in zip(args.ensemble, folders[len(own) :], strict=True):
        if folders.count(folder) > 1:
            raise InputError(
                f"--ensemble={path} is in it already; give the folder of another run, and"
                " not that of --workdir"
            )
    if args.against and Workdir(args.against).path in own:
        raise InputError(
            f"--against={args.against} is --workdir, too; give the folder of another run"
        )
    asked = [(f"--ensemble={path}", path) for path in args.ensemble]
    asked += [(f"--against={args.against}", args.against)] if args.against else []
    found = []
    for flag, path in asked:
        try:
            other, _, _, weights = scoring.load(path, which, overrides, plugins)
        except InputError as error:
            raise InputError(f"{flag}: {error}") from None
        same = examples.same_for(exp, given, other, flag)
        found.append(Subject(other, other.recipe.variables(weights), same, size))
    return found
