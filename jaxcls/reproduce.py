"""``python -m jaxcls.reproduce --workdir=RUN``: make a recorded run again, and compare.

All that it needs is in the run's folder, or in the archive that ``--pack`` makes of it,
and the data.
"""

import contextlib
import gzip
import io
import json
import os
import pathlib
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from jaxcls import cli, experiment, logs, provenance, stopping, train
from jaxcls import config as configs
from jaxcls.errors import DivergedError, InputError, StoppedError
from jaxcls.workdir import Workdir

ABOUT = """Train a recorded run again in a scratch folder, and compare the digest of every
array at every recorded step. Status 0: the same; 4: it differs, and the first step and
arrays that do are named, with what differs in the environment."""

DIFFERS = 4
_PACKED = ("config.json", "manifest.json", "metrics.jsonl", "digests.jsonl")


class Recorded(NamedTuple):
    """What a run's folder proves: config values, starts, and records by step."""

    config: dict[str, Any]
    implied: dict[str, Any]
    starts: list[dict[str, Any]]
    digests: dict[int, dict[str, str]]
    metrics: list[dict[str, Any]]


class DifferentError(Exception):
    """The state at `step` is not the recorded one in `arrays`."""

    def __init__(self, step: int, arrays: list[str], of: int) -> None:
        self.step, self.arrays, self.of = step, arrays, of


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    parser = cli.Parser("reproduce", ABOUT)
    parser.add_argument("--workdir", required=True, help="a run's folder, or its archive")
    parser.add_argument(
        "--steps", default="0", help="compare up to this step; 0: to the end"
    )
    parser.add_argument(
        "--tolerance",
        default="0.05",
        help="on another kind of machine: largest relative difference of a loss [0.05]",
    )
    parser.add_argument(
        "--scratch", default="", help="folder for the new run, which is kept"
    )
    parser.add_argument(
        "--pack", default="", metavar="FILE.tar.gz", help="only write the archive"
    )
    rest, overrides = cli.split_overrides(argv)
    args = parser.parse_args(rest)
    steps = cli.whole_number(args.steps, "--steps")
    tolerance = cli.number(args.tolerance, "--tolerance")
    with _folder(args.workdir) as folder:
        if args.pack:
            pack(folder, args.pack)
            print(f"packed: {args.pack}")
            return cli.DONE
        return _reproduce(folder, overrides, steps, tolerance, args.scratch)


