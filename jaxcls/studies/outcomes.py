"""Outcomes of runs, read from their folders: values by split and step, or a failure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxcls import atomic
from jaxcls.errors import InputError
from jaxcls.runs import records as run_records
from jaxcls.runs.workdir import Workdir

# The record of a run's last step, if its final record is of its best step.
LAST_STEP = "last_step.json"
# A place is a split and a step: data.test or data.eval, at the best step (by data.eval) or
# at the last step.
PLACES = ("test_best", "test_last", "eval_best", "eval_last")


class Outcome(NamedTuple):
    """The outcome of a run.

    state: "done", "diverged", or "missing" if the run has not ended. steps: of training; 0
    unless done. n: {place: number of examples}. values: {place: {metric: value}}. Both
    have the scored places of `PLACES` only.
    """

    seed: int
    state: str
    steps: int
    n: dict[str, int]
    values: dict[str, dict[str, float]]


def read(folder: Workdir, seed: int) -> Outcome:
    """Returns the outcome of the run of `seed` in `folder`; "missing" without a folder.

    Raises `InputError` if a file or a record that it needs is lost.
    """
    records = run_records.read(folder.metrics)
    final = _final(records)
    if final is None:
        return Outcome(seed, "diverged" if _has_diverged(folder) else "missing", 0, {}, {})
    evaluations = {r["step"]: r for r in records if r["kind"] == "eval"}
    if not (folder.path / "config.json").is_file():
        raise InputError(
            f"{folder.path} holds the records of a run and no config.json; put it back, or"
            " move the folder away: a study makes its run again"
        )
    role = "test" if folder.config().data.test else "eval"
    found = {f"{role}_{final['at']}": final} if final["split"] else {}
    if final["at"] == "best":
        found["eval_best"] = _at(evaluations, final["best_step"], folder)
        if final["best_step"] == final["step"]:
            found[f"{role}_last"] = final
        elif role == "test" and (last := read_last_step(folder)):
            found["test_last"] = last
    if final["step"] in evaluations:
        found["eval_last"] = evaluations[final["step"]]
    return Outcome(
        seed,
        "done",
        final["step"],
        {place: found[place]["n"] for place in PLACES if place in found},
        {place: _metrics(found[place]) for place in PLACES if place in found},
    )


def values_of(runs: Sequence[Outcome], place: str, metric: str) -> dict[int, float]:
    """Returns {seed: value} of the runs that have a value."""
    return {
        run.seed: run.values[place][metric]
        for run in runs
        if metric in run.values.get(place, {})
    }


def is_left(folder: Workdir) -> bool:
    """Returns whether a run needs more training, or a score of its last step."""
    final = _final(run_records.read(folder.metrics))
    if final is None:
        return not _has_diverged(folder)
    return _lacks_last_step(folder, final)


def lacks_last_step(folder: Workdir) -> dict[str, Any] | None:
    """Returns the final record if the last step has no score on data.test, else None."""
    final = _final(run_records.read(folder.metrics))
    return final if final is not None and _lacks_last_step(folder, final) else None


def _lacks_last_step(folder: Workdir, final: Mapping[str, Any]) -> bool:
    is_apart = final["at"] == "best" and final["best_step"] != final["step"]
    has_test = bool(folder.config().data.test)
    return is_apart and has_test and read_last_step(folder) is None


def _at(
    evaluations: Mapping[int, dict[str, Any]], step: int, folder: Workdir
) -> dict[str, Any]:
    """Returns the evaluation of a step; raises `InputError` if its record is lost."""
    if step not in evaluations:
        raise InputError(
            f"{folder.metrics} has lost the evaluation of step {step}, the best; put the"
            " line back, or move the run's folder away"
        )
    return evaluations[step]


def _final(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the final record, or None if the run has not finished training."""
    return records[-1] if records and records[-1]["kind"] == "final" else None


def read_last_step(folder: Workdir) -> dict[str, Any] | None:
    """Returns the record of the last step on data.test, or None without such a file.

    Raises `InputError` if the file is no such record.
    """
    file = folder.path / LAST_STEP
    record: dict[str, Any] | None = atomic.read_json(file)
    is_one = isinstance(record, dict) and {"step", "n"} <= set(record)
    if record is not None and not is_one:
        raise InputError(f"{file} is no record of a last step; remove it: it is made again")
    return record


def _metrics(record: dict[str, Any]) -> dict[str, float]:
    """Returns the metrics of a record: its floats, without counts and steps."""
    counts = {"step", "n", "best_step"}
    return {k: v for k, v in record.items() if isinstance(v, float) and k not in counts}


def _has_diverged(folder: Workdir) -> bool:
    """Returns whether the last start of a run diverged. A new start diverges again."""
    return [{}, *folder.starts()][-1].get("reason") == "diverged"
