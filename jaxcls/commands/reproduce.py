"""``jaxcls reproduce --workdir=RUN``: train a recorded run again, and compare."""

from collections.abc import Sequence

from jaxcls.commands import cli
from jaxcls.errors import DIFFERS, DONE

ABOUT = """Train a recorded run again in a scratch folder, and compare the digest of every
array at every recorded step. Status 0: the same; 4: it differs, and the first step and
arrays that do are named, with what differs in the environment."""


def parser() -> cli.Parser:
    """Returns the parser of the command's flags."""
    parser = cli.Parser("reproduce", ABOUT, bare="--workdir")
    add = parser.add_argument
    add("--workdir", required=True, help="a run's folder, or its archive")
    add("--steps", default="0", help="compare up to this step; 0: to the end")
    add(
        "--from",
        default="0",
        dest="first",
        metavar="STEP",
        help="begin at this kept checkpoint, and train the part after it alone",
    )
    add(
        "--tolerance",
        default="0.05",
        help="on other machines or code: largest relative difference of a loss [0.05]",
    )
    add("--scratch", default="", help="folder for the new run, which is kept")
    cli.add_plugins(parser)
    add("--pack", default="", metavar="FILE.tar.gz", help="only write the archive")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    rest, overrides = cli.split_overrides(argv)
    args = parser().parse_args(rest)
    steps = cli.whole_number(args.steps, "--steps")
    first = cli.whole_number(args.first, "--from")
    tolerance = cli.number(args.tolerance, "--tolerance")

    from jaxcls.runs import archive
    from jaxcls.runs.workdir import Workdir
    from jaxcls.studies import reproducing

    with archive.opened(args.workdir) as folder:
        if args.pack:
            archive.pack(folder, cli.new_file(args.pack, "--pack", "run.tar.gz"))
            print(f"packed: {args.pack}")
            return DONE
        recorded = archive.read(folder, args.workdir)
        audit = reproducing.Audit(Workdir(folder), first) if first else None
        is_same, words = reproducing.reproduce(
            recorded, overrides, steps, tolerance, args.scratch, cli.plugins(args), audit
        )
    print(words)
    return DONE if is_same else DIFFERS
