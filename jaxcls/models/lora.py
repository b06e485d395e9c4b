"""Low-rank adaptation: dense layers W that stay, and a trained product A B beside them.

LoRA (Hu et al., arXiv:2106.09685). A layer then gives x W + alpha / rank * (x A) B. A is
uniform within +-1 / sqrt(inputs) and B is 0 at the start, as in the authors' code, so the
adapted model starts as the given one. A and B are parameters of their layer, "lora_a"
[inputs, rank] and "lora_b" [rank, outputs].
"""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxcls.config.calls import check_range
from jaxcls.errors import InputError
from jaxcls.models.naming import Naming

PARTS = ("lora_a", "lora_b")
# Of the key of the initial parameters, for the parts.
_STREAM = 2
# All that stays: neither the head nor a part.
FROZEN = r"^(?!head/)(?!.*/lora_[ab]$)"


class Lora:
    """A `Classifier` whose dense layers of some paths are adapted.

    module: The classifier, as `experiment.Recipe.module`. layers: The paths of the adapted
    layers, "block1/attention/qkv", as `matching` gives them. scale: alpha / rank.
    """

    def __init__(self, module: Any, layers: Sequence[str], rank: int, scale: float) -> None:
        self._module, self._layers = module, frozenset(layers)
        self._rank, self._scale = rank, scale

    def init(self, rngs: Any, images: jax.Array, train: bool) -> Any:
        """Returns the variables of the module and the parts of the adapted layers."""
        made = self._module.init(rngs, images, train)
        key = jax.random.fold_in(rngs["params"], _STREAM)
        params = traverse_util.flatten_dict(made["params"], sep="/")
        for i, layer in enumerate(sorted(self._layers)):
            inputs, outputs = params[f"{layer}/kernel"].shape
            reach, shape = 1 / math.sqrt(inputs), (inputs, self._rank)
            params[f"{layer}/lora_a"] = jax.random.uniform(
                jax.random.fold_in(key, i), shape, minval=-reach, maxval=reach
            )
            params[f"{layer}/lora_b"] = jnp.zeros((self._rank, outputs))
        return {**made, "params": traverse_util.unflatten_dict(params, sep="/")}

    def apply(self, variables: Any, images: jax.Array, train: bool, **more: Any) -> Any:
        """Returns what the module's `apply` does, with the adapted layers."""
        with self._adapted():
            return self._module.apply(variables, images, train, **more)

    @contextlib.contextmanager
    def _adapted(self) -> Iterator[None]:
        def adding(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            y, module = call(*args, **kwargs), context.module
            is_layer = isinstance(module, nn.Dense) and context.method_name == "__call__"
            if not is_layer or "/".join(module.path) not in self._layers:
                return y
            a, b = (module.get_variable("params", part).astype(y.dtype) for part in PARTS)
            return y + args[0].astype(y.dtype) @ a @ b * self._scale

        with nn.intercept_methods(adding):
            yield


def options(rank: int, alpha: float, on: str) -> tuple[int, float, str]:
    """Returns (rank, alpha / rank, on) of the text of optim.lora.

    Args:
        rank: Of each layer's product, such as 8.
        alpha: The product counts alpha / rank times.
        on: A regular expression on the layers' names, here or in a library.

    Raises ValueError for a value out of range.
    """
    check_range("[1, 4096]", 8, rank=rank)
    check_range("(0, inf)", 16, alpha=alpha)
    return rank, alpha / rank, on


def matching(
    on: str,
    module: Any,
    like: Mapping[str, Any],
    images: Any,
    namings: Mapping[str, Naming],
) -> list[str]:
    """Returns the paths of the module's dense layers, but the head, that match `on`.

    on: Is searched in the path, "block1/attention/out", and in the layer's names in other
        libraries, "blocks.0.attn.proj".
    like, images: The module's variables and a batch of images, as shapes.

    Raises `InputError` if a part of `on` between bars matches no layer.
    """
    dense: list[str] = []

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            dense.append("/".join(context.module.path))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda v, x: module.apply(v, x, False), like, images)
    dense = [layer for layer in dict.fromkeys(dense) if layer != "head"]
    names = {layer: [layer] for layer in dense}
    for layer in dense:
        for table in namings.values():
            for ours in (layer, f"{layer}/kernel"):
                if ours in table:
                    names[layer].append(getattr(table[ours], "name", str(table[ours])))
    for each in [on] if "(" in on else on.split("|"):
        try:
            found = any(re.search(each, name) for all in names.values() for name in all)
        except re.error as error:
            raise InputError(
                f"optim.lora: on={on!r} is not a regular expression ({error}), such as"
                " 'attention'"
            ) from None
        if not each or not found:
            there = f"such as {dense[0]} and {dense[-1]}" if dense else "as a ViT has them"
            raise InputError(
                f"optim.lora: on={on!r} has {each!r}, which matches none of the"
                f" {len(dense)} dense layers, {there}"
            )
    return [layer for layer in dense if any(re.search(on, name) for name in names[layer])]


def bare(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns variables, arrays or shapes, without the parts of adapted layers."""
    params = traverse_util.flatten_dict(variables["params"], sep="/")
    kept = {path: x for path, x in params.items() if path.rpartition("/")[2] not in PARTS}
    return {**variables, "params": traverse_util.unflatten_dict(kept, sep="/")}


def merged(variables: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Returns variables of the module itself, whose kernels hold the products.

    scale: alpha / rank.
    """
    params = traverse_util.flatten_dict(variables["params"], sep="/")
    whole = traverse_util.flatten_dict(bare(variables)["params"], sep="/")
    for path in params:
        layer, _, part = path.rpartition("/")
        if part == PARTS[0]:
            product = params[path] @ params[f"{layer}/{PARTS[1]}"]
            whole[f"{layer}/kernel"] = params[f"{layer}/kernel"] + scale * product
    return {**variables, "params": traverse_util.unflatten_dict(whole, sep="/")}
