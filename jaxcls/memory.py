"""How much memory a step takes: what is known before it runs."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxcls.errors import InputError


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays (or shapes) of a tree."""
    return sum(
        int(np.prod(x.shape)) * getattr(x.dtype, "itemsize", 4)
        for x in jax.tree.leaves(tree)
    )


def activation_bytes(forward: Callable[..., Any], batch_size: int, *shapes: Any) -> int:
    """About what the backward pass keeps of ``forward(*shapes)``, computing nothing.

    What convolutions and matrix products take and give, over the batch; the rest is
    fused away. Within 15 % of the compiled steps of ResNet-18 and ResNet-50 on CPU.
    """
    return _product_bytes(jax.make_jaxpr(forward)(*shapes).jaxpr, batch_size)


def _product_bytes(jaxpr: Any, batch_size: int) -> int:
    """Bytes of the arrays of a batch that convolutions and matrix products touch."""
    found: dict[int, int] = {}  # One array may feed several of them.
    called = 0
    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "jaxpr"):
                called += _product_bytes(inner.jaxpr, batch_size)
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            for array in (*equation.invars, *equation.outvars):
                if array.aval.shape[:1] == (batch_size,):
                    found[id(array)] = tree_bytes(array.aval)
    return called + sum(found.values())


def step_bytes(analysis: Any) -> int:
    """Bytes a device that a compiled program needs, its arguments too; 0: not known."""
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
    """Raise `InputError` where a compiled step needs more than a device holds.

    analysis: of the compiled step, bytes a device; limit: bytes of a device, None where
    not known; fixed: bytes that do not grow with the batch. The message names a batch
    that fits, assuming that the rest grows with it.
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
    """Raise `InputError` where XLA runs out of device memory in the block.

    key: of the config or the command line, that `batch_size` came from. also: what else
    would free memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        asked = re.search(r"allocat\w* ([\d.]+ ?[A-Za-z]+)", text)
        more = f" ({asked[1]} more were needed)" if asked else ""
        raise InputError(
            f"{key}={batch_size} does not fit: the device is out of memory{more}; try"
            f" {key}={max(1, batch_size // 2)}{also}"
        ) from None
