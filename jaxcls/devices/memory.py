"""Computes the memory of a step before the step runs.

XLA's `memory_analysis` gives it for a compiled step. `activation_bytes` estimates it for a
dry run, which compiles nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxcls.errors import InputError


def tree_bytes(tree: Any) -> int:
    """Returns the bytes of all arrays (or shapes) of a tree."""
    return sum(
        int(np.prod(x.shape)) * getattr(x.dtype, "itemsize", 4)
        for x in jax.tree.leaves(tree)
    )


def activation_bytes(forward: Callable[..., Any], batch_size: int, *shapes: Any) -> int:
    """Estimates the bytes that the backward pass keeps of ``forward(*shapes)``.

    Runs and compiles nothing. Counts the batch inputs and outputs of convolutions and
    matrix products; XLA fuses the other operations away. Under recompute
    (`jax.checkpoint`), counts the inputs of each block, and all activations of the largest
    block. The error is within 15 % for compiled steps of ResNet-18 and ResNet-50 on CPU.
    """
    kept, anew = _product_bytes(jax.make_jaxpr(forward)(*shapes).jaxpr, batch_size)
    return kept + anew


def _product_bytes(jaxpr: Any, batch_size: int) -> tuple[int, int]:
    """Returns (bytes kept, bytes of the largest recompute block) of a jaxpr.

    Counts the batch arrays that convolutions and matrix products read or write.
    """
    found: dict[int, int] = {}  # One array may feed several products.
    called, largest = 0, 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        # The name of `jax.checkpoint` differs between versions. With a policy, it keeps the
        # arrays that the policy names.
        is_anew = "prevent_cse" in params and not params["policy"]
        inner = [
            _product_bytes(getattr(each, "jaxpr", each), batch_size)
            for each in jax.tree.leaves(params, is_leaf=_is_jaxpr)
            if _is_jaxpr(each)
        ]
        touched = []
        if name == "cond":  # One branch runs; all have the same inputs and outputs.
            if any(kept for kept, _ in inner):
                touched = [*equation.invars, *equation.outvars]
        elif name in ("conv_general_dilated", "dot_general"):
            touched = [*equation.invars, *equation.outvars]
        elif is_anew:
            touched = equation.invars
            largest = max(largest, *(max(each) for each in inner))
        else:
            called += sum(kept for kept, _ in inner)
            largest = max([largest, *(anew for _, anew in inner)])
        found |= {
            id(array): tree_bytes(array.aval)
            for array in touched
            if array.aval.shape[:1] == (batch_size,)
        }
    return called + sum(found.values()), largest


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "jaxpr") or hasattr(value, "eqns")


def step_bytes(analysis: Any) -> int:
    """Returns the bytes a device of a compiled program with its arguments; 0: unknown."""
    if analysis is None:
        return 0
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )


def check_fits(
    analysis: Any, *, limit: int | None, fixed: int, batch_size: int, devices: int
) -> None:
    """Raises `InputError` if a compiled step needs more memory than a device has.

    analysis: XLA's memory analysis of the step, in bytes a device. limit: bytes of a
    device, None if unknown. fixed: bytes that do not grow with the batch. The message names
    a batch that fits; it assumes that the other bytes grow in proportion to the batch.
    """
    if limit is None or (needed := step_bytes(analysis)) <= limit:
        return
    a_row = max(1.0, (needed - fixed) / batch_size)
    fits = int((limit - fixed) / a_row * 0.95) // devices * devices
    fits = min(fits, (batch_size - 1) // devices * devices)
    remedy = (
        f"about batch_size={fits} fits"
        if fits > 0
        else "no batch fits; take a smaller model, smaller images, or more memory"
    )
    raise InputError(
        f"batch_size={batch_size} needs {needed / 2**30:.2f} GiB a device and it has"
        f" {limit / 2**30:.2f} GiB; {remedy}"
    )


@contextlib.contextmanager
def explained(key: str, batch_size: int, also: str = "") -> Iterator[None]:
    """Raises `InputError` if XLA runs out of device memory in the block.

    key: the config key or flag of `batch_size`. also: further advice for the message.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        raise InputError(
            f"{key}={batch_size} does not fit: the device is out of memory ({text[:200]});"
            f" try {key}={max(1, batch_size // 2)}{also}"
        ) from None
