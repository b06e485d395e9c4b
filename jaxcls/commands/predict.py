"""``jaxcls predict --workdir=RUN IMAGE_OR_FOLDER...``: print the classes of images."""

import contextlib
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from rich import box
from rich.table import Table

from jaxcls import console
from jaxcls.commands import cli
from jaxcls.data import clean, files
from jaxcls.data.files import Bad
from jaxcls.devices import memory
from jaxcls.errors import BAD_INPUT, DONE, InputError, shown
from jaxcls.evaluation import scoring
from jaxcls.predict import features, inference
from jaxcls.predict.inference import BATCH_SIZE, Prediction

# (path, [(class, probability)] by falling probability)
Row = tuple[str, list[tuple[str, float]]]

ABOUT = f"""\
{cli.OF_A_RUN}
formats, one answer a file, in the order given:
  table  for people, shown at the end
  csv    a header, then a row a file as it is answered
  json   one array with an object a line, as they are answered: a stream that is cut
         short is no JSON document, so that it is not taken for the whole
probabilities are those of a softmax, or of a sigmoid of each class where the run was
trained so. A bad file is named on standard error, the others are answered, and the
status is 2. Of a folder the files that end in
{", ".join(files.SUFFIXES)}
are taken, hidden ones left out.
"""
EMBED = (
    "also write the features that the model's head sees: path [n] and embed [n, D]"
    " float32, in order, bad files left out"
)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status, 2 if any file is bad."""
    rest, overrides = cli.split_overrides(argv)
    args = _parser().parse_args(rest)
    top = cli.whole_number(args.top, "--top", least=1)
    batch_size = cli.whole_number(args.batch_size, "--batch_size", least=1)
    threads = cli.whole_number(args.threads, "--threads")
    if args.embed and not args.embed.endswith(".npz"):
        raise InputError(f"--embed={args.embed} must end in .npz, as features.npz does")
    embed = cli.new_file(args.embed, "--embed", "features.npz") if args.embed else None
    paths = files.asked(args.images, args.null)
    exp, _, _, weights = scoring.load(args.workdir, args.checkpoint, overrides)
    found = inference.predict(
        exp,
        weights,
        paths,
        batch_size=batch_size,
        threads=threads or exp.config.data.threads,
        embed=embed is not None,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(clean.quiet())
        stack.enter_context(console.explained())
        stack.enter_context(memory.explained("--batch_size", batch_size))
        if embed:
            add = stack.enter_context(
                features.writing(embed, inference.width(exp, weights))
            )
            found = _kept(found, add)
        counts = write(args.format, found, exp.selection.class_names, top)
    if not counts:
        print("no image was given", file=sys.stderr)
    if not counts["bad"]:
        return DONE
    print(f"{counts['answered']} answered, {counts['bad']} bad", file=sys.stderr)
    return BAD_INPUT


def _parser() -> cli.Parser:
    parser = cli.Parser("predict", "Classify image files with a trained run.", ABOUT)
    cli.add_run(parser)
    cli.add_images(parser, "IMAGE_OR_FOLDER", BATCH_SIZE)
    add = parser.add_argument
    add("--top", default="3", help="classes to show for each image (default 3)")
    add("--format", default="table", choices=tuple(FORMATS), help="default table")
    add("--embed", default="", metavar="FILE.npz", help=EMBED)
    return parser


def _kept(
    found: Iterator[Prediction | Bad], add: features.Add
) -> Iterator[Prediction | Bad]:
    """Yields `found` unchanged, and passes the features of each prediction to `add`."""
    for each in found:
        if isinstance(each, Prediction):
            add(each.path, each.embed)
        yield each


def write(
    form: str, found: Iterable[Prediction | Bad], class_names: Sequence[str], top: int
) -> Counter[str]:
    """Prints predictions in the format `form`, and bad files on standard error.

    top: the number of classes for each image. Returns the counts of "answered" and "bad".
    """
    counts: Counter[str] = Counter()
    top = min(top, len(class_names))
    FORMATS[form](_rows(found, class_names, top, counts), top)
    return counts


def _rows(
    found: Iterable[Prediction | Bad], names: Sequence[str], top: int, counts: Counter[str]
) -> Iterator[Row]:
    """Yields a row for each prediction; prints bad files on standard error; counts both."""
    for each in files.good(found, counts):
        best = np.argsort(-each.probabilities, kind="stable")[:top].tolist()
        yield each.path, [(names[k], float(each.probabilities[k])) for k in best]


def _as_table(rows: Iterable[Row], top: int) -> None:
    table = Table("image", box=box.SIMPLE)
    for k in range(top):
        table.add_column(f"{k + 1}")
        table.add_column("p", justify="right")
    for path, classes in rows:
        cells = (cell for name, p in classes for cell in (name, f"{p:.3f}"))
        table.add_row(shown(path), *cells)
    if table.row_count:
        console.console(200).print(table)


def _as_csv(rows: Iterable[Row], top: int) -> None:
    header = [
        name for k in range(1, top + 1) for name in (f"class_{k}", f"probability_{k}")
    ]
    console.as_csv(
        ["image", *header],
        (
            [path, *(x for name, p in classes for x in (name, f"{p:.6f}"))]
            for path, classes in rows
        ),
    )


def _as_json(rows: Iterable[Row], top: int) -> None:
    del top
    console.as_json(
        {
            "image": path,
            "classes": [
                {"name": name, "probability": p if math.isfinite(p) else None}
                for name, p in classes
            ],
        }
        for path, classes in rows
    )


FORMATS = {"table": _as_table, "csv": _as_csv, "json": _as_json}
