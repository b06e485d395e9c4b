"""Training of a study's runs, one after the other, each in its folder."""

import contextlib
import functools
import itertools
import json
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxcls import atomic, experiment
from jaxcls.config import loading as configs
from jaxcls.devices import hosts
from jaxcls.errors import DivergedError, InputError, InUseError, StoppedError
from jaxcls.evaluation import passes, scoring
from jaxcls.experiment import checks
from jaxcls.runs import checkpoint
from jaxcls.runs.workdir import Workdir
from jaxcls.studies import folder as study_folder
from jaxcls.studies import outcomes, summary
from jaxcls.studies.cells import Cell
from jaxcls.training import train
from jaxcls.training.meter import duration
from jaxcls.training.stopping import Stop


class Study(NamedTuple):
    """A study: base config, cells, folder, and the seeds of this call."""

    base: ConfigDict
    cells: list[Cell]
    seeds: list[int]
    folder: pathlib.Path

    def workdir(self, cell: Cell, seed: int) -> Workdir:
        """Returns the folder of one run."""
        return study_folder.run_folder(self.folder, cell.name, seed)

    def config(self, cell: Cell) -> ConfigDict:
        """Returns the checked config of a cell, without its seed; raises `InputError`."""
        config = configs.from_flat(configs.flat(self.base))
        for key, text in cell.overrides.items():
            configs.override(config, key, text)
        configs.check(config)
        return config


def run(study: Study, shard: tuple[int, int], stop: Stop, metric: str) -> None:
    """Trains the unfinished runs of a shard.

    shard: (index, number of shards). metric: the metric of the comparison. Raises
    `InputError` before the first run for a bad config or metric, and `StoppedError` if a
    stop is requested.
    """
    first, of = shard
    every = [*itertools.product(study.cells, study.seeds)][first::of]
    todo = hosts.on_first(lambda: _left(study, every))
    by_name = {cell.name: cell for cell in study.cells}
    names = list(dict.fromkeys(name for name, _ in todo))
    built = {name: _built(study, by_name[name], metric) for name in names}
    hosts.on_first(functools.partial(_adopt, study))
    began, number = time.monotonic(), 0
    for name in names:
        cell = by_name[name]
        # No reference stays, so that images and programs are freed after the last seed.
        exp = built.pop(name)
        for seed in (seed for of_cell, seed in todo if of_cell == name):
            # The previous experiment is reseeded, so that its programs are compiled once.
            exp = exp.reseeded(cell.seeds(seed))
            said = _make(exp, study.workdir(cell, seed), stop)
            number += 1
            seconds = (time.monotonic() - began) / number * (len(todo) - number)
            if hosts.is_first():
                left = duration(seconds)
                print(
                    f"run {number} of {len(todo)}: {name} seed {seed}: {said}, ETA {left}"
                )


def _left(study: Study, every: Sequence[tuple[Cell, int]]) -> list[tuple[str, int]]:
    """Returns (cell, seed) of the unfinished runs."""
    return [
        (cell.name, seed)
        for cell, seed in every
        if outcomes.is_left(study.workdir(cell, seed))
    ]


def check(study: Study) -> None:
    """Raises `InputError` for a cell with a bad config, or with another cell's recipe."""
    seen: dict[tuple[str, ...], str] = {}
    for cell in study.cells:
        with _named(cell):
            flat = configs.flat(study.config(cell))
        recipe = json.dumps(flat), *cell.streams
        if (other := seen.setdefault(recipe, cell.name)) != cell.name:
            raise InputError(
                f"cells {other} and {cell.name} are the same recipe; give each value once"
            )


def _built(study: Study, cell: Cell, metric: str) -> experiment.Experiment:
    """Returns the checked experiment of a cell; raises `InputError`."""
    with _named(cell):
        exp = experiment.build(study.config(cell))
        checks.check(exp)
        exp.recipe.direction(metric, "--metric")
    return exp


@contextlib.contextmanager
def _named(cell: Cell) -> Iterator[None]:
    """Adds the cell's name to an `InputError` of the block, if the cell has overrides."""
    try:
        yield
    except InputError as error:
        if not cell.overrides:
            raise
        raise InputError(f"cell {cell.name}: {error}") from None


