"""Mutates inputs of every reader of foreign bytes, and watches what the reader does.

    python -m tests.fuzz [--minutes=10] [--seed=N] [--reader=NAME]

A reader must succeed, or refuse with one printable line; within `SECONDS` of processor
time and `BYTES` of memory above its base; and touch nothing outside its folder. The readers
are those of `tests.readers`, the mutations of `tests.mutations`.

This is plain seeded mutation. Hypothesis draws values from nothing and takes a millisecond
for each, where most faults lie a step away from a valid file. Atheris installs, but its
coverage ends at Python: Pillow, OpenCV, zlib, json and safetensors, which read most of
these bytes, are compiled without it.

The inputs are read in a child process, many in each. A fault prints the reader, the seed
and the number of the mutation, and leaves the input in a temporary folder.
"""

import argparse
import contextlib
import faulthandler
import hashlib
import importlib
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from typing import NamedTuple

from jaxcls.errors import InputError, printable
from jaxcls.runs.clock import process_peak
from tests import mutations

SECONDS, BYTES = 2.0, 500 << 20
# A reader beyond these is killed: a loop in C hears no other signal.
_CPU, _ADDRESSES, _WALL = 10, 4 << 30, 120
TABLE = "tests.readers"
ROOT = pathlib.Path(__file__).resolve().parent.parent
_COMMANDS = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn"}
_COMMANDS |= {"socket.connect", "socket.bind", "ctypes.dlopen", "webbrowser.open"}
_CHANGES = {"os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.symlink"}
_CHANGES |= {"os.chmod", "os.chown", "os.truncate", "os.utime", "shutil.rmtree"}


class Reader(NamedTuple):
    """What is read, and how.

    files: a valid input, {name: bytes}. reads: each gets the folder that holds it. pack:
    makes the files on the disk from the mutated ones, such as an archive of them. alone:
    each file is an input by itself. targets: the names of the files that are mutated; () is
    all. refusals: what else than `InputError` refuses an input. share: of the mutations
    that others get, where each takes long.
    """

    files: dict
    reads: tuple
    pack: object = dict
    alone: bool = False
    targets: tuple = ()
    refusals: tuple = ()
    share: float = 1.0


class Fault(NamedTuple):
    """What went wrong, with which mutation; input: the folder of the mutated files."""

    reader: str
    seed: int
    number: int
    why: str
    input: str = ""


def made(reader, name, seed, number):
    """The files of a mutation as they lie on the disk; number 0 is the valid input."""
    rng = random.Random(f"{name} {seed} {number}")
    target = rng.choice(reader.targets or [*reader.files])
    files = {target: reader.files[target]} if reader.alone else dict(reader.files)
    if not number:
        return reader.pack(dict(reader.files))
    if rng.random() < 0.5 or reader.pack is dict:
        others = [data for other, data in reader.files.items() if other != target]
        files[target] = mutations.mutated(rng, files[target], others)
        return reader.pack(files)
    packed = reader.pack(files)
    target = rng.choice([*packed])
    return {**packed, target: mutations.mutated(rng, packed[target])}


def run(names=(), *, seed=0, count=0, minutes=0.0, table=TABLE, say=lambda fault: None):
    """The faults of `count` mutations of each reader, or of as many as the time allows."""
    home = pathlib.Path(tempfile.mkdtemp(prefix="jaxcls-fuzz-"))
    names = [*names] or [*importlib.import_module(table).READERS]
    faults, begun = [], time.monotonic()
    first, least = dict.fromkeys(names, 0), 1
    while not faults or minutes:
        size = count or 100
        spec = {"table": table, "seed": seed, "home": str(home), "until": least + size}
        found = _round(spec, first, say)
        faults += found
        first, least = dict.fromkeys(names, least + size), least + size
        if count or time.monotonic() - begun > 60 * minutes:
            break
    if not faults:
        shutil.rmtree(home)
    return faults


