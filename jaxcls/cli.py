"""Command lines: flags -> values; every bad input -> one line and status 2.

absl's `app.run` is not used: under it a bad input ends in status 1 behind a traceback,
stray arguments are ignored, and NaN or dict overrides pass.
"""

import argparse
import math
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from jaxcls.errors import (
    INTERRUPTED,
    STOPPED,
    DivergedError,
    InputError,
    StoppedError,
)

DONE, BAD_INPUT, DIVERGED, DIFFERS = 0, 2, 3, 4

EXIT_STATUS = (
    "exit status: 0 done, 2 bad input (one line says what), 3 diverged, 4 checked and it\n"
    "differs, 70 another process is stuck or gone, 75 stopped on request after saving,\n"
    "130 interrupted"
)


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are `InputError`, on one line."""

    def __init__(self, verb: str, about: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"python -m jaxcls.{verb}",
            description=about,
            epilog=f"{epilog}\n{EXIT_STATUS}".strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; {self.prog} --help shows what there is")


def add_processes(parser: argparse.ArgumentParser) -> None:
    """The flags of a run of several processes."""
    group = parser.add_argument_group(
        "one run of several processes, each started like this"
    )
    group.add_argument(
        "--coordinator",
        default="",
        metavar="auto|HOST:PORT",
        help="auto: a TPU pod, SLURM, Kubernetes or Open MPI job; else where process 0 is",
    )
    group.add_argument("--processes", default="", metavar="N", help="how many there are")
    group.add_argument(
        "--process", default="", metavar="I", help="which one this is, from 0"
    )


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """``--config.key=value`` (or ``--config.key value``) apart from the other arguments.

    Raises `InputError` for a key without a value, or given twice.
    """
    rest: list[str] = []
    overrides: dict[str, str] = {}
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if not equals:
            if not arguments or arguments[0].startswith("--"):
                raise InputError(f"--config.{key} has no value; write --config.{key}=VALUE")
            value = arguments.pop(0)
        if key in overrides:
            raise InputError(f"--config.{key} is given twice; give it once")
        overrides[key] = value
    return rest, overrides


def new_file(text: str, flag: str, good: str) -> pathlib.Path:
    """A file to write; raises `InputError` where there cannot be one, naming a good one."""
    path = pathlib.Path(text).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else "is in no folder that is there"
        raise InputError(f"{flag}={text} {what}; try {flag}={good}")
    return path


def whole_number(text: str, flag: str, least: int = 0) -> int:
    """The value of a flag that counts something; raises `InputError`."""
    if not text.isdecimal() or int(text) < least:
        raise InputError(f"{flag}={text} must be a whole number, at least {least}")
    return int(text)


def number(text: str, flag: str) -> float:
    """The value of a flag that measures something; raises `InputError`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InputError(f"{flag}={text} must be a number, at least 0")
    return value


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Call ``main(sys.argv[1:])`` and leave with its status.

    `InputError` becomes one line on standard error and status 2, `DivergedError` one
    line and 3, `StoppedError` 75, Ctrl-C 130; any other exception is a bug and keeps its
    traceback.
    """
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except InputError as error:
        status = _say(f"error: {error}", BAD_INPUT)
    except DivergedError as error:
        status = _say(f"diverged: {error}", DIVERGED)
    except StoppedError as error:
        status = _say(f"stopped: {error}", STOPPED)
    except KeyboardInterrupt:
        status = _say("interrupted", INTERRUPTED)
    except BrokenPipeError:  # The reader of our output left: not our error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = DONE
    sys.exit(status)


def _say(text: str, status: int) -> int:
    print(" ".join(text.split()), file=sys.stderr)
    return status
