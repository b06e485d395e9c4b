"""Formats of export. A format writes a trained model to a file, and runs the file.

A new format needs a module here and an entry in FORMATS.
"""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxcls.errors import InputError
from jaxcls.export.formats import onnx, safetensors, stablehlo, tflite
from jaxcls.export.formats.model import Asked, Model, Run


class Format(NamedTuple):
    """A file format.

    about: a line for --help. write: writes a model to a path, and returns its entries of
    model.json. load: loads the file with its usual runtime, and returns a function from
    images to logits. example: returns (imports, code) that load and run the file, or None.
    extra: the optional dependency of jaxcls. needs: {module: distribution} of that extra.
    """

    about: str
    write: Callable[[Model, Any, Asked], dict[str, Any]]
    load: Callable[[Model, Any, Mapping[str, Any]], Run]
    example: Callable[[Model, Mapping[str, Any]], tuple[str, str] | None]
    extra: str = ""
    needs: Mapping[str, str] = {}

    def check(self, name: str) -> None:
        """Raises `InputError` if a package of `needs` is not installed."""
        for module, distribution in self.needs.items():
            if importlib.util.find_spec(module) is None:
                raise InputError(
                    f"--format={name} needs {distribution}; pip install"
                    f" 'jaxcls[{self.extra}]'"
                )


FORMATS: dict[str, Format] = {
    "onnx": Format(
        "any batch size, for onnxruntime and others",
        onnx.write,
        onnx.load,
        onnx.example,
        "onnx",
        {"jax2onnx": "jax2onnx", "onnxruntime": "onnxruntime"},
    ),
    "safetensors": Format(
        "the weights alone, by torchvision's or timm's names",
        safetensors.write,
        safetensors.load,
        safetensors.example,
    ),
    "stablehlo": Format(
        "jax.export: any batch size, for cpu, cuda and tpu",
        stablehlo.write,
        stablehlo.load,
        stablehlo.example,
    ),
    "tflite": Format(
        "LiteRT, for phones and small machines: one batch size",
        tflite.write,
        tflite.load,
        tflite.example,
        "tflite",
        {"litert_converter": "litert-converter", "ai_edge_litert": "ai-edge-litert"},
    ),
}
