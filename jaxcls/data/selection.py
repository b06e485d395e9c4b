"""Selects the examples and classes of a dataset that a config uses.

A config may use some of the classes, and a fraction of the training examples. It may also
draw anew which examples of data.train and data.eval are whose (data.split_seed).
"""

import functools
import itertools
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
        # (split, its config key or flag) -> its labels, and its records in use.
        self.labels = functools.cache(self._labels)
        self.used = functools.cache(self._used)

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

    def count(self, split: str, key: str) -> int:
        """Returns the number of examples in use; key: the config key or flag of `split`."""
        if self._is_part(key):
            return len(self.used(split, key))
        _ = self.pooled(split, key)
        return splits.count(split, self.facts.splits, key)

    def _is_part(self, key: str) -> bool:
        """Returns whether only some records of a split are in use."""
        is_fraction = key == "data.train" and self.config.data.fraction < 1
        return is_fraction or self.num_classes < self.facts.num_classes

    def records(self, split: str, key: str) -> sources.Source:
        """Returns random access to the examples in use of a split."""
        return self.dataset.source(self.pooled(split, key), key).select(
            self.used(split, key)
        )

    def _is_drawn(self, key: str) -> bool:
        """Returns whether data.split_seed decides the examples of a split."""
        return self.config.data.split_seed >= 0 and key in ("data.train", "data.eval")

    def pooled(self, split: str, key: str) -> str:
        """Returns the split that `used` counts the records of."""
        return self._pool if self._is_drawn(key) else split

    @functools.cached_property
    def _pool(self) -> str:
        """The split that data.train and data.eval are drawn from.

        Raises `InputError` unless the two are apart, are slices of one split, and share
        nothing with data.test.
        """
        data, counts = self.config.data, self.facts.splits
        given = {
            role: splits.resolve(data[role], counts, f"data.{role}")
            for role in ("train", "eval", "test")
            if data[role]
        }
        pool = sorted(given["train"] + given.get("eval", []))
        names = {name for name, *_ in pool}
        apart = all(stop <= start for (*_, stop), (_, start, _) in itertools.pairwise(pool))
        tested = any(
            name in names and start < last and first < stop
            for name, start, stop in given.get("test", [])
            for _, first, last in pool
        )
        if len(names) > 1 or not apart or tested or "eval" not in given:
            raise InputError(
                f"data.split_seed={data.split_seed} draws data.train={data.train!r} and"
                f" data.eval={data.eval!r} anew, which must be two parts of one split,"
                f" without an example of each other or of data.test={data.test!r}; try"
                " data.train='train[:90%]' and data.eval='train[90%:]', or -1"
            )
        return f"{data.train}+{data.eval}"

    def shares_pool(self, split: str, key: str) -> bool:
        """Returns whether a split has examples of those that data.split_seed draws."""
        if self.config.data.split_seed < 0:
            return False
        pool = splits.resolve(self._pool, self.facts.splits, key)
        return any(
            name == other and start < last and first < stop
            for name, start, stop in splits.resolve(split, self.facts.splits, key)
            for other, first, last in pool
        )

    def _used(self, split: str, key: str) -> np.ndarray:
        """Returns the records [n] int64 in use of a split, ascending."""
        n = splits.count(self.pooled(split, key), self.facts.splits, key)
        used, data = np.arange(n), self.config.data
        if self._is_drawn(key):
            held = splits.count(data.eval, self.facts.splits, "data.eval")
            is_eval = batches.drawn(data.split_seed, n, held)
            used = used[is_eval == (key == "data.eval")]
        if not self._is_part(key):
            return used
        labels = self.labels(split, key)
        used = used[np.isin(labels[used], self._classes)]
        if key == "data.train" and data.fraction < 1:
            used = used[stratified(labels[used], data.fraction, data.fraction_seed)]
        if not used.size:
            raise InputError(
                f"{key}={split!r} holds no example of data.classes={data.classes!r}; give"
                " other classes or a larger split"
            )
        return used

    def _labels(self, split: str, key: str) -> np.ndarray:
        """Returns the labels [n] int32 that `used` counts; raises `InputError` for -1."""
        labels = self.dataset.labels(self.pooled(split, key), key)
        whole = Batch(label=labels, index=np.arange(len(labels)))
        batches.check_labels(whole, self.facts.num_classes, f"{key}={split!r}")
        return labels

    def class_counts(self) -> np.ndarray:
        """Returns the number of training examples of each class, [K]."""
        labels = self.train_labels()
        return np.bincount(labels, minlength=self.facts.num_classes)[self._classes]

    def train_labels(self) -> np.ndarray:
        """Returns the labels [n] int32 of the training examples in use, as on disk."""
        split, key = self.config.data.train, "data.train"
        return self.labels(split, key)[self.used(split, key)]

    @functools.cached_property
    def class_numbers(self) -> np.ndarray:
        """The model's number of each class of the dataset, [facts.num_classes] int32.

        It is -1 for a class that is not in use.
        """
        numbers = np.full(self.facts.num_classes, -1, np.int32)
        numbers[self._classes] = np.arange(self.num_classes)
        return numbers


def select_classes(text: str, names: tuple[str, ...], num_classes: int) -> list[int]:
    """Parses ``"cat, dog"`` or ``"0-9, 12"`` to class numbers, ascending.

    If every class name is a number, numbers and ranges are names. Raises `InputError` for
    an unknown class.
    """
    chosen: set[int] = set()
    are_numbers = names and all(name.isdecimal() for name in names)
    known = map(int, names) if are_numbers else range(num_classes)
    numbers = {number: k for k, number in enumerate(known)}
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
    counts = np.bincount(labels)
    within = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted = np.maximum(np.rint(counts * fraction), 1)
    by_class = batches.by_class(seed, 0, labels)
    return np.sort(by_class[within < np.repeat(wanted, counts)])
