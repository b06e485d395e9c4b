"""What a run has cost, by the arithmetic of its files."""

import json
import resource
import subprocess
import sys
import time

import jax
import pytest

from jaxcls.config import loading
from jaxcls.runs import clock, cost, records
from jaxcls.runs.workdir import Workdir

TPU = {"devices": ["TPU v4"] * 4, "hosts": 2}
CPU = {"devices": ["cpu"] * 8, "hosts": 1, "cpu": {"model": "Made", "cores": 6}}


def test_device_seconds_are_seconds_times_devices_by_kind():
    starts = [
        {**TPU, "seconds": 10.0, "device_bytes": 5, "process_bytes": 40},
        {**TPU, "seconds": 2.5, "device_bytes": 7, "process_bytes": 30},
        {**CPU, "seconds": 3.0, "process_bytes": 9},
    ]
    found = cost.of_run(starts, [])
    # The eight devices of a CPU are one CPU.
    assert found.seconds == {"TPU v4": 4 * 12.5, "CPU, Made, 6 cores": 3.0}
    assert found.peaks == {"device_bytes": 7, "process_bytes": 40}
    assert (found.starts, found.unsure) == (3, "")
    twice = cost.total([found, found, cost.of_run([{**TPU, "seconds": 1.0}], [])])
    assert twice.seconds == {"TPU v4": 104.0, "CPU, Made, 6 cores": 6.0}
    assert (twice.peaks, twice.starts) == (found.peaks, 7)


def test_a_start_without_an_end_counts_to_its_last_record():
    starts = [{**TPU, "reason": "killed"}, {**TPU, "reason": "killed"}, {**TPU}]
    timing = [
        {"step": 2, "start": 1, "seconds": 3.0},
        {"step": 4, "start": 1, "seconds": 6.0},
        {"step": 3, "start": 3, "seconds": 1.0},
        {"step": 5},  # Of an earlier version.
    ]
    found = cost.of_run(starts, timing)
    assert found.seconds == {"TPU v4": 4 * (6.0 + 1.0)}
    assert (found.starts, found.to_last_record, found.unknown) == (2, 2, 1)
    assert "2 of 2 starts have no recorded end and count to their last" in found.unsure
    assert "1 more left no record" in found.unsure


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        (("2026-01-01T00:00:00+00:00", "2026-01-01T00:01:09+00:00"), {"TPU v4": 276.0}),
        (("2026-01-01T00:01:00+00:00", "2026-01-01T00:00:09+00:00"), {"TPU v4": 0.0}),
        (("2026-01-01T00:01:00", "2026-01-01T00:00:09+00:00"), {}),
        (("then", "\0"), {}),
    ],
)
def test_a_start_of_an_earlier_version_is_counted_by_its_times_of_day(times, seconds):
    start = {**TPU, "started": times[0], "ended": times[1]}
    assert cost.of_run([start], []).seconds == seconds


@pytest.mark.parametrize("seconds", [None, float("inf"), float("nan")])
def test_a_record_without_a_time_counts_nothing(seconds):
    found = cost.of_run([TPU], [{"step": 1, "start": 1, "seconds": seconds}])
    assert (found.seconds, found.unknown) == ({}, 1)


def test_a_clock_tells_seconds_and_the_peak_that_the_system_knows():
    began = time.monotonic()
    used = clock.clock(1)
    time.sleep(0.05)
    found = used.used(asks_devices=True)
    assert 0.05 <= found["seconds"] <= time.monotonic() - began
    unit = 1 if sys.platform == "darwin" else 1024
    # The kernel brings its two counts up to date at different times.
    assert found["process_bytes"] <= 1.05 * unit * resource.getrusage(0).ru_maxrss
    assert found["process_bytes"] > 2**20


class Device:
    def __init__(self, peak):
        self.peak = peak

    def memory_stats(self):
        return self.peak and {"peak_bytes_in_use": self.peak}


@pytest.mark.parametrize(("peaks", "most"), [((3, 9), 9), ((None, 4), 4), ((None,), None)])
def test_the_peak_of_devices_is_that_of_the_fullest(peaks, most, monkeypatch):
    devices = [Device(peak) for peak in peaks]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert clock.clock(1).used(asks_devices=True).get("device_bytes") == most
    assert "device_bytes" not in clock.clock(1).used(asks_devices=False)


def test_a_start_that_ends_has_its_cost_and_one_under_way_has_none(tmp_path):
    for reason in ("stopped", None):
        folder = Workdir(tmp_path / "run")
        with folder.lock():
            folder.adopt(loading.from_flat({}), {})
            folder.begin(["cpu"])
            if reason:
                folder.end(reason)
    assert folder.clock.start == 2
    first, second = json.loads((folder.path / "manifest.json").read_text())["starts"]
    assert 0 <= first["seconds"] < 60
    assert first["process_bytes"] > 2**20
    assert not second.keys() & {"seconds", "process_bytes", "device_bytes"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child has its own")
def test_a_peak_is_not_that_of_the_process_that_started_this_one():
    code = "from jaxcls.runs.clock import process_peak; print(process_peak())"
    parent = (
        "import subprocess, sys; large = bytearray(b'x') * (300 << 20);"
        f"sys.exit(subprocess.run([sys.executable, '-c', {code!r}]).returncode)"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True)
    assert 2**20 < int(done.stdout) < 250 << 20, done.stderr


def test_a_real_run_counts_what_its_files_say(tiny, whole):
    folder, _ = whole(tiny())
    (start,) = Workdir(folder).starts()
    last = records.read(folder / "timing.jsonl")[-1]
    assert last["start"] == 1
    assert 0 < last["seconds"] <= start["seconds"]
    found = cost.of_run([start], [last])
    assert [*found.seconds.values()] == [start["seconds"]]
    assert found.peaks == {"process_bytes": start["process_bytes"]}
    # What is reproduced has no clock.
    for name in ("metrics.jsonl", "digests.jsonl", "config.json"):
        assert '"seconds"' not in (folder / name).read_text()
