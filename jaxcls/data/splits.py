"""Resolves split texts, such as ``"train[90%:]+test[:10]"``, by TFDS's rules."""

import re

import tensorflow_datasets as tfds

from jaxcls.errors import InputError, did_you_mean


def resolve(split: str, splits: dict[str, int], key: str) -> list[tuple[str, int, int]]:
    """Resolves ``"train[:90%]"`` to ``[("train", 0, 1293)]``, by TFDS's rules.

    Raises `InputError`, naming `key`, for an unknown split, a slice outside it, or an empty
    slice.
    """
    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[n], num_bytes=0)
        for name, n in splits.items()
    }
    try:
        if re.search(r"\dshard", split):
            raise ValueError("shards are not counted here")
        # TFDS takes quadratic time for a run of spaces.
        ranges = tfds.core.ReadInstruction.from_spec(" ".join(split.split())).to_absolute(
            infos
        )
        parts = [
            (r.splitname, *slice(r.from_, r.to).indices(splits[r.splitname])[:2])
            for r in ranges
        ]
    except (ValueError, AssertionError, RecursionError):  # Also of a long chain of "+".
        base = re.split(r"[\[+]", split)[0]
        near = "" if base in splits else did_you_mean(base, splits)
        counts = ", ".join(f"{name} (n={n})" for name, n in splits.items())
        raise InputError(
            f"{key}={split!r} is not a split{near}; there are {counts}, and slices such"
            f" as '{next(iter(splits), 'train')}[:90%]'"
        ) from None
    if any(stop <= start for _, start, stop in parts):
        raise InputError(f"{key}={split!r} holds no example; try '{parts[0][0]}'")
    return parts


def count(split: str, splits: dict[str, int], key: str) -> int:
    """Returns the number of examples in a split; raises like `resolve`."""
    return sum(stop - start for _, start, stop in resolve(split, splits, key))
