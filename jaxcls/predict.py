"""Image files -> classes. ``python -m jaxcls.predict --workdir=RUN IMAGE_OR_FOLDER...``.

Needs the run's folder only, not the dataset.
"""

import csv
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from jaxcls import batches, cli, decode, evaluate, experiment, mesh
from jaxcls.clean import clean, quiet
from jaxcls.errors import InputError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic"}
BATCH_SIZE = 64


def images(paths: Sequence[str]) -> list[pathlib.Path]:
    """Files as given, and the image files below folders in order of their path.

    Raises `InputError` for a path that is not there, or a folder without images.
    """
    found: list[pathlib.Path] = []
    for text in paths:
        path = pathlib.Path(text)
        if os.path.isdir(path):
            below = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
            )
            if not below:
                raise InputError(
                    f"{text} holds no image; {', '.join(sorted(SUFFIXES))} are"
                )
            found += below
        elif os.path.isfile(path):
            found.append(path)
        else:
            raise InputError(f"{text} is not a file; give image files or folders")
    return found


def read(exp: experiment.Experiment, path: pathlib.Path) -> np.ndarray:
    """One file as the model sees it, uint8 [H, W, C]; raises `decode.DecodeError`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise decode.DecodeError(error.strerror or str(error)) from None
    pixels = batches.transform(
        exp.data.eval_ops, clean(data).data, batches.example_rng(0, 0)
    )
    if pixels.shape != exp.data.eval_shape:
        raise decode.DecodeError(
            f"{pixels.shape[1]}x{pixels.shape[0]} pixels after data.eval_ops, and the"
            f" model takes {exp.data.eval_shape[1]}x{exp.data.eval_shape[0]}"
        )
    return pixels


def predict(
    exp: experiment.Experiment, weights: dict[str, Any], paths: Sequence[pathlib.Path]
) -> Iterator[tuple[pathlib.Path, np.ndarray | str]]:
    """(path, probabilities [K] float32, or why the file is bad), in the order given."""
    variables = exp.variables(weights)
    size = mesh.round_up(min(BATCH_SIZE, len(paths)), exp.mesh)
    for start in range(0, len(paths), size):
        chunk = paths[start : start + size]
        batch = np.zeros((size, *exp.data.eval_shape), np.uint8)
        bad: dict[int, str] = {}
        for row, path in enumerate(chunk):
            try:
                with quiet():
                    batch[row] = read(exp, path)
            except decode.DecodeError as error:
                bad[row] = str(error)
        on_mesh = mesh.put(exp.mesh, {"image": batch})["image"]
        probabilities = np.asarray(exp.predict_step(variables, on_mesh))
        for row, path in enumerate(chunk):
            yield path, bad[row] if row in bad else probabilities[row]


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status: 2 if any file was bad."""
    parser = cli.Parser("predict", "Classify image files with a trained run.")
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument(
        "--checkpoint", default="best", help="best (default), last or a step"
    )
    parser.add_argument(
        "--top", default="3", help="classes to show for each image (default 3)"
    )
    parser.add_argument("--format", default="table", choices=("table", "csv", "json"))
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER")
    rest, overrides = cli.split_overrides(argv)
    args = parser.parse_args(rest)
    top = cli.whole_number(args.top, "--top", least=1)
    paths = images(args.images)
    exp, _, _, weights = evaluate.load(args.workdir, args.checkpoint, overrides)
    names = exp.data.class_names
    rows, status = [], cli.DONE
    for path, found in predict(exp, weights, paths):
        if isinstance(found, str):
            print(f"error: {path}: {found}", file=sys.stderr)
            status = cli.BAD_INPUT
        else:
            best = np.argsort(-found, kind="stable")[:top].tolist()
            rows.append((str(path), [(names[k], float(found[k])) for k in best]))
    FORMATS[args.format](rows, min(top, len(names)))
    return status


Rows = list[tuple[str, list[tuple[str, float]]]]


def _as_table(rows: Rows, top: int) -> None:
    if not rows:
        return
    table = Table("image", box=box.SIMPLE)
    for k in range(top):
        table.add_column(f"{k + 1}")
        table.add_column("p", justify="right")
    for path, classes in rows:
        table.add_row(path, *(cell for name, p in classes for cell in (name, f"{p:.3f}")))
    width = None if sys.stdout.isatty() else 200  # A pipe has no width of its own.
    Console(width=width, highlight=False, markup=False).print(table)


def _as_csv(rows: Rows, top: int) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    header = [
        name for k in range(1, top + 1) for name in (f"class_{k}", f"probability_{k}")
    ]
    writer.writerow(["image", *header])
    for path, classes in rows:
        writer.writerow([path, *(x for name, p in classes for x in (name, f"{p:.6f}"))])


def _as_json(rows: Rows, top: int) -> None:
    del top
    listed = [
        {
            "image": path,
            "classes": [{"name": name, "probability": p} for name, p in classes],
        }
        for path, classes in rows
    ]
    print(json.dumps(listed, indent=1))


FORMATS = {"table": _as_table, "csv": _as_csv, "json": _as_json}


if __name__ == "__main__":
    cli.run(main)
