"""The content of a report as plain values: records of runs, scores and saliency maps."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxcls.evaluation.figures import Assessment, Robustness
from jaxcls.runs.cost import Cost, of_run
from jaxcls.runs.records import Record


class Picture(NamedTuple):
    """An image, pixels uint8 [H, W, C], with its caption."""

    pixels: np.ndarray
    caption: str


class Look(NamedTuple):
    """An image with its saliency maps: heats are (caption, heat [h, w] >= 0)."""

    picture: Picture
    heats: list[tuple[str, np.ndarray]]


class Cell(NamedTuple):
    """A cell of the confusion matrix: `examples` of a class, taken for another.

    truth, taken_for: numbers of classes. pictures: of the most confident ones.
    """

    truth: int
    taken_for: int
    examples: int
    pictures: list[Picture]


class Scored(NamedTuple):
    """The scores of a checkpoint on all examples of a split.

    step, at: of the checkpoint; `at` is such as "best". weights: "params" or "ema".
    cells: of the matrix, the most confused ones, the largest first.
    """

    step: int
    at: str
    split: str
    weights: str
    assessed: Assessment
    mistakes: list[Picture]
    cells: list[Cell]
    robustness: Robustness


def epoch_of(saved: Mapping[str, Any]) -> float:
    """Returns the steps of an epoch of a run's config.json, 0 if it does not say."""
    examples = saved["implied"].get("examples", {}).get("train", 0)
    return float(examples / saved["config"].get("batch_size", math.inf))


class Study(NamedTuple):
    """A study's result, with the records of its runs.

    result: the content of study.json. config: the base config of all cells, {} if it is
    unknown. records: {(cell, seed): the records of metrics.jsonl}. epochs: {cell: the steps
    of an epoch}, of cells whose config.json is there. cost: of all its runs.
    """

    name: str
    result: dict[str, Any]
    config: dict[str, Any]
    records: dict[tuple[str, int], list[Record]]
    epochs: dict[str, float]
    cost: Cost


@dataclasses.dataclass
class Run:
    """The content of a run's files, with scores and images from its model and dataset.

    saved: the content of config.json. starts: the entries of manifest.json. scored: None
    without a checkpoint or the dataset. class_counts: training examples of each class [K],
    if known. looked_by: the saliency method. missing: {section: why it is missing}.
    is_published: whether it is no run, but published weights.
    """

    name: str
    saved: dict[str, Any]
    metrics: list[Record]
    timing: list[Record]
    digests: list[Record]
    starts: list[dict[str, Any]]
    class_names: tuple[str, ...]
    scored: Scored | None = None
    class_counts: list[int] = dataclasses.field(default_factory=list)
    trained_on: list[Picture] = dataclasses.field(default_factory=list)
    looks: list[Look] = dataclasses.field(default_factory=list)
    looked_by: str = ""
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    is_published: bool = False

    @property
    def epoch(self) -> float:
        """The steps of an epoch, 0 if unknown."""
        return epoch_of(self.saved)

    @property
    def cost(self) -> Cost:
        """The cost of all its starts."""
        return of_run(self.starts, self.timing)

    @property
    def state(self) -> str:
        """The progress of the run as text, such as "done, 100 steps"."""
        if self.is_published:
            return "published weights"
        last = self.metrics[-1] if self.metrics else {"step": 0, "kind": ""}
        if last["kind"] == "final":
            return f"done, {last['step']} steps"
        reason = self.starts[-1].get("reason", "done") if self.starts else "done"
        how = "not finished" if reason == "done" else reason
        return f"{how}: step {last['step']} of {self.saved['implied'].get('steps', '?')}"

    @property
    def data_wait(self) -> float:
        """The fraction of training time that waits for data."""
        seconds = sum(record["train_s"] for record in self.timing)
        waited = sum(record["train_s"] * record["data_wait"] for record in self.timing)
        return float(waited / seconds) if seconds else 0.0
