"""Warns about a dataset: missing classes, imbalance, duplicates, leaks, shapes."""

import itertools
from typing import NamedTuple

import numpy as np

from jaxcls.data.importers.names import differing_in_case
from jaxcls.errors import shown

# From this ratio of the largest class to the smallest, a split counts as unbalanced.
IMBALANCE = 10
# From this share of a class's pixels outside the middle square, the shares are said.
OUTSIDE = 0.2


class Kept(NamedTuple):
    """The examples written to a split: names [n] bytes, labels [n], pixels' hashes [n].

    The hashes may be others in the next process. outside: [n], the share of each image's
    pixels that are outside its middle square.
    """

    names: np.ndarray
    labels: np.ndarray
    hashes: np.ndarray
    outside: np.ndarray


def findings(class_names: tuple[str, ...], splits: dict[str, Kept]) -> list[str]:
    """Returns one line per finding: of classes, imbalance, duplicates, leaks and shapes."""
    lines = []
    if len(class_names) == 1:
        lines.append(f"only one class, {class_names[0]}: there is nothing to tell apart")
    lines += differing_in_case(class_names)
    for split, kept in splits.items():
        counts = np.bincount(kept.labels, minlength=len(class_names))
        empty = [class_names[k] for k in np.flatnonzero(counts == 0)]
        if empty:
            more = f" and {len(empty) - 3:,} more classes" if len(empty) > 3 else ""
            lines.append(f"{split} has no image of {', '.join(empty[:3])}{more}")
        present = np.flatnonzero(counts)
        if not present.size:
            continue
        low, high = (present[pick(counts[present])] for pick in (np.argmin, np.argmax))
        if counts[high] >= IMBALANCE * counts[low]:
            lines.append(
                f"{split} is unbalanced: {counts[high]:,} of {class_names[high]},"
                f" {counts[low]:,} of {class_names[low]}; see data.balance"
            )
        lines += _twice(split, kept)
    for (one, a), (other, b) in itertools.combinations(splits.items(), 2):
        _, in_a, in_b = np.intersect1d(a.hashes, b.hashes, return_indices=True)
        if in_a.size:
            first = in_a.argmin()
            lines.append(
                f"{in_a.size:,} images are in {one} and in {other}, such as"
                f" {shown(a.names[in_a[first]])} and {shown(b.names[in_b[first]])}: scores"
                f" on {other} will be too good"
            )
    return lines + _outside(class_names, [*splits.values()])


def _outside(class_names: tuple[str, ...], splits: list[Kept]) -> list[str]:
    """Returns a line about what a centre crop leaves out, where it is much of a class."""
    shares = np.concatenate([kept.outside for kept in splits])
    labels = np.concatenate([kept.labels for kept in splits])
    if not shares.size:
        return []
    present, rows = np.unique(labels, return_inverse=True)
    means = np.bincount(rows, shares) / np.bincount(rows)
    low, high = means.argmin(), means.argmax()
    if means[high] < OUTSIDE:
        return []
    least, most = (f"{means[k]:.0%} of {class_names[present[k]]}'s" for k in (low, high))
    classes = f" ({least}, {most})" if low != high else ""
    return [
        f"a centre crop leaves out {shares.mean():.0%} of an image's pixels{classes};"
        " 'decode | letterbox(224)' keeps all"
    ]


def _twice(split: str, kept: Kept) -> list[str]:
    """Returns lines about duplicates within a split, and about contradictory labels."""
    order = np.argsort(kept.hashes, kind="stable")
    names, labels, hashes = kept.names[order], kept.labels[order], kept.hashes[order]
    same = np.flatnonzero(hashes[1:] == hashes[:-1])
    torn = same[labels[same] != labels[same + 1]]
    lines = []
    for rows, text in (
        (same, f"holds {same.size:,} images twice"),
        (torn, f"has {torn.size:,} images in two classes"),
    ):
        if rows.size:
            at = rows[order[rows].argmin()]
            one, other = shown(names[at]), shown(names[at + 1])
            lines.append(f"{split} {text}, such as {one} and {other}")
    return lines
