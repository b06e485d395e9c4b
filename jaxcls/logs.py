"""What a run says: console, metrics.jsonl, timing.jsonl, digests.jsonl, TensorBoard.

metrics.jsonl holds no time of any clock, so it is the same for the same run; how long
things took is in timing.jsonl. All of them go to disk before a checkpoint does, and a
resume from step N first drops the records after N.
"""

import json
import math
import os
import pathlib
import sys
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from jaxcls.errors import InputError

Record = dict[str, Any]


class RunLog:
    """The records of a run, and its progress. A context manager.

    is_pending: what is due at step `start` is to be done again, so that its records go.
    is_first: whether this process writes and shows them; of several, one does.
    """

    def __init__(
        self,
        *,
        metrics: pathlib.Path,
        timing: pathlib.Path,
        digests: pathlib.Path,
        tensorboard: pathlib.Path | None,
        start: int,
        steps: int,
        batch_size: int,
        is_pending: bool = False,
        is_first: bool = True,
    ) -> None:
        self._is_first = is_first
        self._paths = {"metrics": metrics, "timing": timing, "digests": digests}
        self._tensorboard = tensorboard
        self._open(start, is_pending)
        self.meter = Meter(start, steps, batch_size)
        self._console = _console(steps, start, is_first)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error: object) -> None:
        self._console.close()
        self._close()

    def _open(self, start: int, is_pending: bool) -> None:
        self._files: dict[str, TextIO] = {}
        self._events = None
        if not self._is_first:
            return
        trim(self._paths["metrics"], start, is_pending)
        trim(self._paths["digests"], start - is_pending)
        self._files = {name: path.open("a") for name, path in self._paths.items()}
        if self._tensorboard:
            self._events = _event_writer(self._tensorboard, start)

    def _close(self) -> None:
        self.sync()
        for file in self._files.values():
            file.close()
        if self._events:
            self._events.close()

    def rewind(self, step: int) -> None:
        """Drop what was said after `step`."""
        self._close()
        self._open(step, False)

    def step(self, step: int) -> None:
        """One more step was begun; shows it."""
        self._console.step(step, self.meter)

    def train(self, step: int, values: dict[str, float]) -> None:
        """The values of training step `step`, and how fast it goes."""
        self._write("metrics", {"step": step, "kind": "train", **values})
        self._write("timing", {"step": step, **self.meter.since_last()})
        self._scalars("train", step, values)
        self._console.line(f"step {step}: {_pairs(values)} | {self.meter}")

    def evaluation(
        self,
        step: int,
        kind: str,
        split: str,
        n: int,
        values: dict[str, float],
        **more: Any,
    ) -> Record:
        """The means over exactly `n` examples; `kind` is "eval" or "final".

        split "" is the end of a run that has nothing to be scored on. Returns the record.
        """
        scored = {"split": split, "n": n} if split else {}
        record = {"step": step, "kind": kind, **more, **scored, **values}
        self._write("metrics", record)
        self._scalars(kind, step, values)
        self._console.line(f"step {step}: {kind} {_pairs({**scored, **values})}")
        return _plain(record)

    def event(self, step: int, kind: str, **values: Any) -> None:
        """Something that happened at a step, besides what is due there."""
        self._write("metrics", {"step": step, "kind": kind, **values})

    def digest(self, step: int, whole: str, arrays: dict[str, str]) -> None:
        """The digest of the state at a scheduled save."""
        self._write("digests", {"step": step, "digest": whole, "arrays": arrays})

    def line(self, text: str) -> None:
        """A line for the person who watches."""
        self._console.line(text)

    def sync(self) -> None:
        """Everything said so far is on disk when this returns; raises `InputError`."""
        for name, file in self._files.items():
            try:
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise InputError(
                    f"{self._paths[name]} cannot be written ({error.strerror}); make room,"
                    " or allow it to be written, and start again"
                ) from None
        if self._events:
            self._events.flush()

    def _write(self, name: str, record: Record) -> None:
        if name in self._files:
            self._files[name].write(json.dumps(_plain(record), allow_nan=False) + "\n")

    def _scalars(self, group: str, step: int, values: dict[str, float]) -> None:
        if self._events:
            for name, value in values.items():
                self._events.add_scalar(f"{group}/{name}", value, step)


