"""Gradient clipping before an optimizer: optax's transformations in one fixed order.

This module adds only the units of `optax.adaptive_grad_clip`, by the rank of each array.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxcls.learning.optimizers import matcher, path_name


def clip(
    optimizer: optax.GradientTransformation,
    *,
    norm: float = 0.0,
    value: float = 0.0,
    adaptive: float = 0.0,
    adaptive_skip: str = "^head/",
) -> optax.GradientTransformation:
    """Returns `optimizer` with its gradients clipped first; 0 turns a clip off.

    The clips run in this order: adaptive, value, norm.

    adaptive: The largest ratio of a unit's gradient norm to its weight norm, which counts
        as at least 1e-3 (Brock et al., arXiv:2102.06171). A unit is a slice of a kernel
        along its last axis (one output), or a whole vector.
    adaptive_skip: A regular expression on paths. The adaptive clip skips a parameter that
        it matches: by default the last layer, as in the paper; "" matches nothing.
    value: The largest absolute value of an element.
    norm: The largest norm of the whole gradient, over all parameters.

    Raises ValueError if `adaptive_skip` is not a regular expression.
    """
    chosen = []
    if adaptive:
        chosen.append(_clip_by_unit(adaptive, matcher("adaptive_skip", adaptive_skip)))
    if value:
        chosen.append(optax.clip(value))
    if norm:
        chosen.append(optax.clip_by_global_norm(norm))
    return optax.chain(*chosen, optimizer) if chosen else optimizer


def _clip_by_unit(most: float, skip: Callable[[str], bool]) -> optax.GradientTransformation:
    def label(path: Any, grad: Any) -> str:
        return "skip" if skip(path_name(path)) else str(grad.ndim)

    # The axes are explicit for each rank: optax reads [1, N, D] as D matrices of [1, N].
    by_rank = {
        str(rank): optax.adaptive_grad_clip(most, axis=tuple(range(max(rank - 1, 1))))
        for rank in range(1, 6)
    }
    by_rank["0"] = optax.adaptive_grad_clip(most)
    return optax.partition(
        {**by_rank, "skip": optax.identity()},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )
