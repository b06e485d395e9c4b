"""``jaxcls study --config=configs/digits.py --seeds=10``: several runs and error bars.

A run of a study is the same as a run of ``jaxcls train``, each in a separate folder. The
result is a pure function of these folders.
"""

import argparse
import functools
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcls.commands import cli
from jaxcls.config import loading as configs
from jaxcls.config.plugins import Plugins
from jaxcls.devices import hosts, mesh
from jaxcls.errors import DIFFERS, DIVERGED, DONE, InputError, StoppedError, is_whole_number
from jaxcls.evaluation import against, assess
from jaxcls.runs.workdir import Workdir
from jaxcls.studies import cells, comparison, expected, running, samples, summary, table
from jaxcls.studies.cells import Cell
from jaxcls.studies.running import Study
from jaxcls.training import stopping

ABOUT = """Train every recipe of a study with every seed, each run in a folder of its own,
and say how sure the result is. The same command again goes on, or shows the result.
--compare and --verify say whether two recipes, or two machines, reach the same.
--config.KEY=VALUE changes all of its runs; jaxcls train --help lists every key."""

# The flags that --verify and --compare accept; --config accepts all flags.
_BESIDE = {
    "--compare": {"--metric", "--plugins"},
    "--verify": {"--workdir", "--seeds", "--shard", "--dry_run", "--plugins"}
    | {"--coordinator", "--processes", "--process", "--join_timeout"},
}
# Flags that have no effect without another one.
_NEEDS = {
    "--search_seed": "--random",
    "--margin": "--record",
    "--random": "--cells",
    "--cells": "--random",
}


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    rest, overrides = cli.split_overrides(argv)
    flags = parser()
    args = flags.parse_args(rest)
    given = cli.given(flags, args)
    modes = [flag for flag in ("--config", "--verify", "--compare") if flag in given]
    if len(modes) != 1:
        raise InputError(
            "study takes one of --config=FILE.py, --verify=FILE.py and --compare A B, and"
            f" was given {' and '.join(modes) or 'nothing'}; try --config=configs/digits.py"
            " --seeds=5"
        )
    (mode,) = modes
    useless = [flag for flag in given if flag not in {mode, *_BESIDE.get(mode, given)}]
    if mode == "--compare":
        useless += [f"--config.{key}" for key in overrides]
    if useless:
        raise InputError(f"{useless[0]} says nothing beside {mode}; leave it out")
    for flag, other in _NEEDS.items():
        if flag in given and other not in given:
            raise InputError(f"{flag} says nothing without {other}; give both, or neither")
    if args.compare:
        one, other = args.compare
        return _compare(one, other, args.metric, cli.plugins(args))
    return _verify(args, overrides) if args.verify else _study(args, overrides)


def parser() -> cli.Parser:
    """Returns the parser of the command's flags."""
    parser = cli.Parser("study", ABOUT, bare="--config", hints=True)
    add = parser.add_argument
    add("--config", default="", metavar="FILE.py[:ARG]", help="such as configs/digits.py")
    add("--workdir", default="", help="runs/<name of the config>-study")
    add("--seeds", default="", help="10: seeds 0 to 9; 5-9; or 3,8 [default: 10]")
    add(
        "--vary",
        default="all",
        help="what a seed varies: all, or of init,order,augment,dropout, while the others"
        " stay; fraction: which examples data.fraction takes; split: which examples of"
        " data.train and data.eval are whose; each: all streams, and every source by"
        " itself, to see what the variance is of",
    )
    add(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=V,V",
        help="a config key and its values; of several, every combination is a cell",
    )
    add(
        "--random",
        action="append",
        default=[],
        metavar="KEY=SPACE",
        help="a config key and what to draw from: a,b,c or 0..0.5 or 'log(1e-4..0.1)'",
    )
    add("--cells", default="0", help="how many to draw from --random")
    add("--search_seed", default="0", help="decides what is drawn [default: 0]")
    add("--metric", default="top1", help="what is compared [default: top1]")
    add("--baseline", default="", help="the cell that others are compared with; the first")
    add("--shard", default="0/1", metavar="I/N", help="only each Nth run, from the Ith")
    add("--dry_run", action="store_true", help="print what would be trained")
    add("--record", action="store_true", help="write what the runs reach beside the config")
    add(
        "--margin",
        default="",
        help="with --record: how near is near, in points [0.5]; of a loss, as it is",
    )
    add(
        "--verify",
        default="",
        metavar="FILE.py[:ARG]",
        help="train a recipe again, and say whether it reaches what is recorded of it",
    )
    add(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="folders of two runs, studies or cells; or run folders with commas between",
    )
    cli.add_plugins(parser)
    cli.add_processes(parser)
    return parser


