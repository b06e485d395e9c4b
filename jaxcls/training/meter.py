"""The speed of a run, the shares of its time, and its end time."""

import math
from typing import Any

# The share of waiting, after the first record, that makes a run input-bound.
INPUT_BOUND = 0.2
# The number of records in that share.
_LATELY = 3


class Meter:
    """The speed of a run, and the share of its time that it waits for data."""

    def __init__(self, start: int, steps: int, batch_size: int) -> None:
        self._left, self._batch_size = steps - start, batch_size
        names = ("steps", "seconds", "waited", "compile", "eval", "save")
        self._total = dict.fromkeys(names, 0.0)
        self._marked = dict(self._total)
        # The seconds and the waiting of each record of this start.
        self._recorded: list[tuple[float, float]] = []

    def stepped(self, seconds: float, waited: float) -> None:
        """Adds a step of `seconds` in all, of which it waited `waited` for its batch."""
        self._add(steps=1, seconds=seconds, waited=waited)

    def apart(self, what: str, seconds: float) -> None:
        """Adds `seconds` of "compile", "eval" or "save", which are not training."""
        self._add(**{what: seconds})

    def _add(self, **values: float) -> None:
        for name, value in values.items():
            self._total[name] += value

    @property
    def eta(self) -> float:
        """The seconds to the last step, at the mean pace of this start.

        The pace includes evaluations and saves, and not the compilation of the step.
        """
        total = self._total
        if not total["steps"]:
            return math.inf
        pace = (total["seconds"] + total["eval"] + total["save"]) / total["steps"]
        return pace * (self._left - total["steps"])

    def since_last(self) -> dict[str, Any]:
        """Returns the speed and times since the last call, for timing.jsonl; in seconds."""
        part = {name: value - self._marked[name] for name, value in self._total.items()}
        self._marked = dict(self._total)
        self._recorded.append((part["seconds"], part["waited"]))
        return {
            **self._speed(part),
            "train_s": part["seconds"],
            "eval_s": part["eval"],
            "save_s": part["save"],
        }

    def _speed(self, times: dict[str, float]) -> dict[str, float]:
        """Returns the images a second, and the share of training that waits for data."""
        seconds = times["seconds"] or math.inf
        images = times["steps"] * self._batch_size
        return {"images_per_s": images / seconds, "data_wait": times["waited"] / seconds}

    def waiting(self, *, at_end: bool = False) -> float:
        """Returns the share of waiting over the last three records; 0 if there are fewer.

        The first record of a start does not count, since the data begin in it.

        at_end: True takes all the other records, however few.
        """
        later = self._recorded[1:] if at_end else self._recorded[1:][-_LATELY:]
        seconds = sum(each for each, _ in later)
        if not seconds or (len(later) < _LATELY and not at_end):
            return 0.0
        return sum(waited for _, waited in later) / seconds

    def shares(self, whole: float) -> str:
        """Returns the shares of `whole` seconds, as text.

        Such as ``45 s: training 71 %, data wait 16 %, ...``.
        """
        total = self._total
        parts = {
            "compiling": total["compile"],
            "training": total["seconds"] - total["waited"],
            "data wait": total["waited"],
            "evaluation": total["eval"],
            "saving": total["save"],
        }
        parts["other"] = whole - sum(parts.values())
        percent = {name: round(100 * part / whole) for name, part in parts.items()}
        texts = [
            f"{name} {share} %"
            for name, share in percent.items()
            if share > 0 or name in ("training", "data wait")
        ]
        seconds = f"{whole:.0f} s" if whole < 100 else duration(whole)
        return f"{seconds}: {', '.join(texts)}"

    def __str__(self) -> str:
        eta = duration(self.eta) if self._total["steps"] else "?"
        rate, waited = self._speed(self._total).values()
        return f"{rate:,.0f} images/s, data wait {waited:.0%}, ETA {eta}"


def duration(seconds: float) -> str:
    """Returns ``"1:02:03"``, or ``"2:03"`` for less than an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
