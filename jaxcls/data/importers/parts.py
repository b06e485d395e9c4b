"""Splits val and test off train by hashes of names, the same share of each class."""

import hashlib
import os
from collections.abc import Mapping

import numpy as np

from jaxcls.data.importers import names
from jaxcls.data.importers.listing import Listing
from jaxcls.errors import InputError


def name_hash(name: bytes, purpose: bytes = b"jaxcls order") -> int:
    """Returns 64 bits that depend only on the name and the purpose."""
    digest = hashlib.blake2b(name, digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "big")


def split_off(
    listings: dict[str, Listing], fractions: Mapping[str, float]
) -> dict[str, Listing]:
    """Splits each split of `fractions` off "train", by the lowest hashes of each class.

    A class of n files gives round(fraction * n) of them, and at least one, but "train"
    keeps one. New files of a class therefore move few of its old ones, and none of other
    classes. Raises `InputError` for a source with other splits, or if a split stays empty.
    """
    given = {split: fraction for split, fraction in fractions.items() if fraction}
    if not given:
        return listings
    flags = " ".join(f"--{split}_fraction={value}" for split, value in given.items())
    if set(listings) != {"train"}:
        raise InputError(
            f"{flags}: the source has its own {', '.join(listings)}; leave"
            f" {'it' if len(given) == 1 else 'them'} out, and use data.eval='train[90%:]'"
        )
    train = listings["train"]
    rest, parts = np.arange(len(train.labels)), {}
    # Test comes first, so that it is the same files whatever the share of val.
    for split in sorted(given, key=("test", "val").index):
        taken = _lowest(train, rest, given[split], split)
        if not taken.size:
            raise InputError(
                f"{flags} leaves split {split} empty: train keeps a file of each class, and"
                " no class has another; add files, or give fewer flags"
            )
        parts[split], rest = taken, np.setdiff1d(rest, taken)
    order = {"train": rest, **{split: parts[split] for split in given}}
    return {split: train.subset(rows) for split, rows in order.items()}


def _lowest(train: Listing, rows: np.ndarray, fraction: float, split: str) -> np.ndarray:
    """Returns the share of each class with the lowest hashes, of `rows`; sorted.

    The share is of all files of the class in `train`.
    """
    purpose = f"jaxcls {split}".encode()
    # Of the composed name, so that a copy on another system has the same split.
    given = (names.composed(os.fsdecode(name)) for name in train.names[rows])
    hashes = [name_hash(os.fsencode(name), purpose) for name in given]
    labels = train.labels[rows]
    # By class, and within a class by hash.
    order = np.lexsort((np.array(hashes, np.uint64), labels))
    totals, left = np.bincount(train.labels), np.bincount(labels)
    taken, start = [], 0
    for total, count in zip(totals.tolist(), left.tolist(), strict=True):
        share = min(max(1, round(fraction * total)), count - 1) if count else 0
        taken.append(order[start : start + share])
        start += count
    return np.sort(rows[np.concatenate(taken)])
