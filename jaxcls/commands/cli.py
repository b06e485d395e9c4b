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
    BAD_INPUT,
    DIVERGED,
    DONE,
    INTERRUPTED,
    STOPPED,
    DivergedError,
    InputError,
    StoppedError,
)

# Files of a run's folder, which no output replaces.
_OF_A_RUN = {"config.json", "manifest.json", "metrics.jsonl", "timing.jsonl"}
_OF_A_RUN |= {"digests.jsonl", "lock", "wandb-id"}
# Streams, which a file would take the place of.
_STREAMS = "/dev/std", "/dev/fd/", "/proc/"

OF_A_RUN = """\
--config.KEY=VALUE changes what is not part of what the run is, such as
--config.data.dir=DIR where its dataset has moved to, --config.data.threads=4 and
--config.mesh.devices=1; jaxcls train --help lists every key.
"""
EXIT_STATUS = (
    "exit status: 0 done, 2 bad input (one line says what), 3 diverged, 4 checked and it\n"
    "differs, 70 another process is stuck or gone, 75 stopped on request after saving,\n"
    "130 interrupted"
)


class _Once(argparse.Action):
    """Store a value; a flag that is given again is refused, not taken for the last."""

    is_given = False

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        if self.is_given and option_string:
            raise InputError(f"{option_string} is given twice; give it once")
        self.is_given = True
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are `InputError`, on one line."""

    def __init__(self, verb: str, about: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"jaxcls {verb}",
            description=about,
            epilog=f"{epilog}\n{EXIT_STATUS}".strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.register("action", None, _Once)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; {self.prog} --help shows what there is")


def given(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[str]:
    """The flags whose values are not their defaults."""
    return [f"--{name}" for name, v in vars(args).items() if v != parser.get_default(name)]


def add_run(parser: argparse.ArgumentParser) -> None:
    """The flags of a trained run."""
    add = parser.add_argument
    add("--workdir", required=True, help="folder of the run")
    add("--checkpoint", default="best", help="best (default), last or a step")


def add_images(parser: argparse.ArgumentParser, metavar: str, batch_size: int) -> None:
    """The flags of image files, of which `batch_size` are seen at once by default."""
    add = parser.add_argument
    size = str(batch_size)
    add("--batch_size", default=size, help=f"images a batch (default {size})")
    add(
        "--threads", default="0", help="threads that decode; default: the run's, one a core"
    )
    add("--null", action="store_true", help="the list has a NUL after each path")
    add(
        "images",
        nargs="+",
        metavar=metavar,
        help="a file; a folder: all images below it, by name; or -: a list of files and"
        " folders on standard input, one a line",
    )


def add_robustness(parser: argparse.ArgumentParser) -> None:
    """The flags of what is done to images before a model sees them."""
    group = parser.add_argument_group("how robust it is")
    add = group.add_argument
    add("--corruptions", default="", help='all, or such as "contrast, gaussian_noise"')
    add("--attacks", default="", help='such as "fgsm(2) | pgd(2, steps=10)", of 255 levels')


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
    what = ""
    if path.is_dir():
        what = "is a folder"
    elif not path.parent.is_dir():
        what = "is in no folder that is there"
    elif text == "-" or text.startswith(_STREAMS) or (path.exists() != path.is_file()):
        what = "is a stream, and must be a file"
    elif path.name in _OF_A_RUN and (path.parent / "config.json").is_file():
        what = "belongs to the run in that folder"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        what = "may not be written"
    if what:
        raise InputError(f"{flag}={text} {what}; try {flag}={good}")
    return path.resolve() if path.is_symlink() else path


def whole_number(text: str, flag: str, least: int = 0) -> int:
    """The value of a flag that counts something; raises `InputError`."""
    if not text.isdecimal() or int(text) < least:
        raise InputError(
            f"{flag}={text} must be a whole number, at least {least}; try {flag}=8"
        )
    return int(text)


def number(text: str, flag: str) -> float:
    """The value of a flag that measures something; raises `InputError`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InputError(f"{flag}={text} must be a number, at least 0; try {flag}=0.5")
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
