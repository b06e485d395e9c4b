"""Command lines: flags become values, and bad input becomes one line and status 2.

This replaces absl's `app.run`, which ends bad input with a traceback and status 1, ignores
stray arguments, and accepts overrides that are NaN or a dict.
"""

import argparse
import atexit
import contextlib
import io
import itertools
import math
import os
import pathlib
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NoReturn

from ml_collections import ConfigDict

from jaxcls import console
from jaxcls.config import guesses, loading
from jaxcls.config.plugins import Plugins
from jaxcls.config.plugins import load as load_plugins
from jaxcls.errors import (
    BAD_INPUT,
    DIVERGED,
    DONE,
    INTERRUPTED,
    STOPPED,
    DivergedError,
    InputError,
    StoppedError,
    did_you_mean,
    is_whole_number,
    printable,
)

if TYPE_CHECKING:
    from jaxcls.evaluation.scoring import Loaded
    from jaxcls.experiment.published import Published

# The files of a run's folder, which no output may replace.
_OF_A_RUN = {"config.json", "manifest.json", "metrics.jsonl", "timing.jsonl"}
_OF_A_RUN |= {"digests.jsonl", "lock", "wandb-id", "last_step.json"}
_OF_A_STUDY = {"plan.json", "study.json", "cost.json"}
# Seconds for the threads of a command to end.
_PATIENCE = 10.0
# Paths of streams: an atomic write would replace the stream by a file.
_STREAMS = "/dev/std", "/dev/fd/", "/proc/"

OF_A_RUN = """\
--config.KEY=VALUE changes what is not part of what the run is, such as
--config.data.dir=DIR where its dataset has moved to, --config.data.threads=4 and
--config.mesh.devices=1; jaxcls train --help lists every key.
"""
EXIT_STATUS = (
    "exit status: 0 done, 2 bad input (one line says what), 3 diverged, 4 checked and it\n"
    "differs, 70 a save is stuck, or another process stuck or gone,\n"
    "75 stopped on request after saving, 130 interrupted"
)
_FLAG = re.compile("--?[A-Za-z][\\w.-]*")


