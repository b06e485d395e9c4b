"""What a format is given: a trained model as plain functions and arrays."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcls.models.naming import Naming
from jaxcls.models.weights import Preprocessing

# images uint8 [B, H, W, C] -> logits [B, K] float32, of any B.
Run = Callable[[np.ndarray], np.ndarray]


class DiffersError(Exception):
    """A file that does not give what the model does; its text says how."""


class Model(NamedTuple):
    """A trained model.

    name: model.name of its config. apply: (variables, images uint8 [B, H, W, C]) ->
    logits [B, K] float32; normalising is in it. variables: its arrays, in host memory.
    image_shape: (H, W, C). namings: what other libraries call its arrays, by library.
    preprocessing: None where others cannot do it.
    """

    name: str
    apply: Callable[[Any, jax.Array], jax.Array]
    variables: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    namings: Mapping[str, Naming]
    preprocessing: Preprocessing | None

    def logits(self, images: jax.Array) -> jax.Array:
        """`apply` of its own variables."""
        return self.apply(self.variables, images)


class Asked(NamedTuple):
    """What a format is asked for.

    names: the library whose names arrays get; "": the first that has the model.
    batch_size: where a file has one.
    """

    names: str = ""
    batch_size: int = 1


def runs(model: Model, variables: Mapping[str, Any]) -> Run:
    """The model with other arrays than its own, compiled here."""
    compiled = jax.jit(functools.partial(model.apply, variables))
    return lambda images: np.asarray(compiled(images))


def padded(images: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Batches of `size` images, the last filled with black ones; how many of each count."""
    for start in range(0, len(images), size):
        part = images[start : start + size]
        missing = size - len(part)
        black = np.zeros((missing, *images.shape[1:]), images.dtype)
        yield np.concatenate([part, black]), len(part)
