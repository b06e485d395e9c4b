"""The content of a report as plain values: records of runs, scores and saliency maps."""

from typing import Any, NamedTuple

import numpy as np

from jaxcls.evaluation.figures import Assessment, Robustness

Record = dict[str, Any]


class Picture(NamedTuple):
    """An image, pixels uint8 [H, W, C], with its caption."""

    pixels: np.ndarray
    caption: str


class Look(NamedTuple):
    """An image with its saliency maps: heats are (caption, heat [h, w] >= 0)."""

    picture: Picture
    heats: list[tuple[str, np.ndarray]]


class Scored(NamedTuple):
    """The scores of a checkpoint on all examples of a split.

    step, at: of the checkpoint; `at` is such as "best". weights: "params" or "ema".
    """

    step: int
    at: str
    split: str
    weights: str
    assessed: Assessment
    mistakes: list[Picture]
    robustness: Robustness


class Study(NamedTuple):
    """A study's result, with the evaluations of its runs.

    result: the content of study.json. config: the base config of all cells, {} if it is
    unknown. evaluations: {(cell, seed): eval records} of the runs that have any.
    """

    name: str
    result: dict[str, Any]
    config: dict[str, Any]
    evaluations: dict[tuple[str, int], list[Record]]


class Run(NamedTuple):
    """The content of a run's files, with scores and images from its model and dataset.

    saved: the content of config.json. starts: the entries of manifest.json. scored: None
    without a checkpoint or the dataset. looked_by: the saliency method. missing: {section:
    why it is missing}.
    """

    name: str
    saved: dict[str, Any]
    metrics: list[Record]
    timing: list[Record]
    digests: list[Record]
    starts: list[dict[str, Any]]
    class_names: tuple[str, ...]
    scored: Scored | None
    trained_on: list[Picture]
    looks: list[Look]
    looked_by: str
    missing: dict[str, str]

    @property
    def final(self) -> Record | None:
        """The final record; None if the run has not finished."""
        last = self.metrics[-1] if self.metrics else {}
        return last if last.get("kind") == "final" else None

    @property
    def state(self) -> str:
        """The progress of the run as text, such as "done, 100 steps"."""
        if self.final:
            return f"done, {self.final['step']} steps"
        reason = self.starts[-1].get("reason") if self.starts else None
        step = self.metrics[-1]["step"] if self.metrics else 0
        how = {None: "not finished", "done": "not finished"}.get(reason, reason)
        return f"{how}: step {step} of {self.saved['implied'].get('steps', '?')}"
