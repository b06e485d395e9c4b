"""Runs of a study at the same time on one machine, in processes of the same command."""

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import IO

from jaxcls.errors import DIVERGED, DONE, STOPPED, InputError, StoppedError
from jaxcls.training.stopping import Stop

# Seconds between two looks at whether a stop is requested.
_LOOK = 0.1


def train(flags: Sequence[str], shard: tuple[int, int], jobs: int, stop: Stop) -> None:
    """Trains the unfinished runs of a shard, and prints what each of them reaches.

    A run has the bits that it has alone: another process changes none.

    Args:
        flags: Of ``jaxcls study``, without --shard.
        shard: (index, number of shards), which the processes divide further.
        jobs: How many processes.
        stop: A request is passed on to the processes, which save and end.

    Raises `StoppedError` if a stop was requested, of one process or all, and `InputError`
    with the error of a process that ended otherwise; the others end first.
    """
    first, of = shard
    command = [sys.executable, "-m", "jaxcls", "study", *flags]
    stop.poll()
    with tempfile.TemporaryFile("w+") as wrong, contextlib.ExitStack() as stack:
        # In sessions of their own, so that Ctrl-C reaches each once, from here.
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, f"--shard={first + i * of}/{of * jobs}"],
                    stdout=subprocess.PIPE,
                    stderr=wrong,
                    text=True,
                    start_new_session=True,
                )
            )
            for i in range(jobs)
        ]
        shown = [threading.Thread(target=_show, args=(each.stdout,)) for each in processes]
        for thread in shown:
            thread.start()
        asked = False
        while None in (ends := [process.poll() for process in processes]):
            if not asked and (stop.requested or {*ends} - {None, DONE, DIVERGED}):
                asked = True
                for process in processes:
                    process.terminate()
            time.sleep(_LOOK)
        for thread in shown:
            thread.join()
        wrong.seek(0)
        errors = [line for line in wrong if line.startswith("error: ")]
    if {*ends} - {DONE, DIVERGED, STOPPED} and not stop.requested:
        said = errors[0].removeprefix("error: ").strip() if errors else f"status {ends}"
        raise InputError(f"a process of --jobs={jobs} ended: {said}")
    if stop.requested or STOPPED in ends:
        raise StoppedError("asked to; the same command goes on with the study")


def _show(said: IO[str] | None) -> None:
    """Prints the lines that a process says of its runs."""
    for line in said or ():
        if line.startswith("run "):
            print(line, end="", flush=True)
