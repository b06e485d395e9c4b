"""What benchmarks share: medians with their spread, and what they were measured on."""

import contextlib
import os
import pathlib
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from jaxcls.data import batches
from jaxcls.runs import provenance


class Pace(NamedTuple):
    """Seconds of one turn, by the clock and of processor time, which other work spares."""

    clock: float
    processor: float


def paced(run: Callable[[int], object], count: int) -> Pace:
    """The pace of `run(count)`, which does `count` turns and waits for them."""
    began, used = time.perf_counter(), time.process_time()
    run(count)
    clock, processor = time.perf_counter() - began, time.process_time() - used
    return Pace(clock / count, processor / count)


def spread(values: Sequence[float], form: str = ",.3f", scale: float = 1.0) -> str:
    """``"0.994 (0.957 to 1.175)"``: the median and the range, in a format."""
    middle, low, high = statistics.median(values), min(values), max(values)
    texts = [format(scale * value, form) for value in (middle, low, high)]
    return "{} ({} to {})".format(*texts)


def machine(device: jax.Device) -> str:
    """What a figure was measured on, with how much else it had to do."""
    kind = device.device_kind
    if device.platform == "cpu":
        kind = provenance.of_this_start()["cpu"]["model"] or platform.machine()
    return (
        f"{kind}, {batches.cores()} cores, Python {platform.python_version()},"
        f" jax {jax.__version__}, load {load():.1f}"
    )


def load() -> float:
    """How many processes wanted a core in the last minute; 0 where that is not known."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return 0.0


def peak_rss() -> int:
    """The most bytes that this process has had in memory so far."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        # Not getrusage's, which starts from what the parent of a process had.
        text = pathlib.Path("/proc/self/status").read_text()
        return int(text.split("VmHWM:")[1].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
