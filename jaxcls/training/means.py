"""Means of training values over the steps since the last training record."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxcls.runs.records import MEAN


class Means:
    """The sum and the count of each value since the last training record.

    names: The values with a mean: the loss and the metrics.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._sums = dict.fromkeys(names, 0.0)
        self._count = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Adds the values of one step."""
        self._count += 1
        for name in self._sums:
            self._sums[name] += values[name]

    def take(self) -> dict[str, float]:
        """Returns ``{"mean_loss": 0.7}``, and begins anew; NaN if there was no step."""
        count = self._count or float("nan")
        means = {f"{MEAN}{name}": value / count for name, value in self._sums.items()}
        self.restore({})
        return means

    def saved(self) -> dict[str, Any]:
        """Returns the sums, exact as JSON, for the "means" of a checkpoint."""
        sums = {name: value.hex() for name, value in self._sums.items()}
        return {"count": self._count, "sums": sums}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Takes up what `saved` returned; {} begins anew, as of an earlier version."""
        self._count, sums = saved.get("count", 0), saved.get("sums", {})
        self._sums = {name: float.fromhex(sums.get(name, "0")) for name in self._sums}
