"""Train a recorded run again, and compare it with its record.

This needs the dataset, and the run's folder or the archive that `archive.pack` writes.
"""

import contextlib
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from jaxcls import experiment
from jaxcls.config import loading as configs
from jaxcls.config.plugins import NONE, Plugins, check_same
from jaxcls.data import sources
from jaxcls.devices import compiling
from jaxcls.errors import DivergedError, InputError, StoppedError, is_whole_number
from jaxcls.runs import archive, checkpoint, provenance, records
from jaxcls.runs.archive import Recorded
from jaxcls.runs.workdir import Workdir
from jaxcls.studies import auditing
from jaxcls.training import stopping, train


class Audit(NamedTuple):
    """The step of a kept checkpoint, in the folder of a run, to train again from."""

    source: Workdir
    step: int


class DifferentError(Exception):
    """The new state differs from its record; the text says where."""


# Changes that alter bits: of machine, topology, and of what this jaxcls computes.
_DIFFERENT = {"numerics", "cpu", "devices", "hosts", "mesh.fsdp", "steps"}
_DIFFERENT |= {"convolutions"}


def reproduce(
    recorded: Recorded,
    overrides: Mapping[str, str],
    steps: int = 0,
    tolerance: float = 0.05,
    scratch: str = "",
    plugins: Plugins = NONE,
    audit: Audit | None = None,
) -> tuple[bool, str]:
    """Trains a run again up to step `steps` (0: its end), and compares it with its record.

    On the same kind of machine, digests and records must be equal; on another kind, or
    under another `NUMERICS`, losses must agree within `tolerance`, a relative difference.
    overrides: {config key: text} for keys that may change, such as data.dir. scratch: a new
    or empty folder for the run, which is kept; "": a temporary folder. plugins: those that
    the run was trained with. audit: the kept checkpoint to begin from; None begins at step
    0. Returns whether they match, and the verdict. Raises
    `InputError` if the run cannot be reproduced here, `StoppedError` on a signal.
    """
    where = Workdir(scratch).path if scratch else None
    if where and where.exists() and any(where.iterdir()):
        raise InputError(f"--scratch={scratch} is not empty; name a new folder")
    whole, recorded = recorded, auditing.part(recorded, *audit) if audit else recorded
    first, last = recorded.starts[0], _last_step(recorded, steps)
    _set_environment(first)  # Before any device starts.
    given = recorded.implied.get("plugins", {}), recorded.config.get("plugins", "")
    check_same(plugins.digests, *given, "the run")
    exp = experiment.build(_config(recorded, overrides), plugins=plugins)
    _check_data(recorded, exp)
    now = {
        **provenance.of_this_start(),
        "devices": [device.device_kind for device in exp.mesh.devices.flat],
        "hosts": 1,
        "fsdp": exp.config.mesh.fsdp,
        "loop": int(exp.config.compile.loop == "on"),
        "convolution": exp.convolution,
    }
    changed = provenance.changes(first, now)
    is_same_kind = not set(changed) & _DIFFERENT
    if not is_same_kind:
        print(f"another kind of machine or code: losses are compared within {tolerance:g}")
    environment = "; ".join(changed.values()) or "nothing that is recorded"
    with contextlib.ExitStack() as stack:
        folder = where or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        expected = recorded.digests if is_same_kind else {}
        try:
            if audit:
                _take_up(exp, whole, audit, first, folder)
            compared = _run(exp, folder, last, expected, audit.step if audit else 0)
        except DifferentError as found:
            return False, f"{found}\ndifferent in the environment: {environment}"
        again = {(r["step"], r["kind"]): r for r in records.read(folder / "metrics.jsonl")}
    before = [record for record in recorded.metrics if record["step"] <= last]
    since = f"from checkpoint {audit.step} on: " if audit else ""
    if is_same_kind:
        is_same, words = _compare_exactly(before, again, last, compared)
        return is_same, f"{since}{words}"
    is_near, words = _compare_nearly(before, again, tolerance)
    return is_near, f"{since}{words} up to step {last}; different: {environment}"


def _take_up(
    exp: experiment.Experiment,
    recorded: Recorded,
    audit: Audit,
    start: dict[str, Any],
    folder: pathlib.Path,
) -> None:
    """Lays out the run of an audit in `folder`, up to its checkpoint.

    recorded: of the whole run. start: the one that trained on from the checkpoint. Raises
    `DifferentError` if the checkpoint is not what is recorded.
    """
    if differences := auditing.differences(exp, recorded, *audit):
        raise DifferentError(differences)
    auditing.lay_out(*audit, start, folder)


