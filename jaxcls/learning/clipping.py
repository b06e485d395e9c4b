"""Gradients clipped before an optimizer sees them: optax's transformations in one order.

Only the units of `optax.adaptive_grad_clip` are chosen here, by the rank of each array.
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
    """`optimizer` over clipped gradients, in this order; 0: not clipped in this way.

    adaptive: largest norm of the gradient of a unit as a multiple of that of its weights,
    or of 1e-3 (Brock et al., arXiv:2102.06171). A unit is what makes one output: a slice
    of a kernel along its last axis, a whole vector. adaptive_skip: a regular expression on
    paths, what is left out, by default the last layer as in the paper; "": nothing. value:
    largest absolute value. norm: largest norm over all parameters together.
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

    # With axes of its own for each rank: optax takes [1, N, D] for D matrices of [1, N].
    by_rank = {
        str(rank): optax.adaptive_grad_clip(most, axis=tuple(range(max(rank - 1, 1))))
        for rank in range(1, 6)
    }
    by_rank["0"] = optax.adaptive_grad_clip(most)
    return optax.partition(
        {**by_rank, "skip": optax.identity()},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )
