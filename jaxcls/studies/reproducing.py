"""Train a recorded run again, and compare it with its record.

This needs the dataset, and the run's folder or the archive that `archive.pack` writes.
"""

import contextlib
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from jaxcls import experiment
from jaxcls.config import loading as configs
from jaxcls.data import sources
from jaxcls.errors import DivergedError, InputError, StoppedError
from jaxcls.runs import archive, checkpoint, provenance, records
from jaxcls.runs.archive import Recorded
from jaxcls.runs.workdir import Workdir
from jaxcls.training import stopping, train


class DifferentError(Exception):
    """The state at `step` differs from its record in `arrays`; it has `of` arrays."""

    def __init__(self, step: int, arrays: list[str], of: int) -> None:
        self.step, self.arrays, self.of = step, arrays, of


class Verdict(NamedTuple):
    """Whether the new run matches its record; `words` is the message."""

    is_same: bool
    words: str


def reproduce(
    recorded: Recorded,
    overrides: Mapping[str, str],
    steps: int = 0,
    tolerance: float = 0.05,
    scratch: str = "",
    say: Callable[[str], None] = print,
) -> Verdict:
    """Trains a run again up to step `steps` (0: its end), and compares it with its record.

    On the same kind of machine, digests and records must be equal; on another kind, losses
    must agree within `tolerance`, a relative difference. overrides: {config key: text}
    for keys that may change, such as data.dir. scratch: a new or empty folder for the run,
    which is kept; "": a temporary folder. say: receives messages before the verdict.
    Raises `InputError` if the run cannot be reproduced here, `StoppedError` on a signal.
    """
    _check_is_alone(recorded)
    where = Workdir(scratch).path if scratch else None
    if where and where.exists() and any(where.iterdir()):
        raise InputError(f"--scratch={scratch} is not empty; name a new folder")
    first, last = recorded.starts[0], _last_step(recorded, steps, say)
    _set_environment(first)  # Before any device starts.
    exp = experiment.build(_config(recorded, overrides))
    _check_data(recorded, exp)
    now = {
        **provenance.of_this_start(),
        "devices": [device.device_kind for device in exp.mesh.devices.flat],
        "hosts": 1,
        "fsdp": exp.config.mesh.fsdp,
        "loop": int(exp.config.compile.loop == "on"),
    }
    changed = _changes(first, now)
    is_same_kind = not set(changed) & {"cpu", "devices", "hosts", "fsdp", "loop"}
    if not is_same_kind:
        say(f"another kind of machine: losses are compared within {tolerance:g}")
    with contextlib.ExitStack() as stack:
        folder = where or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            expected = recorded.digests if is_same_kind else {}
            compared = _run(exp, folder, last, expected)
        except DifferentError as found:
            equal = [step for step in sorted(recorded.digests) if step < found.step]
            words = _difference(found, equal[-1] if equal else 0, changed)
            return Verdict(False, words)
        now_metrics = [
            r for r in records.read(folder / "metrics.jsonl") if r["step"] <= last
        ]
    if is_same_kind:
        return _compare_exactly(recorded, now_metrics, last, compared)
    return _compare_nearly(recorded, now_metrics, last, tolerance, changed)


def _check_is_alone(recorded: Recorded) -> None:
    """Raises `InputError` if the run trained in one program together with other seeds."""
    seeds = recorded.starts[0].get("together", 1)
    if seeds > 1:
        raise InputError(
            f"this run trained in one program with together={seeds} seeds, which cannot be"
            " made again bit for bit; give --workdir=RUN of one that trained alone"
        )


def _last_step(recorded: Recorded, steps: int, say: Callable[[str], None]) -> int:
    """Returns the last step to compare.

    It has a digest, is at most `steps` (0: no limit), and precedes any move of the run to
    another kind of machine. Raises `InputError` if there is no such step.
    """
    first, limits = recorded.starts[0], [steps] if steps else []
    for start in recorded.starts[1:]:
        if archive.topology(start) != archive.topology(first):
            moved = start["resumed_from"]
            say(f"the run moved to another kind of machine after step {moved}")
            limits.append(moved)
            break
    found = [step for step in recorded.digests if all(step <= most for most in limits)]
    if not found:
        raise InputError(
            f"no digest is recorded up to step {min(limits)}: the first is of step"
            f" {min(recorded.digests)}, and there is nothing to compare before it"
        )
    return max(found)


