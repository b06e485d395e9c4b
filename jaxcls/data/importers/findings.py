"""Warns about a dataset: missing classes, imbalance, duplicates, leaks."""

import itertools
from typing import NamedTuple

import numpy as np

from jaxcls.errors import shown

# From this ratio of the largest class to the smallest, a split counts as unbalanced.
IMBALANCE = 10


class Kept(NamedTuple):
    """The examples written to a split: names [n] bytes, labels [n], content hashes [n]."""

    names: np.ndarray
    labels: np.ndarray
    hashes: np.ndarray


def findings(class_names: tuple[str, ...], splits: dict[str, Kept]) -> list[str]:
    """Returns one line per finding about classes, imbalance, duplicates and leaks."""
    lines = []
    if len(class_names) == 1:
        lines.append(f"only one class, {class_names[0]}: there is nothing to tell apart")
    for split, kept in splits.items():
        counts = np.bincount(kept.labels, minlength=len(class_names))
        empty = [class_names[k] for k in np.flatnonzero(counts == 0)]
        if empty:
            lines.append(f"{split} has no image of {_some(empty)}")
        least, most = int(counts[counts > 0].min(initial=1 << 62)), int(counts.max())
        if most >= IMBALANCE * least:
            low = class_names[int(np.argmin(np.where(counts > 0, counts, most)))]
            high = class_names[int(counts.argmax())]
            lines.append(
                f"{split} is unbalanced: {most:,} of {high}, {least:,} of {low}; see"
                " data.balance"
            )
        lines += _twice(split, kept)
    for (one, a), (other, b) in itertools.combinations(splits.items(), 2):
        lines += _shared(one, a, other, b)
    return lines


def _twice(split: str, kept: Kept) -> list[str]:
    """Returns lines about duplicates within a split, and about contradictory labels."""
    order = np.argsort(kept.hashes, kind="stable")
    hashes, labels = kept.hashes[order], kept.labels[order]
    same = np.flatnonzero(hashes[1:] == hashes[:-1])
    if not same.size:
        return []
    first, second = (_name(kept, order[same[0] + i]) for i in (0, 1))
    lines = [f"{split} holds {same.size:,} images twice, such as {first} and {second}"]
    torn = same[labels[same] != labels[same + 1]]
    if torn.size:
        first, second = (_name(kept, order[torn[0] + i]) for i in (0, 1))
        lines.append(
            f"{split} has {torn.size:,} images in two classes, such as {first} and {second}"
        )
    return lines


def _shared(one: str, a: Kept, other: str, b: Kept) -> list[str]:
    """Returns a line if two splits share images: scores on one are then too good."""
    _, in_a, in_b = np.intersect1d(a.hashes, b.hashes, return_indices=True)
    if not in_a.size:
        return []
    return [
        f"{in_a.size:,} images are in {one} and in {other}, such as {_name(a, in_a[0])} and"
        f" {_name(b, in_b[0])}: scores on {other} will be too good"
    ]


def _name(kept: Kept, row: int) -> str:
    return shown(bytes(kept.names[row]))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3:,} more classes" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
