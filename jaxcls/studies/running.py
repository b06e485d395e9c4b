"""Training of a study's runs, one after the other, each in its folder."""

import contextlib
import functools
import itertools
import json
import operator
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxcls import atomic, experiment
from jaxcls.config import loading as configs
from jaxcls.config.plugins import NONE, Plugins
from jaxcls.devices import hosts
from jaxcls.errors import DivergedError, InputError, InUseError, StoppedError
from jaxcls.evaluation import passes, scoring
from jaxcls.experiment import checks
from jaxcls.learning.metrics import is_higher_better
from jaxcls.runs import checkpoint, cost, records
from jaxcls.runs.workdir import Workdir
from jaxcls.studies import cells, outcomes, summary
from jaxcls.studies import folder as study_folder
from jaxcls.studies.cells import FRACTION, SPLIT, Cell
from jaxcls.studies.folder import StudyPlan, run_folder
from jaxcls.training import train
from jaxcls.training.meter import duration
from jaxcls.training.stopping import Stop

_STOPPED = "asked to; the same command goes on with the study"


class Study(NamedTuple):
    """A study: base config, cells, folder, the seeds of this call, and plug-ins."""

    base: ConfigDict
    cells: list[Cell]
    seeds: list[int]
    folder: pathlib.Path
    plugins: Plugins = NONE

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
    names = {cell.name: cell for cell in study.cells}
    runs = [*itertools.product(names, study.seeds)][first::of]
    todo = hosts.on_first(
        lambda: [run for run in runs if outcomes.is_left(run_folder(study.folder, *run))]
    )
    built = {name: _built(study, names[name], metric) for name in dict(todo)}
    hosts.on_first(functools.partial(_adopt, study))
    began, number = time.monotonic(), 0
    for name, of_cell in itertools.groupby(todo, operator.itemgetter(0)):
        # No reference stays, so that images and programs are freed after the last seed.
        exp = built.pop(name)
        for _, seed in of_cell:
            # The previous experiment is reseeded, so that its programs are compiled once.
            exp = exp.reseeded(names[name].seeds(seed))
            said = _make(exp, run_folder(study.folder, name, seed), stop, metric)
            number += 1
            left = (time.monotonic() - began) / number * (len(todo) - number)
            if hosts.is_first():
                which = f"run {number} of {len(todo)}: {name} seed {seed}"
                print(f"{which}: {said}, ETA {duration(left)}")


def check(study: Study) -> None:
    """Raises `InputError` for a cell with a bad config, or with another cell's recipe."""
    seen: dict[tuple[str, ...], str] = {}
    for cell in study.cells:
        with _named(cell):
            flat = configs.flat(study.config(cell))
            _check_varied(cell, flat)
        recipe = json.dumps(flat), *cell.streams
        if (other := seen.setdefault(recipe, cell.name)) != cell.name:
            raise InputError(
                f"cells {other} and {cell.name} are the same recipe; give each value once"
            )


def _check_varied(cell: Cell, config: Mapping[str, Any]) -> None:
    """Raises `InputError` if the cell sets a seed that varies, or none can vary."""
    if twice := sorted(cell.seeds(0).keys() & cell.overrides.keys()):
        raise InputError(f"{twice[0]} is what --seeds varies; leave it out of the cells")
    if FRACTION in cell.streams and config["data.fraction"] == 1:
        raise InputError(
            "--vary=fraction varies which examples data.fraction takes, and it takes all:"
            " data.fraction=1; try --config.data.fraction=0.9"
        )
    if SPLIT in cell.streams and SPLIT not in cells.sources_of(config):
        raise InputError(
            "--vary=split varies which examples of one split are data.train and which"
            f" data.eval, and these are {config['data.train']!r} and"
            f" {config['data.eval']!r}; try --config.data.train='train[:90%]'"
            " --config.data.eval='train[90%:]'"
        )


