"""``jaxcls report --workdir=RUN ...``: write one HTML file on runs and studies.

It needs their folders only; scores and images also need the dataset. With
``--card=RUN_OR_STUDY`` it writes a reproducibility card instead, a page of Markdown.
"""

import pathlib
from collections.abc import Sequence

from jaxcls import atomic
from jaxcls.commands import cli
from jaxcls.config.knobs import KNOBS
from jaxcls.data import files
from jaxcls.errors import DONE, InputError, shown
from jaxcls.evaluation import assess, attacks, corruptions
from jaxcls.report import card, gather, page
from jaxcls.runs.workdir import Workdir

# The most files of --images: the report shows every file with a saliency map.
MOST_IMAGES = 64


def names_of(paths: Sequence[str]) -> list[str]:
    """Returns names for runs: their folders' names, or their paths if a name repeats."""
    short = [pathlib.Path(path).expanduser().resolve().name or path for path in paths]
    return short if len(set(short)) == len(short) else list(paths)


def parser() -> cli.Parser:
    """Returns the parser of the command's flags."""
    about = "One HTML file of how runs and studies went and how good they are."
    parser = cli.Parser("report", about, cli.OF_A_RUN, bare="--workdir")
    add = parser.add_argument
    add("--workdir", default=[], action="append", help="folder of a run; once for each")
    add("--study", default=[], action="append", help="folder of a study; once for each")
    add("--output", default="", metavar="FILE", help="report.html of the first folder")
    add("--card", default="", metavar="DIR", help="only write card.md and .json of this")
    add("--answers", default="", metavar="FILE.toml", help="what no folder can tell --card")
    add("--checkpoint", default="best", help="best (default), last or a step")
    add("--split", default="", help="test (default; eval where there is none), eval, ...")
    add(
        "--images",
        nargs="+",
        action="extend",
        default=[],
        metavar="IMAGE_OR_FOLDER",
        help="look into these, in place of mistakes and hits",
    )
    cli.add_robustness(parser)
    cli.add_plugins(parser)
    cli.add_published(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    rest, overrides = cli.split_overrides(argv)
    flags = parser()
    args = flags.parse_args(rest)
    if args.card or args.answers:
        others = cli.given(flags, args) + (["--config"] if overrides else [])
        return _write_card(args.card, args.answers, args.output, others)
    paths, folders = _each_once(args.workdir), _each_once(args.study)
    published = cli.published(args)
    if not (paths or published):
        given = cli.given(flags, args) + (["--config"] if overrides else [])
        _check_studies_alone(given, folders)
    plugins = cli.plugins(args)
    asked = assess.Asked(
        corruptions=corruptions.named(args.corruptions, "--corruptions", plugins),
        attacks=attacks.named(args.attacks, "--attacks"),
    )
    if args.output:
        output = cli.new_file(args.output, "--output", "report.html")
    elif paths or folders:
        output = Workdir((paths or folders)[0]).path / "report.html"
    else:
        raise InputError(
            f"--model={args.model} has no folder for report.html; give --output=report.html"
        )
    files.check(args.images)
    images = list(files.images(args.images))
    if len(images) > MOST_IMAGES:
        raise InputError(
            f"--images={args.images[0]} ... are {len(images)} images, and a report looks"
            f" into at most {MOST_IMAGES}; name some of them"
        )
    names = dict(zip([*paths, *folders], names_of([*paths, *folders]), strict=True))
    studies = [gather.read_study(folder, names[folder]) for folder in folders]
    runs = [
        gather.read_run(
            path,
            names[path],
            args.checkpoint,
            args.split,
            images,
            overrides,
            asked,
            plugins,
        )
        for path in paths
    ]
    if published:
        loaded = cli.loaded(args, {"data.resident": "off", **overrides})
        name = published.model
        runs.append(gather.read_published(name, loaded, args.split, images, asked))
    text = page.page(runs, {key: knob.default for key, knob in KNOBS.items()}, studies)
    atomic.write(output, text)
    for run in runs:
        for why in run.missing.values():
            print(f"{run.name}: {why}")
    counts = f"runs: {len(runs)}" + (f", studies: {len(studies)}" if studies else "")
    print(f"report: {shown(str(output))} ({len(text.encode()) / 1e6:.2f} MB, {counts})")
    return DONE


def _write_card(path: str, answers: str, output: str, given: Sequence[str]) -> int:
    """Writes the card of a run or a study, as Markdown and beside it as JSON.

    given: the flags that are given. Raises `InputError` for one that a card has not.
    """
    for flag in given:
        if flag not in ("--card", "--answers", "--output"):
            raise InputError(
                f"{flag} is of a report, and --card writes another file; leave one of both"
                " out"
            )
    if not path:
        raise InputError(f"--answers={answers} is of a card; give --card=RUN_OR_STUDY too")
    found = card.read(path, card.read_answers(answers) if answers else {})
    file = Workdir(path).path / "card.md"
    if output:
        file = cli.new_file(output, "--output", "card.md")
    beside = file.with_suffix(".json")
    if beside == file:
        raise InputError(
            f"--output={output} is where the card's JSON goes; try --output=card.md"
        )
    cli.new_file(str(beside), "--output", "card.md")
    atomic.write(file, card.as_markdown(found))
    atomic.write_json(beside, card.as_json(found))
    print(f"card: {shown(str(file))}, {shown(beside.name)}")
    return DONE


def _each_once(folders: Sequence[str]) -> list[str]:
    """Returns the folders in order without repeats, each in its first spelling."""
    found: dict[pathlib.Path, str] = {}
    for folder in folders:
        found.setdefault(Workdir(folder).path, folder)
    return list(found.values())


def _check_studies_alone(given: Sequence[str], folders: Sequence[str]) -> None:
    """Raises `InputError` without a study, or for a flag that only runs have."""
    if not folders:
        raise InputError("there is nothing to report on; give --workdir=RUN or --study=DIR")
    for flag in given:
        if flag not in ("--study", "--output"):
            raise InputError(
                f"{flag} is of runs, and there is none; give --workdir=RUN, such as one"
                f" below {folders[0]}"
            )
