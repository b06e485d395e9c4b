"""Files that others run: a format is how a trained model is written, and run from there.

Adding one is a file here and a line in FORMATS.
"""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxcls.errors import InputError
from jaxcls.export.formats import onnx, safetensors, stablehlo, tflite
from jaxcls.export.formats.model import Asked, Model, Run


class Format(NamedTuple):
    """A kind of file.

    about: of it, in a line. write: a model to the file at a path; returns what model.json
    says of it. load: the file again, as what runs it elsewhere does: logits of images.
    example: (imports, code) that load the file and run it; None where there are none.
    needs: {module that `extra` of jaxcls installs: its distribution}.
    """

    about: str
    write: Callable[[Model, Any, Asked], dict[str, Any]]
    load: Callable[[Model, Any, Mapping[str, Any]], Run]
    example: Callable[[Model, Mapping[str, Any]], tuple[str, str] | None]
    extra: str = ""
    needs: Mapping[str, str] = {}

    def check(self, name: str) -> None:
        """Raise `InputError` where a package that it needs is not installed."""
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
