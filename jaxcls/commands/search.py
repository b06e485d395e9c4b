"""``jaxcls search --workdir=RUN --gallery=DIR QUERY...``: find the nearest images."""

import argparse
import contextlib
import functools
import hashlib
import os
import pathlib
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich import box
from rich.table import Table

from jaxcls import console
from jaxcls.commands import cli
from jaxcls.data import clean, files
from jaxcls.data.files import Bad
from jaxcls.devices import memory
from jaxcls.errors import BAD_INPUT, DONE, InputError, shown
from jaxcls.evaluation import scoring
from jaxcls.predict import contact_sheet, gallery, inference, retrieval
from jaxcls.predict.retrieval import SHEET_ROWS, Neighbours
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
{", ".join(files.SUFFIXES)}
are taken, hidden ones left out.
"""
SHEET = (
    f"a picture of the first {SHEET_ROWS} queries and what is near to each; search.png in"
    " the run's folder by default, none if empty"
)
CACHE = "where the gallery's features are kept; in search/ of the run's folder by default"


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status, 2 if any file is bad."""
    rest, overrides = cli.split_overrides(argv)
    args = _parser().parse_args(rest)
    args.gallery = os.path.expanduser(args.gallery)
    top = cli.whole_number(args.top, "--top", least=1)
    batch_size = cli.whole_number(args.batch_size, "--batch_size", least=1)
    threads = cli.whole_number(args.threads, "--threads")
    Workdir(args.workdir).read()
    sheet = _sheet(args.sheet, args.workdir)
    listing = gallery.listed(args.gallery, sheet)
    queries = files.asked(args.images, args.null)
    # csv and json are read by programs, so that messages go to standard error.
    say = print if args.format == "table" else functools.partial(print, file=sys.stderr)
    counts: Counter[str] = Counter()
    drawn: list[Neighbours] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(clean.quiet())
        stack.enter_context(console.explained())
        stack.enter_context(memory.explained("--batch_size", batch_size))
        cache = _cache(args, stack, say)
        exp, _, _, weights = scoring.load(args.workdir, args.checkpoint, overrides)
        threads = threads or exp.config.data.threads
        compute = functools.partial(
            retrieval.vectors, exp, weights, batch_size=batch_size, threads=threads
        )
        key, width = retrieval.key_of(exp, weights), inference.width(exp, weights)
        among = gallery.refreshed(listing, cache, key, width, compute, say)
        for bad in among.bad:
            files.say(bad)
        listed = ", ".join(f"{among.counts[kind]} {kind}" for kind in gallery.KINDS)
        say(f"gallery: {len(among.paths)} images ({listed}), {shown(str(cache))}")
        found = retrieval.search(among, queries, compute, top, leave_out=args.exclude_self)
        FORMATS[args.format](_answered(found, counts, drawn))
        if sheet and drawn:
            retrieval.draw(sheet, drawn, args.gallery, threads)
            say(f"sheet: {shown(str(sheet))}")
    if not counts:
        print("no image was given", file=sys.stderr)
    if not counts["bad"] + len(among.bad):
        return DONE
    said = f"{counts['answered']} answered, {counts['bad']} bad"
    more = f", {len(among.bad)} bad in the gallery" if among.bad else ""
    print(said + more, file=sys.stderr)
    return BAD_INPUT


def _parser() -> cli.Parser:
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
    """Returns the contact sheet's file, or None; raises `InputError` for a bad file."""
    if given == "":
        return None
    if given and not given.endswith(".png"):
        raise InputError(f"--sheet={given} must end in .png, as search.png does")
    text = given or os.path.join(workdir, "search.png")
    file = cli.new_file(text, "--sheet", "search.png")
    contact_sheet.check(file)
    return file


def _cache(
    args: argparse.Namespace, stack: contextlib.ExitStack, say: Callable[[str], None]
) -> pathlib.Path:
    """Returns the file of the gallery's features.

    If the run's folder cannot be written, the file is temporary, in `stack`. Raises
    `InputError` for a bad --cache.
    """
    path = os.path.realpath(args.gallery)
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    name = f"{os.path.basename(path)[:40]}-{digest}.npz"
    if args.cache:
        if os.path.isdir(os.path.expanduser(args.cache)):
            return cli.new_file(os.path.join(args.cache, name), "--cache", "gallery.npz")
        if not args.cache.endswith(".npz"):
            raise InputError(
                f"--cache={args.cache} must be a folder, or end in .npz; try"
                " --cache=gallery.npz"
            )
        return cli.new_file(args.cache, "--cache", "gallery.npz")
    folder = pathlib.Path(args.workdir).expanduser() / "search"
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
    if os.access(folder, os.W_OK) and folder.is_dir():
        return folder / name
    say(f"{shown(str(folder))} may not be written; --cache=gallery.npz keeps the features")
    return pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / name


def _answered(
    found: Iterable[Neighbours | Bad], counts: Counter[str], drawn: list[Neighbours]
) -> Iterator[Neighbours]:
    """Yields the neighbours; prints bad files on standard error; counts both.

    drawn: receives the first SHEET_ROWS neighbours.
    """
    for each in files.good(found, counts):
        if len(drawn) < SHEET_ROWS:
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
    header = "query", "rank", "image", "similarity"
    console.as_csv(
        header,
        (
            (query, str(rank), path, f"{similarity:.6f}")
            for query, near in found
            for rank, (path, similarity) in enumerate(near, 1)
        ),
    )


def _as_json(found: Iterable[Neighbours]) -> None:
    console.as_json(
        {
            "query": query,
            "nearest": [{"image": path, "similarity": value} for path, value in near],
        }
        for query, near in found
    )


FORMATS = {"table": _as_table, "csv": _as_csv, "json": _as_json}
