"""How fast a run goes, what its time goes into, and when it will end."""

import itertools
import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Of the time after the first records, so much waiting makes a run input-bound.
INPUT_BOUND = 0.2
# Records that are looked at together for that.
_LATELY = 3


class Meter:
    """How fast a run goes, and what share of its time it waits for data.

    left: (step) -> how many evaluations ("eval") and saves ("save") come after it.
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
        # What each of the last few took: a first one, which compiles, is soon forgotten.
        self._each = {what: deque[float](maxlen=10) for what in ("eval", "save")}
        self._step = start
        self._recorded: list[tuple[float, float]] = []
        self._marked = self._totals()

    def stepped(self, seconds: float, waited: float) -> None:
        """A step took `seconds` in all, of which `waited` were for its batch."""
        self._first = self._first if self._done else seconds
        self._step += 1
        self._done += 1
        self._seconds += seconds
        self._waited += waited

    def apart(self, what: str, seconds: float) -> None:
        """`seconds` went into "compile", "eval" or "save", which are not training."""
        self._apart[what] += seconds
        if what in self._each:
            self._each[what].append(seconds)

    def remember(self, records: Sequence[Mapping[str, Any]]) -> None:
        """What evaluations and saves took in earlier starts, from timing.jsonl."""
        for before, record in itertools.pairwise(records):
            # A record is written before what is due at its step is done.
            first, last = (self._left(each["step"] - 1) for each in (before, record))
            for what, each in self._each.items():
                count = first.get(what, 0) - last.get(what, 0)
                if count > 0 and record[f"{what}_s"] > 0:
                    each.append(record[f"{what}_s"] / count)

    @property
    def rate(self) -> float:
        """Images a second of training."""
        return self._done * self._batch_size / self._seconds if self._seconds else 0.0

    @property
    def wait_share(self) -> float:
        """The share of training time spent waiting for batches."""
        return self._waited / self._seconds if self._seconds else 0.0

    @property
    def eta(self) -> float:
        """Seconds to the last step, with the evaluations and saves until then.

        Steps at their mean pace, without the first of this start, which waits for the
        data to begin; the others as long as one of the last took: less than half took less.
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
        """What happened since the last call, for timing.jsonl; times in seconds."""
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
        """The share of waiting over the last three records; 0 before there are so many.

        The first record of a start is left out: the data begin in it. at_end: over all
        the others, however few there are.
        """
        later = self._recorded[1:] if at_end else self._recorded[1:][-_LATELY:]
        seconds = sum(each for each, _ in later)
        if seconds <= 0 or (len(later) < _LATELY and not at_end):
            return 0.0
        return sum(waited for _, waited in later) / seconds

    def shares(self, whole: float) -> str:
        """``45 s: training 71 %, data wait 16 %, ...``: what `whole` seconds went into."""
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
    """``"1:02:03"``, or ``"2:03"`` where it is less than an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
