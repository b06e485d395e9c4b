"""The provenance of a run: code, packages, machine and command."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcls.devices import jax_settings
from jaxcls.version import NUMERICS, __version__, home_of

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
_RECORDED = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml-collections",
    "tensorflow-datasets", "array-record", "opencv-python-headless", "Pillow", "simplejpeg",
)  # fmt: skip


def of_this_start() -> dict[str, Any]:
    """Returns the entry of this start for manifest.json, without devices and data."""
    return {
        "command": shlex.join(_command()),
        "jaxcls": __version__,
        "numerics": NUMERICS,
        "commit": _commit(),
        "code": code(),
        "python": platform.python_version(),
        "versions": versions(),
        "packages": _packages(),
        "platform": platform.platform(),
        "cpu": cpu(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "jax_settings": jax_settings.others(),
    }


@functools.cache
def code() -> str:
    """Returns 16 hex digits of SHA-256 over the source files of jaxcls and their names."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py"), key=lambda path: path.as_posix()):
        text = path.read_bytes()
        name = path.relative_to(_PACKAGE).as_posix()
        digest.update(f"{name} {len(text)}\n".encode() + text)
    return digest.hexdigest()[:16]


def versions(names: Sequence[str] = _RECORDED) -> dict[str, str | None]:
    """Returns {package: version or None}; by default, packages that may change a bit."""
    return {name: _version(name) for name in names}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Returns {name: text} of the differences between two starts of manifest.json."""
    after = _facts(now)
    changed = {
        name: f"{name} {value} -> {after.get(name)}"
        for name, value in _facts(before).items()
        if value != after.get(name)
    }
    if "numerics" in changed:
        changed["numerics"] += f" (the first is {home_of(before.get('numerics', 0))})"
    instructions = [set(start["cpu"]["instructions"]) for start in (before, now)]
    if is_on_cpu(before) and (lacking := instructions[0] ^ instructions[1]):
        changed["cpu"] = f"cpu instructions (one lacks {' '.join(sorted(lacking))})"
    return changed


def is_on_cpu(start: Mapping[str, Any]) -> bool:
    """Returns whether a start ran on CPU devices."""
    return bool(start["devices"][0].lower() == "cpu")


def _facts(start: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {name: value} of what a start ran with and on."""
    fields = ("jaxcls", "code", "commit", "python", "xla_flags", "hosts")
    return {
        "numerics": start.get("numerics", 0),
        **{name: start[name] for name in fields if name in start},
        **start["versions"],
        "JAX's settings": json.dumps(start.get("jax_settings", {}), sort_keys=True),
        "devices": f"{len(start['devices'])} {start['devices'][0]}",
        "mesh.fsdp": start.get("fsdp", 1),
        "convolutions": start.get("convolution", ""),
        "steps": "in a loop" if start.get("loop", 0) else "one by one",
    }


def _command() -> list[str]:
    """Returns the command line as typed, without the absolute path of a program."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    script = os.path.basename(sys.argv[0])
    if script == "jaxcls" or (spec and spec.name == "jaxcls.__main__"):
        program = ["jaxcls"]
    else:
        program = ["python", "-m", spec.name] if spec else ["python", script]
    return [*program, *sys.argv[1:]]


@functools.cache
def _packages() -> list[str]:
    """Returns every installed package as ``name==version``, sorted."""
    # What is left of a removed package may have no name.
    found: list[Any] = [each.metadata for each in importlib.metadata.distributions()]
    names = {f"{each.get('Name')}=={each.get('Version')}" for each in found}
    return sorted(names, key=str.lower)


def cpu() -> dict[str, Any]:
    """Returns the CPU facts that decide bits: instructions, and threads of a pool."""
    text = ""
    with contextlib.suppress(OSError):  # Only Linux has this file.
        text = pathlib.Path("/proc/cpuinfo").read_text()
    lines = dict(re.findall(r"^(model name|flags|Features)\s*: (.*)$", text, re.MULTILINE))
    flags = (lines.get("flags") or lines.get("Features") or "").split()
    vector = ("sse", "avx", "fma", "amx", "asimd", "neon", "sve", "bf16")
    return {
        "machine": platform.machine(),
        "model": lines.get("model name", ""),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "nproc": os.environ.get("NPROC", ""),
        "instructions": sorted(flag for flag in flags if flag.startswith(vector)),
    }


@functools.cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Returns the commit of the running checkout; None for a wheel.

    It ends in "-dirty" if tracked files have changes.
    """
    here = _PACKAGE.parent
    if not (here / ".git").exists():
        return None
    describe = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        output = subprocess.check_output(
            describe, cwd=here, text=True, timeout=10, stderr=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return output.strip()
