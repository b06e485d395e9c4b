"""The predictions of a model for every example of a split, on the host."""

import csv
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxcls import atomic


class Predictions(NamedTuple):
    """Logits [n, K] float32 and labels [n] int32 of all n examples, in their order."""

    logits: np.ndarray
    labels: np.ndarray


def probabilities(
    logits: np.ndarray, link: str = "softmax", temperature: float = 1.0
) -> np.ndarray:
    """Returns the probabilities [..., K] float64 of logits [..., K].

    link: "softmax", or "sigmoid" of each class, as `Recipe.link`. temperature: divides the
    logits (Guo et al., arXiv:1706.04599).
    """
    import scipy.special  # A twentieth of all imports; training needs none of it.

    scaled = np.asarray(logits, np.float64) / temperature
    if link == "sigmoid":
        return scipy.special.expit(scaled)
    return scipy.special.softmax(scaled, axis=-1)


# A smaller probability has no finite logit in float32, and a larger one none in float64.
_LEAST, _MOST = 1e-37, 1 - 2.0**-53


def mean_logits(members: Sequence[np.ndarray], link: str = "softmax") -> np.ndarray:
    """Returns logits [..., K] float32 of the mean of members' probabilities [..., K].

    A loss of logits then also scores views and ensembles.
    """
    mean = sum(members[1:], start=members[0]) / len(members)
    clipped = np.clip(mean, _LEAST, _MOST if link == "sigmoid" else 1)
    found = np.log(clipped)
    return (found - np.log1p(-clipped) if link == "sigmoid" else found).astype(np.float32)


def write_csv(
    path: pathlib.Path,
    found: Predictions,
    link: str,
    class_names: Sequence[str],
    where: Callable[[int], str],
    top: int = 0,
) -> None:
    """Writes one line an example: index, location, label, predicted class, probabilities.

    top: the number of likeliest classes to list by name; 0: one column for each class.
    Raises `InputError` if the file cannot be written; an old file then stays.
    """
    names, top = list(class_names), min(top, len(class_names))
    columns = [f"p({name})" for name in names]
    if top:
        kinds = "class", "probability"
        columns = [f"{kind}_{k + 1}" for k in range(top) for kind in kinds]
    with atomic.writing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["index", "where", "label", "predicted", *columns])
        for index, (logits, label) in enumerate(zip(*found, strict=True)):
            likely = probabilities(logits, link)
            ranked = np.argsort(-logits, kind="stable")
            is_known = np.isfinite(logits.max())
            cells = [f"{p:.6g}" for p in likely]
            if top:
                cells = [x for k in ranked[:top] for x in (names[k], cells[k])]
            best = names[ranked[0]] if is_known else ""
            writer.writerow([index, where(index), names[label], best, *cells])
