"""Records of a run, as lines of JSON: metrics.jsonl, timing.jsonl and digests.jsonl.

metrics.jsonl holds no clock time, so repeats of a run write the same file. timing.jsonl
holds the durations.
"""

import json
import math
import pathlib
from typing import Any

from jaxcls import atomic
from jaxcls.errors import InputError
from jaxcls.runs import forms

Record = dict[str, Any]


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


def trim(path: pathlib.Path, last: int, is_pending: bool = False) -> None:
    """Drops the records after step `last`, and a torn last line, atomically.

    is_pending: also drop the evaluations at `last`.
    """
    if not path.exists():
        return
    kept = [record for record in read(path) if record["step"] <= last]
    if is_pending:
        kept = [r for r in kept if (r["step"], r.get("kind")) != (last, "eval")]
    atomic.write(path, "".join(json.dumps(record) + "\n" for record in kept))


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
    """Returns ``top1=0.9917 n=360``, the form of the lines that a run prints."""
    return " ".join(
        f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items()
    )
