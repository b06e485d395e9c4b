"""The log of a run: console, metrics.jsonl, timing.jsonl, digests.jsonl, trackers.

The log syncs all records to disk before a save. A resume from step N first drops the
records after N.
"""

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from rich.progress import Progress

from jaxcls import atomic, console
from jaxcls.devices import hosts
from jaxcls.errors import printable
from jaxcls.runs.records import Record, pairs, plain, trim
from jaxcls.runs.workdir import Workdir
from jaxcls.training.meter import INPUT_BOUND, Meter
from jaxcls.training.trackers import TensorBoard, WandB

_REMEDY = "make room, or allow it to be written, and start again"


class RunLog:
    """The records of a run; the first of its processes writes them. A context manager.

    tensorboard, wandb: Get the values of each record; may be set at any time.
    is_pending: True if the duties at step `start` run again, so their records are dropped.
    hint: (share of waiting) -> advice against it, or "".
    """

    def __init__(
        self,
        folder: Workdir,
        meter: Meter,
        start: int,
        steps: int,
        is_pending: bool = False,
        hint: Callable[[float], str] = lambda share: "",
    ) -> None:
        self.meter = meter
        self.tensorboard: TensorBoard | None = None
        self.wandb: WandB | None = None
        self._is_first, self._start, self._hint = hosts.is_first(), start, hint
        self._began = time.perf_counter()
        self._clock = folder.clock
        names = ("metrics", "timing", "digests")
        self._paths = {name: folder.path / f"{name}.jsonl" for name in names}
        self._open(start, is_pending)
        self._console = _Console(start, steps) if self._is_first else None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: object = None, *error: object) -> None:
        if self._console:
            self._console.close()
        try:
            self._close()
        finally:
            if self.tensorboard:
                self.tensorboard.close()
            if self.wandb:
                self.wandb.close(exit_code=0 if kind is None else 1)

    def _open(self, start: int, is_pending: bool) -> None:
        self._files: dict[str, TextIO] = {}
        self._sums: dict[str, Any] = {}
        if self._is_first:
            texts = {
                "metrics": trim(self._paths["metrics"], start, is_pending),
                "digests": trim(self._paths["digests"], start - is_pending),
            }
            self._sums = {
                name: hashlib.sha256(text.encode()) for name, text in texts.items()
            }
            with contextlib.ExitStack() as opened:
                for name, path in self._paths.items():
                    with atomic.explained(path, _REMEDY):
                        self._files[name] = opened.enter_context(path.open("a"))
                opened.pop_all()

    def _close(self) -> None:
        self.sync()
        for file in self._files.values():
            file.close()

    def rewind(self, step: int) -> None:
        """Drops all records after `step`."""
        self._close()
        self._open(step, False)
        if self.tensorboard:
            self.tensorboard.rewind(step)

    def step(self, step: int) -> None:
        """Shows on a terminal that step `step` has begun."""
        if self._console:
            self._console.step(step, str(self.meter))

    def train(self, step: int, values: dict[str, float]) -> None:
        """Writes the values and the speed of training step `step`."""
        self.event(step, "train", **values)
        timing = {"step": step, **self.meter.since_last()}
        if self._clock:
            start, began = self._clock
            timing |= {"start": start, "seconds": time.monotonic() - began}
        self._write("timing", timing)
        self._scalars("train", step, values)
        self.line(f"step {step}: train {pairs(values)} | {self.meter}")
        self._advise(self.meter.waiting())

    def evaluation(
        self, step: int, kind: str, values: dict[str, float], **facts: Any
    ) -> Record:
        """Writes the means over a split, and returns the record.

        kind: "eval" or "final".
        facts: "split" and "n", its exact number of examples; "at" and "best_step".
        """
        record = plain({"step": step, "kind": kind, **facts, **values})
        self._write("metrics", record)
        self._scalars(kind, step, values)
        if self.wandb and kind == "final":
            self.wandb.summary(record)
        scored = {k: v for k, v in facts.items() if k in ("split", "n")}
        self.line(f"step {step}: {kind} {pairs({**scored, **values})}")
        return record

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
        """Writes a record of an event at a step to metrics.jsonl."""
        self._write("metrics", {"step": step, "kind": kind, **values})

    def digest(self, step: int, whole: str, arrays: dict[str, str]) -> None:
        """Writes the digest of the state at a scheduled save."""
        self._write("digests", {"step": step, "digest": whole, "arrays": arrays})

    def line(self, text: str) -> None:
        """Writes a line to the console of the first process."""
        if self._console:
            self._console.line(text)

    def sync(self) -> None:
        """Returns once all records are on disk; raises `InputError` if a write fails."""
        for name, file in self._files.items():
            with atomic.explained(self._paths[name], _REMEDY):
                file.flush()
                os.fsync(file.fileno())
        if self.tensorboard:
            self.tensorboard.flush()

    def _write(self, name: str, record: Record) -> None:
        if name in self._files:
            line = json.dumps(plain(record), allow_nan=False) + "\n"
            self._files[name].write(line)
            if name in self._sums:
                self._sums[name].update(line.encode())

    def seals(self) -> dict[str, str]:
        """Returns `records.seal` of metrics.jsonl and digests.jsonl as they are now.

        {} on other processes than the first.
        """
        return {name: each.hexdigest()[:16] for name, each in self._sums.items()}

    def _scalars(self, group: str, step: int, values: dict[str, float]) -> None:
        for tracker in (self.tensorboard, self.wandb):
            if tracker:
                tracker.scalars(group, step, values)


class _Console:
    """Lines of text, on a terminal above a progress bar."""

    def __init__(self, start: int, steps: int) -> None:
        self._bar: Progress | None = None
        if not sys.stdout.isatty():
            return
        from jaxcls.training import bar  # Few runs have a terminal.

        self._bar = bar.started(start, steps)
        self._task = self._bar.task_ids[0]

    def step(self, step: int, pace: str) -> None:
        if self._bar:
            self._bar.update(self._task, completed=step, pace=pace)

    def line(self, text: str) -> None:
        say = self._bar.console.print if self._bar else print
        with console.outlived():
            say(printable(text))
            sys.stdout.flush()

    def close(self) -> None:
        if self._bar:
            with console.outlived():
                self._bar.stop()
