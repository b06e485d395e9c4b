"""Searches a folder for the nearest images, for ``jaxcls search``.

Two images are near if the cosine similarity of their features, the input of the model's
head, is high.
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

# Incremented when the same weights and files give other features.
FEATURES = 1
# Queries that share one pass over the gallery.
_AT_ONCE = 64
# Limits of a contact sheet: queries, and neighbours of each.
SHEET_ROWS, SHEET_COLUMNS = 20, 10


class Neighbours(NamedTuple):
    """The neighbours of a query: (path, similarity), nearest first."""

    query: str
    near: list[tuple[str, float]]


def key_of(exp: experiment.Experiment, weights: dict[str, Any]) -> str:
    """Returns a digest of all inputs of the features, except the content of the files."""
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
    """Yields the features [D] float32 of each path in order, or `Bad`."""
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
    """Yields the `top` nearest images of each query, in order; `Bad` for unreadable files.

    A query in the gallery takes its features from the gallery. It is its first neighbour,
    or none with `leave_out`. queries: taken as needed.
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
    """Draws a contact sheet: a row for each query, with its neighbours and similarities."""
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