def _set_environment(start: dict[str, Any]) -> None:
    """Sets XLA_FLAGS, and on CPU the threads and devices, as in the recorded start."""
    os.environ["XLA_FLAGS"] = start["xla_flags"]
    if start["devices"][0].lower() == "cpu":
        # The size of XLA's thread pool decides how XLA splits sums.
        os.environ["NPROC"] = str(start["cpu"]["nproc"] or start["cpu"]["cores"])
        there = max(start.get("local_devices", 1), len(start["devices"]))
        jax.config.update("jax_num_cpu_devices", there)


# The config keys that may change when a run is reproduced.
_ANYWHERE = (
    "data.dir", "data.threads", "data.prefetch", "data.resident", "init.weights",
    "distill.run", "compile.cache",
)  # fmt: skip


def _config(recorded: Recorded, overrides: Mapping[str, str]) -> ConfigDict:
    config = configs.from_flat(recorded.config)
    if not os.path.isdir(config.data.dir):
        config.data.dir = ""
    wanted, there = len(recorded.starts[0]["devices"]), jax.local_device_count()
    piece = config.batch_size // config.optim.accumulate
    fitting = [n for n in range(1, min(wanted, there) + 1) if piece % n == 0]
    config.mesh.devices = fitting[-1]
    fsdp = recorded.starts[0].get("fsdp", 1)
    config.mesh.fsdp = fsdp if fitting[-1] % fsdp == 0 else 1
    config.log.tensorboard, config.log.wandb = False, ""
    for key, text in overrides.items():
        configs.override(config, key, text)
        if key not in _ANYWHERE:
            raise InputError(
                f"--config.{key} comes from the run's folder; leave it out, or give"
                f" {', '.join(_ANYWHERE[:-1])} or {_ANYWHERE[-1]}"
            )
    # A loop stays a loop, if possible. It is off if the run moves between an accelerator
    # and a CPU, where a loop is only slow.
    was_on_cpu = recorded.starts[0]["devices"][0].lower() == "cpu"
    is_on_cpu = jax.local_devices()[0].platform == "cpu"
    is_loop = recorded.starts[0].get("loop", 0) and "data.resident" not in overrides
    config.compile.loop = "on" if is_loop and was_on_cpu == is_on_cpu else "off"
    return config


def _check_data(recorded: Recorded, exp: experiment.Experiment) -> None:
    """Raises `InputError` if the dataset or the initial weights differ from the record."""
    try:
        sources.check_same(sources.facts_of(recorded.implied), exp.selection.facts)
    except InputError as error:
        raise InputError(
            f"the data are not those of the run: {error}, or give its folder:"
            " --config.data.dir=DIR"
        ) from None
    began = recorded.implied.get("weights", "")
    try:
        if exp.initial and exp.initial.fingerprint != began:
            raise InputError(
                f"init.weights={exp.config.init.weights} are not what the run started from"
            )
    except InputError as error:
        raise InputError(
            f"{error}; the run needs the weights of {began}: say where they are with"
            " --config.init.weights=PLACE"
        ) from None


def _changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """Returns {name: text} of the differences between two starts."""
    changed: dict[str, str] = {}
    for key in ("jaxcls", "code", "commit", "python", "xla_flags", "hosts"):
        if key in before and before[key] != now[key]:
            changed[key] = f"{key} {before[key]} -> {now[key]}"
    for name, version in before["versions"].items():
        if now["versions"].get(name) != version:
            changed[name] = f"{name} {version} -> {now['versions'].get(name)}"
    if before["devices"] != now["devices"]:
        kinds = (f"{len(each['devices'])} {each['devices'][0]}" for each in (before, now))
        changed["devices"] = f"devices {' -> '.join(kinds)}"
    parts = [each.get("fsdp", 1) for each in (before, now)]
    if parts[0] != parts[1]:
        changed["fsdp"] = f"mesh.fsdp {parts[0]} -> {parts[1]}"
    loops = ["in a loop" if each.get("loop", 0) else "one by one" for each in (before, now)]
    if loops[0] != loops[1]:
        changed["loop"] = f"steps {loops[0]} -> {loops[1]}"
    if before["devices"][0].lower() == "cpu":
        sets = [set(each["cpu"]["instructions"]) for each in (before, now)]
        if sets[0] != sets[1]:
            listed = " ".join(sorted(sets[0] ^ sets[1]))
            changed["cpu"] = f"cpu instructions (one lacks {listed})"
    return changed


