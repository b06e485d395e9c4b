"""config -> which examples of which dataset are used: the first of the roads to batches.

What a split holds is the dataset's; which classes and what fraction of it are used is the
config's.
"""

import functools

import numpy as np
from ml_collections import ConfigDict

from jaxcls import batches, sources, splits, subsets
from jaxcls.errors import InputError


class Selection:
    """The examples that a config uses; what is on disk is read when first asked for."""

    def __init__(self, config: ConfigDict, facts: sources.Facts | None) -> None:
        self.config = config
        self._facts = facts
        self._known_used: dict[tuple[str, str], np.ndarray] = {}
        self._known_labels: dict[tuple[str, str], np.ndarray] = {}

    # What there is.

    @functools.cached_property
    def dataset(self) -> sources.Dataset:
        """The dataset on disk; raises `InputError` where it is not, or has changed."""
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
        """The classes of the dataset that are used, in its own order."""
        text, facts = self.config.data.classes, self.facts
        if not text.strip():
            return list(range(facts.num_classes))
        return subsets.select_classes(text, facts.class_names, facts.num_classes)

    @property
    def num_classes(self) -> int:
        """How many classes the model tells apart."""
        return len(self._classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Their names; their numbers where the dataset has none."""
        names = self.facts.class_names
        return tuple(names[k] if names else str(k) for k in self._classes)

    # What of it is used.

    def count(self, split: str, key: str) -> int:
        """How many examples of a split are used; `key` is its config key or flag."""
        if not self._is_part(key):
            return splits.count(split, self.facts.splits, key)
        return len(self._used(split, key))

    def _is_part(self, key: str) -> bool:
        """Whether not every record of a split is used."""
        is_fraction = key == "data.train" and self.config.data.fraction < 1
        return is_fraction or self.num_classes < self.facts.num_classes

    def records(self, split: str, key: str) -> sources.Source | sources.Selected:
        """Random access to the examples of a split that are used."""
        source = self.dataset.source(split, key)
        if not self._is_part(key):
            return source
        return sources.Selected(source, self._used(split, key))

    def _used(self, split: str, key: str) -> np.ndarray:
        """The records [n] int64 of a split that are used, in order."""
        if (split, key) not in self._known_used:
            self._known_used[split, key] = self._choose(split, key)
        return self._known_used[split, key]

    def _choose(self, split: str, key: str) -> np.ndarray:
        data, labels = self.config.data, self._labels(split, key)
        used = np.flatnonzero(np.isin(labels, self._classes))
        if key == "data.train" and data.fraction < 1:
            used = used[subsets.stratified(labels[used], data.fraction, data.fraction_seed)]
        if not used.size:
            raise InputError(
                f"{key}={split!r} holds no example of data.classes={data.classes!r}; give"
                " other classes or a larger split"
            )
        return used

    def _labels(self, split: str, key: str) -> np.ndarray:
        """The labels [n] int32 of all records of a split; raises `InputError` for -1."""
        if (split, key) not in self._known_labels:
            labels = self.dataset.labels(split, key)
            whole = {"label": labels, "index": np.arange(len(labels))}
            batches.check_labels(whole, self.facts.num_classes, f"{key}={split!r}")
            self._known_labels[split, key] = labels
        return self._known_labels[split, key]

    def class_counts(self) -> np.ndarray:
        """How many examples [K] of each class training has."""
        labels = self._train_labels()
        return np.bincount(labels, minlength=self.facts.num_classes)[self._classes]

    def _train_labels(self) -> np.ndarray:
        """The labels [n] int32 of the examples that training uses, as on disk."""
        split, key = self.config.data.train, "data.train"
        labels = self._labels(split, key)
        return labels[self._used(split, key)] if self._is_part(key) else labels

    def relabel(self, batch: batches.Batch, split: str) -> np.ndarray:
        """The labels as the model counts classes; raises `InputError` for no class."""
        batches.check_labels(batch, self.facts.num_classes, split)
        if self.num_classes == self.facts.num_classes:
            return batch["label"]
        numbers = np.zeros(self.facts.num_classes, np.int32)
        numbers[self._classes] = np.arange(self.num_classes)
        return numbers[batch["label"]]
