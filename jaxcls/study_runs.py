"""The runs of a study, each in its folder: one after the other or several at once."""

import contextlib
import functools
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from ml_collections import ConfigDict

from jaxcls import (
    atomic,
    checkpoint,
    evaluate,
    experiment,
    hosts,
    outcomes,
    stepping,
    study_folder,
    summary,
    together,
    train,
)
from jaxcls import config as configs
from jaxcls.cells import Cell
from jaxcls.errors import DivergedError, InputError, InUseError, StoppedError
from jaxcls.meter import duration
from jaxcls.stepping import Running, Steps
from jaxcls.stopping import Stop
from jaxcls.workdir import Workdir

T = TypeVar("T")


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


def run(
    study: Study, shard: tuple[int, int], stop: Stop, metric: str, at_once: int
) -> None:
    """Make the runs of a shard that are not made yet; raises `StoppedError`.

    metric: what will be compared; `InputError` before a run begins where it is in none.
    at_once: how many seeds of a cell train in one program; 0: as is measured to be faster.
    """
    first, of = shard
    every = [*itertools.product(study.cells, study.seeds)][first::of]
    todo = hosts.on_first(lambda: _left(study, every))
    by_name = {cell.name: cell for cell in study.cells}
    names = list(dict.fromkeys(name for name, _ in todo))
    built = {name: _built(study, by_name[name], metric) for name in names}
    if at_once > 1:
        for exp in built.values():
            together.check(exp, at_once)
    hosts.on_first(functools.partial(_adopt, study))
    began, count = time.monotonic(), itertools.count(1)
    for name in names:
        seeds = [seed for of_cell, seed in todo if of_cell == name]
        # Its images and programs are not needed any more after this.
        made = _make_cell(study, by_name[name], built.pop(name), seeds, stop, at_once)
        for (seed, said, under_way), number in zip(made, count, strict=False):
            begun = number + under_way
            seconds = (time.monotonic() - began) / begun * (len(todo) - begun)
            if hosts.is_first():
                left = duration(seconds)
                print(
                    f"run {number} of {len(todo)}: {name} seed {seed}: {said}, ETA {left}"
                )


def _make_cell(
    study: Study,
    cell: Cell,
    exp: experiment.Experiment,
    seeds: Sequence[int],
    stop: Stop,
    at_once: int,
) -> Iterator[tuple[int, str, int]]:
    """Make the runs of a cell; (seed, how it ended in words, how many go on with it)."""
    # Whatever is measured now, a run goes on as it began, so that it stays the same run.
    is_alone = at_once == 1 or bool(together.obstacle(exp))
    begun = {} if is_alone else _begun(study, cell, seeds)
    group_of = functools.cache(functools.partial(together.Group, exp))
    size = at_once
    if not size:
        new = [exp.reseeded(cell.seeds(seed)) for seed in seeds if seed not in begun]
        size, why = together.choose(new, group_of)
        exp = new[0] if new else exp  # What was compiled for it is there.
        if why:
            print(f"{cell.name}: {why}")
    for plan in together.plans(seeds, begun, size):
        if plan.size == 1:
            (seed,) = plan.seeds.values()
            # From the one before, so that what that has compiled this has too.
            exp = exp.reseeded(cell.seeds(seed))
            folder = study.workdir(cell, seed)
            said = stepping.finish(_making(exp, folder, stop, None))
            yield seed, said, 0
            continue
        group, runs = group_of(plan.size), {}
        for row, seed in plan.seeds.items():
            one = exp.reseeded(cell.seeds(seed))
            steps = together.Row(group, row, one)
            runs[seed] = _making(one, study.workdir(cell, seed), stop, steps)
        left = itertools.count(len(runs) - 1, -1)
        for (seed, said), others in zip(together.finish(group, runs), left, strict=False):
            yield seed, said, others


def _begun(study: Study, cell: Cell, seeds: Sequence[int]) -> dict[int, tuple[int, int]]:
    """{seed: (how many train at once with it, its row)} of those with a checkpoint."""
    found = {}
    for seed in seeds:
        folder = study.workdir(cell, seed)
        if checkpoint.steps(folder.checkpoints):
            start = [{}, *folder.starts()][-1]
            found[seed] = start.get("together", 1), start.get("row", 0)
    return found


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
        _ = exp.lowered_train_step, exp.direction(metric, "--metric")
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


def _making(
    exp: experiment.Experiment, folder: Workdir, stop: Stop, steps: Steps | None
) -> Running[str]:
    """Make one run, or go on with it, and score its last step; how it ended, in words."""
    if stop.requested:
        raise StoppedError("asked to; the same command goes on with the study")
    try:
        result = yield from _quietly(folder, _scored(exp, folder, stop, steps))
    except InUseError:
        return "under way in another process"
    except DivergedError:
        return "diverged; metrics.jsonl in its folder says at which step"
    metric = next((name for name in ("top1", "loss") if name in result.record), "")
    return f"{metric}={result.record[metric]:.4g}" if metric else "done"


def _scored(
    exp: experiment.Experiment, folder: Workdir, stop: Stop, steps: Steps | None
) -> Running[train.Result]:
    """A run, whose last step is scored too."""
    result = yield from train.running(exp, str(folder.path), steps, stop)
    _score_last(exp, folder, stop)
    return result


def _quietly(folder: Workdir, running: Running[T]) -> Running[T]:
    """A run; what it says goes to a file beside its folder."""
    if not hosts.is_first():
        return (yield from running)
    try:
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        file = folder.path.with_name(f"{folder.path.name}.log").open("a")
    except OSError as error:
        raise InputError(
            f"--workdir: {folder.path} cannot be written ({error.strerror}); give a folder"
            " you may write to: --workdir=DIR"
        ) from None
    with file:
        # Only while it runs itself: others may be under way in the same process.
        go_on: Callable[[], None] = functools.partial(next, running)
        while True:
            with contextlib.redirect_stdout(file):
                try:
                    go_on()
                except StopIteration as ended:
                    return ended.value
            try:
                yield
            except BaseException as error:
                go_on = functools.partial(running.throw, error)


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
