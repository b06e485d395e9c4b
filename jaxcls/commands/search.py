"""``jaxcls search --workdir=RUN --gallery=DIR QUERY...``: find the nearest images."""

import functools
import hashlib
import os
import pathlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.table import Table

from jaxcls import atomic, console
from jaxcls.commands import cli
from jaxcls.data import clean, files
from jaxcls.data.files import Bad
from jaxcls.devices import memory
from jaxcls.errors import InputError, shown
from jaxcls.predict import contact_sheet, gallery, inference, retrieval
from jaxcls.predict.retrieval import Neighbours
from jaxcls.runs.workdir import Workdir

ABOUT = f"""\
{cli.OF_A_RUN}
formats, the images that are nearest to each query, in the order given:
  table  for people, shown at the end
  csv    a header, then a row an image that is near
  json   one array with an object a line for each query
The similarity is the cosine of two images' features: 1 is the same direction. A query that
is in the gallery comes first. The gallery's features are kept in a file, and those of
files that are new or changed are computed. A bad file is named on standard error, and the
status is 2. Of a folder the files that end in
{files.NAMED}
are taken; hidden ones and others are left out and counted.
"""
SHEET = (
    f"a picture of the first {contact_sheet.ROWS} queries and what is near to each;"
    " search.png in the run's folder by default, none if empty"
)
CACHE = "where the gallery's features are kept; in search/ of the run's folder by default"


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status, 2 if any file is bad."""
    rest, overrides = cli.split_overrides(argv)
    args = parser().parse_args(rest)
    args.gallery = os.path.expanduser(args.gallery)
    top = cli.whole_number(args.top, "--top", least=1)
    batch_size = cli.whole_number(args.batch_size, "--batch_size", least=1)
    threads = cli.whole_number(args.threads, "--threads")
    if isinstance(cli.place(args), str):
        Workdir(args.workdir).read()
    sheet = _sheet(args.sheet, args.workdir)
    left_out: list[str] = []
    listing = gallery.listed(args.gallery, sheet, left_out)
    queries = files.asked(args.images, args.null, left_out)
    cache = _cache(args.cache, args.workdir, args.gallery)
    # csv and json are read by programs, so that messages go to standard error.
    say = print if args.format == "table" else functools.partial(print, file=sys.stderr)
    counts: Counter[str] = Counter()
    drawn: list[Neighbours] = []
    with clean.quiet(), console.explained(), memory.explained("--batch_size", batch_size):
        exp, _, _, weights = cli.loaded(args, overrides)
        threads = threads or exp.config.data.threads
        compute = functools.partial(
            retrieval.vectors, exp, weights, batch_size=batch_size, threads=threads
        )
        key = retrieval.key_of(exp, weights)
        among = gallery.refreshed(listing, cache, key, compute, say)
        for bad in among.bad:
            files.say(bad)
        listed = ", ".join(f"{among.counts[kind]} {kind}" for kind in gallery.KINDS)
        kept = shown(str(cache)) if cache else "not kept: there is no --cache"
        say(f"gallery: {len(among.paths)} images ({listed}), {kept}")
        found = retrieval.search(among, queries, compute, top, leave_out=args.exclude_self)
        FORMATS[args.format](_answered(found, counts, drawn))
        if sheet and drawn:
            contact_sheet.draw(sheet, drawn, args.gallery, threads)
            say(f"sheet: {shown(str(sheet))}")
    files.say_left_out(left_out)
    more = f", {len(among.bad)} bad in the gallery" if among.bad else ""
    return cli.answered(counts, more)


def parser() -> cli.Parser:
    """Returns the parser of the command's flags."""
    about = "Find the images of a folder that are nearest to others, by a trained run."
    parser = cli.Parser("search", about, ABOUT)
    cli.add_run(parser)
    cli.add_images(parser, "QUERY", inference.BATCH_SIZE)
    add = parser.add_argument
    add("--gallery", required=True, metavar="DIR", help="the folder to search")
    add("--top", default="10", help="images to show for each query (default 10)")
    add("--exclude_self", action="store_true", help="leave a query itself out")
    add("--format", default="table", choices=tuple(FORMATS), help="default table")
    add("--sheet", default=None, metavar="FILE.png", help=SHEET)
    add("--cache", default="", metavar="FILE.npz|DIR", help=CACHE)
    return parser


def _sheet(given: str | None, workdir: str) -> pathlib.Path | None:
    """Returns the contact sheet's file, or None; raises `InputError` for a bad file.

    workdir: "" is none, and then there is a sheet only where it is asked for.
    """
    if given == "" or not (given or workdir):
        return None
    text = given or os.path.join(workdir, "search.png")
    if not text.endswith(".png"):
        raise InputError(f"--sheet={given} must end in .png, as search.png does")
    file = cli.new_file(text, "--sheet", "search.png")
    contact_sheet.check(file)
    return file


def _cache(given: str, workdir: str, folder: str) -> pathlib.Path | None:
    """Returns the file of a gallery's features; raises `InputError` for a bad --cache.

    folder: the gallery. In a folder, the file's name is of the gallery's path. It is None
    if there is neither a --cache nor a run.
    """
    if not (given or workdir):
        return None
    if not given:
        made = pathlib.Path(workdir).expanduser() / "search"
        with atomic.explained(made, "try --cache=gallery.npz"):
            made.mkdir(exist_ok=True)
        given = str(made)
    if os.path.isdir(os.path.expanduser(given)):
        path = os.path.realpath(folder)
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
        given = os.path.join(given, f"{os.path.basename(path)[:40]}-{digest}.npz")
    if not given.endswith(".npz"):
        raise InputError(
            f"--cache={given} must be a folder, or end in .npz; try --cache=gallery.npz"
        )
    return cli.new_file(given, "--cache", "gallery.npz")


def _answered(
    found: Iterable[Neighbours | Bad], counts: Counter[str], drawn: list[Neighbours]
) -> Iterator[Neighbours]:
    """Yields the neighbours; prints bad files on standard error; counts both.

    drawn: receives the neighbours of the first queries.
    """
    for each in files.good(found, counts):
        if len(drawn) < contact_sheet.ROWS:
            drawn.append(each)
        yield each


def _as_table(found: Iterable[Neighbours]) -> None:
    table = Table("query", "", "image", box=box.SIMPLE)
    table.add_column("similarity", justify="right")
    for query, near in found:
        for rank, (path, similarity) in enumerate(near, 1):
            name = shown(query) if rank == 1 else ""
            table.add_row(name, f"{rank}", shown(path), f"{similarity:.4f}")
    if table.row_count:
        console.console(200).print(table)


def _as_csv(found: Iterable[Neighbours]) -> None:
    rows = (
        (query, str(rank), path, f"{similarity:.6f}")
        for query, near in found
        for rank, (path, similarity) in enumerate(near, 1)
    )
    console.as_csv(("query", "rank", "image", "similarity"), rows)


def _as_json(found: Iterable[Neighbours]) -> None:
    console.as_json(
        {
            "query": query,
            "nearest": [{"image": path, "similarity": value} for path, value in near],
        }
        for query, near in found
    )


FORMATS = {"table": _as_table, "csv": _as_csv, "json": _as_json}
