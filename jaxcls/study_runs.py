"""The runs of a study: made one after the other, each in its folder, and concluded."""

import contextlib
import fcntl
import functools
import itertools
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxcls import atomic, checkpoint, evaluate, experiment, hosts, outcomes, summary, train
from jaxcls import config as configs
from jaxcls.cells import Cell
from jaxcls.errors import DivergedError, InputError, InUseError, StoppedError
from jaxcls.stopping import Stop
from jaxcls.study_table import duration
from jaxcls.workdir import Workdir

FORMAT = 1


class Study(NamedTuple):
    """What a study is made of, and where. seeds: those that are asked for now."""

    base: ConfigDict
    cells: list[Cell]
    seeds: list[int]
    folder: pathlib.Path

    def workdir(self, cell: Cell, seed: int) -> Workdir:
        """The folder of one run."""
        return outcomes.run_folder(self.folder, cell.name, seed)

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
    began = time.monotonic()
    for number, (name, seed) in enumerate(todo, 1):
        cell = by_name[name]
        # One after the other, so that what one has compiled the next has too.
        built[name] = exp = built[name].reseeded(cell.seeds(seed))
        said = _make(exp, study.workdir(cell, seed), stop)
        if number == len(todo) or todo[number][0] != name:
            del built[name]  # Its images and programs are not needed any more.
        seconds = (time.monotonic() - began) / number * (len(todo) - number)
        if hosts.is_first():
            left = duration(seconds)
            print(f"run {number} of {len(todo)}: {name} seed {seed}: {said}, ETA {left}")


def _left(study: Study, every: Sequence[tuple[Cell, int]]) -> list[tuple[str, int]]:
    """(cell, seed) of the runs that have something left to do."""
    return [
        (cell.name, seed)
        for cell, seed in every
        if outcomes.is_left(study.workdir(cell, seed), seed)
    ]


def _built(study: Study, cell: Cell, metric: str) -> experiment.Experiment:
    """The experiment of a cell; whatever is wrong with it is said before a run begins."""
    try:
        exp = experiment.build(study.config(cell))
        _ = exp.lowered_train_step, exp.direction(metric, "--metric")
    except InputError as error:
        if not cell.overrides:
            raise
        raise InputError(f"cell {cell.name}: {error}") from None
    return exp


@contextlib.contextmanager
def _held(folder: pathlib.Path) -> Iterator[None]:
    """Hold a study's folder, which is made if need be, for a moment; waits for its turn.

    Raises `InputError` where it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a")
    except OSError as error:
        raise InputError(
            f"--workdir={folder} cannot be written ({error.strerror}); give a folder you"
            " may write to: --workdir=DIR"
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _adopt(study: Study) -> None:
    """Write plan.json; raises `InputError` where the folder holds another study."""
    with _held(study.folder):
        _adopt_locked(study, study.folder / "plan.json")


def _adopt_locked(study: Study, file: pathlib.Path) -> None:
    plan = {
        "format": FORMAT,
        "config": configs.flat(study.base),
        "cells": [cell._asdict() | {"streams": list(cell.streams)} for cell in study.cells],
    }
    if file.exists():
        before = json.loads(file.read_text())
        changed = configs.differences(configs.from_flat(before["config"]), study.base)
        other = [key for key in changed if configs.is_identity(key, study.base)]
        other += ["its cells"] if before["cells"] != plan["cells"] else []
        if other:
            free = Workdir(study.folder).free_name()
            raise InputError(
                f"--workdir={study.folder} holds another study ({', '.join(other)}"
                f" differ); start this one with --workdir={free}"
            )
        return
    foreign = sorted(e.name for e in study.folder.iterdir() if e.name != "lock")
    if foreign:
        raise InputError(
            f"--workdir={study.folder} holds {foreign[0]!r} and no study; name a new folder"
        )
    atomic.write(file, json.dumps(plan, indent=1) + "\n")


def _make(exp: experiment.Experiment, folder: Workdir, stop: Stop) -> str:
    """Make one run, or go on with it, and score its last step; how it ended, in words."""
    if stop.requested:
        raise StoppedError("asked to; the same command goes on with the study")
    try:
        with _quiet(folder):
            result = train.run(exp, str(folder.path), stop)
            _score_last(exp, folder, stop)
    except InUseError:
        return "under way in another process"
    except DivergedError:
        return "diverged; metrics.jsonl in its folder says at which step"
    metric = next((name for name in ("top1", "loss") if name in result.record), "")
    return f"{metric}={result.record[metric]:.4g}" if metric else "done"


@contextlib.contextmanager
def _quiet(folder: Workdir) -> Iterator[None]:
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
    weights = checkpoint.restore_weights(folder.checkpoints, step, exp.state_like)
    try:
        columns = evaluate.score_each(
            exp, weights, split, "data.test", abandon=lambda: stop.requested
        )
    except evaluate.Abandoned:
        raise StoppedError("asked to; the same command goes on with the study") from None
    n, values = evaluate.means(columns)
    record = {"step": step, "split": split, "n": n, **values}
    text = json.dumps(record) + "\n"
    hosts.on_first(lambda: atomic.write(folder.path / outcomes.LAST_STEP, text))


def conclude(study: Study, metric: str, baseline: str) -> dict[str, Any]:
    """Write study.json from what the folders hold now; its content.

    One process at a time: of those that end at once, the last one sees the runs of all.
    """
    with _held(study.folder):
        found = {
            cell.name: [
                outcomes.read(study.workdir(cell, seed), seed) for seed in study.seeds
            ]
            for cell in study.cells
        }
        result = summary.summarise(
            study.cells,
            found,
            metric=metric,
            baseline=baseline,
            best_metric=study.base.best.metric,
        )
        text = json.dumps(result, indent=1, allow_nan=False) + "\n"
        atomic.write(study.folder / "study.json", text)
    return result