def _adopt(study: Study) -> None:
    """Writes plan.json, or adds cells and seeds to it.

    Raises `InputError` if the folder has another study, or other files.
    """
    with study_folder.held(study.folder):
        before = study_folder.read_plan(study.folder)
        plan: dict[str, Any] = {
            "format": study_folder.FORMAT,
            "config": configs.kept(configs.flat(study.base)),
            "cells": [atomic.finite(cell._asdict()) for cell in study.cells],
            "seeds": study.seeds,
        }
        if before is not None:
            _check_same(study, before)
            # Cells and seeds of earlier calls stay part of the result.
            new = [cell for cell in plan["cells"] if cell not in before["cells"]]
            seeds = sorted({*before["seeds"], *study.seeds})
            plan = {**before, "cells": [*before["cells"], *new], "seeds": seeds}
        else:
            _check_empty(study.folder)
        if plan != before:
            atomic.write_json(study.folder / study_folder.PLAN, plan)


def _check_same(study: Study, before: Mapping[str, Any]) -> None:
    """Raises `InputError` if a plan has another config, or redefines a cell's name."""
    changed = configs.differences(configs.from_flat(before["config"]), study.base)
    other = [key for key in changed if configs.is_identity(key, study.base)]
    known = {cell.name: cell for cell in study_folder.cells_of(study.folder, before)}
    other += [
        f"cell {cell.name}" for cell in study.cells if known.get(cell.name, cell) != cell
    ]
    if other:
        free = Workdir(study.folder).free_name()
        raise InputError(
            f"--workdir={study.folder} holds another study (other: {', '.join(other)});"
            f" start this one with --workdir={free}"
        )


def _check_empty(folder: pathlib.Path) -> None:
    """Raises `InputError` if a new study's folder has any file but the lock."""
    foreign = sorted(e.name for e in folder.iterdir() if e.name != "lock")
    if foreign:
        raise InputError(
            f"--workdir={folder} holds {foreign[0]!r} and no study; name a new folder"
        )


def _make(exp: experiment.Experiment, folder: Workdir, stop: Stop) -> str:
    """Trains or continues one run and scores its last step; returns its end as text."""
    if stop.requested:
        raise StoppedError("asked to; the same command goes on with the study")
    try:
        with _quietly(folder):
            result = train.run(exp, str(folder.path), stop)
            _score_last(exp, folder, stop)
    except InUseError:
        return "under way in another process"
    except DivergedError:
        return "diverged; metrics.jsonl in its folder says at which step"
    metric = next((name for name in ("top1", "loss") if name in result.record), "")
    return f"{metric}={result.record[metric]:.4g}" if metric else "done"


@contextlib.contextmanager
def _quietly(folder: Workdir) -> Iterator[None]:
    """Redirects the block's standard output to a .log file beside the run's folder."""
    if not hosts.is_first():
        yield
        return
    try:
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        file = folder.path.with_name(f"{folder.path.name}.log").open("a")
    except OSError as error:
        raise InputError(
            f"--workdir: {folder.path} cannot be written ({error.strerror}); give a folder"
            " you may write to: --workdir=DIR"
        ) from None
    with file, contextlib.redirect_stdout(file):
        yield


def _score_last(exp: experiment.Experiment, folder: Workdir, stop: Stop) -> None:
    """Scores the last step on data.test, if the final record is of the best step."""
    final = hosts.on_first(lambda: outcomes.lacks_last_step(folder))
    if not final:
        return
    step, split = final["step"], final["split"]
    weights = checkpoint.restore_weights(folder.checkpoints, step, exp.programs.state_like)
    try:
        columns = scoring.score_each(
            exp, weights, split, "data.test", abandon=lambda: stop.requested
        )
    except passes.Abandoned:
        raise StoppedError("asked to; the same command goes on with the study") from None
    n, values = scoring.means(columns)
    record = {"step": step, "split": split, "n": n, **values}
    hosts.on_first(lambda: atomic.write_json(folder.path / outcomes.LAST_STEP, record))


def conclude(study: Study, metric: str, baseline: str) -> dict[str, Any]:
    """Writes study.json from the folders of all runs; returns its content.

    Holds the lock, so that of several shards the last one sees the runs of all.
    Raises `InputError`.
    """
    with study_folder.held(study.folder):
        plan = study_folder.read_plan(study.folder)
        cells, seeds = study.cells, study.seeds
        if plan:
            cells, seeds = study_folder.cells_of(study.folder, plan), plan["seeds"]
        found = {
            cell.name: [outcomes.read(study.workdir(cell, seed), seed) for seed in seeds]
            for cell in cells
        }
        result = summary.summarise(
            cells,
            found,
            metric=metric,
            baseline=baseline,
            best_metric=study.base.best.metric,
        )
        atomic.write_json(study.folder / study_folder.RESULT, result)
    return result
