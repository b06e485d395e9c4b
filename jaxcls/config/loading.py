"""Loads configs: the knobs of `jaxcls.config.knobs`, set by a file and a command line.

A config is plain, independent facts. `experiment.build` computes derived values (steps,
effective rate, sizes, classes). A config file starts from `base()`, which is locked, so a
misspelt key fails in the file as it does on the command line:

    from jaxcls.config import base

    def get_config():
        c = base()
        c.model.name = "resnet50"
        return c
"""

import operator
import pathlib
import re
import runpy
import traceback
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxcls.config import guesses, plugins, rules
from jaxcls.config.knobs import KNOBS, RETIRED
from jaxcls.errors import InputError, did_you_mean, first_line


def base() -> ConfigDict:
    """Returns every knob at its default, locked: an unknown key is an error."""
    return from_flat({})


def from_flat(values: Mapping[str, Any]) -> ConfigDict:
    """Returns the defaults with ``{"optim.lr": 0.1}`` set.

    A key of an earlier version may be there if it is "". Raises `InputError` for any other
    unknown key.
    """
    for key, value in values.items():
        if key not in RETIRED or value != "":
            _require_known(key)
    tree: dict[str, Any] = {}
    for key, knob in KNOBS.items():
        group, _, leaf = key.rpartition(".")
        node = tree.setdefault(group, {}) if group else tree
        node[leaf] = values.get(key, knob.default)
    return ConfigDict(tree).lock()