def _last_step(recorded: Recorded, steps: int) -> int:
    """Returns the last step to compare.

    It has a digest, is at most `steps` (0: no limit), and precedes any move of the run to
    another kind of machine. Raises `InputError` if there is no such step.
    """
    limit = steps or math.inf
    for start in recorded.starts[1:]:
        if archive.topology(start) != archive.topology(recorded.starts[0]):
            moved = start["resumed_from"]
            print(f"the run moved to another kind of machine after step {moved}")
            limit = min(limit, moved)
            break
    found = [step for step in recorded.digests if step <= limit]
    if not found:
        raise InputError(
            f"no digest is recorded up to step {limit}: the first is of step"
            f" {min(recorded.digests)}, and there is nothing to compare before it"
        )
    return max(found)


def _set_environment(start: dict[str, Any]) -> None:
    """Sets XLA_FLAGS, and on CPU the threads and devices, as in the recorded start.

    Raises `InputError` for a flag that may do more than change bits, such as write files,
    unless the environment has it already: an archive may come from anybody.
    """
    given, recorded = os.environ.get("XLA_FLAGS", "").split(), str(start["xla_flags"])
    unsafe = [each for each in recorded.split() if not _SAFE_FLAG.fullmatch(each)]
    if not {*unsafe} <= {*given}:
        named = " ".join(unsafe)
        raise InputError(
            f"the run was made with XLA_FLAGS={named}, which is not set because a folder or"
            f" an archive says so; if you trust it: XLA_FLAGS='{named}' jaxcls reproduce"
        )
    os.environ["XLA_FLAGS"] = str(start["xla_flags"])
    if provenance.is_on_cpu(start):
        cpu, there = start["cpu"], len(start["devices"])
        threads, local = cpu["nproc"] or cpu["cores"], start.get("local_devices", 1)
        for name, count in {"threads": threads, "local_devices": local}.items():
            if not is_whole_number(str(count)) or not 1 <= int(count) <= _MOST:
                raise InputError(
                    f"the run's manifest.json has {name}={count!r}, and must have a number"
                    f" from 1 to {_MOST}; take the folder or archive as it was"
                )
        # The size of XLA's thread pool decides how XLA splits sums.
        os.environ["NPROC"] = str(threads)
        jax.config.update("jax_num_cpu_devices", max(int(local), there))


# A flag with a number or a word of XLA's, that names nothing of the file system.
_SAFE_FLAG = re.compile(
    r"--xla_(?!\w*(?:dump|file|dir|path|log|cache))(?:backend|cpu|gpu|tpu|llvm|allow)_\w+"
    r"(?:=[\w,+-]*)?",
    re.ASCII,
)
# The most threads and devices of a CPU that a recorded start may ask for.
_MOST = 1024
# The config keys that may change when a run is reproduced.
_ANYWHERE = (
    "data.dir", "data.threads", "data.prefetch", "data.resident", "init.weights",
    "distill.run", "compile.cache",
)  # fmt: skip


def _config(recorded: Recorded, overrides: Mapping[str, str]) -> ConfigDict:
    config, first = configs.from_flat(recorded.config), recorded.starts[0]
    if not os.path.isdir(config.data.dir):
        config.data.dir = ""
    most = min(len(first["devices"]), jax.local_device_count())
    piece = config.batch_size // config.optim.accumulate
    config.mesh.devices = max(n for n in range(1, most + 1) if piece % n == 0)
    fsdp = first.get("fsdp", 1)
    config.mesh.fsdp = fsdp if config.mesh.devices % fsdp == 0 else 1
    config.log.tensorboard, config.log.wandb = False, ""
    config.probe.cache = ""  # Its features would be those of the run that is reproduced.
    for key, text in overrides.items():
        configs.override(config, key, text)
        if key not in _ANYWHERE:
            raise InputError(
                f"--config.{key} comes from the run's folder; leave it out, or give one of"
                f" {', '.join(_ANYWHERE)}"
            )
    if (library := first.get("convolution")) in compiling.CHOICES:
        config.compile.convolution = library
    # A loop stays a loop, if possible. It is off if the run moves between an accelerator
    # and a CPU, where a loop is only slow.
    is_there = provenance.is_on_cpu(first) == (jax.local_devices()[0].platform == "cpu")
    is_loop = first.get("loop", 0) and "data.resident" not in overrides
    config.compile.loop = "on" if is_loop and is_there else "off"
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
        now = exp.initial.fingerprint if exp.initial else began
    except InputError as error:
        now = str(error)
    if now != began:
        raise InputError(
            f"init.weights={exp.config.init.weights} are not what the run started from"
            f" ({now}): it needs the weights of {began}: say where they are with"
            " --config.init.weights=PLACE"
        )


