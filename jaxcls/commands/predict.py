"""``jaxcls predict --workdir=RUN IMAGE_OR_FOLDER...``: print the classes of images."""

import contextlib
import math
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
from jaxcls.errors import InputError, shown
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
{files.NAMED}
are taken; hidden ones and others are left out and counted.
"""
EMBED = (
    "also write the features that the model's head sees: path [n] and embed [n, D]"
    " float32, in order, bad files left out"
)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status, 2 if any file is bad."""
    rest, overrides = cli.split_overrides(argv)
    args = parser().parse_args(rest)
    top = cli.whole_number(args.top, "--top", least=1)
    batch_size = cli.whole_number(args.batch_size, "--batch_size", least=1)
    threads = cli.whole_number(args.threads, "--threads")
    if args.embed and not args.embed.endswith(".npz"):
        raise InputError(f"--embed={args.embed} must end in .npz, as features.npz does")
    embed = cli.new_file(args.embed, "--embed", "features.npz") if args.embed else None
    left_out: list[str] = []
    paths = files.asked(args.images, args.null, left_out)
    exp, _, _, weights = cli.loaded(args, overrides)
    names, threads = exp.selection.class_names, threads or exp.config.data.threads
    found = inference.predict(
        exp, weights, paths, batch_size=batch_size, threads=threads, embed=bool(embed)
    )
    adding = (
        features.writing(embed, inference.width(exp, weights))
        if embed
        else contextlib.nullcontext()
    )
    with (
        clean.quiet(),
        console.explained(),
        memory.explained("--batch_size", batch_size),
        adding as add,
    ):
        counts = write(args.format, found, names, top, add)
    files.say_left_out(left_out)
    return cli.answered(counts)


def parser() -> cli.Parser:
    """Returns the parser of the command's flags."""
    parser = cli.Parser("predict", "Classify image files with a trained run.", ABOUT)
    cli.add_run(parser)
    cli.add_images(parser, "IMAGE_OR_FOLDER", BATCH_SIZE)
    add = parser.add_argument
    add("--top", default="3", help="classes to show for each image (default 3)")
    add("--format", default="table", choices=tuple(FORMATS), help="default table")
    add("--embed", default="", metavar="FILE.npz", help=EMBED)
    return parser


def write(
    form: str,
    found: Iterable[Prediction | Bad],
    class_names: Sequence[str],
    top: int,
    add: features.Add | None = None,
) -> Counter[str]:
    """Prints predictions in the format `form`, and bad files on standard error.

    top: the number of classes for each image. add: receives the path and features of each.
    Returns the counts of "answered" and "bad".
    """
    counts: Counter[str] = Counter()
    top = min(top, len(class_names))

    def rows() -> Iterator[Row]:
        for each in files.good(found, counts):
            if add:
                add(each.path, each.embed)
            best = np.argsort(-each.probabilities, kind="stable")[:top].tolist()
            yield each.path, [(class_names[k], float(each.probabilities[k])) for k in best]

    FORMATS[form](rows(), top)
    return counts


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
    header = ["image"]
    for k in range(1, top + 1):
        header += [f"class_{k}", f"probability_{k}"]
    lines = (
        [path, *(cell for name, p in classes for cell in (name, f"{p:.6f}"))]
        for path, classes in rows
    )
    console.as_csv(header, lines)


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
