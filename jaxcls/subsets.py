"""Which examples of a split are used: of some classes, and a share of each."""

import re

import numpy as np

from jaxcls import batches
from jaxcls.errors import InputError, did_you_mean


def select_classes(text: str, names: tuple[str, ...], num_classes: int) -> list[int]:
    """``"cat, dog"`` or ``"0-9, 12"`` -> class numbers, ascending; raises `InputError`.

    Where every class is named by a number, numbers and ranges are names.
    """
    chosen: set[int] = set()
    if names and all(name.isdecimal() for name in names):
        numbers = {int(name): k for k, name in enumerate(names)}
    else:
        numbers = {k: k for k in range(num_classes)}
    for item in (part.strip() for part in text.split(",")):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", item)
        if item in names:
            chosen.add(names.index(item))
        elif span:
            low, high = int(span[1]), int(span[2] or span[1])
            found = {k for number, k in numbers.items() if low <= number <= high}
            if not found or not {low, high} <= set(numbers):
                raise InputError(
                    f"data.classes={text!r}: {item} is not within"
                    f" {min(numbers)}-{max(numbers)}"
                )
            chosen |= found
        else:
            near = did_you_mean(item, names)
            raise InputError(
                f"data.classes={text!r}: {item!r} is not a class{near};"
                f" give names or numbers, such as '{names[0] if names else '0'}' or '0-9'"
            )
    return sorted(chosen)


def stratified(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """The indices [m] of `fraction` of each class, at least one of each, ascending.

    Nested: what 0.1 takes is among what 0.2 takes of the same labels and seed.
    """
    by_chance = batches.order(seed, 0, len(labels))
    by_class = by_chance[np.argsort(labels[by_chance], kind="stable")]
    counts = np.bincount(labels)
    within = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted = np.maximum(np.rint(counts * fraction), 1)
    return np.sort(by_class[within < np.repeat(wanted, counts)])
