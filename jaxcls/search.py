"""The nearest images of a folder. ``python -m jaxcls.search --workdir=RUN --gallery=DIR``.

Near are images whose features, what the model's head sees, point the same way.
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import os
import pathlib
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich import box
from rich.table import Table

from jaxcls import (
    batches,
    clean,
    cli,
    config,
    console,
    contact_sheet,
    digesting,
    evaluate,
    experiment,
    files,
    gallery,
    memory,
    neighbours,
    predict,
    provenance,
)
from jaxcls.errors import InputError, shown
from jaxcls.files import Bad
from jaxcls.workdir import Workdir

# Counted up where features of the same weights and files would no longer be the same.
FEATURES = 1
# Queries that are compared with the gallery at once, on one way through it.
_AT_ONCE = 64
# What a sheet shows: queries, and images near to each.
SHEET_ROWS, SHEET_COLUMNS = 20, 10

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


class Found(NamedTuple):
    """What is near to a query: (path, similarity), the nearest first."""

    query: str
    near: list[tuple[str, float]]


def key_of(exp: experiment.Experiment, weights: dict[str, Any]) -> str:
    """A digest of all that features are a function of, besides the files' content."""
    values = config.flat(exp.config)
    names = [name for name in values if name.startswith("model.")]
    about = {
        "features": FEATURES,
        "weights": digesting.of_tree(exp.variables(weights)),
        "config": {name: values[name] for name in [*names, "data.eval_ops", "normalize"]},
        "versions": provenance.versions(),
        "device": jax.devices()[0].device_kind,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def vectors(
    exp: experiment.Experiment,
    weights: dict[str, Any],
    paths: Iterator[str],
    batch_size: int,
    threads: int,
) -> Iterator[np.ndarray | Bad]:
    """The features [D] float32 of each path in order, or why there are none."""
    found = predict.predict(
        exp, weights, paths, batch_size=batch_size, threads=threads, embed=True
    )
    for each in found:
        if isinstance(each, Bad):
            yield each
        elif np.isfinite(each.embed).all():
            yield each.embed
        else:
            yield Bad(each.path, "its features are not finite")


def search(
    among: gallery.Gallery,
    queries: Iterable[str | Bad],
    compute: gallery.Compute,
    top: int,
    *,
    leave_out: bool = False,
) -> Iterator[Found | Bad]:
    """The `top` nearest to each query, in their order; for a bad file, why there are none.

    A query that is a file of the gallery has its features, and comes first, or not at
    all if it is to `leave_out`. queries: taken as needed.
    """
    asked: deque[tuple[str, np.ndarray]] = deque()
    width = among.features.shape[1]

    def items() -> Iterator[tuple[str | Bad, int]]:
        for each in queries:
            path = each.path if isinstance(each, Bad) else each
            own = among.rows_of(path)
            asked.append((path, own))
            yield each, int(own[0]) if len(own) else -1

    found = gallery.in_place(items(), among.features, compute)
    while chunk := list(itertools.islice(found, _AT_ONCE)):
        of = [asked.popleft() for _ in chunk]
        good = [
            (own, each)
            for (_, own), each in zip(of, chunk, strict=True)
            if not isinstance(each, Bad)
        ]
        near = iter(
            neighbours.nearest(
                among.features,
                np.array([each for _, each in good], np.float32).reshape(-1, width),
                top,
                [own for own, _ in good],
                leave_out=leave_out,
            )
        )
        for (path, _), each in zip(of, chunk, strict=True):
            if isinstance(each, Bad):
                yield each
                continue
            rows, similarity = next(near)
            paths = [among.paths[row] for row in rows.tolist()]
            yield Found(path, list(zip(paths, similarity.tolist(), strict=True)))


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status: 2 if any file was bad."""
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
    # What is no answer is not in the way of who reads them.
    say = print if args.format == "table" else functools.partial(print, file=sys.stderr)
    counts: Counter[str] = Counter()
    drawn: list[Found] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(clean.quiet())
        stack.enter_context(console.explained())
        stack.enter_context(memory.explained("--batch_size", batch_size))
        cache = _cache(args, stack, say)
        exp, _, _, weights = evaluate.load(args.workdir, args.checkpoint, overrides)
        threads = threads or exp.config.data.threads
        compute = functools.partial(
            vectors, exp, weights, batch_size=batch_size, threads=threads
        )
        key, width = key_of(exp, weights), predict.width(exp, weights)
        among = gallery.refreshed(listing, cache, key, width, compute, say)
        for bad in among.bad:
            files.say(bad)
        listed = ", ".join(f"{among.counts[kind]} {kind}" for kind in gallery.KINDS)
        say(f"gallery: {len(among.paths)} images ({listed}), {shown(str(cache))}")
        found = search(among, queries, compute, top, leave_out=args.exclude_self)
        FORMATS[args.format](_answered(found, counts, drawn))
        if sheet and drawn:
            draw(sheet, drawn, args.gallery, threads)
            say(f"sheet: {shown(str(sheet))}")
    if not counts:
        print("no image was given", file=sys.stderr)
    if not counts["bad"] + len(among.bad):
        return cli.DONE
    said = f"{counts['answered']} answered, {counts['bad']} bad"
    more = f", {len(among.bad)} bad in the gallery" if among.bad else ""
    print(said + more, file=sys.stderr)
    return cli.BAD_INPUT


def _parser() -> cli.Parser:
    about = "Find the images of a folder that are nearest to others, by a trained run."
    parser = cli.Parser("search", about, ABOUT)
    predict.add_flags(parser)
    add = parser.add_argument
    add("--gallery", required=True, metavar="DIR", help="the folder to search")
    add("--top", default="10", help="images to show for each query (default 10)")
    add("--exclude_self", action="store_true", help="leave a query itself out")
    add("--format", default="table", choices=tuple(FORMATS), help="default table")
    add("--sheet", default=None, metavar="FILE.png", help=SHEET)
    add("--cache", default="", metavar="FILE.npz|DIR", help=CACHE)
    add("images", nargs="+", metavar="QUERY", help=predict.IMAGES)
    return parser


def _sheet(given: str | None, workdir: str) -> pathlib.Path | None:
    """The file to draw, None for none; raises `InputError` where it cannot be one."""
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
    """Where features are kept: of this command alone where they cannot be kept."""
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
    found: Iterable[Found | Bad], counts: Counter[str], drawn: list[Found]
) -> Iterator[Found]:
    """What was found; bad files are said on standard error. Counts both.

    drawn: gets the first of them.
    """
    for each in files.good(found, counts):
        if len(drawn) < SHEET_ROWS:
            drawn.append(each)
        yield each


def draw(
    sheet: pathlib.Path, found: Sequence[Found], folder: str, threads: int = 0
) -> None:
    """A row for each query: itself, and what is near to it with its similarity."""
    rows = []
    for query, near in found:
        cells = [(query, f"query\n{shown(os.path.basename(query))}")]
        for path, similarity in near[:SHEET_COLUMNS]:
            name = shown(os.path.relpath(path, folder))
            cells.append((path, f"{similarity:.4f}\n{name}"))
        rows.append(cells)
    paths = list(dict.fromkeys(path for row in rows for path, _ in row))
    small = batches.in_order(contact_sheet.thumbnail, paths, threads)
    contact_sheet.write(sheet, rows, dict(zip(paths, small, strict=True)))


def _as_table(found: Iterable[Found]) -> None:
    table = Table("query", "", "image", box=box.SIMPLE)
    table.add_column("similarity", justify="right")
    for query, near in found:
        for rank, (path, similarity) in enumerate(near, 1):
            name = shown(query) if rank == 1 else ""
            table.add_row(name, f"{rank}", shown(path), f"{similarity:.4f}")
    if table.row_count:
        console.console(200).print(table)


def _as_csv(found: Iterable[Found]) -> None:
    header = "query", "rank", "image", "similarity"
    console.as_csv(
        header,
        (
            (query, str(rank), path, f"{similarity:.6f}")
            for query, near in found
            for rank, (path, similarity) in enumerate(near, 1)
        ),
    )


def _as_json(found: Iterable[Found]) -> None:
    console.as_json(
        {
            "query": query,
            "nearest": [{"image": path, "similarity": value} for path, value in near],
        }
        for query, near in found
    )


FORMATS = {"table": _as_table, "csv": _as_csv, "json": _as_json}


if __name__ == "__main__":
    cli.run(main)
