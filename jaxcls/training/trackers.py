"""Trackers of a run: TensorBoard's event files, and Weights & Biases.

Trackers do not affect the computation or the records of a run.
"""

import contextlib
import functools
import itertools
import os
import pathlib
import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcls import atomic
from jaxcls.data import pictures
from jaxcls.errors import InputError, first_line
from jaxcls.evaluation import scores

# The most classes for a confusion matrix and a table of recall; more get a histogram.
MOST_CLASSES = 100
# The seconds after which a new event brings those before it to the disk.
_FLUSH_SECONDS = 120
# The seconds that the end of a run waits for Weights & Biases.
_PATIENCE = 60


def _tensorboardx() -> Any:
    """Imports tensorboardX with what writes its files, but not torch.

    It imports torch if that is installed, only to name a type. That takes more than a
    second of each start.
    """
    modules: dict[str, Any] = sys.modules
    is_hidden = "torch" not in modules
    if is_hidden:
        modules["torch"] = None
    try:
        import tensorboardX.proto.event_pb2
        import tensorboardX.record_writer
        import tensorboardX.summary
    finally:
        if is_hidden:
            del modules["torch"]
    return tensorboardX


class TensorBoard:
    """Event files in `folder`; TensorBoard hides their events after `start`.

    An error never reaches the training run. `say` receives it once, and nothing more is
    written.
    """

    def __init__(
        self, folder: pathlib.Path, start: int, say: Callable[[str], None] = print
    ) -> None:
        self._folder, self._say = folder, say
        self._library = _tensorboardx()
        # tensorboardX's SummaryWriter has a thread and a queue: once a write fails, the
        # thread is gone, and whoever fills the queue waits for ever.
        self._events: Any = None
        self._is_lost, self._flushed = False, 0.0
        self._open(start)

    def scalars(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Writes each value as ``group/name``."""
        make = self._library.summary.scalar
        for name, value in values.items():
            self._add(step, functools.partial(make, f"{group}/{name}", value))

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Writes an image, uint8 [H, W, 3]."""
        make = self._library.summary.image
        self._add(step, functools.partial(make, name, pixels, dataformats="HWC"))

    def classes(
        self,
        kind: str,
        step: int,
        columns: Mapping[str, np.ndarray],
        names: Sequence[str],
    ) -> None:
        """Writes the recall of each class, of the model and of its average.

        Up to 100 classes get a confusion matrix as an image and a table of recall; more get
        a histogram of recall.

        columns: The result of `scoring.score_each`; a prediction of -1 means non-finite
            logits.
        """
        make = self._library.summary
        labels, count = columns["label"], len(names)
        there, support = np.unique(labels, return_counts=True)
        groups = {"predicted": kind, "ema_predicted": f"{kind}/ema"}
        for name in (name for name in groups if name in columns):
            group, predicted = groups[name], columns[name]
            hits = np.bincount(labels[labels == predicted], minlength=count)[there]
            recall = hits / support
            if count > MOST_CLASSES:
                told = functools.partial(make.histogram, f"{group}/recall", recall, 20)
                self._add(step, told)
                continue
            matrix = scores.confusion(predicted, labels, count)
            self.picture(f"{group}/confusion", step, pictures.confusion(matrix, names))
            rows = ["| class | recall | examples |", "|---|---|---|"]
            for k, share, n in zip(there, recall, support, strict=True):
                rows.append(f"| {names[k]} | {share:.4f} | {n} |")
            self._add(
                step, functools.partial(make.text, f"{group}/recall", "\n".join(rows))
            )

    def rewind(self, step: int) -> None:
        """Hides all events after `step`."""
        self.close()
        self._open(step)

    def flush(self) -> None:
        """Returns once all events are in the files."""
        self._try(lambda events: events.flush())
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the files."""
        self._try(lambda events: events.close())
        self._events = None

    def _open(self, step: int) -> None:
        """Opens a new file, unless one was lost; hides all events after `step`."""
        if self._is_lost:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._events = self._library.record_writer.RecordWriter(str(self._free()))
        except Exception as error:
            self._lose(error)
        proto = self._library.proto.event_pb2
        start = proto.SessionLog(status=proto.SessionLog.START)
        self._write(0, file_version="brain.Event:2")
        self._write(step + 1, session_log=start)

    def _free(self) -> pathlib.Path:
        """Returns a new file; TensorBoard reads the files in the order of their names."""
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}"
        for count in itertools.count():
            path = self._folder / f"{name}.{count:06}"
            if not path.exists():
                break
        return path

    def _add(self, step: int, make: Callable[[], Any]) -> None:
        """Writes the summary that `make` returns."""
        self._try(lambda _: self._write(step, summary=make()))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def _write(self, step: int, **content: Any) -> None:
        kind = self._library.proto.event_pb2.Event
        event = kind(step=step, wall_time=time.time(), **content)
        self._try(lambda events: events.write(event.SerializeToString()))

    def _try(self, tell: Callable[[Any], object]) -> None:
        try:
            if self._events:
                tell(self._events)
        except Exception as error:  # Whatever it is, it may not end the run.
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        events, self._events, self._is_lost = self._events, None, True
        with contextlib.suppress(Exception):  # The same error again.
            events.close()
        self._say(
            f"TensorBoard: {self._folder} cannot be written ({first_line(error)}); the run"
            " goes on without it"
        )


class WandB:
    """A run on Weights & Biases: the one recorded in `folder`, or a new one.

    Raises `InputError` at construction if Weights & Biases is not set up. A later error
    never reaches the training run. `say` receives it once, and nothing more is sent.
    """

    def __init__(
        self,
        project: str,
        folder: pathlib.Path,
        config: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self._say = say
        self._run: Any = None
        wandb = imported(project)
        known = folder / "wandb-id"
        patience = os.environ.get("WANDB_FINISH_TIMEOUT", _PATIENCE)
        try:
            if not known.exists():
                atomic.write(known, secrets.token_hex(4))
            self._run = wandb.init(
                project=project,
                dir=str(folder),
                id=known.read_text(),
                name=folder.name,
                resume="allow",
                config=dict(config),
                allow_val_change=True,
                reinit="create_new",
                # No capture of our output.
                settings=wandb.Settings(console="off", finish_timeout=float(patience)),
            )
        except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            raise InputError(
                f"log.wandb={project!r}: {first_line(error)}; run wandb login, or set"
                " WANDB_MODE=offline"
            ) from None
        except Exception as error:  # Usually no network.
            self._lose(error)

    def scalars(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Sends each value as ``group/name``."""
        named = {f"{group}/{name}": float(value) for name, value in values.items()}

        def send(run: Any) -> None:
            if step >= run.starting_step:  # A resumed run already has the earlier ones.
                run.log(named, step=step)

        self._try(send)

    def summary(self, record: Mapping[str, Any]) -> None:
        """Sends the final record of the run, as ``final/name``."""
        always = ("step", "kind")
        named = {f"final/{k}": value for k, value in record.items() if k not in always}
        self._try(lambda run: run.summary.update(named))

    def close(self, exit_code: int) -> None:
        """Ends this start; an exit code other than 0 means that the run has not ended."""
        self._try(lambda run: run.finish(exit_code=exit_code))

    def _try(self, tell: Callable[[Any], object]) -> None:
        try:
            if self._run:
                tell(self._run)
        except Exception as error:  # wandb raises many kinds; none may end the run.
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        self._run = None
        self._say(
            f"Weights & Biases: {first_line(error)}; the run goes on without it"
            " (WANDB_MODE=offline needs no network)"
        )


def imported(project: str) -> Any:
    """Returns the module wandb; raises `InputError` if it is not installed."""
    try:
        import wandb

        _ = wandb.init  # A folder "wandb", which runs leave behind, imports too.
    except (ImportError, AttributeError):
        raise InputError(
            f"log.wandb={project!r} needs Weights & Biases, which is not installed; pip"
            " install wandb, or leave it out: --config.log.wandb="
        ) from None
    return wandb
