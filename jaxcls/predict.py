"""Image files -> classes. ``python -m jaxcls.predict --workdir=RUN IMAGE_OR_FOLDER...``.

Needs the run's folder only, not the dataset. Files are read and decoded on threads, a
batch or two ahead of the device, and answers are written as they come.
"""

import contextlib
import functools
import itertools
import math
import sys
from collections import Counter
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
    console,
    decode,
    evaluate,
    experiment,
    features,
    files,
    memory,
    mesh,
)
from jaxcls.errors import InputError, shown
from jaxcls.files import Bad

BATCH_SIZE = 64

# (path, the best classes and their probabilities, the best first)
Row = tuple[str, list[tuple[str, float]]]
# (variables, images uint8 [B, H, W, C]) -> probabilities [B, K] and features [B, D].
Outs = tuple[Any, Any]
Step = Callable[[dict[str, Any], jax.Array], Outs]

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
IMAGES = (
    "a file; a folder: all images below it, by name; or -: a list of files and folders on"
    " standard input, one a line"
)


class Answer(NamedTuple):
    """What the model says of a file: probabilities [K] and features [D], float32.

    embed has no features where they were not asked for.
    """

    path: str
    probabilities: np.ndarray
    embed: np.ndarray


def read(exp: experiment.Experiment, path: str) -> np.ndarray:
    """One file as the model sees it, uint8 [H, W, C]; raises `decode.DecodeError`."""
    shape, (first, *rest) = exp.data.eval_shape, exp.data.eval_ops
    assert isinstance(first, decode.Decode)  # Else there were no eval_shape.
    pixels, rng = clean.pixels(files.read(path), first), batches.example_rng(0, 0)
    for op in rest:
        pixels = op(pixels, rng)
    if pixels.shape != shape:
        raise decode.DecodeError(
            f"{pixels.shape[1]}x{pixels.shape[0]} pixels after data.eval_ops, and the"
            f" model takes {shape[1]}x{shape[0]}"
        )
    return pixels


def predict(
    exp: experiment.Experiment,
    weights: dict[str, Any],
    paths: Iterable[str | Bad],
    *,
    batch_size: int = BATCH_SIZE,
    threads: int = 0,
    embed: bool = False,
) -> Iterator[Answer | Bad]:
    """An answer for each path, in their order; for a bad file, why there is none.

    weights: as `evaluate.load` gives them. paths: taken as they are needed, some three
    batches ahead. threads: that read and decode; 0 is one a core. embed: whether
    features are wanted. Pillow may warn meanwhile: see `clean.quiet`.
    """
    variables, step = exp.variables(weights), _step(exp, embed)
    one = functools.partial(_read_or_bad, exp)
    found = batches.in_order(one, paths, threads, ahead=batch_size)

    def asked() -> Iterator[tuple[list[str | Bad], Outs]]:
        size = 0
        while chunk := list(itertools.islice(found, batch_size)):
            size = size or mesh.round_up(len(chunk), exp.mesh)  # Few files: a small batch.
            images = np.zeros((size, *exp.data.eval_shape), np.uint8)
            items: list[str | Bad] = []
            for row, each in enumerate(chunk):
                if isinstance(each, Bad):
                    items.append(each)
                else:
                    path, images[row] = each
                    items.append(path)
            yield items, step(variables, mesh.put(exp.mesh, {"image": images})["image"])

    for items, outs in mesh.one_behind(asked()):
        yield from _answers(items, outs)


def _read_or_bad(
    exp: experiment.Experiment, path: str | Bad
) -> tuple[str, np.ndarray] | Bad:
    if isinstance(path, Bad):
        return path
    try:
        return path, read(exp, path)
    except ValueError as error:
        return Bad(path, str(error))


