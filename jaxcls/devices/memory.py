"""Computes the memory of a step before the step runs.

XLA's `memory_analysis` gives it for a compiled step. `activation_bytes` estimates it for a
dry run, which compiles nothing.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
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

    def touch(arrays: Iterable[Any]) -> None:
        for array in arrays:
            if array.aval.shape[:1] == (batch_size,):
                found[id(array)] = tree_bytes(array.aval)

    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "cond":  # One branch runs; all have the same inputs and outputs.
            branches = [each.jaxpr for each in equation.params["branches"]]
            is_product = any(_product_bytes(each, batch_size)[0] for each in branches)
            if is_product:
                touch((*equation.invars, *equation.outvars))
            continue
        # The name of `jax.checkpoint` differs between versions. With a policy, it keeps the
        # arrays that the policy names.
        is_anew = "prevent_cse" in equation.params and not equation.params["policy"]
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")
        ):
            if not (hasattr(inner, "jaxpr") or hasattr(inner, "eqns")):
                continue
            kept, anew = _product_bytes(getattr(inner, "jaxpr", inner), batch_size)
            called += 0 if is_anew else kept
            largest = max(largest, anew, kept if is_anew else 0)
        if is_anew:
            touch(equation.invars)
        if name in ("conv_general_dilated", "dot_general"):
            touch((*equation.invars, *equation.outvars))
    return called + sum(found.values()), largest


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
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        asked = re.search(r"allocat\w* ([\d.]+ ?[A-Za-z]+)", text)
        more = f" ({asked[1]} more were needed)" if asked else ""
        # The form of the TPU compiler's message.
        if of := re.search(r"([\d.]+)G\)? (?:of|exceeds available HBM) \(?([\d.]+)G", text):
            more = f" ({of[1]} GiB are needed of {of[2]})"
        raise InputError(
            f"{key}={batch_size} does not fit: the device is out of memory{more}; try"
            f" {key}={max(1, batch_size // 2)}{also}"
        ) from None