class _Once(argparse.Action):
    """Stores a value; raises `InputError` if the flag is given twice."""

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
    """An argparse parser without abbreviations, whose errors are an `InputError`.

    bare: The flag that a lone argument was meant for, such as --config.
    hints: Whether another trainer's flag is answered with the config key that does it.
    """

    def __init__(
        self,
        verb: str,
        about: str,
        epilog: str = "",
        *,
        bare: str = "",
        hints: bool = False,
    ) -> None:
        super().__init__(
            prog=f"jaxcls {verb}",
            description=about,
            epilog=f"{epilog}\n{EXIT_STATUS}".strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.register("action", None, _Once)
        self._bare, self._hints = bare, hints
        self._given: list[str] = []

    def flags(self) -> dict[str, tuple[str, bool]]:
        """Returns {flag: (its help, whether it takes a value)} of all flags but --help."""
        return {
            action.option_strings[0]: (action.help or "", action.nargs != 0)
            for action in self._actions
            if action.option_strings and action.dest != "help"
        }

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses `args`; raises `InputError` for an unknown flag before a missing one."""
        self._given = list(sys.argv[1:] if args is None else args)
        known = self.flags().keys() | {"--help", "-h"}
        # What follows -- is no flag.
        flags = list(itertools.takewhile(lambda text: text != "--", self._given))
        for argument, after in itertools.pairwise([*flags, ""]):
            flag, equals, value = argument.partition("=")
            if _FLAG.fullmatch(flag) and flag not in known:
                value = value if equals or after.startswith("-") else after
                raise InputError(f"unknown flag {flag}{self._instead(flag, value, known)}")
        return super().parse_known_args(args, namespace)

    def _instead(self, flag: str, value: str, known: Iterable[str]) -> str:
        """Returns what to give in place of an unknown flag, as the end of a message."""
        usual = "--" + flag.lstrip("-").replace("-", "_")
        if usual in known:
            return f"; it is {usual}"
        if self._hints and (advice := guesses.advice(flag, value)):
            return f"; {advice}"
        near = did_you_mean(usual, known)
        return f"{near}; {self.prog} --help shows what there is"

    def error(self, message: str) -> NoReturn:
        takes_value = {flag for flag, (_, has_value) in self.flags().items() if has_value}
        alone = [
            text
            for before, text in itertools.pairwise(["", *self._given])
            if not text.startswith("-") and before not in takes_value
        ]
        if self._bare and len(alone) == 1 and message.endswith((self._bare, *alone)):
            raise InputError(f"{alone[0]} has no flag; give {self._bare}={alone[0]}")
        raise InputError(f"{message}; {self.prog} --help shows what there is")


def given(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[str]:
    """Returns the flags whose values differ from their defaults."""
    return [f"--{name}" for name, v in vars(args).items() if v != parser.get_default(name)]


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """Adds --plugins; see `plugins`."""
    parser.add_argument(
        "--plugins",
        default="",
        metavar="FILE.py,MODULE",
        help="your modules with entries for our tables, as the run was trained with",
    )


def plugins(args: argparse.Namespace) -> Plugins:
    """Imports the plug-ins of --plugins; raises `InputError`."""
    return load_plugins(args.plugins, "--plugins")


def with_plugins(overrides: Mapping[str, str], args: argparse.Namespace) -> dict[str, str]:
    """Returns the overrides of a config, in which --plugins is config.plugins."""
    return {**overrides, **({"plugins": args.plugins} if args.plugins else {})}


def plugins_of(path: str, config: ConfigDict, args: argparse.Namespace) -> Plugins:
    """Imports the plug-ins of --plugins, else of a config; path: its file."""
    return plugins(args) if args.plugins else loading.plugins_of(path, config)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a model: a trained run, or published weights; see `loaded`."""
    add_plugins(parser)
    add = parser.add_argument
    add("--workdir", default="", help="folder of the run")
    add("--checkpoint", default="best", help="best (default), last or a step")
    add_published(parser)


def add_published(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of published weights; see `published`."""
    about = "in place of a run: weights as they are published"
    add = parser.add_argument_group(about).add_argument
    add("--model", default="", metavar="NAME", help="as model.name: resnet50")
    add("--weights", default="", metavar="FILE|hf:NAME", help="as init.weights")
    add("--data", default="", metavar="NAME", help="as data.name: whose classes they tell")


def published(args: argparse.Namespace) -> "Published | None":
    """Returns the published weights that the flags name, or None.

    Raises `InputError` if the flags name half of them, or a run, too.
    """
    given = {flag: getattr(args, flag) for flag in ("model", "weights", "data")}
    named = [f"--{flag}={value}" for flag, value in given.items() if value]
    if not named:
        return None
    if args.workdir:
        run = args.workdir if isinstance(args.workdir, str) else args.workdir[0]
        raise InputError(
            f"--workdir={run} is a run, and {named[0]} is of published weights; leave one"
            " of them out"
        )
    if not (args.model and args.weights):
        raise InputError(
            f"{named[0]} is of published weights; give both --model=resnet50 and"
            " --weights=FILE, or hf:timm/resnet50.a1_in1k"
        )
    if args.checkpoint != "best":
        raise InputError(
            f"--checkpoint={args.checkpoint} is of runs, and --weights={args.weights} has"
            " no other; leave it out"
        )
    from jaxcls.experiment.published import Published  # It imports JAX; help does not.

    return Published(**given)


def place(args: argparse.Namespace) -> "str | Published":
    """Returns the run or the published weights that the flags name.

    Raises `InputError` unless it is exactly one.
    """
    found: str | Published = published(args) or args.workdir
    if not found:
        raise InputError(
            "there is no model; give --workdir=RUN, or published weights: --model=resnet50"
            " --weights=FILE"
        )
    return found


def loaded(args: argparse.Namespace, overrides: Mapping[str, str]) -> "Loaded":
    """Returns the model that the flags name; says on standard error how it was read.

    Raises `InputError` as `place` and `scoring.load` do.
    """
    from jaxcls.evaluation import scoring
    from jaxcls.experiment.published import notes

    where = place(args)
    found = scoring.load(where, args.checkpoint, overrides, plugins(args))
    for line in [] if isinstance(where, str) else notes(found.exp):
        print(line, file=sys.stderr)
    return found


def add_images(parser: argparse.ArgumentParser, metavar: str, batch_size: int) -> None:
    """Adds the flags of image files; batch_size: the default of --batch_size."""
    add, size = parser.add_argument, str(batch_size)
    add("--batch_size", default=size, help=f"images a batch (default {size})")
    add("--threads", default="0", help="decoding threads; default: the run's, one a core")
    add("--null", action="store_true", help="the list has a NUL after each path")
    add(
        "images",
        nargs="+",
        metavar=metavar,
        help="a file; a folder: all images below it, by name; or -: a list of files and"
        " folders on standard input, one a line",
    )


def answered(counts: Counter[str], more: str = "") -> int:
    """Says how many images were answered and bad; returns the exit status, 2 if any is bad.

    counts: of `files.good`. more: further bad files, in words.
    """
    if not counts:
        print("no image was given", file=sys.stderr)
    if not counts["bad"] and not more:
        return DONE
    said = f"{counts['answered']} answered, {counts['bad']} bad{more}"
    print(said, file=sys.stderr)
    return BAD_INPUT


def add_robustness(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of corruptions and attacks."""
    add = parser.add_argument_group("how robust it is").add_argument
    add("--corruptions", default="", help='all, or such as "contrast, gaussian_noise"')
    add("--attacks", default="", help='such as "fgsm(2) | pgd(2, steps=10)", of 255 levels')


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a run with several processes."""
    about = "one run of several processes, each started like this"
    add = parser.add_argument_group(about).add_argument
    add(
        "--coordinator",
        default="",
        metavar="auto|HOST:PORT",
        help="auto: a TPU pod, SLURM, Kubernetes or Open MPI job; else where process 0 is",
    )
    add("--processes", default="", metavar="N", help="how many there are")
    add("--process", default="", metavar="I", help="which one this is, from 0")
    add("--join_timeout", default="300", help="seconds for all to join (default 300)")


def joined(args: argparse.Namespace) -> AbstractContextManager[None]:
    """Returns the block in which the processes of `add_processes` are one run."""
    from jaxcls.devices import hosts  # It imports JAX, and other verbs start without.

    seconds = whole_number(args.join_timeout, "--join_timeout", least=1)
    if seconds > 86_400:
        raise InputError(f"--join_timeout={seconds} must be at most 86400, a day; try 300")
    return hosts.joined(args.coordinator, args.processes, args.process, seconds)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Returns (other arguments, {key: value} of ``--config.key=value``).

    ``--config.key value`` is accepted too. Raises `InputError` for a key without a value,
    or a repeated key.
    """
    rest: list[str] = []
    overrides: dict[str, str] = {}
    arguments = iter(argv)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        name = key.removeprefix("--config.")
        if name == key:
            rest.append(argument)
            continue
        if not equals:
            value = next(arguments, "--")
            if value.startswith("--"):
                raise InputError(f"{key} has no value; write {key}=VALUE")
        if name in overrides:
            raise InputError(f"{key} is given twice; give it once")
        overrides[name] = value
    return rest, overrides


def new_file(text: str, flag: str, good: str) -> pathlib.Path:
    """Returns the path of a file to write, with a symbolic link resolved.

    good: a value that works, for the message. Raises `InputError` if `text` is a folder, a
    stream or a file of a run, or cannot be written.
    """
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
    elif path.name in _OF_A_STUDY and (path.parent / "plan.json").is_file():
        what = "belongs to the study in that folder"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        what = "may not be written"
    if what:
        raise InputError(f"{flag}={text} {what}; try {flag}={good}")
    return path.resolve() if path.is_symlink() else path


def whole_number(text: str, flag: str, least: int = 0) -> int:
    """Returns an integer flag, at least `least`; raises `InputError` for another text."""
    if not is_whole_number(text) or int(text) < least:
        raise InputError(
            f"{flag}={text[:80]} must be a whole number, at least {least}; try {flag}=8"
        )
    return int(text)


def number(text: str, flag: str) -> float:
    """Returns a float flag, finite and at least 0; raises `InputError` for another text."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InputError(f"{flag}={text} must be a number, at least 0; try {flag}=0.5")
    return value


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Calls ``main(sys.argv[1:])`` and exits with its status.

    An `InputError` prints one line on standard error and exits with 2, a `DivergedError`
    with 3, a `StoppedError` with 75, and Ctrl-C with 130. Any other exception is a bug and
    keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A name may be in no ASCII.
            stream.reconfigure(errors="backslashreplace")
    try:
        status = DONE
        with console.outlived():
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
    except Exception:  # A bug: other threads may keep the process from its end, too.
        _end_soon(1)
        raise
    _end_soon(status)
    sys.exit(status)


def _end_soon(status: int) -> None:
    """Ends the process once other threads have kept it from its exit for `_PATIENCE`.

    Those of a save that failed wait 300 s for each other.
    """
    ended = threading.Event()

    def end() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)

    def watch() -> None:
        threading.main_thread().join()
        if not ended.wait(_PATIENCE):
            end()

    atexit.register(ended.set)  # Called after the other threads have ended.
    try:
        threading.Thread(target=watch, name="exit", daemon=True).start()
    except RuntimeError:  # No memory is left for a thread.
        if status != 1:  # That of a bug, whose traceback comes now.
            end()


def _say(text: str, status: int) -> int:
    with contextlib.suppress(OSError):  # The terminal may be gone.
        print(printable(" ".join(text.split())), file=sys.stderr)
    return status
