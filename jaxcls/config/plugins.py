"""Plug-ins: modules of the user's, whose tables add entries to ours.

A plug-in is a file, or a module on Python's path, that holds one or more of `TABLES`, each
a dict from names, as ours are:

    MODELS = {"mine": Mine}

It is imported only because a user names it, in a config's `plugins` or with --plugins;
never because a run's folder does. The source files that its import loads are part of a run.
"""

import hashlib
import importlib.metadata
import importlib.util
import pathlib
import sys
import traceback
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from jaxcls.errors import InputError, first_line

TABLES = (
    *("MODELS", "OPTIMIZERS", "WRAPPERS", "LOSSES", "METRICS", "SCHEDULES"),
    *("AUGMENTATIONS", "MIXES", "NORMALIZATIONS", "HOST_OPS", "RANDOM_HOST_OPS"),
    *("CORRUPTIONS", "IMPORTERS", "FORMATS"),
)
# What an entry of FORMATS, often a module, must have; all others are called.
_OF_A_FORMAT = ("ABOUT", "NEEDS", "write", "load", "example")
# Installed packages name their plug-ins in this group of entry points.
GROUP = "jaxcls.plugins"


class Plugins(NamedTuple):
    """What plug-ins add, and the source that it comes from.

    tables: {name of a table: {name of an entry: factory}}. sources: {"net/layers.py": the
    file's text}, of each source file by plug-in and relative path; of an installed package
    "package/version", too.
    """

    tables: Mapping[str, Mapping[str, Callable[..., Any]]]
    sources: Mapping[str, str]

    def added_to(self, table: str, ours: Mapping[str, Any]) -> dict[str, Any]:
        """Returns our entries of a table with those of the plug-ins.

        Raises `InputError` for a name that ours has already.
        """
        theirs = self.tables.get(table, {})
        for name in theirs.keys() & ours.keys():
            raise InputError(
                f"plugins: {name!r} is in {table} already; give it another name, such as"
                f" 'my_{name}'"
            )
        return {**ours, **theirs}

    @property
    def digests(self) -> dict[str, str]:
        """{"net/layers.py": 16 hex digits of SHA-256} of the sources."""
        return {
            name: hashlib.sha256(text.encode()).hexdigest()[:16]
            for name, text in sorted(self.sources.items())
        }


NONE = Plugins({}, {})
# By module: what its import loaded. A module is imported once a process.
_LOADED: dict[str, dict[str, str]] = {}


def load(text: str, key: str, beside: str = "") -> Plugins:
    """Imports the plug-ins that a text names, by commas.

    Args:
        text: Files ("net.py", "code/net.py"), modules ("mypackage.nets"), and names of the
            entry point group `jaxcls.plugins`; "" is none.
        key: The config key or flag that holds the text, for messages.
        beside: A folder where a relative file is looked up first.

    Raises `InputError`, in one line, for a plug-in that is not there, that cannot be
    imported, or that holds no table; and for an entry that two of them give.
    """
    tables: dict[str, dict[str, Callable[..., Any]]] = {}
    sources: dict[str, str] = {}
    for name in filter(None, map(str.strip, text.split(","))):
        where = f"{key}={name}"
        module, loaded = _imported(name, where, beside)
        sources |= loaded
        found = {each: getattr(module, each) for each in TABLES if hasattr(module, each)}
        if not found:
            raise InputError(
                f"{where} holds none of the tables {', '.join(TABLES)}; give it one, such"
                " as MODELS = {'mine': Mine}"
            )
        for table, entries in found.items():
            _check_entries(where, table, entries)
            there = tables.setdefault(table, {})
            for entry in entries.keys() & there.keys():
                raise InputError(f"{where}: {entry!r} is in {table} of another plug-in")
            there |= entries
    return Plugins(tables, sources)


def check_same(
    now: Mapping[str, str], recorded: Mapping[str, str], named: str, where: str
) -> None:
    """Raises `InputError` unless the source is that which a run recorded.

    Args:
        now, recorded: {file: digest}, as `Plugins.digests`; now may have more.
        named: The text of the run's `plugins`, for the message.
        where: The run, "--workdir=runs/mine".
    """
    if missing := sorted(recorded.keys() - now.keys()):
        flag = named or missing[0].partition("/")[0]
        raise InputError(
            f"{where} was trained with a plug-in ({missing[0]}); if you trust its code,"
            f" give --plugins={flag!r}"
        )
    for file in sorted(recorded):
        if now[file] != recorded[file]:
            raise InputError(
                f"{where}: {file} of its plug-in changed: sha256 was {recorded[file]}, and"
                f" is {now[file]}; restore it, as plugins/ in the run's folder has it"
            )


