"""The nearest images of a folder. ``jaxcls search`` prints them.

Near are images whose features, what the model's head sees, point the same way.
"""

import hashlib
import itertools
import json
import os
import pathlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcls import experiment
from jaxcls.config import loading
from jaxcls.data import batches
from jaxcls.data.files import Bad
from jaxcls.errors import shown
from jaxcls.predict import contact_sheet, gallery, inference, neighbours
from jaxcls.runs import digests, provenance

# Counted up where features of the same weights and files would no longer be the same.
FEATURES = 1
# Queries that are compared with the gallery at once, on one way through it.
_AT_ONCE = 64
# What a sheet shows: queries, and images near to each.
SHEET_ROWS, SHEET_COLUMNS = 20, 10


class Neighbours(NamedTuple):
    """What is near to a query: (path, similarity), the nearest first."""

    query: str
    near: list[tuple[str, float]]


def key_of(exp: experiment.Experiment, weights: dict[str, Any]) -> str:
    """A digest of all that features are a function of, besides the files' content."""
    values = loading.flat(exp.config)
    names = [name for name in values if name.startswith("model.")]
    about = {
        "features": FEATURES,
        "weights": digests.of_tree(exp.recipe.variables(weights)),
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
    found = inference.predict(
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
) -> Iterator[Neighbours | Bad]:
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
            yield Neighbours(path, list(zip(paths, similarity.tolist(), strict=True)))


def draw(
    sheet: pathlib.Path, found: Sequence[Neighbours], folder: str, threads: int = 0
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
