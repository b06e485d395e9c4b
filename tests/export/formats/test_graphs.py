"""ONNX files: what they declare, and how little is in them."""

import json
import os
import subprocess
import sys
from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.errors import InputError
from jaxcls.export import writing
from jaxcls.export.formats import onnx as format
from jaxcls.export.formats.model import Asked, Model
from jaxcls.models import layers

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("jax2onnx")
pytestmark = pytest.mark.slow
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 12, 12, 3), np.uint8)


class Small(nn.Module):
    """Each thing that an export tidies: BatchNorm, ReLU6, padded maxima, a global mean."""

    activation: str = "relu6"

    @nn.compact
    def __call__(self, images):
        x = layers.conv(8, 3, dtype=jnp.float32, name="conv1")(images)
        x = layers.BatchNorm(name="norm1")(x, False)
        x = layers.max_pool(x, window=3, stride=2, padding=1)
        x = {"relu6": nn.relu6, "gelu": layers.gelu}[self.activation](x)
        y = layers.BatchNorm(name="norm2")(x, False)  # Before its convolution.
        y = nn.Dropout(0.5, deterministic=True)(y)
        y = layers.conv(8, 3, groups=8, dtype=jnp.float32, name="conv2")(y)
        x = x + layers.BatchNorm(name="norm3")(y, False)
        return nn.Dense(3)(layers.global_mean(x))


def drawn(like):
    return RNG.uniform(0.2, 1.5, like.shape).astype(np.float32) * RNG.choice([-1, 1])


def exported(folder, activation="relu6", opset=0, about=None):
    """(the model, the ONNX file of it, its entries of model.json)."""

    module = Small(activation)
    like = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 12, 12, 3)))
    variables = jax.tree.map(drawn, dict(like))
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])

    def apply(variables, images):
        return module.apply(variables, images.astype(jnp.float32) / 255 - 0.5)

    model = Model("small", apply, variables, (12, 12, 3), ("a", "b", "c"), {}, None)
    model = model._replace(about=about or {})
    seen, asked = writing.Images(IMAGES, "noise"), Asked(opset=opset)
    facts = writing.export("onnx", format, model, asked, seen, folder)
    return model, onnx.load(folder / "model.onnx"), facts


def declared(made):
    return [(each.domain, each.version) for each in made.opset_import], made.ir_version


def test_a_file_is_of_the_least_opset_and_has_no_more_than_its_layers(tmp_path):
    _, made, facts = exported(tmp_path)
    assert declared(made) == ([("", 17)], 8)
    assert (facts["opset"], facts["ir_version"]) == (17, 8)
    onnx.checker.check_model(made, full_check=True)
    found = Counter(node.op_type for node in made.graph.node)
    # Three are of norm2: a convolution that pads with 0 does not take what is before it.
    assert found == Counter(
        {"Cast": 1, "Div": 2, "Transpose": 1, "Conv": 2, "MaxPool": 1, "Clip": 1}
        | {"Add": 4, "Mul": 1, "ReduceSum": 1, "Gemm": 1}
    )
    assert facts["verified"]["largest_difference"] < 0.1 * facts["verified"]["tolerance"]


def test_gelu_takes_opset_20(tmp_path):
    _, made, _ = exported(tmp_path, "gelu")
    assert declared(made) == ([("", 20)], 9)
    assert "Gelu" in {node.op_type for node in made.graph.node}
    with pytest.raises(InputError) as refused:
        exported(tmp_path, "gelu", opset=18)
    wanted = "--opset=18 has no Gelu as this model needs it; give --opset=20 or more"
    assert str(refused.value) == wanted


@pytest.mark.parametrize(("opset", "version"), [(18, 8), (21, 10), (23, 10)])
def test_an_opset_is_declared_as_asked(tmp_path, opset, version):
    _, made, _ = exported(tmp_path, opset=opset)
    assert declared(made) == ([("", opset)], version)


def test_metadata_holds_labels_and_preprocessing(tmp_path):
    about = {"preprocessing": {"text": "decode | resize(12)"}, "labels": ["x", "é", "z"]}
    exported(tmp_path, about={**about, "digest": "not of this"})
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    found = session.get_modelmeta().custom_metadata_map
    assert {key: json.loads(value) for key, value in found.items()} == about


# Prints the logits of the file's images, by the onnxruntime that it finds.
OLD = """
import sys
import numpy as np
import onnxruntime
assert onnxruntime.__version__.startswith("1.20."), onnxruntime.__version__
session = onnxruntime.InferenceSession(sys.argv[1])
np.save(sys.argv[3], session.run(None, {"images": np.load(sys.argv[2])})[0])
"""


@pytest.mark.parametrize("activation", ["relu6", "gelu"])
def test_onnxruntime_of_2024_loads_a_file(tmp_path, activation):
    # A folder with onnxruntime 1.20, which .ci/run makes.
    place = os.environ.get("ONNXRUNTIME_1_20")
    if not place:
        pytest.skip("ONNXRUNTIME_1_20 names no folder")
    model, _, _ = exported(tmp_path, activation)
    np.save(tmp_path / "images.npy", IMAGES)
    files = [tmp_path / name for name in ("model.onnx", "images.npy", "logits.npy")]
    told = {**os.environ, "PYTHONPATH": place}
    subprocess.run([sys.executable, "-c", OLD, *files], env=told, check=True)
    logits = model.apply(model.variables, jnp.asarray(IMAGES))
    np.testing.assert_allclose(np.load(files[2]), logits, rtol=1e-4, atol=1e-4)
