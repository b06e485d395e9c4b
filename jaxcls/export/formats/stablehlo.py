"""StableHLO by `jax.export`: a program that JAX releases of the next months can run."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxcls.export.formats.model import Asked, Model, Program

ABOUT = "jax.export: any batch size, for cpu, cuda and tpu"
NEEDS: dict[str, str] = {}
PLATFORMS = ("cpu", "cuda", "tpu")


def write(model: Model, path: pathlib.Path, _asked: Asked) -> dict[str, Any]:
    """Writes one program for all PLATFORMS and batch sizes, with its weights.

    Returns the platforms and the calling convention's version.
    """
    shape = (export.symbolic_shape("batch")[0], *model.image_shape)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    exported = export.export(jax.jit(model.logits), platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())
    version = exported.calling_convention_version
    return {"platforms": list(PLATFORMS), "calling_convention_version": version}


def load(_model: Model, path: pathlib.Path, _facts: Mapping[str, Any]) -> Program:
    """Returns the program of the file, on the default device."""
    # As its user compiles it, without options.
    call = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    return lambda images: np.asarray(call(images))


def example(_model: Model, _facts: Mapping[str, Any]) -> tuple[str, str]:
    """Returns (imports, code) of example.py."""
    return (
        "from jax import export  # Which needs flatbuffers.",
        """\
model = export.deserialize(bytearray((HERE / "model.stablehlo").read_bytes()))


def logits(images):
    return np.asarray(model.call(images))""",
    )
