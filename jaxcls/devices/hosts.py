"""Runs several processes as one run: they join, agree and leave together.

With one process, each function only calls its argument or returns it, and starts no device.
"""

import contextlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from jaxcls.devices import joining
from jaxcls.errors import (
    LOST,
    DivergedError,
    InputError,
    StoppedError,
    first_line,
    is_whole_number,
)

T = TypeVar("T")

# Words of the runtimes' errors about a lost process.
_LOST = re.compile(r"gloo|nccl|coordination|unavailable|deadline_exceeded")
# Seconds until a leaving process stops waiting for the others.
_SHUTDOWN = 60


class AgreedError(InputError):
    """A bad input that every process of the run knows; all of them exit with it."""


@contextlib.contextmanager
def joined(
    coordinator: str, processes: str = "", process: str = "", seconds: int = 300
) -> Iterator[None]:
    """Starts the runtime of several processes; inside the block they form one run.

    coordinator: "" for one process; "auto" on a TPU pod, under SLURM, Kubernetes or Open
    MPI; or host:port of process 0, with the count `processes` and the number `process` of
    this process, from 0. seconds: for all to join.

    Raises `InputError` for arguments that do not fit together. If this process fails and
    the others cannot know, it exits at once. If another process is lost, it exits with
    status 70.
    """
    if not coordinator:
        if processes or process:
            raise InputError("--processes and --process need --coordinator=HOST:PORT")
        yield
        return
    _start(coordinator, processes, process, seconds)
    try:
        yield
    except Exception as error:  # The others wait for this process, whatever it raises.
        if is_agreed(error):
            raise
        if isinstance(error, InputError):
            _end(f"error: process {jax.process_index()}: {error}", 2)
        ours = f"process {jax.process_index()} of {jax.process_count()}"
        of_runtime = isinstance(error, (jax.errors.JaxRuntimeError, ValueError))
        if of_runtime and _LOST.search(str(error).lower()):
            _end(
                f"lost: {ours} no longer reaches the others ({first_line(error)}): one of"
                " them has ended, and its output says why; start all of them again, and the"
                " run goes on from its last checkpoint",
                LOST,
            )
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exc()
        _end(f"{ours} failed", 1)


def is_agreed(error: BaseException | None) -> bool:
    """Returns whether all processes exit with this error, or without an error."""
    return error is None or isinstance(error, (AgreedError, StoppedError, DivergedError))


def count() -> int:
    """Returns the number of processes of the run."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Returns whether this is process 0, which alone writes the shared files."""
    return count() == 1 or jax.process_index() == 0


def share(value: Any) -> list[Any]:
    """Returns the JSON values of all processes in their order; all must call it."""
    if count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text))).ravel()
    # Powers of two keep the number of compiled programs small.
    room = 1 << max(8, int(lengths.max() - 1).bit_length())
    texts = multihost_utils.process_allgather(np.pad(text, (0, room - len(text))))
    return [
        json.loads(row[:length].tobytes().decode())
        for row, length in zip(texts, lengths, strict=True)
    ]


def together(
    f: Callable[[], T],
    catches: type[Exception] = InputError,
    raises: type[Exception] = AgreedError,
) -> T:
    """Returns ``f()``; if one process raises `catches`, all processes raise `raises`."""
    if count() == 1:
        return f()
    done: list[T] = []
    error = None
    try:
        done.append(f())
    except catches as wrong:
        error = str(wrong)
    said = share(error)
    for number, text in enumerate(said):
        if text is not None:
            where = "" if said.count(text) == len(said) else f"process {number}: "
            raise raises(where + text)
    return done[0]


def on_first(f: Callable[[], T]) -> T:
    """Calls ``f()`` on process 0 and returns its JSON value on all processes.

    If it raises `InputError`, all processes raise `AgreedError`.
    """
    if count() == 1:
        return f()
    value = together(lambda: f() if is_first() else None)
    return share(value)[0]


def agree(facts: Mapping[str, Any]) -> None:
    """Raises `AgreedError`, with the difference, unless all processes give equal facts."""
    said = share(dict(facts))
    for number, other in enumerate(said):
        for key in sorted({*said[0], *other}):
            ours, theirs = said[0].get(key), other.get(key)
            if ours != theirs:
                raise AgreedError(
                    f"process 0 has {key}={ours!r} and process {number} {theirs!r}; all"
                    " processes of a run need the same code, command and data"
                )


def _start(coordinator: str, processes: str, process: str, seconds: int) -> None:
    flag, is_auto = f"--coordinator={coordinator}", coordinator == "auto"
    number, count = (
        int(text) if is_whole_number(text) else -1 for text in (process, processes)
    )
    port = re.fullmatch(r"\S+:(\d{1,5})", coordinator)
    wrong = ""
    if is_auto and (processes or process):
        wrong = " finds --processes and --process itself; leave them out"
    elif not is_auto and not (port and 0 < int(port[1]) < 2**16):
        wrong = " must be auto or HOST:PORT of process 0, such as 10.0.0.1:4321"
    elif not is_auto and not 0 <= number < count:
        has = f"{processes or 'none'} and {process or 'none'}"
        wrong = f" needs --processes=N and --process=I below N, and has {has}"
    if wrong:
        raise InputError(flag + wrong)
    given: dict[str, Any] = {}
    if not is_auto:
        host = coordinator.rpartition(":")[0].strip("[]")
        joining.gather(host, int(port[1]) if port else 0, count, number, seconds)
        given = {"coordinator_address": coordinator}
        given |= {"num_processes": count, "process_id": number}
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=seconds,
            shutdown_timeout_seconds=_SHUTDOWN,
        )
    except (ValueError, ImportError) as error:
        raise InputError(
            f"{flag}: no TPU pod, SLURM, Kubernetes or Open MPI job was found ({error});"
            " give --coordinator=HOST:PORT --processes=N --process=I"
        ) from None
    except jax.errors.JaxRuntimeError as error:
        raise InputError(
            f"{flag}: process {process} of {processes} cannot join ({first_line(error)});"
            " is the port of process 0 free, within reach of all, and are all started?"
        ) from None


def _end(text: str, status: int) -> None:
    """Exits this process at once: a wait for the other processes would never end."""
    with contextlib.suppress(OSError, ValueError):  # The terminal may be gone.
        print(" ".join(text.split()), file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(status)
