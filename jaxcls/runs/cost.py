"""The cost of a run: device-seconds by kind of device, and peak memory, over its starts.

It is measured, and never reproduced: only manifest.json and timing.jsonl hold it.
"""

import collections
import contextlib
import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxcls.runs import forms, provenance
from jaxcls.runs.records import Record

PEAKS = ("device_bytes", "process_bytes")


class Cost(NamedTuple):
    """The cost of starts.

    seconds: {kind of device: seconds times devices}; the CPU devices of a host are one CPU.
    peaks: {key of PEAKS: bytes}, of the first host, in starts that ended. starts: counted
    starts. to_last_record: counted starts without a recorded end, which count to their last
    record in timing.jsonl. unknown: starts that left no time, and are not counted.
    """

    seconds: dict[str, float]
    peaks: dict[str, int]
    starts: int
    to_last_record: int
    unknown: int

    @property
    def unsure(self) -> str:
        """What the seconds leave out, as a sentence; "" if nothing."""
        parts = []
        if self.to_last_record:
            parts.append(
                f"{self.to_last_record} of {self.starts} starts have no recorded end and"
                " count to their last record in timing.jsonl"
            )
        if self.unknown:
            parts.append(f"{self.unknown} more left no record and are not counted")
        return f"{'; '.join(parts)}." if parts else ""


def of_run(starts: Sequence[Mapping[str, Any]], timing: Sequence[Record]) -> Cost:
    """Returns the cost of a run. starts: of manifest.json. timing: of timing.jsonl."""
    last: dict[int, Record] = {}
    peaks: collections.Counter[str] = collections.Counter()
    for record in timing:
        if "start" in record and forms.is_finite(record.get("seconds")):
            last[record["start"]] = record
    seconds: dict[str, float] = collections.defaultdict(float)
    counted = to_last_record = unknown = 0
    for number, start in enumerate(starts, 1):
        peaks |= _peaks(start)
        taken = _seconds(start)
        if taken is None:
            taken = last.get(number, {}).get("seconds")
            to_last_record += taken is not None
        if taken is None:
            unknown += 1
            continue
        counted += 1
        for kind, count in _devices(start).items():
            seconds[kind] += count * taken
    return Cost(dict(seconds), dict(peaks), counted, to_last_record, unknown)


def total(costs: Iterable[Cost]) -> Cost:
    """Returns the sum of costs, with the largest of the peaks."""
    seconds: dict[str, float] = collections.defaultdict(float)
    peaks: collections.Counter[str] = collections.Counter()
    starts = to_last_record = unknown = 0
    for each in costs:
        for kind, taken in each.seconds.items():
            seconds[kind] += taken
        peaks |= collections.Counter(each.peaks)
        starts += each.starts
        to_last_record += each.to_last_record
        unknown += each.unknown
    return Cost(dict(seconds), dict(peaks), starts, to_last_record, unknown)


def _peaks(found: Mapping[str, Any]) -> "collections.Counter[str]":
    return collections.Counter({k: int(found[k]) for k in PEAKS if found.get(k)})


def _seconds(start: Mapping[str, Any]) -> float | None:
    """Returns the seconds of a start that has ended; None of another.

    An earlier version recorded the times of day alone.
    """
    if (taken := start.get("seconds")) is not None:
        return float(taken)
    with contextlib.suppress(KeyError, ValueError, TypeError):
        began, ended = (
            datetime.datetime.fromisoformat(start[key]) for key in ("started", "ended")
        )
        return max(0.0, (ended - began).total_seconds())
    return None


def _devices(start: Mapping[str, Any]) -> Mapping[str, int]:
    """Returns {kind: devices} of a start. Several CPU devices of a host are one CPU."""
    if "devices" not in start:
        return {"unknown": 1}
    if not provenance.is_on_cpu(start):
        return collections.Counter(start["devices"])
    cpu = start.get("cpu", {})
    cores = f"{cpu['cores']} cores" if cpu.get("cores") else ""
    known = (str(text) for text in (cpu.get("model"), cores) if text)
    return {", ".join(["CPU", *known]): start.get("hosts", 1)}
