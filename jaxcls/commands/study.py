"""``jaxcls study --config=configs/digits.py --seeds=10``: several runs and error bars.

A run of a study is the same as a run of ``jaxcls train``, each in a separate folder. The
result is a pure function of these folders.
"""

import argparse
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxcls import experiment
from jaxcls.commands import cli
from jaxcls.config import loading as configs
from jaxcls.data import sources
from jaxcls.devices import hosts, mesh
from jaxcls.errors import DIFFERS, DIVERGED, DONE, InputError, StoppedError
from jaxcls.runs.workdir import Workdir
from jaxcls.studies import (
    cells,
    comparison,
    expected,
    outcomes,
    running,
    samples,
    summary,
    table,
)
from jaxcls.studies.cells import Cell
from jaxcls.studies.running import Study
from jaxcls.training import stopping

ABOUT = """Train every recipe of a study with every seed, each run in a folder of its own,
and say how sure the result is. The same command again goes on, or shows the result.
--compare and --verify say whether two recipes, or two machines, reach the same.
--config.KEY=VALUE changes all of its runs; jaxcls train --help lists every key."""

# The flags that --verify and --compare accept; --config accepts all flags.
_BESIDE = {
    "--compare": {"--metric"},
    "--verify": {"--workdir", "--seeds", "--shard", "--dry_run"}
    | {"--coordinator", "--processes", "--process"},
}


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    rest, overrides = cli.split_overrides(argv)
    parser = _parser()
    args = parser.parse_args(rest)
    modes = {"--config": args.config, "--verify": args.verify, "--compare": args.compare}
    given = [flag for flag, value in modes.items() if value]
    if len(given) != 1:
        said = " and ".join(given) or "nothing"
        raise InputError(
            f"study takes one of --config=FILE.py, --verify=FILE.py and --compare A B, and"
            f" was given {said}; try --config=configs/digits.py --seeds=5"
        )
    _check_said(given[0], cli.given(parser, args), overrides)
    if args.compare:
        one, other = args.compare
        return _compare(one, other, args.metric or "top1")
    return _verify(args, overrides) if args.verify else _study(args, overrides)


def _check_said(mode: str, given: Sequence[str], overrides: Mapping[str, str]) -> None:
    """Raises `InputError` for a flag that has no effect."""
    useless = [flag for flag in given if flag not in {mode, *_BESIDE.get(mode, given)}]
    if mode == "--compare":
        useless += [f"--config.{key}" for key in overrides]
    if useless:
        raise InputError(f"{useless[0]} says nothing beside {mode}; leave it out")
    for flag, other in {"--search_seed": "--random", "--margin": "--record"}.items():
        if flag in given and other not in given:
            raise InputError(f"{flag} says nothing without {other}; give both, or neither")


def _parser() -> cli.Parser:
    parser = cli.Parser("study", ABOUT)
    _add_runs(parser)
    _add_questions(parser)
    cli.add_processes(parser)
    return parser