def _run(
    exp: experiment.Experiment,
    folder: pathlib.Path,
    last: int,
    expected: dict[int, dict[str, str]],
    begun: int = 0,
) -> int:
    """Trains to step `last`; returns the number of expected steps with equal digests.

    expected: {step: {array: digest}}. begun: the step to go on from. Raises
    `DifferentError` at the first step that differs, or if the run ends before an expected
    step; `StoppedError` on a signal.
    """
    equal: list[int] = []

    def compare(step: int, digests: dict[str, str]) -> None:
        if step not in expected:
            return
        before = expected[step]
        names = before.keys() | digests.keys()
        arrays = sorted(n for n in names if before.get(n) != digests.get(n))
        if arrays:
            shown = ", ".join(arrays[:5]) + (", ..." if len(arrays) > 5 else "")
            raise DifferentError(
                f"differs at step {step} (equal up to step {max(equal, default=begun)}), in"
                f" {len(arrays)} of {len(names)} arrays: {shown}"
            )
        equal.append(step)

    with stopping.on_signals() as stop:
        try:
            train.run(exp, str(folder), stop, until=last, on_digest=compare)
        except (StoppedError, DivergedError):
            if stop.requested:
                raise StoppedError("asked to; nothing is compared yet") from None
    reached = max(checkpoint.steps(folder / "checkpoints"), default=0)
    # An expected step before `reached` may have no digest now: a run may change its
    # checkpoint interval.
    if any(reached < step <= last for step in expected):
        raise DifferentError(f"differs: the run ends at step {reached}, before step {last}")
    return len(equal)


_Records = Mapping[tuple[int, str], dict[str, Any]]


def _compare_exactly(
    before: list[dict[str, Any]], again: _Records, last: int, compared: int
) -> tuple[bool, str]:
    """Returns the verdict of equal digests: the records up to step `last` must be equal.

    again: the new records by step and kind.
    """
    # A run may change its log interval, so that train records differ in their steps.
    of_both = [r for r in before if r["kind"] != "train" or (r["step"], "train") in again]
    steps = {step for step, kind in again if kind == "train"}
    is_same_pace = steps == {r["step"] for r in before if r["kind"] == "train"}

    def comparable(record: dict[str, Any]) -> dict[str, Any]:
        """Returns a record, at another pace without means since the record before."""
        if is_same_pace:
            return record
        return {k: v for k, v in record.items() if not k.startswith(records.MEAN)}

    for record in of_both:
        other = again.get((record["step"], record["kind"]), {})
        if comparable(other) != comparable(record):
            at = record["step"]
            return False, f"differs in metrics.jsonl at step {at}, and in no digest"
    return True, (
        f"reproduced bit for bit up to step {last}: {compared} digests of the state,"
        f" {len(of_both)} records"
    )


def _compare_nearly(
    before: list[dict[str, Any]], again: _Records, tolerance: float
) -> tuple[bool, str]:
    """Returns whether every recorded loss agrees within a tolerance, and the verdict."""
    differences = []
    for record in (record for record in before if "loss" in record):
        key, loss = (record["step"], record["kind"]), record["loss"]
        other = again.get(key, {}).get("loss")
        difference = 0.0 if loss == other else math.inf
        if None not in (loss, other):  # None: non-finite, or missing.
            difference = abs(loss - other) / max(abs(loss), 1e-12)
        differences.append((difference, record["step"]))
    largest, where = max(differences, default=(math.inf, 0))
    is_near = largest <= tolerance
    return is_near, (
        f"{'reproduced' if is_near else 'differs:'} within {largest:.2g}, the largest"
        f" difference of {len(differences)} losses, at step {where},"
    )