def _run(
    exp: experiment.Experiment,
    folder: pathlib.Path,
    last: int,
    expected: dict[int, dict[str, str]],
) -> int:
    """Trains to step `last`; returns the number of expected steps with equal digests.

    expected: {step: {array: digest}}. Raises `DifferentError` at the first step that
    differs, or if the run ends before an expected step; `StoppedError` on a signal.
    """
    met: set[int] = set()

    def compare(step: int, digests: dict[str, str]) -> None:
        before = expected.get(step)
        if before is None:
            return
        names = before.keys() | digests.keys()
        arrays = sorted(n for n in names if before.get(n) != digests.get(n))
        if arrays:
            raise DifferentError(step, arrays, len(names))
        met.add(step)

    with stopping.on_signals() as stop:
        try:
            train.run(exp, str(folder), stop, until=last, on_digest=compare)
        except (StoppedError, DivergedError):
            if stop.requested:
                raise StoppedError("asked to; nothing is compared yet") from None
    reached = max(checkpoint.steps(folder / "checkpoints"), default=0)
    # An expected step before `reached` may have no digest now: a run may change its
    # checkpoint interval.
    beyond = [step for step in expected if reached < step <= last]
    if beyond:
        raise DifferentError(min(beyond), [f"the run ends at step {reached}"], 0)
    return len(met)


def _difference(found: DifferentError, equal: int, changed: dict[str, str]) -> str:
    shown = ", ".join(found.arrays[:5]) + (", ..." if len(found.arrays) > 5 else "")
    environment = "; ".join(changed.values()) or "nothing that is recorded"
    return (
        f"differs at step {found.step} (equal up to step {equal}), in"
        f" {len(found.arrays)} of {found.of} arrays: {shown}\n"
        f"different in the environment: {environment}"
    )


def _compare_exactly(
    recorded: Recorded, now: list[dict[str, Any]], last: int, compared: int
) -> Verdict:
    """Returns the verdict of equal digests: the records up to step `last` must be equal."""
    again = {(r["step"], r["kind"]): r for r in now}
    before = [r for r in recorded.metrics if r["step"] <= last]
    # A run may change its log interval, so that train records differ in their steps.
    of_both = [r for r in before if r["kind"] != "train" or (r["step"], "train") in again]
    for record in of_both:
        if again.get((record["step"], record["kind"])) != record:
            at = record["step"]
            return Verdict(
                False, f"differs in metrics.jsonl at step {at}, and in no digest"
            )
    return Verdict(
        True,
        f"reproduced bit for bit up to step {last}: {compared} digests of the state,"
        f" {len(of_both)} records",
    )


def _compare_nearly(
    recorded: Recorded,
    now: list[dict[str, Any]],
    last: int,
    tolerance: float,
    changed: dict[str, str],
) -> Verdict:
    """Returns whether every recorded loss up to step `last` agrees within a tolerance."""
    again = {(r["step"], r["kind"]): r.get("loss") for r in now}
    largest, where, compared = 0.0, 0, 0
    for record in (r for r in recorded.metrics if r["step"] <= last and "loss" in r):
        loss, other = record["loss"], again.get((record["step"], record["kind"]))
        if loss == other:
            difference = 0.0
        elif loss is None or other is None:  # Non-finite, or missing.
            difference = math.inf
        else:
            difference = abs(loss - other) / max(abs(loss), 1e-12)
        compared += 1
        if difference > largest:
            largest, where = difference, record["step"]
    is_near = compared > 0 and largest <= tolerance
    return Verdict(
        is_near,
        f"{'reproduced' if is_near else 'differs:'} within {largest:.2g} up to step {last}"
        f" ({compared} losses; the largest difference is at step {where});"
        f" different: {'; '.join(changed.values())}",
    )