def pack(folder: str, file: str) -> None:
    """Write what `reproduce` needs of a run's folder; the same bytes for the same run.

    Raises `InputError` for a folder that holds no run, or a file that cannot be written.
    """
    workdir = Workdir(folder)
    saved = workdir.read()
    saved["config"]["data.dir"] = ""  # A path of this machine means nothing elsewhere.
    texts = {"config.json": json.dumps(saved, indent=1) + "\n"}
    for name in _PACKED[1:]:
        texts[name] = _text(workdir.path / name)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, text in texts.items():
            member = tarfile.TarInfo(f"{workdir.path.name}/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    try:
        pathlib.Path(file).write_bytes(gzip.compress(raw.getvalue(), mtime=0))
    except OSError as error:
        raise InputError(f"--pack={file} cannot be written ({error.strerror})") from None


@contextlib.contextmanager
def _folder(given: str) -> Iterator[str]:
    """`given`, or the folder in the archive that it is."""
    if not pathlib.Path(given).is_file():
        yield given
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with tarfile.open(given) as archive:
                for member in archive:
                    name = pathlib.PurePosixPath(member.name).name
                    file = archive.extractfile(member)
                    if file and name in _PACKED:
                        (pathlib.Path(scratch) / name).write_bytes(file.read())
        except (tarfile.TarError, OSError, EOFError) as error:
            raise InputError(
                f"--workdir={given} is no archive of a run ({error}); give a run's folder,"
                " or what --pack has written"
            ) from None
        yield scratch


def _reproduce(
    folder: str, overrides: dict[str, str], steps: int, tolerance: float, scratch: str
) -> int:
    recorded = _read(folder)
    last = _last_step(recorded, steps)
    first_start = recorded.starts[0]
    _set_environment(first_start)  # Before any device starts.

    exp = experiment.build(_config(recorded, overrides))
    _check_data(recorded, exp)
    now = {
        **provenance.of_this_start(),
        "devices": [device.device_kind for device in exp.mesh.devices.flat],
        "hosts": 1,
    }
    changed = _changes(first_start, now)
    is_same_kind = not set(changed) & {"cpu", "devices", "hosts"}
    if not is_same_kind:
        print(f"another kind of machine: losses are compared within {tolerance:g}")
    with contextlib.ExitStack() as stack:
        where = scratch or stack.enter_context(tempfile.TemporaryDirectory())
        try:
            _run(exp, where, last, recorded.digests if is_same_kind else {})
        except DifferentError as found:
            equal = [step for step in sorted(recorded.digests) if step < found.step]
            print(_difference(found, equal[-1] if equal else 0, changed))
            return DIFFERS
        return _compare_metrics(recorded, where, last, changed, tolerance, is_same_kind)


def _read(folder: str) -> Recorded:
    workdir = Workdir(folder)
    saved = workdir.read()
    digests = {r["step"]: r["arrays"] for r in logs.read(workdir.digests)}
    if not digests:
        raise InputError(
            f"--workdir={folder} has recorded no digest yet; train to the first checkpoint"
        )
    starts = json.loads(_text(workdir.path / "manifest.json"))["starts"]
    metrics = logs.read(workdir.metrics)
    return Recorded(saved["config"], saved["implied"], starts, digests, metrics)


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}), and a run's proof needs it"
        ) from None


def _last_step(recorded: Recorded, steps: int) -> int:
    """The last recorded step up to `steps` that one kind of machine has made."""

    first = recorded.starts[0]
    for start in recorded.starts[1:]:
        if _topology(start) != _topology(first):
            moved = start.get("resumed_from") or 0
            print(f"the run moved to another kind of machine after step {moved}")
            steps = min(steps or moved, moved)
            break
    found = [step for step in recorded.digests if not steps or step <= steps]
    if not found:
        raise InputError(
            f"--steps={steps}: the first recorded digest is of step"
            f" {min(recorded.digests)}; compare up to that at least"
        )
    return max(found)


def _topology(start: dict[str, Any]) -> tuple[Any, ...]:
    """What decides bits besides code and packages."""
    cpu = start["cpu"]
    on_cpu = start["devices"][0].lower() == "cpu"
    return (
        start["devices"],
        start.get("hosts", 1),
        (cpu["instructions"], cpu["nproc"] or cpu["cores"]) if on_cpu else None,
    )


def _set_environment(start: dict[str, Any]) -> None:
    """Let the devices start as they did then."""
    os.environ["XLA_FLAGS"] = start["xla_flags"]
    if start["devices"][0].lower() == "cpu":
        # XLA's thread pool, whose size decides how sums are split.
        os.environ["NPROC"] = str(start["cpu"]["nproc"] or start["cpu"]["cores"])
        there = max(start.get("local_devices", 1), len(start["devices"]))
        jax.config.update("jax_num_cpu_devices", there)


def _config(recorded: Recorded, overrides: Mapping[str, str]) -> ConfigDict:
    config = configs.from_flat(recorded.config)
    if not os.path.isdir(config.data.dir):
        config.data.dir = ""
    config.mesh.devices = len(recorded.starts[0]["devices"])
    config.log.tensorboard = False
    for key, text in overrides.items():
        configs.override(config, key, text)
        if key not in ("data.dir", "data.threads", "data.prefetch", "data.resident"):
            raise InputError(
                f"--config.{key} comes from the run's folder; leave it out, or give"
                " data.dir, data.threads, data.prefetch or data.resident"
            )
    return config


