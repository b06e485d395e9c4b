"""A model by its name, with random or pretrained variables, for use by itself."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxcls.config import calls
from jaxcls.errors import InputError
from jaxcls.models import naming
from jaxcls.models.table import MODELS
from jaxcls.models.weights import read, transfer


def create(
    name: str,
    num_classes: int,
    *,
    image_shape: tuple[int, int, int] = (224, 224, 3),
    weights: str = "",
    seed: int = 0,
    dtype: Any = jnp.float32,
) -> tuple[Any, dict[str, Any]]:
    """Returns (Flax module, variables) of an entry of MODELS.

    ``module.apply(variables, images, False)`` maps float32 [B, H, W, C] to an `Output` of
    logits [B, num_classes] and embed [B, D].

    Args:
        name: With options, if any: "resnet50", "vit_s_16(drop_path=0.1)".
        num_classes: The number of logits.
        image_shape: (H, W, C) of the images that the variables are for.
        weights: A file of weights, as `init.weights` takes it, or
            "hf:timm/resnet50.a1_in1k"; "" is none. A head of other classes is random.
        seed: Of the random variables.
        dtype: Of the computation; params are float32.

    Raises `InputError` for an unknown name, an option that it does not take, and weights of
    another model. Warns if the weights do not tell which of several networks they are of.

    Examples:
        >>> module, variables = create("resnet18", num_classes=10)
        >>> module.apply(variables, jnp.zeros((1, 64, 64, 3)), False).logits.shape
        (1, 10)
    """
    module = calls.build_one(name, MODELS, "name", num_classes=num_classes, dtype=dtype)
    images = jnp.zeros((1, *image_shape), jnp.float32)
    made = jax.jit(lambda: module.init(jax.random.key(seed), images, False))()
    variables = {"params": made["params"], "batch_stats": made.get("batch_stats", {})}
    if not weights:
        return module, variables
    given = read(weights, "weights")
    tensors = given.tensors
    is_fresh = transfer.classes_of(tensors, module.namings()) != num_classes
    try:
        start = transfer.adapt(
            tensors,
            module.namings(),
            variables,
            is_head_fresh=is_fresh,
            model=(name, module),
            architecture=given.architecture,
            image_shape=image_shape,
        )
    except InputError as error:
        raise InputError(f"weights={weights} for name={name}: it {error}") from None
    for said in (*given.notes, start.doubt):
        if said:
            warnings.warn(f"weights={weights} for name={name}: {said}", stacklevel=2)
    flat = naming.flatten(variables)
    arrays = {path: jnp.asarray(start.arrays.get(path, x)) for path, x in flat.items()}
    return module, variables | traverse_util.unflatten_dict(arrays, sep="/")
