"""Formats of export. A format writes a trained model to a file, and runs the file.

A format is a module with an entry in FORMATS, and has

- ABOUT: a line for --help;
- NEEDS: {module: distribution} of the optional dependency of its name;
- FILE, if it is not "model." and the format's name: the name of the file;
- write(model, path, asked): writes a model, and returns its entries of model.json;
- load(model, path, those entries): loads the file with its usual runtime, and returns a
  function from images to logits;
- example(model, those entries): (imports, code) that load and run the file, or None.
"""

import importlib.util
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxcls.errors import InputError
from jaxcls.export.formats import hub, onnx, safetensors, stablehlo, tflite

FORMATS: Mapping[str, Any] = MappingProxyType(
    {
        "hub": hub,
        "onnx": onnx,
        "safetensors": safetensors,
        "stablehlo": stablehlo,
        "tflite": tflite,
    }
)


def file_of(name: str, format: Any) -> str:
    """Returns the name of a format's file."""
    return str(getattr(format, "FILE", f"model.{name}"))


def check(name: str, format: Any) -> None:
    """Raises `InputError` if a package that a format needs is not installed."""
    for module, distribution in format.NEEDS.items():
        if importlib.util.find_spec(module) is None:
            given = f"jaxcls[{name}]" if name in FORMATS else distribution
            raise InputError(f"--format={name} needs {distribution}; pip install '{given}'")
