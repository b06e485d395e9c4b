"""Outcomes of runs, read from their folders: values by split and step, or a failure."""

from collections.abc import Sequence
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
    role = "test" if folder.config().data.test else "eval"
    found = {f"{role}_{final['at']}": final} if final.get("split") else {}
    if final["at"] == "best":
        best = final["best_step"]
        if best not in evaluations:
            raise InputError(
                f"{folder.metrics} has lost the evaluation of step {best}, the best; put"
                " the line back, or move the run's folder away"
            )
        found["eval_best"] = evaluations[best]
        if best == final["step"]:
            found[f"{role}_last"] = final
        elif last := read_last_step(folder, final["step"]):
            found["test_last"] = last
    if final["step"] in evaluations:
        found["eval_last"] = evaluations[final["step"]]
    scored = {place: found[place] for place in PLACES if place in found}
    return Outcome(
        seed,
        "done",
        final["step"],
        {place: record["n"] for place, record in scored.items()},
        {
            place: {name: v for name, v in record.items() if isinstance(v, float)}
            for place, record in scored.items()
        },
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
    if _final(run_records.read(folder.metrics)) is None:
        return not _has_diverged(folder)
    return lacks_last_step(folder) is not None


def lacks_last_step(folder: Workdir) -> dict[str, Any] | None:
    """Returns the final record if the last step has no score on data.test, else None."""
    final = _final(run_records.read(folder.metrics))
    if not final or final["at"] != "best" or final["best_step"] == final["step"]:
        return None
    is_scored = bool(read_last_step(folder, final["step"]))
    return final if folder.config().data.test and not is_scored else None


def read_last_step(folder: Workdir, step: int) -> dict[str, Any] | None:
    """Returns the record of the last step, `step`, on data.test, or None without it.

    Raises `InputError` if the file holds anything else.
    """
    found = atomic.read_json(folder.path / LAST_STEP)
    if found is not None and not (isinstance(found, dict) and {"step", "n"} <= set(found)):
        raise InputError(
            f"{folder.path / LAST_STEP} is no record of a last step; move it away, and the"
            " same command scores it again"
        )
    return found if found and found["step"] == step else None  # Of a shorter run.


def _final(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the final record, or None if the run has not finished training."""
    return records[-1] if records and records[-1]["kind"] == "final" else None


def _has_diverged(folder: Workdir) -> bool:
    """Returns whether the last start of a run diverged. A new start diverges again."""
    return [{}, *folder.starts()][-1].get("reason") == "diverged"
