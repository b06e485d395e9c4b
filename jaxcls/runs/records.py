"""Records of a run, as lines of JSON: metrics.jsonl, timing.jsonl and digests.jsonl.

metrics.jsonl holds no clock time, so repeats of a run write the same file. timing.jsonl
holds the durations.
"""

import hashlib
import json
import math
import pathlib
from typing import Any

from jaxcls import atomic
from jaxcls.errors import InputError
from jaxcls.runs import forms

Record = dict[str, Any]
# Before the name of a training value: its mean since the training record before.
MEAN = "mean_"


def read(path: pathlib.Path) -> list[Record]:
    """Returns the records of a .jsonl file; [] if there is no file.

    Skips a torn last line. Raises `InputError` for any other line that is no record, and
    for a file that cannot be read.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}), and must be a file of records; put"
            " it right, or start in another --workdir"
        ) from None
    lines = content.split(b"\n")[:-1]  # What follows the last one is torn.
    records: list[Record] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            record = None
        if fault := forms.fault(record, path.stem):
            raise InputError(
                f"{path}:{number} is not a record{fault}; put the line right, or start in"
                " another --workdir"
            )
        records.append(record)
    return records


def up_to(path: pathlib.Path, last: int, is_pending: bool = False) -> str:
    """Returns the text of a file's records up to step `last`; "" if there is no file.

    is_pending: without the evaluations at `last`.
    """
    kept = [record for record in read(path) if record["step"] <= last]
    if is_pending:
        kept = [r for r in kept if (r["step"], r.get("kind")) != (last, "eval")]
    return "".join(json.dumps(record) + "\n" for record in kept)


def trim(path: pathlib.Path, last: int, is_pending: bool = False) -> str:
    """Drops the records that `up_to` leaves out, atomically; returns the text of the rest.

    A torn last line is dropped too.
    """
    text = up_to(path, last, is_pending)
    if path.exists():
        atomic.write(path, text)
    return text


def seal(text: str) -> str:
    """Returns 16 hex digits of SHA-256 over the text of records."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_sealed(path: pathlib.Path, text: str, sealed: str, place: str) -> None:
    """Raises `InputError` unless the text of a file's records has a seal.

    sealed: the seal; "" is none, of an earlier version. place: what holds it, for the
    message.
    """
    if sealed and seal(text) != sealed:
        raise InputError(
            f"{path} does not hold the records that {place} vouches for: some were changed,"
            " cut or lost; put the file back as it was, or start in another --workdir"
        )


def summary(record: Record, workdir: str) -> str:
    """Returns the last line of a run, and the first of evaluate, from a record."""
    shown = {k: v for k, v in record.items() if k != "kind"}
    return f"{pairs(shown)} workdir={workdir}"


def plain(record: Record) -> Record:
    """Returns the record with plain numbers for JSON; a non-finite float becomes None."""
    plain = {k: v.item() if hasattr(v, "item") else v for k, v in record.items()}
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in plain.items()
    }


def pairs(values: Record) -> str:
    """Returns ``top1=0.9917 n=360``, the form of the lines that a run prints.

    A value of one batch is left out where its mean is there.
    """
    return " ".join(
        f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}"
        for k, v in values.items()
        if f"{MEAN}{k}" not in values
    )