def _built(study: Study, cell: Cell, metric: str) -> experiment.Experiment:
    """Returns the checked experiment of a cell; raises `InputError`."""
    with _named(cell):
        exp = experiment.build(study.config(cell), plugins=study.plugins)
        checks.check(exp)
        if SPLIT in cell.streams:  # What cannot be drawn anew is refused before any run.
            checks.check(exp.reseeded(cell.seeds(study.seeds[0])))
        if exp.recipe.direction(metric, "--metric") != is_higher_better(metric):
            raise InputError(
                f"--metric={metric} is of a plug-in and lower is better; a study compares"
                " such metrics by the highest: let it give its negative, or name another"
            )
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
        plan = study_folder.read_plan(study.folder)
        if plan is None:
            foreign = sorted(e.name for e in study.folder.iterdir() if e.name != "lock")
            if foreign:
                raise InputError(
                    f"--workdir={study.folder} holds {foreign[0]!r} and no study; name a"
                    " new folder"
                )
            config = configs.kept(configs.flat(study.base))
            study_folder.write_plan(
                study.folder, StudyPlan(config, study.cells, study.seeds)
            )
            return
        changed = configs.differences(configs.from_flat(plan.config), study.base)
        other = [key for key in changed if configs.is_identity(key, study.base)]
        known = {cell.name: cell for cell in plan.cells}
        new = [cell for cell in study.cells if cell not in plan.cells]
        other += [f"cell {cell.name}" for cell in new if cell.name in known]
        if other:
            free = Workdir(study.folder).free_name()
            raise InputError(
                f"--workdir={study.folder} holds another study (other:"
                f" {', '.join(other)}); start this one with --workdir={free}"
            )
        # Cells and seeds of earlier calls stay part of the result.
        seeds = sorted({*plan.seeds, *study.seeds})
        if new or seeds != plan.seeds:
            cells = [*plan.cells, *new]
            study_folder.write_plan(study.folder, StudyPlan(plan.config, cells, seeds))


def _make(exp: experiment.Experiment, folder: Workdir, stop: Stop, metric: str) -> str:
    """Trains or continues one run and scores its last step; returns its end as text."""
    if stop.requested:
        raise StoppedError(_STOPPED)
    try:
        with _quietly(folder):
            result = train.run(exp, str(folder.path), stop)
            _score_last(exp, folder, stop)
    except InUseError:
        return "under way in another process"
    except DivergedError:
        return "diverged; metrics.jsonl in its folder says at which step"
    return records.pairs({metric: result.record.get(metric)})


@contextlib.contextmanager
def _quietly(folder: Workdir) -> Iterator[None]:
    """Redirects the block's standard output to a .log file beside the run's folder."""
    if not hosts.is_first():
        yield
        return
    log = folder.path.with_name(f"{folder.path.name}.log")
    with atomic.explained(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("a")
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
        raise StoppedError(_STOPPED) from None
    n, values = scoring.means(columns, exp.recipe.split_metrics)
    record = {"step": step, "split": split, "n": n, **values}
    hosts.on_first(lambda: atomic.write_json(folder.path / outcomes.LAST_STEP, record))


def conclude(study: Study, metric: str, baseline: str) -> dict[str, Any]:
    """Writes study.json and cost.json from the folders of all runs; returns the former.

    Holds the lock, so that of several shards the last one sees the runs of all.
    Raises `InputError`.
    """
    with study_folder.held(study.folder):
        plan = study_folder.read_plan(study.folder) or study
        found = {
            cell.name: [
                outcomes.read(run_folder(study.folder, cell.name, seed), seed)
                for seed in plan.seeds
            ]
            for cell in plan.cells
        }
        result = summary.summarise(
            plan.cells,
            found,
            metric=metric,
            baseline=baseline,
            best_metric=study.base.best.metric,
        )
        atomic.write_json(study.folder / study_folder.RESULT, result)
        _write_cost(study.folder, plan.cells, plan.seeds)
    return result


def _write_cost(folder: pathlib.Path, of: Sequence[Cell], seeds: Sequence[int]) -> None:
    """Writes cost.json: the cost of all runs that have begun.

    It is measured, so it is apart from study.json, which is a function of the outcomes.
    What a damaged file does not tell is left out, with a note.
    """
    costs, damaged = [], []
    for run in (run_folder(folder, cell.name, seed) for cell in of for seed in seeds):
        starts: list[dict[str, Any]] = []
        timing: list[records.Record] = []
        try:
            starts = run.starts()
            timing = records.read(run.timing)
        except InputError as error:
            damaged.append(str(error))
        if starts:
            costs.append(cost.of_run(starts, timing))
    if damaged:
        print(f"note: the cost lacks what {len(damaged)} files do not tell: {damaged[0]}")
    found = {"runs": len(costs), **cost.total(costs)._asdict()}
    atomic.write_json(folder / study_folder.COST, {"format": study_folder.FORMAT, **found})
