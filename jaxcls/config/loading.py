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

import importlib.util
import math
import pathlib
import re
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxcls.config import rules
from jaxcls.config.knobs import KNOBS
from jaxcls.errors import InputError, did_you_mean


def base() -> ConfigDict:
    """Returns every knob at its default, locked: an unknown key is an error."""
    return from_flat({})


def from_flat(values: Mapping[str, Any]) -> ConfigDict:
    """Returns the defaults with ``{"optim.lr": 0.1}`` set.

    Raises `InputError` for an unknown key.
    """
    for key in values:
        _require_known(key)
    tree: dict[str, Any] = {}
    for key, knob in KNOBS.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = values.get(key, knob.default)
    return ConfigDict(tree).lock()


def kept(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns flat values as a run folder keeps them, with compile.cache empty.

    A run executes programs from that cache, and a folder may come from anybody. So each
    start must give the cache anew.
    """
    return {**values, "compile.cache": ""}


def flat(config: ConfigDict) -> dict[str, Any]:
    """Returns ``{"optim.lr": 0.1, ...}`` in the order of `KNOBS`."""
    return {key: _get(config, key) for key in KNOBS}


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


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets `key` from the text of a command line, in the type of its default.

    Raises `InputError` for an unknown key, or a text of another type.
    """
    _require_known(key)
    value = _parse(key, text)
    *parents, leaf = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[leaf] = value


def check(config: ConfigDict) -> None:
    """Checks the rules that need nothing but the config; raises `InputError`."""
    rules.check(flat(config))


def check_alone(config: ConfigDict) -> None:
    """Raises `InputError` if a key is set that has no effect without another key."""
    rules.check_alone(flat(config))


def seed_of(config: ConfigDict, stream: str) -> int:
    """Returns the seed of a random stream: `seeds.STREAM`, or `seed` if that is -1."""
    own = config.seeds[stream]
    return config.seed if own < 0 else own


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
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"config {name} is not a Python file; try configs/digits.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise InputError(
                f"config {name} defines no get_config(); see configs/digits.py"
            )
        config = module.get_config(argument) if argument else module.get_config()
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
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    if isinstance(error, SyntaxError) and error.lineno:
        lines.append(error.lineno)
    where = f"{name}:{lines[-1]}" if lines else name
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    first = (text.strip().splitlines() or [""])[0]
    form = r"override field '(\w+)'.*\. (.*) is of original type <class '(\w+)'"
    wrong = re.search(form, first)
    if isinstance(error, TypeError) and wrong:
        same = [k.default for path, k in KNOBS.items() if path.split(".")[-1] == wrong[1]]
        kinds = " or ".join(sorted({type(default).__name__ for default in same}))
        wanted = f"{kinds}, such as {same[0]!r}" if same else "set one key at a time"
        return f"{where}: {wrong[1]}={wrong[2]} is {wrong[3]}, and must be {wanted}"
    written = re.match(r"""'?Key "(\w+)" does not exist""", first)
    key = written[1] if written else None
    if isinstance(error, AttributeError) and isinstance(error.obj, ConfigDict):
        key = error.name
    if key:
        return f"{where}: unknown config key {key!r}{_near_name(key)}"
    return f"{where}: {type(error).__name__}: {first}"


def _flatten(config: ConfigDict, name: str) -> dict[str, Any]:
    """Returns values by dotted key; raises `InputError` for types not as in `KNOBS`."""

    def walk(node: ConfigDict, prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, ConfigDict):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    values = dict(walk(config, ""))
    for key in KNOBS:
        group = key.partition(".")[0]
        if key not in values and group not in values:
            raise InputError(
                f"{name}: config.{group} was replaced as a whole, and lacks {key}; set one"
                f" key at a time: c.{key} = {KNOBS[key].default!r}"
            )
    for key, value in values.items():
        _require_known(key)
        wanted = type(KNOBS[key].default)
        if wanted is float and type(value) is int:
            values[key] = float(value)
        elif type(value) is not wanted:
            raise InputError(
                f"{name}: {key}={value!r} is {type(value).__name__}, and must be"
                f" {wanted.__name__}; the default is {KNOBS[key].default!r}"
            )
    return values


def _parse(key: str, text: str) -> Any:
    """Parses `text` in the type of the knob's default; raises `InputError`."""
    default = KNOBS[key].default
    if isinstance(default, str):
        return text
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, int):
            return int(text)
        value = float(text)
    except (ValueError, KeyError):
        raise InputError(
            f"--config.{key}={text} must be {_KINDS[type(default)]};"
            f" try --config.{key}={_spell(default)}"
        ) from None
    if not math.isfinite(value):
        raise InputError(
            f"--config.{key}={text} must be a finite number; try --config.{key}={default}"
        )
    return value


_KINDS = {bool: "true or false", int: "a whole number", float: "a number"}


def _spell(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _require_known(key: str) -> None:
    if key in KNOBS:
        return
    inside = [k for k in KNOBS if k.startswith(key + ".")]
    if inside:
        raise InputError(
            f"config.{key} is a group of keys; set one of: {', '.join(inside)}"
        )
    raise InputError(
        f"unknown config key {key!r}{_near_key(key)}; jaxcls train --help lists every key"
    )


def _near_key(key: str) -> str:
    """Formats the nearest key, by the whole name or the last component, for a message."""
    near = did_you_mean(key, KNOBS)
    leaf = key.split(".")[-1]
    same = [k for k in KNOBS if k.split(".")[-1] == leaf]
    return near if near or not same else f" (did you mean {same[0]!r}?)"


def _near_name(name: str) -> str:
    """Formats the nearest key or group, or the keys of this name in other groups."""
    same = [k for k in KNOBS if k.split(".")[-1] == name]
    names = {part for key in KNOBS for part in key.split(".")}
    return f" here; there is {', '.join(same)}" if same else did_you_mean(name, names)


def _get(config: ConfigDict, key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node[part]
    return node