def _check_data(recorded: Recorded, exp: experiment.Experiment) -> None:
    """Raise `InputError` where the data are not those of the recorded run."""

    now = json.loads(json.dumps(exp.implied()))
    for key, value in recorded.implied.items():
        before, after = (value, now.get(key))
        if key == "facts":
            before = {k: v for k, v in value.items() if v and k != "fingerprint"}
            after = {k: now["facts"].get(k) for k in before}
            marks = value.get("fingerprint"), now["facts"].get("fingerprint")
            if all(marks) and marks[0] != marks[1]:
                before, after = marks
        if before != after:
            raise InputError(
                f"the data are not those of the run: {key} was {before} and is {after};"
                " give the folder of the run's data: --config.data.dir=DIR"
            )


def _changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """What differs between two starts, by name, in words."""
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
    if before["devices"][0].lower() == "cpu":
        sets = [set(each["cpu"]["instructions"]) for each in (before, now)]
        if sets[0] != sets[1]:
            listed = " ".join(sorted(sets[0] ^ sets[1]))
            changed["cpu"] = f"cpu instructions (one lacks {listed})"
    return changed


def _run(
    exp: experiment.Experiment, where: str, last: int, expected: dict[int, dict[str, str]]
) -> None:
    """Train to step `last`; raises `DifferentError` at the first digest that differs."""
    missing = {step for step in expected if step <= last}

    def compare(step: int, digests: dict[str, str]) -> None:
        missing.discard(step)
        before = expected.get(step, digests)
        names = before.keys() | digests.keys()
        arrays = sorted(n for n in names if before.get(n) != digests.get(n))
        if arrays:
            raise DifferentError(step, arrays, len(names))

    with stopping.on_signals() as stop:
        try:
            train.run(exp, where, stop, until=last, on_digest=compare)
        except (StoppedError, DivergedError):
            if stop.requested:
                raise
    if missing:
        raise DifferentError(min(missing), ["(this one was not reached)"], 0)


def _difference(found: DifferentError, equal: int, changed: dict[str, str]) -> str:
    shown = ", ".join(found.arrays[:5]) + (", ..." if len(found.arrays) > 5 else "")
    environment = "; ".join(changed.values()) or "nothing that is recorded"
    return (
        f"differs at step {found.step} (equal up to step {equal}), in"
        f" {len(found.arrays)} of {found.of} arrays: {shown}\n"
        f"different in the environment: {environment}"
    )


def _compare_metrics(
    recorded: Recorded,
    where: str,
    last: int,
    changed: dict[str, str],
    tolerance: float,
    is_same_kind: bool,
) -> int:
    """The records of both runs up to step `last`: equal, or their losses near."""

    before = [r for r in recorded.metrics if r["step"] <= last]
    now = [r for r in logs.read(pathlib.Path(where) / "metrics.jsonl") if r["step"] <= last]
    if is_same_kind:
        # One that died before its last scoring lacks the record of it.
        if before != now[: len(before)]:
            padded = [*now, *[{}] * len(before)]
            step = next(a["step"] for a, b in zip(before, padded, strict=False) if a != b)
            print(f"differs in metrics.jsonl at step {step}, and in no digest")
            return DIFFERS
        compared = sum(step <= last for step in recorded.digests)
        print(
            f"reproduced bit for bit up to step {last}: {compared} digests of the state,"
            f" {len(before)} records"
        )
        return cli.DONE
    pairs = [
        (abs(a["loss"] - b["loss"]) / max(abs(a["loss"]), 1e-12), a["step"])
        for a, b in zip(before, now, strict=False)
        if a.get("loss") is not None and b.get("loss") is not None
    ]
    largest, step = max(pairs, default=(float("inf"), 0))
    is_near = largest <= tolerance
    print(
        f"{'reproduced' if is_near else 'differs:'} within {largest:.2g} up to step {last}"
        f" ({len(pairs)} losses; the largest difference is at step {step});"
        f" different: {'; '.join(changed.values())}"
    )
    return cli.DONE if is_near else DIFFERS


if __name__ == "__main__":
    cli.run(main)