def kept(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns flat values as a run folder keeps them, with compile.cache empty.

    A run executes programs from that cache, and a folder may come from anybody. So each
    start must give the cache anew.
    """
    return {**values, "compile.cache": ""}


def typed(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns flat values, each in the type of its knob's default.

    name: the file of the values, for messages. A whole number may be of a knob whose
    default is a float. Raises `InputError` for a value of another type.
    """
    found = dict(values)
    for key, knob in KNOBS.items():
        value, wanted = values.get(key, knob.default), type(knob.default)
        if wanted is float and type(value) is int and abs(value) < 2**53:
            found[key] = float(value)
        elif type(value) is not wanted:
            raise InputError(
                f"{name}: {key}={repr(value)[:80]} is {type(value).__name__}, and must be"
                f" {wanted.__name__}; the default is {knob.default!r}"
            )
    return found


def flat(config: ConfigDict) -> dict[str, Any]:
    """Returns ``{"optim.lr": 0.1, ...}`` in the order of `KNOBS`."""
    return {key: operator.attrgetter(key)(config) for key in KNOBS}


def to_text(config: ConfigDict) -> str:
    """Formats one ``key = value`` line per knob, for --dry_run and golden files."""
    return "".join(f"{key} = {value!r}\n" for key, value in flat(config).items())


def load(path: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """Loads and checks a config from a Python file that defines ``get_config()``.

    path: it may end in ``:text``, which is passed to ``get_config(text)``. A relative path
    that is not on disk is looked up among the configs that ship with jaxcls.
    overrides: ``{"optim.lr": "0.1"}`` as given on a command line.
    Raises `InputError` for a missing or failing file, an unknown key or a wrong value.
    """
    config = _run_file(path)
    for key, text in (overrides or {}).items():
        override(config, key, text)
    check(config)
    return config


def plugins_of(path: str, config: ConfigDict) -> plugins.Plugins:
    """Imports the plug-ins of a config; path: its file, as `load` takes it, or "".

    Raises `InputError` as `plugins.load` does.
    """
    beside = str(find(path.partition(":")[0]).parent) if path else ""
    return plugins.load(config.plugins, "config.plugins", beside)


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets `key` from the text of a command line, in the type of its default.

    Raises `InputError` for an unknown key, or a text of another type.
    """
    _require_known(key)
    config.update_from_flattened_dict({key: _parse(key, text)})


def check(config: ConfigDict) -> None:
    """Checks the rules that need nothing but the config; raises `InputError`."""
    rules.check(flat(config))


def check_alone(config: ConfigDict) -> None:
    """Raises `InputError` if a key is set that has no effect without another key."""
    rules.check_alone(flat(config))


def seed_of(config: ConfigDict, stream: str) -> int:
    """Returns the seed of a random stream: `seeds.STREAM`, or `seed` if that is -1."""
    stream_seed = config.seeds[stream]
    return config.seed if stream_seed < 0 else stream_seed


def is_identity(key: str, config: ConfigDict) -> bool:
    """Returns whether a change of `key` makes another run of this config."""
    # A rewind goes back to a checkpoint, so the interval changes every later step.
    goes_back = key == "checkpoint.every" and config.nonfinite.policy == "rewind"
    return KNOBS[key].identity or goes_back


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns the keys whose values differ, each with (old, new)."""
    before, after = flat(old), flat(new)
    return {k: (before[k], after[k]) for k in KNOBS if before[k] != after[k]}


def _run_file(path: str) -> ConfigDict:
    """Returns the config that the file's ``get_config`` returns; raises `InputError`."""
    name, _, argument = path.partition(":")
    file = find(name)
    try:
        get_config = runpy.run_path(str(file)).get("get_config")
        if not get_config:
            raise InputError(
                f"config {name} defines no get_config(); see configs/digits.py"
            )
        config = get_config(argument) if argument else get_config()
    except InputError:
        raise
    except Exception as error:  # The file is the user's code, so its errors are input.
        raise InputError(_file_error(file, name, error)) from None
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"config {name}: get_config() must return the ConfigDict of base()"
        )
    return from_flat(_flatten(config, name))


def find(name: str) -> pathlib.Path:
    """Returns the file on disk, or the config of that name that ships with jaxcls.

    Raises `InputError` if there is neither.
    """
    given = pathlib.Path(name)
    if given.is_file():
        return given.absolute()  # Tracebacks name this path.
    ours = _shipped()
    if given.parent.name in ("", "configs") and (ours / given.name).is_file():
        return ours / given.name
    known = sorted(p.name for p in ours.glob("*.py") if not p.name.startswith("_"))
    near = did_you_mean(given.name, known)
    raise InputError(
        f"config {name} is not a file{near}; jaxcls ships configs/"
        f"{{{','.join(k.removesuffix('.py') for k in known)}}}.py"
    )


def _shipped() -> pathlib.Path:
    """Returns our configs' folder: jaxcls/configs in a wheel, configs/ in a checkout."""
    here = pathlib.Path(__file__).resolve().parent.parent
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def _file_error(file: pathlib.Path, name: str, error: Exception) -> str:
    """Returns a line on an error in a config file: where it is, and the nearest key."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    if isinstance(error, SyntaxError):
        lines.append(error.lineno)
    where, first = f"{name}:{lines[-1]}" if lines else name, first_line(error)
    if isinstance(error, TypeError) and "mappingproxy" in first:
        return (
            f"{where}: our tables are read-only; put the entry into a table of a file of"
            " yours, and name it: c.plugins = 'mine.py'"
        )
    written, key = re.search(r'Key "(\w+)" does not exist', first), None
    if written:
        key = written[1]
    elif isinstance(error, AttributeError) and isinstance(error.obj, ConfigDict):
        key = error.name
    if key:
        return f"{where}: unknown config key {key!r}{_near(key)}"
    return f"{where}: {type(error).__name__}: {first}"


def _flatten(config: ConfigDict, name: str) -> dict[str, Any]:
    """Returns values by dotted key; raises `InputError` for types not as in `KNOBS`."""
    values: dict[str, Any] = {}
    for group, value in config.to_dict().items():
        inside = value.items() if isinstance(value, dict) else [("", value)]
        values |= {f"{group}.{leaf}" if leaf else group: each for leaf, each in inside}
    for key, knob in KNOBS.items():
        if key not in values:
            raise InputError(
                f"{name}: config.{key.partition('.')[0]} was replaced as a whole, and lacks"
                f" {key}; set one key at a time: c.{key} = {knob.default!r}"
            )
    return typed(values, name)


def _parse(key: str, text: str) -> Any:
    """Parses `text` in the type of the knob's default; raises `InputError`."""
    default = KNOBS[key].default
    kind = type(default)
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        kinds = {bool: "true or false", int: "a whole number", float: "a number"}
        raise InputError(
            f"--config.{key}={text} must be {kinds[kind]};"
            f" try --config.{key}={str(default).lower()}"
        ) from None


def _require_known(key: str) -> None:
    inside = [k for k in KNOBS if k.startswith(key + ".")]
    if inside:
        raise InputError(
            f"config.{key} is a group of keys; set one of: {', '.join(inside)}"
        )
    if key in RETIRED:
        raise InputError(f"config key {key!r} is no more; there is {RETIRED[key]}")
    if key not in KNOBS:
        raise InputError(
            f"unknown config key {key!r}{_near(key)}; jaxcls train --help lists every key"
        )


def _near(name: str) -> str:
    """Formats the keys of this name in groups, the key that does it, or the nearest one."""
    same = [repr(key) for key in KNOBS if key.split(".")[-1] == name]
    if same:
        return f" (did you mean {' or '.join(same)}?)"
    if advice := guesses.advice(name):
        return f"; {advice}"
    return did_you_mean(name, {*KNOBS, *(part for key in KNOBS for part in key.split("."))})