def _round(spec, first, say):
    """The faults of a round; a child that dies is followed by one that goes on after it."""
    faults, home = [], pathlib.Path(spec["home"])
    first, lost = dict(first), 0
    while first:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz", "--child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        with child:
            child.stdin.write(json.dumps({**spec, "first": first}))
            child.stdin.close()
            watch = _Watch(child, home / "at")
            for line in child.stdout:
                faults.append(Fault(**json.loads(line)))
                say(faults[-1])
            status = child.wait()
            watch.stop()
        at = (home / "at").read_text().split() if (home / "at").exists() else []
        if not status or not at:
            if status:
                faults.append(
                    Fault("all", spec["seed"], 0, f"the child ended with {status}")
                )
                say(faults[-1])
            break
        name, number = at[0], int(at[1])
        if status != _AGAIN:
            why = f"the process died ({_died(status)}): {_last_words(home)}"
            kept = _kept(home, name, number)
            faults.append(Fault(name, spec["seed"], number, why, kept))
            say(faults[-1])
        # Those before it are done.
        order = [*first]
        first = {each: first[each] for each in order[order.index(name) :]}
        first[name] = number + 1
        lost += 1
        if lost > 1000:
            break
    return faults


_AGAIN = 77  # The exit status of a child whose peak of memory is spoilt.


class _Watch:
    """Kills a child that waits: it takes no time of a processor."""

    def __init__(self, child, at):
        import threading

        self._child, self._at, self._is_over = child, at, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        before, since = None, time.monotonic()
        while not self._is_over.wait(1):
            now = self._at.read_text() if self._at.exists() else None
            if now != before:
                before, since = now, time.monotonic()
            elif time.monotonic() - since > _WALL:
                self._child.kill()

    def stop(self):
        self._is_over.set()
        self._thread.join()


def _died(status):
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"status {status}"


def _last_words(home):
    words = (home / "words").read_text(errors="replace").strip()[-2000:]
    return words or "nothing was said"


def _kept(home, name, number):
    """The folder that keeps an input."""
    kept = home / f"{name}-{number}"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(home / "work" / "input", kept)
    return str(kept)


def _child():
    """Reads the inputs of a spec on standard input; prints each fault as JSON."""
    spec = json.loads(sys.stdin.read())
    home = pathlib.Path(spec["home"])
    out = os.fdopen(os.dup(1), "w", buffering=1)
    words = (home / "words").open("a")
    words.truncate(0)
    for descriptor in (1, 2):
        os.dup2(words.fileno(), descriptor)
    faulthandler.enable(words)
    # Elsewhere than what is read, so that a path that leads out of it is seen.
    work = home / "work"
    work.mkdir(exist_ok=True)
    os.chdir(work)
    tempfile.tempdir = str(work)
    readers = importlib.import_module(spec["table"]).READERS
    watched = _Audit(work)
    at = (home / "at").open("w")
    for name, first in spec["first"].items():
        os.pwrite(at.fileno(), f"{name} {first}".ljust(80).encode(), 0)
        shutil.rmtree(work / "input", ignore_errors=True)
        (work / "input").mkdir()
        try:
            reader = readers[name]()
        except Exception:  # The parent would start the child for it again and again.
            why = f"the valid input cannot be made: {traceback.format_exc()}"
            out.write(json.dumps(Fault(name, spec["seed"], 0, why)._asdict()) + "\n")
            continue
        until = 1 + int((spec["until"] - 1) * reader.share)
        child = _Reading(name, reader, spec["seed"], work / "input", watched)
        if why := child.warm():
            out.write(json.dumps(Fault(name, spec["seed"], 0, why)._asdict()) + "\n")
            continue
        for number in range(max(first, 1), until):
            os.pwrite(at.fileno(), f"{name} {number}".ljust(80).encode(), 0)
            words.truncate(0)
            if why := child.read(number):
                kept = _kept(home, name, number)
                fault = Fault(name, spec["seed"], number, why, kept)
                out.write(json.dumps(fault._asdict()) + "\n")
                if child.is_spoilt:
                    os._exit(_AGAIN)
    out.flush()
    os._exit(0)  # Threads of what was read may be there still.


