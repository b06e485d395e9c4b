"""Searches a folder for the nearest images, for ``jaxcls search``.

Two images are near if the cosine similarity of their features, the input of the model's
head, is high.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcls import experiment
from jaxcls.config import loading
from jaxcls.data.files import Bad
from jaxcls.predict import gallery, inference, neighbours
from jaxcls.runs import digests, provenance

# Incremented when the same weights and files give other features.
FEATURES = 1
# Queries that share one pass over the gallery.
_AT_ONCE = 64


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
    paths: Iterator[str | Bad],
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
    known, index = among.features, neighbours.Index(among.features)
    asked, unknown = itertools.tee(
        (each, [] if isinstance(each, Bad) else among.rows_of(each)) for each in queries
    )
    computed = compute(each for each, same in unknown if not same)
    found = (
        (each, same, known[same[0]] if same else next(computed)) for each, same in asked
    )
    while chunk := list(itertools.islice(found, _AT_ONCE)):
        good = [each for each in chunk if not isinstance(each[2], Bad)]
        of = np.array([each[2] for each in good]).reshape(len(good), known.shape[1])
        near = iter(index.nearest(of, [same for _, same, _ in good], top, leave_out))
        for query, _, features in chunk:
            if isinstance(features, Bad):
                yield features
                continue
            assert isinstance(query, str)  # The features of `Bad` are `Bad`.
            rows, similarity = next(near)
            paths = [among.paths[row] for row in rows.tolist()]
            yield Neighbours(query, list(zip(paths, similarity.tolist(), strict=True)))
