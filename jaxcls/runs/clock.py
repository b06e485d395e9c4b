"""The seconds and the peak memory that manifest.json and timing.jsonl record."""

import pathlib
import re
import resource
import sys
import time
from typing import Any, NamedTuple


class Clock(NamedTuple):
    """The time since a start took its folder. start: The number of the start, from 1."""

    start: int
    began: float

    def used(self, asks_devices: bool) -> dict[str, Any]:
        """Returns the seconds and the peak memory of this process so far.

        A peak is of the process since it began. asks_devices: False for a process whose
        devices may be stuck.
        """
        found = {"seconds": time.monotonic() - self.began, "process_bytes": process_peak()}
        peak = _device_peak() if asks_devices else 0
        return found | ({"device_bytes": peak} if peak else {})


def clock(start: int) -> Clock:
    """Returns a clock that begins now."""
    return Clock(start, time.monotonic())


def process_peak() -> int:
    """Returns the largest resident set of this process, in bytes."""
    status = pathlib.Path("/proc/self/status")
    # On Linux the other figure begins with the peak of the process that started this one.
    if status.is_file() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _device_peak() -> int:
    """Returns the largest peak of a local device, in bytes; 0 if no device tells."""
    import jax  # A reader of clocks needs no JAX.

    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((int(each.get("peak_bytes_in_use", 0)) for each in stats), default=0)
