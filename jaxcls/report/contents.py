"""What a report is made of: a run's records, and what its model says, as plain values."""

from typing import Any, NamedTuple

import numpy as np

from jaxcls.evaluation.figures import Assessment, Robustness

Record = dict[str, Any]


class Picture(NamedTuple):
    """pixels uint8 [H, W, C], and what to say of them."""

    pixels: np.ndarray
    caption: str


class Look(NamedTuple):
    """An image, and for each caption where in it the model looked: heat [h, w] >= 0."""

    picture: Picture
    heats: list[tuple[str, np.ndarray]]


class Scored(NamedTuple):
    """What the checkpoint of `step` makes of all examples of a split.

    at: what that checkpoint is. weights: "params" or "ema".
    """

    step: int
    at: str
    split: str
    weights: str
    assessed: Assessment
    mistakes: list[Picture]
    robustness: Robustness


class Study(NamedTuple):
    """A study's result, and how its runs came to it.

    result: study.json. config: what every cell has but for its overrides; {} where that is
    not known. evaluations: {(cell, seed): records} of the runs that have some.
    """

    name: str
    result: dict[str, Any]
    config: dict[str, Any]
    evaluations: dict[tuple[str, int], list[Record]]


class Run(NamedTuple):
    """A run's files as they are, and what could be found with its model and its data.

    saved: config.json. starts: of manifest.json. scored: None without a checkpoint or the
    data. missing: for a part that is not here, why.
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
        """The record of the end of the run; None where it has not come."""
        last = self.metrics[-1] if self.metrics else {}
        return last if last.get("kind") == "final" else None

    @property
    def state(self) -> str:
        """How far the run is, in a few words."""
        if self.final:
            return f"done, {self.final['step']} steps"
        reason = self.starts[-1].get("reason") if self.starts else None
        step = self.metrics[-1]["step"] if self.metrics else 0
        how = {None: "not finished", "done": "not finished"}.get(reason, reason)
        return f"{how}: step {step} of {self.saved['implied'].get('steps', '?')}"
