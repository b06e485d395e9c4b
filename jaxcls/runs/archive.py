"""Packs the proof of a run into an archive, and reads it from a folder or an archive."""

import contextlib
import gzip
import io
import json
import os
import pathlib
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxcls import atomic
from jaxcls.errors import InputError
from jaxcls.runs import provenance, records
from jaxcls.runs.workdir import Workdir

# The most that an archive may unpack to: a file of some megabytes can hold terabytes.
MOST_BYTES = 2**30
PACKED = ("config.json", "manifest.json", "metrics.jsonl", "digests.jsonl")


class Recorded(NamedTuple):
    """The proof of a run: config values, starts, and the recorded digests and metrics.

    starts: the manifest entries from the last start at step 0 on. digests: step -> {path of
    an array: digest}. metrics: the records of metrics.jsonl.
    """

    config: dict[str, Any]
    implied: dict[str, Any]
    starts: list[dict[str, Any]]
    digests: dict[int, dict[str, str]]
    metrics: list[dict[str, Any]]


def pack(folder: str, file: pathlib.Path) -> None:
    """Writes the archive that `reproduce` needs; one run always gives the same bytes.

    The archive leaves out the paths of this machine: data.dir is empty, and init.weights
    and distill.run keep only their last name, except for hf: names.

    Raises `InputError` for a folder that holds no run, or a file that cannot be written.
    """
    workdir = Workdir(folder)
    saved = workdir.read()
    saved["config"]["data.dir"] = ""  # A path of this machine means nothing elsewhere.
    for key in ("init.weights", "distill.run"):
        place = saved["config"].get(key, "")
        if not place.startswith("hf:"):
            saved["config"][key] = pathlib.PurePath(place).name
    names = saved["config"].get("plugins", "").split(",")
    saved["config"]["plugins"] = ",".join(pathlib.PurePath(each).name for each in names)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        kept = sorted(workdir.path.glob("plugins/**/*.py"))
        sources = [file.relative_to(workdir.path).as_posix() for file in kept]
        for name in (*PACKED, *sources):
            text = _text(workdir.path / name)
            if name == "config.json":
                text = json.dumps(saved, indent=1) + "\n"
            member = tarfile.TarInfo(f"{workdir.path.name}/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    with atomic.writing(file, "wb") as out:
        out.write(gzip.compress(raw.getvalue(), mtime=0))


@contextlib.contextmanager
def opened(given: str) -> Iterator[str]:
    """Yields a folder that holds the proof: `given` itself, or its unpacked archive.

    The unpacked folder exists only inside the block. Raises `InputError` for a file that is
    no complete archive of a run.
    """
    path = pathlib.Path(given).expanduser()
    if not path.is_file():
        yield given
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with gzip.open(path) as stream, tempfile.TemporaryFile() as whole:
                while part := stream.read(2**20):
                    whole.write(part)
                    _check_size(whole.tell())
                whole.seek(0)
                with tarfile.open(fileobj=whole, mode="r:") as archive:
                    for member in archive:
                        name = pathlib.PurePosixPath(member.name).name
                        _check_size(member.size)  # A sparse file's is that of its holes.
                        # A link may lead nowhere.
                        content = archive.extractfile(member) if member.isfile() else None
                        if content and name in PACKED:
                            pathlib.Path(scratch, name).write_bytes(content.read())
            if missing := set(PACKED) - set(os.listdir(scratch)):
                raise OSError(f"it lacks {min(missing)}")
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"--workdir={given} is no archive of a run ({error}); give a run's folder,"
                " or what --pack has written"
            ) from None
        yield scratch


def _check_size(size: int) -> None:
    """Raises OSError for more bytes than an archive may unpack to."""
    if size > MOST_BYTES:
        raise OSError(f"it unpacks to more than {MOST_BYTES:,} bytes")


def read(folder: str, given: str) -> Recorded:
    """Returns the proof in `folder`; messages call the folder `given`.

    Raises `InputError` for a damaged or incomplete proof, and for a run without a digest.
    """
    workdir = Workdir(folder)
    saved = workdir.read()
    try:
        digests = {r["step"]: dict(r["arrays"]) for r in records.read(workdir.digests)}
        _text(workdir.path / "manifest.json")  # It must be there.
        # A start that ended before it knew its first step trained nothing.
        starts = [start for start in workdir.starts() if "resumed_from" in start]
        begun = max(i for i, start in enumerate(starts) if start["resumed_from"] is None)
        for start in starts:
            _ = topology(start), start["versions"]["jax"], start["xla_flags"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(
            f"--workdir={given}: its manifest.json or digests.jsonl is not what a run"
            f" writes ({type(error).__name__}: {error}); take the folder or archive as it"
            " was"
        ) from None
    if not digests:
        raise InputError(
            f"--workdir={given} has recorded no digest yet; train to the first checkpoint"
        )
    metrics = records.read(workdir.metrics)
    return Recorded(saved["config"], saved["implied"], starts[begun:], digests, metrics)


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(
            f"{path} cannot be read ({reason}), and a run's proof needs it; take the folder"
            " as it was"
        ) from None


def topology(start: dict[str, Any]) -> tuple[Any, ...]:
    """Returns the hardware facts of a start that decide bits."""
    cpu = start["cpu"]
    on_cpu = provenance.is_on_cpu(start)
    return (
        start["devices"],
        start.get("hosts", 1),
        (cpu["instructions"], str(cpu["nproc"] or cpu["cores"])) if on_cpu else None,
        start.get("fsdp", 1),
        start.get("loop", 0),
        start.get("convolution", ""),
    )
