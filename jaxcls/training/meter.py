"""The speed of a run, the shares of its time, and its end time."""

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

# The share of waiting, after the first record, that makes a run input-bound.
INPUT_BOUND = 0.2
# The number of records in that share.
_LATELY = 3


class Meter:
    """The speed of a run, and the share of its time that it waits for data.

    left: (step) -> the number of evaluations ("eval") and saves ("save") after it.
    """

    def __init__(
        self,
        start: int,
        steps: int,
        batch_size: int,
        left: Callable[[int], Mapping[str, int]] = lambda step: {},
    ) -> None:
        self._steps, self._batch_size, self._left = steps, batch_size, left
        self._done, self._seconds, self._waited, self._first = 0, 0.0, 0.0, 0.0
        self._apart = {"compile": 0.0, "eval": 0.0, "save": 0.0}
        # The seconds of the last few of each: the first one compiles and must not count
        # long.
        self._each = {what: deque[float](maxlen=10) for what in ("eval", "save")}
        self._step = start
        self._recorded: list[tuple[float, float]] = []
        self._marked = self._totals()

    def stepped(self, seconds: float, waited: float) -> None:
        """Adds a step of `seconds` in all, of which it waited `waited` for its batch."""
        self._first = self._first if self._done else seconds
        self._step += 1
        self._done += 1
        self._seconds += seconds
        self._waited += waited

    def apart(self, what: str, seconds: float) -> None:
        """Adds `seconds` of "compile", "eval" or "save", which are not training."""
        self._apart[what] += seconds
        if what in self._each:
            self._each[what].append(seconds)

    @property
    def rate(self) -> float:
        """The training images a second."""
        return self._done * self._batch_size / self._seconds if self._seconds else 0.0

    @property
    def wait_share(self) -> float:
        """The share of training time spent waiting for batches."""
        return self._waited / self._seconds if self._seconds else 0.0

    @property
    def eta(self) -> float:
        """The seconds to the last step, including evaluations and saves.

        A step counts as the mean, without the first of this start, which waits for the data
        to begin. An evaluation or a save counts as the median of the last ones.
        """
        if not self._done:
            return math.inf
        rest = min(1, self._done - 1)
        pace = (self._seconds - rest * self._first) / (self._done - rest)
        left = self._left(self._step)
        apart = (
            left.get(what, 0) * statistics.median_low(each)
            for what, each in self._each.items()
            if each
        )
        return pace * (self._steps - self._step) + sum(apart)

    def since_last(self) -> dict[str, Any]:
        """Returns the speed and times since the last call, for timing.jsonl; in seconds."""
        now = self._totals()
        part = {name: now[name] - self._marked[name] for name in now}
        self._marked = now
        seconds = part["seconds"]
        self._recorded.append((seconds, part["waited"]))
        return {
            "images_per_s": part["steps"] * self._batch_size / seconds if seconds else 0.0,
            "data_wait": part["waited"] / seconds if seconds else 0.0,
            "train_s": seconds,
            "eval_s": part["eval"],
            "save_s": part["save"],
        }

    def waiting(self, *, at_end: bool = False) -> float:
        """Returns the share of waiting over the last three records; 0 if there are fewer.

        The first record of a start does not count, since the data begin in it.

        at_end: True takes all the other records, however few.
        """
        later = self._recorded[1:] if at_end else self._recorded[1:][-_LATELY:]
        seconds = sum(each for each, _ in later)
        if seconds <= 0 or (len(later) < _LATELY and not at_end):
            return 0.0
        return sum(waited for _, waited in later) / seconds

    def shares(self, whole: float) -> str:
        """Returns the shares of `whole` seconds, as text.

        Such as ``45 s: training 71 %, data wait 16 %, ...``.
        """
        parts = {
            "compiling": self._apart["compile"],
            "training": self._seconds - self._waited,
            "data wait": self._waited,
            "evaluation": self._apart["eval"],
            "saving": self._apart["save"],
        }
        parts["other"] = whole - sum(parts.values())
        percent = {name: 100 * part / whole for name, part in parts.items()}
        always = "training", "data wait"
        texts = [
            f"{name} {share:.0f} %"
            for name, share in percent.items()
            if name in always or round(share) > 0
        ]
        seconds = f"{whole:.0f} s" if whole < 100 else duration(whole)
        return f"{seconds}: {', '.join(texts)}"

    def _totals(self) -> dict[str, float]:
        totals = {
            "steps": float(self._done),
            "seconds": self._seconds,
            "waited": self._waited,
        }
        return totals | self._apart

    def __str__(self) -> str:
        eta = duration(self.eta) if math.isfinite(self.eta) else "?"
        return f"{self.rate:,.0f} images/s, data wait {self.wait_share:.0%}, ETA {eta}"


def duration(seconds: float) -> str:
    """Returns ``"1:02:03"``, or ``"2:03"`` for less than an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
