"""safetensors: the weights only; torchvision or timm load them with ``strict=True``."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxcls.errors import lookup
from jaxcls.export.formats.model import Asked, Model, Program, runs
from jaxcls.models import naming, weights
from jaxcls.models.weights import transfer

ABOUT = "the weights alone, by torchvision's or timm's names"
NEEDS: dict[str, str] = {}


def write(model: Model, path: pathlib.Path, asked: Asked) -> dict[str, Any]:
    """Writes the arrays by a library's names; model, preprocessing, classes: metadata.

    Returns the library and the number of arrays. Raises `InputError` if the library lacks
    the model, or the file exists.
    """
    library = asked.names or next(iter(model.namings))
    table = lookup(model.namings, library, "--names")
    tensors = naming.to_theirs(model.variables, table)
    weights.write(path, tensors, model.preprocessing, model.class_names, model.name)
    return {"names": library, "arrays": len(tensors)}


def load(model: Model, path: pathlib.Path, facts: Mapping[str, Any]) -> Program:
    """Returns the jaxcls model with the arrays of the file.

    Raises `ValueError` unless they are bit for bit the arrays of the model.
    """
    table = {facts["names"]: model.namings[facts["names"]]}
    read = weights.read(str(path), "--out")
    start = transfer.adapt(read.tensors, table, model.variables)
    ours = naming.flatten(model.variables)
    if not all(np.array_equal(start.arrays[name], ours[name]) for name in ours):
        raise ValueError("it does not read back as it was written")
    structure = jax.tree.structure(dict(model.variables))
    return runs(model, jax.tree.unflatten(structure, [start.arrays[name] for name in ours]))


def example(model: Model, facts: Mapping[str, Any]) -> tuple[str, str] | None:
    """Returns (imports, code) of example.py; None unless torchvision builds the model."""
    told = model.preprocessing
    is_bare = re.fullmatch(r"\w+", model.name)  # torchvision names options differently.
    if facts["names"] != "torchvision" or told is None or not is_bare:
        return None
    size = f", image_size={told.size}" if model.name.startswith("vit") else ""
    return (
        "import torch\nimport torchvision\nfrom safetensors.torch import load_file",
        f"""\
model = torchvision.models.get_model(
    "{model.name}", num_classes={len(model.class_names)}{size}
).eval()
model.load_state_dict(load_file(HERE / "model.safetensors"), strict=True)
MEAN = np.array({list(told.mean)}, np.float32)
STD = np.array({list(told.std)}, np.float32)


def logits(images):
    pixels = np.moveaxis((images / np.float32(255) - MEAN) / STD, 3, 1)
    with torch.no_grad():
        return model(torch.from_numpy(pixels)).numpy()""",
    )
