"""The folder of a run: its lock, config.json and manifest.json.

config.json holds the config of the run, and manifest.json holds an entry for each start.
Both are replaced atomically, and manifest.json has a seal. Nothing here overwrites another
run: only a config of the same identity continues an old folder.
"""

import contextlib
import datetime
import difflib
import fcntl
import itertools
import json
import os
import pathlib
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxcls import atomic
from jaxcls.config import loading as configs
from jaxcls.config import plugins
from jaxcls.config.plugins import Plugins
from jaxcls.errors import InputError, InUseError
from jaxcls.runs import forms, provenance, records
from jaxcls.runs.clock import Clock, clock
from jaxcls.version import NUMERICS, __version__, home_of

FORMAT = 1
# Every other implied fact describes the data.
_NAMED = {"weights": "what init.weights name", "teacher": "what distill.run names"}
_NAMED |= {"plugins": "the source of a plug-in"}


class Workdir:
    """The files of a run in `path`; the constructor writes nothing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if "://" in str(path):
            raise InputError(
                f"--workdir={path} is a URL, and must be a folder; try --workdir=runs/name"
            )
        self.given = str(path)
        try:
            self.path = pathlib.Path(path).expanduser().resolve()
            self.path.exists()
        except (OSError, RuntimeError, ValueError) as error:  # A NUL is in no path.
            raise InputError(
                f"--workdir={path} is no path ({error}); try runs/name"
            ) from None
        if set("[]") & set(str(self.path)):
            raise InputError(
                f"--workdir={path}: {self.path} holds a '[' or ']', and a checkpoint below"
                " such a folder cannot be read back; name a folder without"
            )
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.timing = self.path / "timing.jsonl"
        self.digests = self.path / "digests.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.profile = self.path / "profile"
        self.clock: Clock | None = None  # Of this process's start.

    def read(self) -> dict[str, Any]:
        """Returns config.json; raises `InputError` if the folder is no readable run."""
        file = self.path / "config.json"
        saved = atomic.read_json(file)
        is_ours = isinstance(saved, dict) and {"config", "implied"} <= set(saved)
        if not is_ours:
            why = "its config.json is another program's; name a new folder"
            if saved is None:
                why = f"it has no config.json; {self._run_nearby()}"
            raise InputError(f"--workdir={self.given} is not a run's folder: {why}")
        if saved.get("format") != FORMAT:
            raise InputError(
                f"{file} has format {saved.get('format')}, and jaxcls {__version__} reads"
                f" {FORMAT}; use the jaxcls that wrote it"
            )
        for part in ("config", "implied"):
            if not isinstance(saved[part], dict):
                raise InputError(
                    f"{file}: {part!r} is {type(saved[part]).__name__}, and must be an"
                    " object; put the file right, or name a new folder"
                )
        values = configs.typed(saved["config"], str(file))
        forms.check_implied(saved["implied"], file)
        return saved | {"config": configs.kept(values)}

    def implied(self) -> dict[str, Any]:
        """Returns the implied facts; raises `InputError` if one of the data is missing."""
        implied, file = self.read()["implied"], self.path / "config.json"
        facts = implied.get("facts", {})
        lost = [key for key in forms.FACTS if key not in facts and key != "fingerprint"]
        unknown = sorted(facts.keys() - forms.FACTS)
        if lost or unknown:
            what = f"lacks {lost[0]!r}" if lost else f"has an unknown {unknown[0]!r}"
            raise InputError(
                f"{file}: implied.facts {what}; put the file right, or name a new folder"
            )
        return implied

    def _run_nearby(self) -> str:
        """Returns a hint for messages: a run's folder above, below or beside it."""
        above, given = self.path.parent.parent, pathlib.Path(self.given).expanduser()
        if (above / "config.json").is_file():
            return f"the run's folder is {above}"
        for folder in (given, given.parent):
            runs = sorted(file.parent.name for file in folder.glob("*/config.json"))
            if runs:
                near = difflib.get_close_matches(self.path.name, runs, n=1, cutoff=0)
                return f"there are {', '.join(runs[:8])}; try --workdir={folder / near[0]}"
        return "give the folder of a run, such as runs/digits"

    def config(self) -> ConfigDict:
        """Returns the config of the run in this folder."""
        return configs.from_flat(self.read()["config"])

    def check_identity(self, config: ConfigDict, why: str = "") -> None:
        """Raises `InputError` if the folder holds another run or other files.

        why: Why the run cannot become that of the config, for the message.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise InputError(f"--workdir={self.given} is a file; name a folder")
        # A start that was killed leaves these; another may write them just now.
        begun = {"lock", "config.json.tmp"}
        others = sorted({entry.name for entry in self.path.iterdir()} - begun)
        if not others:
            return
        if "config.json" not in others:
            raise InputError(
                f"--workdir={self.given} holds {others[0]!r} and no run; name a new or"
                f" empty folder, such as --workdir={self.given.rstrip('/')}/run"
            )
        saved = self.read()["config"]  # Raises for another program's folder.
        if not self._holds_results():
            return  # Nothing can be lost.
        listed = ", ".join(
            f"{key} {old!r} -> {new!r}"
            for key, (old, new) in _changed(configs.from_flat(saved), config).items()
        )
        if listed:
            raise InputError(
                f"--workdir={self.given} holds another run ({listed}), and"
                f" {why or 'a run keeps what it is'}; start this one with"
                f" --workdir={self.free_name()}, and to go on from its weights"
                f" --config.init.weights={self.given}"
            )

    def length_before(self, config: ConfigDict) -> str:
        """Returns the length of the folder's run if the config differs in it alone.

        Returns "" if the length is the same, anything else differs, or no run is there.
        """
        if not (self.path / "config.json").is_file() or not self._holds_results():
            return ""
        changed = _changed(self.config(), config)
        return str(changed["length"][0]) if changed.keys() == {"length"} else ""

    def _holds_results(self) -> bool:
        """Returns whether the folder has a checkpoint or a metrics record."""
        recorded = self.metrics.exists() and self.metrics.stat().st_size > 0
        return recorded or any(self.checkpoints.glob("[0-9]*"))

    def free_name(self) -> str:
        """Returns a free name beside this folder: the folder's name with a number."""
        names = (f"{self.given.rstrip('/')}-{i}" for i in itertools.count(2))
        return next(n for n in names if not pathlib.Path(n).expanduser().exists())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the folder against every other process; creates the folder if needed.

        Raises `InUseError`, which names the holder. The kernel releases the lock when a
        process dies.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / "lock").open("a+")
        except OSError as error:
            raise InputError(
                f"--workdir={self.given} cannot be written ({error.strerror}); give a"
                " folder you may write to: --workdir=DIR"
            ) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                holder = self._holder() or "another process"
                raise InUseError(
                    f"--workdir={self.given} is in use by {holder}; wait for it, or give"
                    f" another folder: --workdir={self.free_name()}"
                ) from None
            text = f"host {socket.gethostname()}, pid {os.getpid()}, since {_now()}\n"
            with contextlib.suppress(OSError):  # The lock works without the holder's name.
                file.truncate(0)
                # Past the buffer of `file`, whose close would fail on a full disk too.
                os.write(file.fileno(), text.encode())
            yield

    def _holder(self) -> str:
        """Returns what the lock says of its holder, or "" if that cannot be read."""
        with contextlib.suppress(OSError):
            return (self.path / "lock").read_text(errors="replace").strip()[:200]
        return ""

    def adopt(self, config: ConfigDict, implied: dict[str, Any]) -> None:
        """Writes config.json if it is new or changed.

        implied: facts that follow from config and data (classes, counts, steps). Raises
        `InputError` if the folder has results, and `implied` differs from the first start.
        """
        file = self.path / "config.json"
        if file.exists() and self._holds_results():
            is_longer = bool(self.length_before(config))
            given = implied.items()
            self.check_same({k: v for k, v in given if k != "steps" or not is_longer})
        values = configs.kept(configs.flat(config))
        saved = {"format": FORMAT, "config": values, "implied": implied}
        text = json.dumps(saved, indent=1) + "\n"
        if not file.exists() or file.read_bytes() != text.encode():
            if self.starts():  # Of the next start, if it is killed before it has begun.
                self.note(config_next=records.seal(text))
            atomic.write(file, text)

    def check_same(self, implied: dict[str, Any]) -> None:
        """Raises `InputError` if an implied fact differs from the first start."""
        # Older runs do not record weights and teachers, and had none.
        before = _leaves({"weights": "", "teacher": "", **self.read()["implied"]})
        now = _leaves(implied)
        # Data that jaxcls did not prepare have no known fingerprint.
        if before.get("facts.fingerprint") in (None, '""'):
            now.pop("facts.fingerprint", None)
        if implied.keys() & {"facts", "plugins"}:
            self.check_plugins(implied.get("plugins", {}))
        for key in (key for key in now if before.get(key) != now[key]):
            what = _NAMED.get(key.partition(".")[0], "the data")
            raise InputError(
                f"--workdir={self.given}: {what} changed: {key} was {before.get(key)}"
                f" and is {now[key]}; restore {what}, or start another run with"
                f" --workdir={self.free_name()}"
            )

    def check_plugins(self, now: Mapping[str, str]) -> None:
        """Raises `InputError` unless `now` has the plug-ins that the run trained with.

        now: {file: digest}, as `Plugins.digests`.
        """
        saved = self.read()
        recorded = saved["implied"].get("plugins", {})
        named = saved["config"].get("plugins", "")
        plugins.check_same(now, recorded, named, f"--workdir={self.given}")

    def keep_plugins(self, given: Plugins) -> None:
        """Writes the source of plug-ins to plugins/, for people; nothing imports it."""
        for name, text in given.sources.items():
            file = self.path / "plugins" / name
            if not file.exists() or file.read_bytes() != text.encode():
                file.parent.mkdir(parents=True, exist_ok=True)
                atomic.write(file, text)

    def weights_of(self, config: ConfigDict) -> str | None:
        """Returns the recorded fingerprint of the config's init.weights.

        Returns "" if the config names no weights. Returns None if only a read of the
        weights can tell: the run has no checkpoint, or its init.weights names another
        place.
        """
        if not config.init.weights:
            return ""
        has_states = any(self.checkpoints.glob("[0-9]*"))
        if not has_states or self.config().init.weights != config.init.weights:
            return None
        return self.read()["implied"].get("weights", "")

    def convolution(self) -> str | None:
        """Returns the library of convolutions of the last start; None if unknown."""
        starts = self.starts() if self._holds_results() else []
        return starts[-1].get("convolution") if starts else None

    def check_numerics(self) -> None:
        """Raises `InputError` if the run's state was computed with another `NUMERICS`."""
        starts = self.starts()
        before = starts[-1].get("numerics", 0) if starts else 0
        if self._holds_results() and before != NUMERICS:
            raise InputError(
                f"--workdir={self.given} was begun by code that computes other bits"
                f" (numerics {before}, and this is {NUMERICS}); go on with"
                f" {home_of(before)}, or start another run with"
                f" --workdir={self.free_name()}"
            )

    def begin(self, devices: list[str], **facts: Any) -> None:
        """Adds this start to manifest.json; gives the reason "killed" to unfinished starts.

        facts: further facts of this start, such as the number of hosts.
        """
        starts = self.starts()
        for start in starts:
            start.setdefault("reason", "killed")
        ours = {
            "started": _now(),
            **provenance.of_this_start(),
            "devices": devices,
            "config": self._config_seal(),
            **facts,
        }
        self.write_starts([*starts, ours])
        self.clock = clock(len(starts) + 1)

    def _config_seal(self) -> str:
        return records.seal((self.path / "config.json").read_text())

    def check_config(self) -> None:
        """Raises `InputError` if config.json is not as the last start wrote it.

        Without manifest.json, or with an earlier version's, nothing is known.
        """
        starts = self.starts()
        sealed = starts[-1].get("config") if starts else None
        if sealed and self._config_seal() not in (sealed, starts[-1].get("config_next")):
            raise InputError(
                f"{self.path / 'config.json'} is not as the run's last start wrote it, by"
                " the seal in manifest.json; put it back as it was, or start the run once"
                " more with its command, which writes it"
            )

    def note(self, **facts: Any) -> None:
        """Adds facts to the entry of this start, such as the step that it resumed from.

        Raises `InputError` if the entry is gone.
        """
        starts = self.starts()
        if not starts:
            raise InputError(
                f"{self.path / 'manifest.json'} has lost this start; the folder was moved,"
                " emptied or deleted; put it back, and start again"
            )
        starts[-1] |= facts
        self.write_starts(starts)

    def end(self, reason: str) -> None:
        """Closes the entry of this start: "done", "diverged", "interrupted", "failed"."""
        # Stuck devices would keep a process that ends because of them.
        asks_devices = reason in ("done", "diverged")
        used = self.clock.used(asks_devices) if self.clock else {}
        self.note(ended=_now(), reason=reason, **used)

    def changes(self) -> str:
        """Returns how this start differs from earlier ones that trained; "" if it does not.

        It compares code, packages, flags, machine and topology.
        """
        *before, now = self.starts()
        changed: dict[str, str] = {}
        for start in before:
            if start.keys() >= {"resumed_from", "versions", "devices", "cpu"}:
                changed |= provenance.changes(start, now)
        return "; ".join(changed.values())

    def starts(self) -> list[dict[str, Any]]:
        """Returns the entries of manifest.json, one a start; [] if there is no manifest.

        Raises `InputError` if the file was changed, or has another form.
        """
        file = self.path / "manifest.json"
        saved = atomic.read_json(file)
        if saved is None:
            return []
        found: Any = saved.get("starts") if isinstance(saved, dict) else None
        # An earlier version sealed nothing.
        if isinstance(saved, dict) and saved.get("seal", _seal(found)) != _seal(found):
            raise InputError(
                f"{file} is not as it was written, by its seal; put it back as it was, or"
                " move it away"
            )
        forms.check_starts(found, file)
        starts: list[dict[str, Any]] = found
        return starts

    def write_starts(self, starts: list[dict[str, Any]]) -> None:
        """Writes manifest.json with these entries, and its seal."""
        saved = {"format": FORMAT, "starts": starts, "seal": _seal(atomic.finite(starts))}
        atomic.write_json(self.path / "manifest.json", saved)


def _seal(starts: Any) -> str:
    """Returns the seal of the starts in manifest.json."""
    return records.seal(json.dumps(starts, sort_keys=True))


def _changed(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns the keys that make `new` another run than `old`, each with (old, new)."""
    found = configs.differences(old, new).items()
    return {key: both for key, both in found if configs.is_identity(key, new)}


def _leaves(tree: dict[str, Any]) -> dict[str, str]:
    """Returns {dotted key: JSON text} for each value of nested dicts."""
    from flax import traverse_util

    flat = traverse_util.flatten_dict(tree, sep=".")
    return {key: json.dumps(value) for key, value in flat.items()}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