def _study(args: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Makes or continues a study, and shows its result; returns the exit status."""
    count = cli.whole_number(args.cells, "--cells")
    search_seed = cli.whole_number(args.search_seed, "--search_seed")
    base = configs.load(args.config, cli.with_plugins(overrides, args))
    sources = cells.sources_of(configs.flat(base))
    found = cells.make(args.grid, args.random, count, search_seed, args.vary, sources)
    varied = {key for cell in found for key in cell.seeds(0)}
    if twice := sorted(varied & overrides.keys()):
        raise InputError(f"--config.{twice[0]} is what --seeds varies; give --seeds=3-12")
    seeds = cells.seeds(args.seeds or "10")
    plugins = cli.plugins_of(args.config, base, args)
    study = Study(base, found, seeds, _folder(args, "study"), plugins)
    names = [cell.name for cell in found]
    baseline = args.baseline or names[0]
    if baseline not in names:
        raise InputError(f"--baseline={baseline} is no cell; there are: {', '.join(names)}")
    margin = _margin(args, study, overrides) if args.record else 0.0
    running.check(study)
    print(table.plan(names, study.seeds, _shard(args.shard)))
    if args.dry_run:
        return DONE
    result = _made(args, study, args.metric, baseline)
    if hosts.is_first():
        table.show(result)
        print(f"{table.closing(result)} workdir={args.workdir or study.folder}")
        if args.record:
            file = expected.file_of(args.config)
            expected.record(file, result, base, study.folder, margin)
            print(f"recorded: {file}")
    return DIVERGED if result["diverged"] and not result["done"] else DONE


def _folder(args: argparse.Namespace, word: str) -> pathlib.Path:
    stem = pathlib.Path((args.config or args.verify).partition(":")[0]).stem
    return Workdir(args.workdir or f"runs/{stem}-{word}").path


def _shard(text: str) -> tuple[int, int]:
    """Returns (index, number of shards) of ``"0/4"``; raises `InputError`."""
    first, _, of = text.partition("/")
    are_numbers = is_whole_number(first) and is_whole_number(of)
    if not (are_numbers and int(first) < int(of)):
        raise InputError(f"--shard={text} must be i/n with i below n; the first of 4: 0/4")
    return int(first), int(of)


def _margin(args: argparse.Namespace, study: Study, overrides: Mapping[str, str]) -> float:
    """Returns --margin in the unit of the metric.

    Raises `InputError` for another number, and unless the study has one unchanged config
    and several seeds.
    """
    if len(study.seeds) < 2 or study.cells != [Cell("base", {}, ())]:
        raise InputError(
            "--record is of one recipe and two seeds at least; give --seeds=10, and leave"
            " --grid, --random and --vary out"
        )
    if other := [key for key in overrides if configs.is_identity(key, study.base)]:
        raise InputError(
            f"--record is of {args.config} as it stands, and --config.{other[0]} changes"
            " it; leave it out, or write it into the file"
        )
    default = "0.5" if comparison.unit(args.metric) else "0"
    margin = cli.number(args.margin or default, "--margin")
    if not margin:
        raise InputError(
            f"--record --metric={args.metric}: --margin must be above 0; give the"
            " difference that does not matter, such as --margin=0.02"
        )
    return margin


def _made(
    args: argparse.Namespace, study: Study, metric: str, baseline: str
) -> dict[str, Any]:
    """Trains the unfinished runs of the shard; writes study.json and returns its content.

    Raises `StoppedError` on a signal, after it has written study.json.
    """
    mesh.prefer_same_bits()
    conclude = functools.partial(running.conclude, study, metric, baseline)
    with (
        cli.joined(args),
        stopping.on_signals() as stop,
    ):
        try:
            running.run(study, _shard(args.shard), stop, metric)
        except StoppedError:
            hosts.on_first(conclude)
            raise
        return hosts.on_first(conclude)


def _verify(args: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Trains a recorded recipe again; returns 0 if the results are equivalent, else 4."""
    before = expected.read(expected.file_of(args.verify))
    base = configs.load(args.verify, cli.with_plugins(overrides, args))
    expected.check_same(before, base)
    seeds = cells.seeds(args.seeds) if args.seeds else before["seeds"]
    plugins, only = cli.plugins_of(args.verify, base, args), cells.make([], [], 0, 0, "all")
    study = Study(base, only, seeds, _folder(args, "verify"), plugins)
    metric, place = before["metric"], before["place"]
    print(table.plan(["base"], seeds, _shard(args.shard)))
    if args.dry_run:
        return DONE
    result = _made(args, study, metric, "base")
    if not hosts.is_first():
        return DONE
    table.show(result)
    now = result["cells"][0]["figures"].get(place, {}).get(metric)
    if result["missing"] or not now:
        print(f"{table.closing(result)}: nothing is said before they are")
        return DIFFERS
    then = before["figures"][place][metric]
    print(
        f"recorded: {metric} {then['mean']:.4f}, deviation {then['deviation']:.4f},"
        f" n={then['n']}, jax {before['versions']['jax']} on {before['devices'][0]}"
    )
    is_same, words = comparison.equivalence(then, now, before["margin"], metric)
    print(f"{metric} {words}")
    return DONE if is_same else DIFFERS


def _compare(one: str, other: str, metric: str, plugins: Plugins) -> int:
    """Shows the comparison of two finished studies, cells or runs; of runs by example."""
    pair = [samples.read(one), samples.read(other)]
    places = [{run.path.resolve() for run in each.folders.values()} for each in pair]
    if places[0] == places[1]:
        raise InputError(f"--compare {one} {other}: these are the same; name two")
    samples.check_same_examples(*pair)
    result = summary.summarise(
        [Cell(sample.name, {}, ()) for sample in pair],
        {sample.name: sample.runs for sample in pair},
        metric=metric,
        baseline=pair[0].name,
        best_metric=metric,
    )
    table.show(result)
    for line in samples.differences(*pair):
        print(f"differs in the config: {line}")
    if all(len(sample.runs) == 1 for sample in pair):
        _by_example(one, other, plugins)
    return DONE


def _by_example(one: str, other: str, plugins: Plugins) -> None:
    """Shows how two runs differ on the examples of one split, or why it cannot be seen."""
    try:
        found, names, where = assess.compared(other, one, plugins)
    except InputError as error:
        given = shlex.join([f"--workdir={other}", f"--against={one}"])
        print(f"by example they are not compared: {error}\nlater: jaxcls evaluate {given}")
        return
    against.show(found, one, names, where, this=other)