class Meter:
    """How fast a run goes, and what share of its time it waits for data."""

    def __init__(self, start: int, steps: int, batch_size: int) -> None:
        self._steps, self._batch_size = steps, batch_size
        self._done, self._seconds, self._waited = 0, 0.0, 0.0
        self._apart = {"eval": 0.0, "save": 0.0}
        self._step = start
        self._marked: dict[str, float] = {}
        self._mark()

    def stepped(self, seconds: float, waited: float) -> None:
        """A step took `seconds` in all, of which `waited` were for its batch."""
        self._step += 1
        self._done += 1
        self._seconds += seconds
        self._waited += waited

    def apart(self, what: str, seconds: float) -> None:
        """`seconds` went into "eval" or "save", which are not training."""
        self._apart[what] += seconds

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
        """Seconds to the last step at the mean pace so far, evaluations included."""
        if not self._done:
            return math.inf
        whole = self._seconds + sum(self._apart.values())
        return whole / self._done * (self._steps - self._step)

    def since_last(self) -> Record:
        """What happened since the last call, for timing.jsonl; times in seconds."""
        now = self._totals()
        part = {name: now[name] - self._marked[name] for name in now}
        self._mark()
        seconds = part["seconds"]
        return {
            "images_per_s": part["steps"] * self._batch_size / seconds if seconds else 0.0,
            "data_wait": part["waited"] / seconds if seconds else 0.0,
            "train_s": seconds,
            "eval_s": part["eval"],
            "save_s": part["save"],
        }

    def _mark(self) -> None:
        self._marked = self._totals()

    def _totals(self) -> dict[str, float]:
        totals = {
            "steps": float(self._done),
            "seconds": self._seconds,
            "waited": self._waited,
        }
        return totals | self._apart

    def __str__(self) -> str:
        eta = _duration(self.eta) if math.isfinite(self.eta) else "?"
        return f"{self.rate:,.0f} images/s, data wait {self.wait_share:.0%}, ETA {eta}"


def read(path: pathlib.Path) -> list[Record]:
    """The records of a .jsonl file, without a torn last line; [] where there is none.

    Raises `InputError` for a line that is no record and is followed by others.
    """
    if not path.exists():
        return []
    *lines, torn = path.read_bytes().split(b"\n")
    del torn  # What follows the last newline is empty, or half a record.
    records: list[Record] = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number == len(lines):
                break
            raise InputError(
                f"{path}:{number} is not a record, and records follow it; put the line"
                " right, or start in another --workdir"
            ) from None
    return records


def trim(path: pathlib.Path, last: int, is_pending: bool = False) -> None:
    """Drop the records after step `last`, atomically, and with them a torn last line.

    is_pending: also those of an evaluation at `last`.
    """
    if not path.exists():
        return
    kept = []
    for record in read(path):
        if record["step"] > last:
            break
        if is_pending and record["step"] == last and record.get("kind") == "eval":
            continue
        kept.append(json.dumps(record) + "\n")
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w") as file:
        file.write("".join(kept))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def summary(record: Record, workdir: str) -> str:
    """The last line of a run, from its final record."""
    shown = {k: v for k, v in record.items() if k != "kind"}
    return f"{_pairs(shown)} workdir={workdir}"


class _Plain:
    """Lines as they come: for files, pipes and CI."""

    def step(self, step: int, meter: Meter) -> None:
        pass

    def line(self, text: str) -> None:
        try:
            print(text, flush=True)
        except BrokenPipeError:  # Nobody reads any more; the run goes on.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def close(self) -> None:
        pass


class _Silent(_Plain):
    """Nothing: another process says it."""

    def line(self, text: str) -> None:
        pass


class _Bar:
    """A progress bar under the lines, for a terminal."""

    def __init__(self, steps: int, start: int) -> None:
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[pace]}"),
            console=Console(highlight=False, markup=False),
            refresh_per_second=4,
        )
        self._task = self._progress.add_task(
            "", total=steps, completed=start, pace="compiling"
        )
        self._progress.start()

    def step(self, step: int, meter: Meter) -> None:
        pace = f"{meter.rate:,.0f} images/s, data wait {meter.wait_share:.0%}"
        self._progress.update(self._task, completed=step, pace=pace)

    def line(self, text: str) -> None:
        self._progress.console.print(text)

    def close(self) -> None:
        self._progress.stop()


def _console(steps: int, start: int, is_first: bool) -> _Plain | _Bar:
    if not is_first:
        return _Silent()
    return _Bar(steps, start) if sys.stdout.isatty() else _Plain()


def _event_writer(folder: pathlib.Path, start: int) -> Any:
    from tensorboardX import SummaryWriter

    # Events of a later step, left by a killed start, are not shown.
    return SummaryWriter(str(folder), purge_step=start + 1, write_to_disk=True)


def _plain(record: Record) -> Record:
    """Numbers as JSON has them: what is not finite is null."""
    plain = {k: v.item() if hasattr(v, "item") else v for k, v in record.items()}
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in plain.items()
    }


def _pairs(values: Record) -> str:
    return " ".join(
        f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items()
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
