"""The runs of a study, one after the other, each in its folder."""

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
    """What a study is made of, and where. seeds: those that are asked for now."""

    base: ConfigDict
    cells: list[Cell]
    seeds: list[int]
    folder: pathlib.Path

    def workdir(self, cell: Cell, seed: int) -> Workdir:
        """The folder of one run."""
        return study_folder.run_folder(self.folder, cell.name, seed)

    def config(self, cell: Cell) -> ConfigDict:
        """The checked config of a cell, whatever its seed; raises `InputError`."""
        config = configs.from_flat(configs.flat(self.base))
        for key, text in cell.overrides.items():
            configs.override(config, key, text)
        configs.check(config)
        return config


def run(study: Study, shard: tuple[int, int], stop: Stop, metric: str) -> None:
    """Make the runs of a shard that are not made yet; raises `StoppedError`.

    metric: what will be compared; `InputError` before a run begins where it is in none.
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
        # Its images and programs are not needed any more after the last of its seeds.
        exp = built.pop(name)
        for seed in (seed for of_cell, seed in todo if of_cell == name):
            # From the one before, so that what that has compiled this has too.
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
    """(cell, seed) of the runs that have something left to do."""
    return [
        (cell.name, seed)
        for cell, seed in every
        if outcomes.is_left(study.workdir(cell, seed))
    ]


def check(study: Study) -> None:
    """Raise `InputError` for a cell whose config cannot be, or is that of another."""
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
    """The experiment of a cell; whatever is wrong with it is said before a run begins."""
    with _named(cell):
        exp = experiment.build(study.config(cell))
        checks.check(exp)
        exp.recipe.direction(metric, "--metric")
    return exp


@contextlib.contextmanager
def _named(cell: Cell) -> Iterator[None]:
    """Name the cell in what is said of it, where it is one of several."""
    try:
        yield
    except InputError as error:
        if not cell.overrides:
            raise
        raise InputError(f"cell {cell.name}: {error}") from None


def _adopt(study: Study) -> None:
    """Write plan.json, or add cells and seeds to it.

    Raises `InputError` where the folder holds another study.
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
            # Those that were asked for before belong to the result as well.
            new = [cell for cell in plan["cells"] if cell not in before["cells"]]
            seeds = sorted({*before["seeds"], *study.seeds})
            plan = {**before, "cells": [*before["cells"], *new], "seeds": seeds}
        else:
            _check_empty(study.folder)
        if plan != before:
            atomic.write_json(study.folder / study_folder.PLAN, plan)


def _check_same(study: Study, before: Mapping[str, Any]) -> None:
    """Raise `InputError` unless a plan is of this study: its config, no cell redefined."""
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
    """Raise `InputError` where a folder holds something that is no study."""
    foreign = sorted(e.name for e in folder.iterdir() if e.name != "lock")
    if foreign:
        raise InputError(
            f"--workdir={folder} holds {foreign[0]!r} and no study; name a new folder"
        )


def _make(exp: experiment.Experiment, folder: Workdir, stop: Stop) -> str:
    """Make one run, or go on with it, and score its last step; how it ended, in words."""
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
    """What a run says goes to a file beside its folder."""
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
    """Score the last step on data.test, where the run's own final record is of its best."""
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
    """Write study.json from what the folders hold now; its content.

    One process at a time: of those that end at once, the last one sees the runs of all.
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