def _check_entries(where: str, table: str, entries: Any) -> None:
    """Raises `InputError` unless `entries` is a dict from names to what a table holds."""
    for name, entry in entries.items() if isinstance(entries, Mapping) else [("", 0)]:
        if not (isinstance(name, str) and name.isidentifier()):
            raise InputError(
                f"{where}: {table} must be a dict from names, such as {{'mine': Mine}}"
            )
        if table == "FORMATS":
            if lacking := [each for each in _OF_A_FORMAT if not hasattr(entry, each)]:
                raise InputError(
                    f"{where}: {name!r} of FORMATS lacks {lacking[0]}; a format has"
                    f" {', '.join(_OF_A_FORMAT)}"
                )
        elif not callable(entry):
            raise InputError(
                f"{where}: {name!r} of {table} must be a function or a class, such as"
                " {'mine': Mine}"
            )


def _imported(name: str, where: str, beside: str) -> tuple[ModuleType, dict[str, str]]:
    """Returns the module of a plug-in, and the source files that its import loaded."""
    (entry, *_) = [*importlib.metadata.entry_points(group=GROUP, name=name), None]
    if entry:
        return _module(entry.value.partition(":")[0], where)
    if not name.endswith(".py"):
        if "/" in name or pathlib.Path(f"{name}.py").is_file():
            raise InputError(f"{where} is no module; name the file, {name}.py")
        return _module(name, where)
    places = [pathlib.Path(beside) / name] if beside else []
    places = [place for place in (*places, pathlib.Path(name)) if place.is_file()]
    if not places:
        raise InputError(f"{where} is not a file; give a path from here, such as ./net.py")
    return _file(places[0].resolve(), where)


def _module(name: str, where: str) -> tuple[ModuleType, dict[str, str]]:
    """Imports a module of Python's path; its source is the whole of its package."""
    top = name.partition(".")[0]
    if name not in _LOADED:
        try:
            importlib.import_module(name)
        except Exception as error:  # The module is the user's code.
            raise InputError(f"{where}: {_told(error, '')}") from None
        file = getattr(sys.modules[top], "__file__", None)
        if not file or top == "jaxcls":
            raise InputError(f"{where} is not a plug-in; give a module of your own")
        root = pathlib.Path(file).resolve().parent
        is_package = hasattr(sys.modules[top], "__path__")
        names = {each for each in sys.modules if f"{each}.".startswith(f"{top}.")}
        _LOADED[name] = _texts(names, root.parent if is_package else root, "")
        for package in importlib.metadata.packages_distributions().get(top, []):
            _LOADED[name][f"{top}/version"] = importlib.metadata.version(package)
    return sys.modules[name], _LOADED[name]


def _file(file: pathlib.Path, where: str) -> tuple[ModuleType, dict[str, str]]:
    """Imports a file, which may import others of its folder."""
    name, folder = file.stem, str(file.parent)
    known = sys.modules.get(name)
    if known and getattr(known, "__file__", None) != str(file):
        raise InputError(
            f"{where}: {name} is the name of another module; give the file another name"
        )
    if not known:
        spec = importlib.util.spec_from_file_location(name, file)
        if not name.isidentifier() or not spec or not spec.loader:
            raise InputError(f"{where}: the name of a file must be one in Python, net.py")
        module, before = importlib.util.module_from_spec(spec), {*sys.modules}
        sys.modules[name] = module
        sys.path.insert(0, folder)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # The file is the user's code.
            del sys.modules[name]
            raise InputError(f"{where}: {_told(error, str(file))}") from None
        finally:
            sys.path.remove(folder)
        _LOADED[str(file)] = _texts({*sys.modules} - before, file.parent, f"{name}/")
    if str(file) not in _LOADED:
        raise InputError(f"{where} is imported already, and not as a plug-in")
    return sys.modules[name], _LOADED[str(file)]


def _texts(names: set[str], root: pathlib.Path, prefix: str) -> dict[str, str]:
    """Returns {prefix + relative path: text} of the modules with files below `root`."""
    found = {}
    for name in names:
        file = pathlib.Path(str(getattr(sys.modules[name], "__file__", None) or ""))
        if file.suffix != ".py" or name.partition(".")[0] == "jaxcls":
            continue
        relative = file.resolve()
        if relative.is_relative_to(root):
            relative = relative.relative_to(root)
            if not {"site-packages", "dist-packages"} & {*relative.parts}:
                found[prefix + relative.as_posix()] = file.read_text()
    return found


def _told(error: Exception, file: str) -> str:
    """Returns a line on an error of a plug-in: where it is, and what."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if file and frame.filename == file]
    if isinstance(error, SyntaxError):
        lines.append(error.lineno)
    place = f"line {lines[-1]}: " if lines else ""
    return f"{place}{type(error).__name__}: {first_line(error)}"
