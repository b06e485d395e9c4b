"""``jaxcls report --workdir=RUN ...``: write one HTML file on runs and studies.

It needs their folders only; scores and images also need the dataset.
"""

import argparse
import pathlib
from collections.abc import Mapping, Sequence

from jaxcls import atomic
from jaxcls.commands import cli
from jaxcls.config.knobs import KNOBS
from jaxcls.data import files
from jaxcls.errors import DONE, InputError, shown
from jaxcls.evaluation import assess, attacks, corruptions
from jaxcls.report import gather, page
from jaxcls.runs.workdir import Workdir

# The most files of --images: the report shows every file with a saliency map.
MOST_IMAGES = 64
# A larger report prints a warning.
MOST_BYTES = 5_000_000


def names_of(paths: Sequence[str]) -> list[str]:
    """Returns names for runs: their folders' names, or their paths if a name repeats."""
    short = [pathlib.Path(path).expanduser().resolve().name or path for path in paths]
    return short if len(set(short)) == len(short) else list(paths)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    about = "One HTML file of how runs and studies went and how good they are."
    parser = cli.Parser("report", about, cli.OF_A_RUN)
    add = parser.add_argument
    add("--workdir", default=[], action="append", help="folder of a run; once for each")
    add("--study", default=[], action="append", help="folder of a study; once for each")
    add("--output", default="", metavar="FILE.html", help="report.html of the first folder")
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
    rest, overrides = cli.split_overrides(argv)
    args = parser.parse_args(rest)
    paths, folders = _each_once(args.workdir), _each_once(args.study)
    if not paths:
        _check_studies_alone(args, folders, overrides)
    asked = assess.Asked(
        corruptions=corruptions.named(args.corruptions, "--corruptions"),
        attacks=attacks.named(args.attacks, "--attacks"),
    )
    output = _output(args.output, (paths or folders)[0])
    files.check(args.images)
    images = [_image(each) for each in files.images(args.images)]
    if len(images) > MOST_IMAGES:
        raise InputError(
            f"--images={args.images[0]} ... are {len(images)} images, and a report looks"
            f" into at most {MOST_IMAGES}; name some of them"
        )
    names = dict(zip([*paths, *folders], names_of([*paths, *folders]), strict=True))
    studies = [gather.read_study(folder, names[folder]) for folder in folders]
    runs = [
        gather.gather(
            path, names[path], args.checkpoint, args.split, images, overrides, asked
        )
        for path in paths
    ]
    text = page.page(runs, {key: knob.default for key, knob in KNOBS.items()}, studies)
    atomic.write(output, text)
    for run in runs:
        for why in run.missing.values():
            print(f"{run.name}: {why}")
    size = len(text.encode())
    counts = f"runs: {len(runs)}" + (f", studies: {len(studies)}" if studies else "")
    print(f"report: {shown(str(output))} ({size / 1e6:.2f} MB, {counts})")
    if size > MOST_BYTES:
        print("it is large for a page; give fewer of --workdir and --study at a time")
    return DONE


def _each_once(folders: Sequence[str]) -> list[str]:
    """Returns the folders in order without repeats, each in its first spelling."""
    found: dict[pathlib.Path, str] = {}
    for folder in folders:
        found.setdefault(Workdir(folder).path, folder)
    return list(found.values())


def _check_studies_alone(
    args: argparse.Namespace, folders: Sequence[str], overrides: Mapping[str, str]
) -> None:
    """Raises `InputError` without a study, or for a flag that only runs have."""
    if not folders:
        raise InputError("there is nothing to report on; give --workdir=RUN or --study=DIR")
    asked = {
        "--checkpoint": args.checkpoint != "best",
        "--split": args.split,
        "--images": args.images,
        "--corruptions": args.corruptions,
        "--attacks": args.attacks,
        "--config": overrides,
    }
    for flag, is_asked in asked.items():
        if is_asked:
            raise InputError(
                f"{flag} is of runs, and there is none; give --workdir=RUN, such as one"
                f" below {folders[0]}"
            )


def _image(found: str | files.Bad) -> str:
    """Returns the path of an image; raises `InputError` for a bad file."""
    if isinstance(found, files.Bad):
        raise InputError(f"--images={shown(found.path)}: {found.why}; give image files")
    return found


def _output(given: str, workdir: str) -> pathlib.Path:
    """Returns the file to write; raises `InputError` if it cannot be written."""
    if not given:
        return Workdir(workdir).path / "report.html"
    return cli.new_file(given, "--output", "report.html")
