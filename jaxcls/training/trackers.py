"""Trackers of a run: TensorBoard's event files, and Weights & Biases.

Trackers do not affect the computation or the records of a run.
"""

import os
import pathlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcls.data import pictures
from jaxcls.errors import InputError, first_line
from jaxcls.evaluation import scores

# The most classes for a confusion matrix and a table of recall; more get a histogram.
MOST_CLASSES = 100
# The seconds that a run waits for Weights & Biases at start and end, by wandb's names.
_PATIENCE = {"init_timeout": 60, "finish_timeout": 60}


class TensorBoard:
    """Event files in `folder`; TensorBoard hides their events after `start`."""

    def __init__(self, folder: pathlib.Path, start: int) -> None:
        self._folder = folder
        self._open(start)

    def _open(self, start: int) -> None:
        from tensorboardX import SummaryWriter

        folder = str(self._folder)
        self._writer = SummaryWriter(folder, purge_step=start + 1, write_to_disk=True)

    def scalars(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Writes each value as ``group/name``."""
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Writes an image, uint8 [H, W, 3]."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def classes(
        self,
        group: str,
        step: int,
        labels: np.ndarray,
        predicted: np.ndarray,
        class_names: Sequence[str],
    ) -> None:
        """Writes the recall of each class, from labels and predictions [n].

        A prediction of -1 means non-finite logits. Up to 100 classes get a confusion matrix
        as an image and a table of recall; more get a histogram of recall.
        """
        count = len(class_names)
        support = np.bincount(labels, minlength=count)
        there = np.flatnonzero(support)
        hits = np.bincount(labels[labels == predicted], minlength=count)
        recall = hits[there] / support[there]
        if count > MOST_CLASSES:
            self._writer.add_histogram(f"{group}/recall", recall, step, bins=20)
            return
        matrix = scores.confusion(predicted, labels, count)
        self.picture(f"{group}/confusion", step, pictures.confusion(matrix, class_names))
        rows = (
            f"| {class_names[k]} | {share:.4f} | {support[k]} |"
            for k, share in zip(there.tolist(), recall.tolist(), strict=True)
        )
        table = "\n".join(("| class | recall | examples |", "|---|---|---|", *rows))
        self._writer.add_text(f"{group}/recall", table, step)

    def rewind(self, step: int) -> None:
        """Hides all events after `step`."""
        self._writer.close()
        self._open(step)

    def flush(self) -> None:
        """Returns once all events are in the files."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the files."""
        self._writer.close()


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
        try:
            self._run = _begun(wandb, project, folder, config)
        except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            raise InputError(
                f"log.wandb={project!r}: {first_line(error)}; run wandb login, or set"
                " WANDB_MODE=offline"
            ) from None
        except Exception as error:  # Usually no network.
            self._lose(error)
        # A resumed run already has the values of earlier steps.
        self._first = self._run.starting_step if self._run else 0

    def scalars(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Sends each value as ``group/name``."""
        named = {f"{group}/{name}": float(value) for name, value in values.items()}
        if self._run and step >= self._first:
            self._try(lambda: self._run.log(named, step=step))

    def summary(self, record: Mapping[str, Any]) -> None:
        """Sends the final record of the run, as ``final/name``."""
        named = {f"final/{name}": value for name, value in record.items()}
        if self._run:
            self._try(lambda: self._run.summary.update(named))

    def close(self, exit_code: int) -> None:
        """Ends this start; an exit code other than 0 means that the run has not ended."""
        if self._run:
            self._try(lambda: self._run.finish(exit_code=exit_code))

    def _try(self, tell: Callable[[], object]) -> None:
        try:
            tell()
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


def _begun(
    wandb: Any, project: str, folder: pathlib.Path, config: Mapping[str, Any]
) -> Any:
    """Starts or resumes the run."""
    known = folder / "wandb-id"
    if not known.exists():
        known.write_text(secrets.token_hex(4))
    return wandb.init(
        project=project,
        dir=str(folder),
        id=known.read_text(),
        name=folder.name,
        resume="allow",
        config=dict(config),
        allow_val_change=True,
        reinit="create_new",
        settings=wandb.Settings(console="off", **_patience()),  # No capture of our output.
    )


def _patience() -> dict[str, int]:
    """Returns the settings of `_PATIENCE` that no WANDB_... variable overrides."""
    return {k: v for k, v in _PATIENCE.items() if f"WANDB_{k.upper()}" not in os.environ}