def _step(exp: experiment.Experiment, embed: bool) -> Step:
    """Both outputs of one pass: XLA computes what they share once."""
    if not embed:
        return lambda variables, images: (
            exp.predict_step(variables, images),
            np.empty((len(images), 0), np.float32),
        )
    return jax.jit(
        lambda variables, images: (
            exp.predict_step(variables, images),
            exp.embed_step(variables, images),
        )
    )


def _answers(items: list[str | Bad], outs: Outs) -> Iterator[Answer | Bad]:
    probabilities, embed = map(np.asarray, outs)
    for row, item in enumerate(items):
        if isinstance(item, Bad):
            yield item
        else:
            yield Answer(item, probabilities[row], embed[row])


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status: 2 if any file was bad."""
    rest, overrides = cli.split_overrides(argv)
    args = _parser().parse_args(rest)
    top = cli.whole_number(args.top, "--top", least=1)
    batch_size = cli.whole_number(args.batch_size, "--batch_size", least=1)
    threads = cli.whole_number(args.threads, "--threads")
    if args.embed and not args.embed.endswith(".npz"):
        raise InputError(f"--embed={args.embed} must end in .npz, as features.npz does")
    embed = cli.new_file(args.embed, "--embed", "features.npz") if args.embed else None
    paths = files.asked(args.images, args.null)
    exp, _, _, weights = evaluate.load(args.workdir, args.checkpoint, overrides)
    found = predict(
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
            add = stack.enter_context(features.writing(embed, width(exp, weights)))
            found = _kept(found, add)
        counts = write(args.format, found, exp.data.class_names, top)
    if not counts:
        print("no image was given", file=sys.stderr)
    if not counts["bad"]:
        return cli.DONE
    print(f"{counts['answered']} answered, {counts['bad']} bad", file=sys.stderr)
    return cli.BAD_INPUT


def _parser() -> cli.Parser:
    parser = cli.Parser("predict", "Classify image files with a trained run.", ABOUT)
    add_flags(parser)
    add = parser.add_argument
    add("--top", default="3", help="classes to show for each image (default 3)")
    add("--format", default="table", choices=tuple(FORMATS), help="default table")
    add("--embed", default="", metavar="FILE.npz", help=EMBED)
    add("images", nargs="+", metavar="IMAGE_OR_FOLDER", help=IMAGES)
    return parser


def add_flags(parser: cli.Parser) -> None:
    """The flags of a run that sees files, and of how they are read."""
    add = parser.add_argument
    add("--workdir", required=True, help="folder of the run")
    add("--checkpoint", default="best", help="best (default), last or a step")
    size = str(BATCH_SIZE)
    add("--batch_size", default=size, help=f"images a batch (default {size})")
    add(
        "--threads", default="0", help="threads that decode; default: the run's, one a core"
    )
    add("--null", action="store_true", help="the list has a NUL after each path")


def width(exp: experiment.Experiment, weights: dict[str, Any]) -> int:
    """How many features an image has."""
    like = jax.ShapeDtypeStruct((exp.mesh.size, *exp.data.eval_shape), np.uint8)
    return int(jax.eval_shape(exp.embed_step, exp.variables(weights), like).shape[1])


def _kept(found: Iterator[Answer | Bad], add: features.Add) -> Iterator[Answer | Bad]:
    """The same, each answer's features given to `add`."""
    for each in found:
        if isinstance(each, Answer):
            add(each.path, each.embed)
        yield each


def write(
    form: str, found: Iterable[Answer | Bad], class_names: Sequence[str], top: int
) -> Counter[str]:
    """Print answers in the format `form`, bad files on standard error, as they come.

    top: how many classes of each. Returns how many were "answered" and "bad".
    """
    counts: Counter[str] = Counter()
    top = min(top, len(class_names))
    FORMATS[form](_rows(found, class_names, top, counts), top)
    return counts


def _rows(
    found: Iterable[Answer | Bad], names: Sequence[str], top: int, counts: Counter[str]
) -> Iterator[Row]:
    """The rows of answers; bad files are said on standard error. Counts both."""
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


if __name__ == "__main__":
    cli.run(main)
