"""Mutated inputs of every reader: success or one line, in time, within bounds of memory."""

import functools
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxcls.errors import InputError
from tests import fuzz
from tests.conftest import ROOT


def shown(faults):
    return "\n".join(f"{f.reader} {f.seed} {f.number}: {f.why}" for f in faults)


@pytest.mark.slow
def test_forty_mutations_of_each_reader_are_read_or_refused():
    assert not (faults := fuzz.run(seed=1, count=40)), shown(faults)


def refuses(text):
    def read(folder):
        raise InputError(text)

    return read


def escapes(folder):
    (folder.parent.parent / "outside").write_text("")


def hangs(folder):
    if (folder / "x").read_bytes() != b"valid":
        time.sleep(0.1)
        sum(range(10**12))


def fills(folder):
    if (folder / "x").read_bytes() != b"valid":
        np.ones(90 << 20)


def hides(folder):
    try:
        np.ones(1 << 40)
    except MemoryError:
        raise InputError("damaged") from None


def dies(folder):
    if (folder / "x").read_bytes() != b"valid":
        os.abort()


def only_mutated(read):
    def of_mutated(folder):
        if (folder / "x").read_bytes() != b"valid":
            read(folder)

    return of_mutated


FAULTY = {
    "traceback": (only_mutated(lambda folder: 1 // 0), "ZeroDivisionError"),
    "slow": (only_mutated(lambda folder: spin(2.2)), "took 2"),
    "hang": (hangs, "the process died (SIGXCPU)"),
    "memory": (fills, "MB"),
    "hidden": (only_mutated(hides), "InputError for want of memory"),
    "abort": (dies, "the process died (SIGABRT)"),
    "outside": (only_mutated(escapes), "open outside its folder"),
    "command": (only_mutated(lambda folder: subprocess.run(["true"])), "subprocess.Popen"),
    "refused": (refuses("never"), "the valid input is refused"),
    "unmade": (None, "the valid input cannot be made"),
}


def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def reader(read):
    if not read:
        raise OSError("no input")
    return fuzz.Reader({"x": b"valid"}, (read,))


READERS = {name: functools.partial(reader, read) for name, (read, _) in FAULTY.items()}


@pytest.mark.slow
def test_every_kind_of_fault_is_seen_and_its_input_kept():
    faults = fuzz.run(seed=0, count=1, table="tests.test_fuzz")
    assert [fault.reader for fault in faults] == [*FAULTY]
    for fault in faults:
        assert FAULTY[fault.reader][1] in fault.why
        if fault.reader not in ("refused", "unmade"):
            kept = pathlib.Path(fault.input, "x").read_bytes()
            made = fuzz.made(READERS[fault.reader](), fault.reader, 0, fault.number)
            assert kept == made["x"] != b"valid"


@pytest.mark.slow
def test_the_command_says_what_it_did():
    command = [sys.executable, "-m", "tests.fuzz", "--count=3", "--seed=5"]
    done = subprocess.run(
        [*command, "--reader=text-duration"], cwd=ROOT, text=True, capture_output=True
    )
    assert (done.returncode, done.stdout) == (0, "seed 5, 1 readers\nfaults: 0\n")
    done = subprocess.run(
        [*command, "--reader=x"], cwd=ROOT, text=True, capture_output=True
    )
    assert done.returncode == 2
    assert "no reader x; there are" in done.stderr
