"""ONNX, by jax2onnx, for any batch size; run by onnxruntime."""

import contextlib
import importlib
import io
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcls.export.formats.model import Asked, Model, Run
from jaxcls.models import convolution


def write(model: Model, path: pathlib.Path, asked: Asked) -> dict[str, Any]:
    """The graph from "images" to "logits", the weights inside.

    Raises what jax2onnx does for a model that it cannot convert.
    """
    del asked
    shape = (jax.export.symbolic_shape("batch")[0], *model.image_shape)
    # What it puts in place of flax's layers adds biases by promotion.
    promotes = jax.numpy_rank_promotion("allow")
    with _silent(), convolution.plain(), promotes:
        made = importlib.import_module("jax2onnx").to_onnx(
            model.logits,
            [jax.ShapeDtypeStruct(shape, jnp.uint8)],
            input_names=["images"],
            output_names=["logits"],
            model_name="classifier",
        )
    path.write_bytes(made.SerializeToString())
    return {"opset": max(each.version for each in made.opset_import if not each.domain)}


def load(model: Model, path: pathlib.Path, facts: Mapping[str, Any]) -> Run:
    """The graph as onnxruntime runs it on CPU."""
    del model, facts
    session = importlib.import_module("onnxruntime").InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(["logits"], {"images": images})[0]


def example(model: Model, facts: Mapping[str, Any]) -> tuple[str, str]:
    """(imports, code) of example.py."""
    del model, facts
    return (
        "import onnxruntime",
        """\
session = onnxruntime.InferenceSession(HERE / "model.onnx")


def logits(images):
    return session.run(["logits"], {"images": images})[0]""",
    )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Nothing of what jax2onnx prints, and of the plugins that it could not import."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
