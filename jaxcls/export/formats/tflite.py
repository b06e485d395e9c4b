"""TFLite: LiteRT's converter reads StableHLO text, without TensorFlow."""

import importlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxcls.export.formats.model import Asked, Model, Program
from jaxcls.models import convolution

ABOUT = "LiteRT, for phones and small machines: one batch size"
NEEDS = {"litert_converter": "litert-converter", "ai_edge_litert": "ai-edge-litert"}


def write(model: Model, path: pathlib.Path, asked: Asked) -> dict[str, Any]:
    """Writes the graph from "images" to "logits" with its weights; returns its batch size.

    Passes on any exception of the converter.
    """
    images = jax.ShapeDtypeStruct((asked.batch_size, *model.image_shape), jnp.uint8)
    with convolution.plain():
        text = export.export(jax.jit(model.logits))(images).mlir_module()
    path.write_bytes(_converted(text))
    return {"batch_size": asked.batch_size}


def load(_model: Model, path: pathlib.Path, facts: Mapping[str, Any]) -> Program:
    """Returns the graph of the file as LiteRT's interpreter runs it on CPU, by batches."""
    interpreter = importlib.import_module("ai_edge_litert.interpreter")
    runner = interpreter.Interpreter(model_path=str(path)).get_signature_runner()

    def run(images: np.ndarray) -> np.ndarray:
        size = facts["batch_size"]
        whole = np.pad(images, [(0, -len(images) % size), (0, 0), (0, 0), (0, 0)])
        parts = np.split(whole, range(size, len(whole), size))
        return np.concatenate([runner(images=x)["logits"] for x in parts])[: len(images)]

    return run


def example(_model: Model, facts: Mapping[str, Any]) -> tuple[str, str]:
    """Returns (imports, code) of example.py."""
    size = facts["batch_size"]
    repeated = "images" if size == 1 else f"np.repeat(images, {size}, 0)"
    return (
        "from ai_edge_litert.interpreter import Interpreter",
        f"""\
model = Interpreter(model_path=str(HERE / "model.tflite")).get_signature_runner()


def logits(images):
    return model(images={repeated})["logits"]""",
    )


def _converted(text: str) -> bytes:
    """Converts StableHLO text to a flatbuffer.

    This calls the converter's compiled half only: the other half needs a package with
    version pins that conflict with most installations.
    """
    ir = importlib.import_module("litert_converter.mlir.ir")
    passes = importlib.import_module("litert_converter.mlir.passmanager").PassManager
    api = importlib.import_module("litert_converter.converter_api_ext")
    context = ir.Context()
    api.prepare_mlir_context(context)
    with context, ir.Location.unknown():
        module = ir.Module.parse(text)
        api.set_signature(module.operation, "serving_default", ["images"], ["logits"])
        api.run_convert_to_tfl_passes(module, passes(), api.ConvertToTFLConfig())
        last = "cse,stablehlo-legalize-vhlo,reconcile-unrealized-casts"
        passes.parse(f"builtin.module({last})").run(module.operation)
        return api.export_flatbuffer_to_bytes(module.operation)
