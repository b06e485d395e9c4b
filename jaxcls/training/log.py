"""The log of a run: console, metrics.jsonl, timing.jsonl, digests.jsonl, trackers.

The log syncs all records to disk before a save. A resume from step N first drops the
records after N.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from jaxcls.errors import InputError
from jaxcls.runs.records import Record, pairs, plain, trim
from jaxcls.runs.workdir import Workdir
from jaxcls.training.meter import INPUT_BOUND, Meter
from jaxcls.training.trackers import TensorBoard, WandB


class RunLog:
    """The records of a run, and its progress. A context manager.

    is_pending: True if the duties at step `start` run again, so their records are dropped.
    is_first: Whether this process writes and shows records; one of several does.
    hint: (share of waiting) -> advice against it, or "".
    """

    def __init__(
        self,
        folder: Workdir,
        meter: Meter,
        *,
        start: int,
        steps: int,
        tensorboard: TensorBoard | None = None,
        is_pending: bool = False,
        is_first: bool = True,
        hint: Callable[[float], str] = lambda share: "",
    ) -> None:
        self._is_first, self._start = is_first, start
        self._paths = {
            "metrics": folder.metrics,
            "timing": folder.timing,
            "digests": folder.digests,
        }
        self._began = time.perf_counter()
        self._tensorboard = tensorboard
        self._wandb: WandB | None = None
        self._hint = hint
        self._open(start, is_pending)
        self.meter = meter
        self._console = _Console(steps, start) if is_first else None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: object = None, *error: object) -> None:
        if self._console:
            self._console.close()
        try:
            self._close()
        finally:
            if self._tensorboard:
                self._tensorboard.close()
            if self._wandb:
                self._wandb.close(exit_code=0 if kind is None else 1)

    def _open(self, start: int, is_pending: bool) -> None:
        self._files: dict[str, TextIO] = {}
        if not self._is_first:
            return
        trim(self._paths["metrics"], start, is_pending)
        trim(self._paths["digests"], start - is_pending)
        self._files = {name: path.open("a") for name, path in self._paths.items()}

    def _close(self) -> None:
        self.sync()
        for file in self._files.values():
            file.close()

    def rewind(self, step: int) -> None:
        """Drops all records after `step`."""
        self._close()
        self._open(step, False)
        if self._tensorboard:
            self._tensorboard.rewind(step)

    def tell(self, wandb: WandB) -> None:
        """Sends values and the final record to `wandb` from now on."""
        self._wandb = wandb

    def step(self, step: int) -> None:
        """Shows that step `step` has begun."""
        if self._console:
            self._console.step(step, self.meter)

    def train(self, step: int, values: dict[str, float]) -> None:
        """Writes the values and the speed of training step `step`."""
        self._write("metrics", {"step": step, "kind": "train", **values})
        self._write("timing", {"step": step, **self.meter.since_last()})
        self._scalars("train", step, values)
        self.line(f"step {step}: {pairs(values)} | {self.meter}")
        self._advise(self.meter.waiting())

    def evaluation(
        self,
        step: int,
        kind: str,
        split: str,
        n: int,
        values: dict[str, float],
        **more: Any,
    ) -> Record:
        """Writes the means over exactly `n` examples and returns the record.

        kind: "eval" or "final".
        split: "" is the end of a run without a split to score.
        """
        scored = {"split": split, "n": n} if split else {}
        record = {"step": step, "kind": kind, **more, **scored, **values}
        self._write("metrics", record)
        self._scalars(kind, step, values)
        if self._wandb and kind == "final":
            self._wandb.summary(plain({**more, **scored, **values}))
        self.line(f"step {step}: {kind} {pairs({**scored, **values})}")
        return plain(record)

    def classes(
        self,
        step: int,
        kind: str,
        columns: Mapping[str, np.ndarray],
        class_names: Sequence[str],
    ) -> None:
        """Shows the scores of each class in TensorBoard.

        columns: The result of `scoring.score_each`.
        """
        if not self._tensorboard:
            return
        for prefix in ("", "ema_"):
            if (name := f"{prefix}predicted") in columns:
                group = f"{kind}/{prefix.rstrip('_')}".rstrip("/")
                found = columns["label"], columns[name]
                self._tensorboard.classes(group, step, *found, class_names)

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Shows a picture, uint8 [H, W, 3], in TensorBoard."""
        if self._tensorboard:
            self._tensorboard.picture(name, step, pixels)

    def done(self) -> None:
        """Writes the shares of this start's time; call it at the end."""
        whole = time.perf_counter() - self._began
        since = f" since step {self._start}" if self._start else ""
        self._advise(self.meter.waiting(at_end=True))
        self.line(f"time{since}: {self.meter.shares(whole)}")

    def _advise(self, share: float) -> None:
        """Writes the advice for an input-bound run, once."""
        if share > INPUT_BOUND and (text := self._hint(share)):
            self.line(text)
            self._hint = lambda share: ""

    def event(self, step: int, kind: str, **values: Any) -> None:
        """Writes a record of an event at a step, outside its duties."""
        self._write("metrics", {"step": step, "kind": kind, **values})

    def digest(self, step: int, whole: str, arrays: dict[str, str]) -> None:
        """Writes the digest of the state at a scheduled save."""
        self._write("digests", {"step": step, "digest": whole, "arrays": arrays})

    def line(self, text: str) -> None:
        """Writes a line to the console."""
        if self._console:
            self._console.line(text)

    def sync(self) -> None:
        """Returns once all records are on disk; raises `InputError` if a write fails."""
        for name, file in self._files.items():
            try:
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise InputError(
                    f"{self._paths[name]} cannot be written ({error.strerror}); make room,"
                    " or allow it to be written, and start again"
                ) from None
        if self._tensorboard:
            self._tensorboard.flush()

    def _write(self, name: str, record: Record) -> None:
        if name in self._files:
            self._files[name].write(json.dumps(plain(record), allow_nan=False) + "\n")

    def _scalars(self, group: str, step: int, values: dict[str, float]) -> None:
        for tracker in (self._tensorboard, self._wandb):
            if tracker:
                tracker.scalars(group, step, values)


class _Console:
    """Lines of text, on a terminal above a progress bar."""

    def __init__(self, steps: int, start: int) -> None:
        self._bar: Progress | None = None
        if not sys.stdout.isatty():
            return
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            console=Console(highlight=False, markup=False),
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("", total=steps, completed=start, pace="compiling")
        self._bar.start()

    def step(self, step: int, meter: Meter) -> None:
        if self._bar:
            self._bar.update(self._task, completed=step, pace=str(meter))

    def line(self, text: str) -> None:
        if self._bar:
            self._bar.console.print(text)
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:  # The reader is gone; the run goes on.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
