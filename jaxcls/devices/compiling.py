"""The library of convolutions on a CPU, as options for `jax.jit`.

XLA gives convolutions to YNNPACK by default. On x86 its own (Eigen's) are faster: up to
2 times with AVX2, and 1.0 to 1.3 times with AVX-512 (`python -m benchmarks.convolutions`).
The bits differ, so that a run keeps its library, as it keeps its devices.
"""

import importlib.metadata
import os
import platform
import re

from jax.sharding import Mesh

from jaxcls.errors import InputError

KEY = "compile.convolution"
CHOICES = ("auto", "eigen", "ynnpack")
# What the user's XLA_FLAGS choose.
BY_FLAGS = "xla_flags"
_OPTION = "xla_cpu_experimental_ynn_fusion_type"
# All that YNNPACK has by default in these releases of jaxlib, without convolutions. Other
# releases may give it more.
_WITHOUT = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
_RELEASES = ("0.10", "0.11", "0.12")
_X86 = ("x86_64", "AMD64")


def chosen(asked: str, mesh: Mesh) -> str:
    """Returns the library of convolutions for a mesh: a name, or "" on accelerators.

    asked: one of CHOICES. "auto" is "eigen" on x86, where this jaxlib is known to have it.
    XLA_FLAGS that name it win over all. Raises `InputError` if "eigen" is not to be had.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return ""
    if _OPTION in os.environ.get("XLA_FLAGS", ""):
        return BY_FLAGS
    version = importlib.metadata.version("jaxlib")
    release = ".".join(re.findall(r"\d+", version)[:2])
    if asked == "eigen" and release not in _RELEASES:
        raise InputError(
            f"{KEY}=eigen is known for jaxlib {', '.join(_RELEASES)}, and this is"
            f" {version}; give {KEY}=ynnpack, or one of these"
        )
    is_faster = platform.machine() in _X86 and release in _RELEASES
    return asked if asked != "auto" else "eigen" if is_faster else "ynnpack"


def options(library: str) -> dict[str, str] | None:
    """Returns the compiler options of a library of `chosen`, for `jax.jit`."""
    return {_OPTION: _WITHOUT} if library == "eigen" else None
