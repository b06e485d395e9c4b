"""Records of a run, as lines of JSON: metrics.jsonl, timing.jsonl and digests.jsonl.

metrics.jsonl holds no time of any clock, so it is the same for the same run; how long
things took is in timing.jsonl.
"""

import json
import math
import pathlib
from typing import Any

from jaxcls import atomic
from jaxcls.errors import InputError

Record = dict[str, Any]


def read(path: pathlib.Path) -> list[Record]:
    """The records of a .jsonl file, without a torn last line; [] where there is none.

    Raises `InputError` for a line that is no record, unless it is the last and torn.
    """
    if not path.exists():
        return []
    *lines, torn = path.read_bytes().split(b"\n")
    del torn  # What follows the last newline is empty, or half a record.
    records: list[Record] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            if number == len(lines):
                break
            record = None
        if not isinstance(record, dict):
            raise InputError(
                f"{path}:{number} is not a record; put the line right, or start in another"
                " --workdir"
            )
        records.append(record)
    return records


def trim(path: pathlib.Path, last: int, is_pending: bool = False) -> None:
    """Drop the records after step `last`, atomically, and with them a torn last line.

    is_pending: also those of an evaluation at `last`.
    """
    if not path.exists():
        return
    kept = []
    for record in read(path):
        if record["step"] > last:
            break
        if is_pending and record["step"] == last and record.get("kind") == "eval":
            continue
        kept.append(json.dumps(record) + "\n")
    atomic.write(path, "".join(kept))


def summary(record: Record, workdir: str) -> str:
    """The last line of a run, from its final record."""
    shown = {k: v for k, v in record.items() if k != "kind"}
    return f"{pairs(shown)} workdir={workdir}"


def plain(record: Record) -> Record:
    """Numbers as JSON has them: what is not finite is null."""
    plain = {k: v.item() if hasattr(v, "item") else v for k, v in record.items()}
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in plain.items()
    }


def pairs(values: Record) -> str:
    """``top1=0.9917 n=360``, as the lines of a run say it."""
    return " ".join(
        f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items()
    )
