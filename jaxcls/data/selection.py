"""Selects the examples and classes of a dataset that a config uses.

A config may use some of the classes, and a fraction of the training examples.
"""

import functools
import re

import numpy as np
from ml_collections import ConfigDict

from jaxcls.data import batches, sources, splits
from jaxcls.data.batch import Batch
from jaxcls.errors import InputError, did_you_mean


class Selection:
    """The examples that a config uses; the disk is read on first use."""

    def __init__(self, config: ConfigDict, facts: sources.Facts | None) -> None:
        self.config = config
        self._facts = facts
        self._known_used: dict[tuple[str, str], np.ndarray] = {}
        self._known_labels: dict[tuple[str, str], np.ndarray] = {}

    # The whole dataset and its classes.

    @functools.cached_property
    def dataset(self) -> sources.Dataset:
        """The dataset on disk; raises `InputError` if it is absent or has changed."""
        found = sources.Dataset(self.config.data.name, self.config.data.dir)
        if self._facts:
            sources.check_same(self._facts, found.facts)
        return found

    @functools.cached_property
    def facts(self) -> sources.Facts:
        """Counts, classes and image shape of the whole dataset."""
        return self._facts or self.dataset.facts

    @functools.cached_property
    def _classes(self) -> list[int]:
        """The dataset's class numbers in use, ascending."""
        text, facts = self.config.data.classes, self.facts
        if not text.strip():
            return list(range(facts.num_classes))
        return select_classes(text, facts.class_names, facts.num_classes)

    @property
    def num_classes(self) -> int:
        """The number of classes of the model."""
        return len(self._classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes in use; their numbers if the dataset has no names."""
        names = self.facts.class_names
        return tuple(names[k] if names else str(k) for k in self._classes)

    # The examples in use.

    def count(self, split: str, key: str) -> int:
        """Returns the number of examples in use; key: the config key or flag of `split`."""
        if not self.is_part(key):
            return splits.count(split, self.facts.splits, key)
        return len(self.used(split, key))

    def is_part(self, key: str) -> bool:
        """Returns whether only some records of a split are in use."""
        is_fraction = key == "data.train" and self.config.data.fraction < 1
        return is_fraction or self.num_classes < self.facts.num_classes

    def records(self, split: str, key: str) -> sources.Source:
        """Returns random access to the examples in use of a split."""
        source = self.dataset.source(split, key)
        if not self.is_part(key):
            return source
        return source.select(self.used(split, key))

    def used(self, split: str, key: str) -> np.ndarray:
        """Returns the records [n] int64 in use of a split, ascending."""
        if (split, key) not in self._known_used:
            self._known_used[split, key] = self._choose(split, key)
        return self._known_used[split, key]

    def _choose(self, split: str, key: str) -> np.ndarray:
        data, labels = self.config.data, self._labels(split, key)
        used = np.flatnonzero(np.isin(labels, self._classes))
        if key == "data.train" and data.fraction < 1:
            used = used[stratified(labels[used], data.fraction, data.fraction_seed)]
        if not used.size:
            raise InputError(
                f"{key}={split!r} holds no example of data.classes={data.classes!r}; give"
                " other classes or a larger split"
            )
        return used

    def _labels(self, split: str, key: str) -> np.ndarray:
        """Returns the labels [n] int32 of a whole split; raises `InputError` for -1."""
        if (split, key) not in self._known_labels:
            labels = self.dataset.labels(split, key)
            whole = Batch(label=labels, index=np.arange(len(labels)))
            batches.check_labels(whole, self.facts.num_classes, f"{key}={split!r}")
            self._known_labels[split, key] = labels
        return self._known_labels[split, key]

    def class_counts(self) -> np.ndarray:
        """Returns the number of training examples of each class, [K]."""
        labels = self.train_labels()
        return np.bincount(labels, minlength=self.facts.num_classes)[self._classes]

    def train_labels(self) -> np.ndarray:
        """Returns the labels [n] int32 of the training examples in use, as on disk."""
        split, key = self.config.data.train, "data.train"
        labels = self._labels(split, key)
        return labels[self.used(split, key)] if self.is_part(key) else labels

    @functools.cached_property
    def class_numbers(self) -> np.ndarray:
        """The model's number of each class of the dataset, [facts.num_classes] int32."""
        numbers = np.zeros(self.facts.num_classes, np.int32)
        numbers[self._classes] = np.arange(self.num_classes)
        return numbers


def select_classes(text: str, names: tuple[str, ...], num_classes: int) -> list[int]:
    """Parses ``"cat, dog"`` or ``"0-9, 12"`` to class numbers, ascending.

    If every class name is a number, numbers and ranges are names. Raises `InputError` for
    an unknown class.
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
    """Returns the ascending indices [m] of `fraction` of each class, at least one of each.

    For the same labels and seed, a larger fraction includes every index of a smaller one.
    """
    by_chance = batches.order(seed, 0, len(labels))
    by_class = by_chance[np.argsort(labels[by_chance], kind="stable")]
    counts = np.bincount(labels)
    within = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted = np.maximum(np.rint(counts * fraction), 1)
    return np.sort(by_class[within < np.repeat(wanted, counts)])