class _Reading:
    """The mutations of one reader, read one after the other in this process."""

    def __init__(self, name, reader, seed, folder, watched):
        self._name, self._reader, self._seed = name, reader, seed
        self._folder, self._watched = folder, watched
        self._there, self.is_spoilt = {}, False

    def warm(self):
        """Reads the valid input twice; returns why it is refused, or ""."""
        self._base = 0
        for _ in range(2):
            files = made(self._reader, self._name, self._seed, 0)
            parts = [{k: v} for k, v in files.items()] if self._reader.alone else [files]
            for part in parts:
                self._write(part)
                for read in self._reader.reads:
                    try:
                        read(self._folder)
                    except Exception:
                        return f"the valid input is refused: {traceback.format_exc()}"
        self._base = process_peak()
        space = _addresses() + _ADDRESSES
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        if space > _ADDRESSES:
            resource.setrlimit(resource.RLIMIT_AS, (space, hard))
        return ""

    def read(self, number):
        """Reads one mutation; returns what is wrong, or ""."""
        files = made(self._reader, self._name, self._seed, number)
        faults = []
        for read in self._reader.reads:
            self._write(files)
            faults += self._judged(read)
        return "; ".join(faults)

    def _judged(self, read):
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        limit = int(time.process_time()) + _CPU + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))
        began, faults = time.process_time(), []
        with self._watched as seen:
            try:
                read(self._folder)
            except (InputError, *self._reader.refusals) as error:
                faults += _faults_of(error)
            except BaseException:
                faults.append("".join(traceback.format_exc(limit=-6)))
        seconds, peak = time.process_time() - began, process_peak()
        if seconds > SECONDS:
            faults.append(f"took {seconds:.1f} s")
        if peak - self._base > BYTES:
            faults.append(f"took {(peak - self._base) >> 20} MB")
            self.is_spoilt = True
        return faults + seen

    def _write(self, files):
        for name in {*self._there} - {*files}:
            (self._folder / name).unlink(missing_ok=True)
        for name, data in files.items():
            digest = hashlib.sha256(data).digest()
            file = self._folder / name
            if self._there.get(name) != digest:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
        self._there = {name: hashlib.sha256(data).digest() for name, data in files.items()}


def _faults_of(error):
    """What is wrong with a refusal: its text, or that memory was what it lacked."""
    text, faults = str(error), []
    if not text or printable(text) != text or "\n" in text or len(text) > 5000:
        faults.append(f"its line of {len(text)} characters: {ascii(text)[:2000]}")
    cause = error
    while cause := cause.__cause__ or cause.__context__:
        if _lacks_memory(cause):
            faults.append(f"{type(error).__name__} for want of memory: {ascii(text)[:300]}")
            break
    return faults


def _lacks_memory(error):
    """Whether an error is of memory; that of `ast.parse` is of depth."""
    frames = traceback.extract_tb(error.__traceback__)
    is_depth = bool(frames) and frames[-1].filename.endswith("ast.py")
    is_memory = isinstance(error, MemoryError) or "nsufficient memory" in str(error)
    return is_memory and not is_depth


class _Audit:
    """Sees what is written outside a folder, and each command, while a reader reads."""

    def __init__(self, folder):
        self._inside, self._seen, self._is_on = os.path.realpath(folder), [], False
        sys.addaudithook(self._hear)

    def __enter__(self):
        self._seen, self._is_on = [], True
        return self._seen

    def __exit__(self, *error):
        self._is_on = False

    def _hear(self, event, arguments):
        if not self._is_on:
            return
        is_ours = event == "subprocess.Popen" and arguments[0] == sys.executable
        if event in _COMMANDS and not is_ours:
            self._seen.append(f"{event}: {arguments!r}"[:300])
        elif event == "open" and isinstance(arguments[2], int):
            if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                self._check(event, arguments[0])
        elif event in _CHANGES:
            self._check(event, arguments[0])

    def _check(self, event, path):
        if isinstance(path, int):
            return
        place = os.path.realpath(os.fsdecode(path))
        if place != os.devnull and not f"{place}/".startswith(f"{self._inside}/"):
            self._seen.append(f"{event} outside its folder: {place}")


def _addresses():
    """The bytes of this process's address space; a negative number if it is unknown."""
    with contextlib.suppress(OSError):
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        return pages * resource.getpagesize()
    return -_ADDRESSES


def _say(fault):
    print(f"FAULT reader={fault.reader} seed={fault.seed} number={fault.number}")
    print(f"  input: {fault.input}\n  {fault.why}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="[10]")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    parser.add_argument("--reader", action="append", default=[], help="a name; or all")
    parser.add_argument("--count", type=int, default=0, help="of each, whatever the time")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _child()
    known = [*importlib.import_module(TABLE).READERS]
    if unknown := {*args.reader} - {*known}:
        parser.error(f"no reader {', '.join(unknown)}; there are {', '.join(known)}")
    print(f"seed {args.seed}, {len(args.reader or known)} readers", flush=True)
    faults = run(
        args.reader, seed=args.seed, minutes=args.minutes, count=args.count, say=_say
    )
    print(f"faults: {len(faults)}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