def _add_runs(parser: cli.Parser) -> None:
    """Adds the flags of cells, seeds and training."""
    add = parser.add_argument
    add("--config", default="", metavar="FILE.py[:ARG]", help="such as configs/digits.py")
    add("--workdir", default="", help="runs/<name of the config>-study")
    add("--seeds", default="", help="10: seeds 0 to 9; 5-9; or 3,8 [default: 10]")
    add(
        "--vary",
        default="all",
        help="what a seed varies: all, or of init,order,augment,dropout, while the others"
        " stay; each: all, and every one by itself, to see what the variance is of",
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
    add("--metric", default="", help="what is compared [default: top1]")
    add("--baseline", default="", help="the cell that others are compared with; the first")
    add("--shard", default="0/1", metavar="I/N", help="only each Nth run, from the Ith")
    add("--dry_run", action="store_true", help="print what would be trained")


def _add_questions(parser: cli.Parser) -> None:
    """Adds the flags of --record, --verify and --compare."""
    add = parser.add_argument
    add(
        "--record",
        action="store_true",
        help="write what the runs came to beside the config, as what is expected of it",
    )
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


def _study(args: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Makes or continues a study, and shows its result; returns the exit status."""
    if "seed" in overrides and args.vary == "all":
        raise InputError("--config.seed is what --seeds varies; give --seeds=3-12")
    varied = [f"seeds.{stream}" for stream in cells.streams_of(args.vary)]
    if twice := [key for key in varied if key in overrides]:
        raise InputError(
            f"--config.{twice[0]} is what --vary={args.vary} varies; leave it out"
        )
    count = cli.whole_number(args.cells, "--cells")
    search_seed = cli.whole_number(args.search_seed, "--search_seed")
    found = cells.make(args.grid, args.random, count, search_seed, args.vary)
    base = configs.load(args.config, overrides)
    seeds = cells.seeds(args.seeds or "10")
    study = Study(base, found, seeds, _folder(args, args.config, "study"))
    names = [cell.name for cell in found]
    baseline = args.baseline or names[0]
    if baseline not in names:
        raise InputError(f"--baseline={baseline} is no cell; there are: {', '.join(names)}")
    metric = args.metric or "top1"
    margin = _margin(args.margin, metric) if args.record else 0.0
    if args.record:
        _check_recordable(args, study)
    running.check(study)
    print(table.plan(names, seeds, _shard(args.shard)))
    if args.dry_run:
        return DONE
    result = _made(args, study, metric, baseline)
    if hosts.is_first():
        table.show(result)
        print(f"{table.closing(result)} workdir={args.workdir or study.folder}")
        if args.record:
            _record(args, study, metric, result["headline"], margin)
    return DIVERGED if result["diverged"] and not result["done"] else DONE


def _folder(args: argparse.Namespace, config: str, word: str) -> pathlib.Path:
    stem = pathlib.Path(config.partition(":")[0]).stem
    return Workdir(args.workdir or f"runs/{stem}-{word}").path


def _shard(text: str) -> tuple[int, int]:
    """Returns (index, number of shards) of ``"0/4"``; raises `InputError`."""
    first, _, of = text.partition("/")
    if not (first.isdecimal() and of.isdecimal() and int(first) < int(of)):
        raise InputError(f"--shard={text} must be i/n with i below n; the first of 4: 0/4")
    return int(first), int(of)


def _made(
    args: argparse.Namespace, study: Study, metric: str, baseline: str
) -> dict[str, Any]:
    """Trains the unfinished runs of the shard; writes study.json and returns its content.

    Raises `StoppedError` on a signal, after it has written study.json.
    """
    mesh.prefer_same_bits()
    conclude = functools.partial(running.conclude, study, metric, baseline)
    with (
        hosts.joined(args.coordinator, args.processes, args.process),
        stopping.on_signals() as stop,
    ):
        try:
            running.run(study, _shard(args.shard), stop, metric)
        except StoppedError:
            hosts.on_first(conclude)
            raise
        return hosts.on_first(conclude)


def _margin(text: str, metric: str) -> float:
    """Returns --margin in the unit of a metric; raises `InputError`."""
    if not text and not summary.unit(metric):
        raise InputError(
            f"--record --metric={metric}: how near is near? It has no points; give the"
            " difference that does not matter, such as --margin=0.02"
        )
    margin = cli.number(text or "0.5", "--margin")
    if margin <= 0:
        raise InputError(f"--margin={text} must be above 0; try 0.5")
    return margin


def _check_recordable(args: argparse.Namespace, study: Study) -> None:
    """Raises `InputError` unless the study has one unchanged config and several seeds."""
    if len(study.seeds) < 2:
        raise InputError("--record takes two seeds at least; give --seeds=10")
    if len(study.cells) > 1 or study.cells[0].overrides or study.cells[0].streams:
        raise InputError(
            "--record is of one recipe under whole seeds; leave --grid, --random and"
            " --vary out"
        )
    changed = configs.differences(configs.load(args.config), study.base)
    other = [key for key in changed if configs.is_identity(key, study.base)]
    if other:
        raise InputError(
            f"--record is of {args.config} as it stands, and --config.{other[0]} changes"
            " it; leave it out, or write it into the file"
        )


def _record(
    args: argparse.Namespace, study: Study, metric: str, place: str, margin: float
) -> None:
    """Writes the expected results of the config beside it."""
    cell = study.cells[0]
    folders = {seed: study.workdir(cell, seed) for seed in study.seeds}
    first = folders[study.seeds[0]]
    file = _expected_file(args.config)
    expected.record(
        file,
        [outcomes.read(folder, seed) for seed, folder in folders.items()],
        config=_identity(study.base),
        facts=first.read()["implied"]["facts"],
        start=first.starts()[-1],
        metric=metric,
        place=place,
        margin=margin,
    )
    print(f"recorded: {file}")


def _expected_file(config: str) -> pathlib.Path:
    name, _, argument = config.partition(":")
    return expected.file_of(configs.find(name), argument)


def _identity(config: ConfigDict) -> dict[str, Any]:
    """Returns {key: value} of the identity of a recipe, without its seed."""
    return {
        key: value
        for key, value in configs.flat(config).items()
        if configs.is_identity(key, config) and key != "seed"
    }


def _verify(args: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Trains a recorded recipe again; returns 0 if the results are equivalent, else 4."""
    before = expected.read(_expected_file(args.verify))
    base = configs.load(args.verify, overrides)
    _check_is_recorded(base, before, args.verify)
    text = args.seeds or ",".join(map(str, before["seeds"])) + ","
    study = Study(
        base,
        [Cell("base", {}, ())],
        cells.seeds(text),
        _folder(args, args.verify, "verify"),
    )
    metric, place = before["metric"], before["place"]
    print(table.plan(["base"], study.seeds, _shard(args.shard)))
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
    values = [
        run["values"][place][metric]
        for run in result["cells"][0]["runs"]
        if run["state"] == "done"
    ]
    found = _against(before, np.array(values))
    print(f"{metric} {found.words}")
    return DONE if found.is_equivalent else DIFFERS


def _check_is_recorded(base: ConfigDict, before: Mapping[str, Any], config: str) -> None:
    """Raises `InputError` if the recipe or the dataset differs from the record."""
    recorded = configs.from_flat({**before["config"], "seed": base.seed})
    changed = configs.differences(recorded, base)
    if other := [key for key in changed if configs.is_identity(key, base)]:
        raise InputError(
            f"--verify={config}: the recipe is not the recorded one ({', '.join(other)}"
            " differ); leave --config.KEY out, or record it anew"
        )
    facts = sources.facts_of({"facts": before["data"]})
    sources.check_same(facts, experiment.build(base).selection.facts)


def _against(before: Mapping[str, Any], values: np.ndarray) -> comparison.Equivalence:
    """Prints the recorded results, and returns their equivalence test with values [n]."""
    metric = before["metric"]
    scale, then = summary.scale(metric), before["figures"][before["place"]][metric]
    print(
        f"recorded: {metric} {then['mean']:.4f}, deviation {then['deviation']:.4f},"
        f" n={then['n']}, jax {before['versions']['jax']} on {before['devices'][0]}"
    )
    return comparison.equivalence(
        scale * then["mean"],
        scale * then["deviation"],
        then["n"],
        scale * values,
        before["margin"],
        unit=summary.unit(metric),
    )


def _compare(one: str, other: str, metric: str) -> int:
    """Shows the comparison of two finished studies, cells or runs."""
    pair = [samples.read(one), samples.read(other)]
    if pair[0].name == pair[1].name:
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
    return DONE
