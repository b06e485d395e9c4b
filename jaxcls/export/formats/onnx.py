"""ONNX for any batch size: jax2onnx converts, `graphs` tidies, and onnxruntime runs."""

import contextlib
import importlib
import io
import json
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcls.export.formats import graphs
from jaxcls.export.formats.model import Asked, Model, Program
from jaxcls.models import convolution

ABOUT = "any batch size, for onnxruntime and others"
NEEDS = {"jax2onnx": "jax2onnx", "onnxruntime": "onnxruntime"}


def write(model: Model, path: pathlib.Path, asked: Asked) -> dict[str, Any]:
    """Writes the graph from "images" to "logits" with its weights; returns its versions.

    Raises `InputError` if the opset asked lacks an operator. Passes on any exception of
    jax2onnx and onnxruntime.
    """
    shape = (jax.export.symbolic_shape("batch")[0], *model.image_shape)
    # jax2onnx replaces flax's layers by code that adds biases with rank promotion.
    promotes = jax.numpy_rank_promotion("allow")
    with _silent(), convolution.plain(), promotes:
        made = importlib.import_module("jax2onnx").to_onnx(
            model.logits,
            [jax.ShapeDtypeStruct(shape, jnp.uint8)],
            input_names=["images"],
            output_names=["logits"],
            model_name="classifier",
            opset=graphs.OPSETS[0],  # In its form, which later ones know.
        )
    opset = graphs.opset_of(made.graph, asked.opset)
    made = graphs.lean(made, opset, path)
    told = {"labels": list(model.class_names), **model.about}
    for key in ("labels", "input", "preprocessing"):
        if key in told:
            made.metadata_props.add(key=key, value=json.dumps(told[key]))
    path.write_bytes(made.SerializeToString())
    return {"opset": opset, "ir_version": made.ir_version}


def load(_model: Model, path: pathlib.Path, _facts: Mapping[str, Any]) -> Program:
    """Returns the graph of the file as onnxruntime runs it on CPU."""
    session = importlib.import_module("onnxruntime").InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(["logits"], {"images": images})[0]


def example(_model: Model, _facts: Mapping[str, Any]) -> tuple[str, str]:
    """Returns (imports, code) of example.py."""
    return (
        "import onnxruntime",
        """\
session = onnxruntime.InferenceSession(HERE / "model.onnx")


def logits(images):
    return session.run(["logits"], {"images": images})[0]""",
    )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppresses jax2onnx's output, and its log of plugins that fail to import."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
