"""The input of a format: a trained model as plain functions and arrays."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcls.models.naming import Naming
from jaxcls.models.weights import Preprocessing

# images uint8 [B, H, W, C] -> logits [B, K] float32, for any B.
Program = Callable[[np.ndarray], np.ndarray]


class Model(NamedTuple):
    """A trained model.

    name: model.name of its config. apply: (variables, images uint8 [B, H, W, C]) ->
    logits [B, K] float32; it normalises the images. variables: the arrays, in host memory.
    image_shape: (H, W, C). namings: {library: the names of the arrays in that library}.
    preprocessing: None if other libraries cannot do it. jit: compiles as the run does.
    about: the entries of model.json that do not depend on the format.
    """

    name: str
    apply: Callable[[Any, jax.Array], jax.Array]
    variables: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    namings: Mapping[str, Naming]
    preprocessing: Preprocessing | None
    jit: Callable[..., Any] = jax.jit
    about: Mapping[str, Any] = MappingProxyType({})

    def logits(self, images: jax.Array) -> jax.Array:
        """Returns the logits [B, K] of images, by `variables`."""
        return self.apply(self.variables, images)


class Asked(NamedTuple):
    """Options of a format.

    names: the library whose names the arrays get; "": the first library with the model.
    batch_size: of a format with a fixed batch size. opset: of ONNX; 0: the least that does.
    license: of a model card.
    """

    names: str = ""
    batch_size: int = 1
    opset: int = 0
    license: str = "unknown"


def runs(model: Model, variables: Mapping[str, Any]) -> Program:
    """Returns the model with other `variables`, compiled on the default device."""
    # As arguments: constants of a program are optimised, and copied into its cache.
    compiled, placed = model.jit(model.apply), jax.device_put(variables)
    return lambda images: np.asarray(compiled(placed, images))
