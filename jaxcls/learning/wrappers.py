"""Wrappers of a whole optimizer, which keep a second set of weights.

A wrapper takes an optimizer with final updates, already times the rate, and passes the
arguments of `update` on to it. States hold arrays only.

`optax.lookahead` is not used: its params are pairs of fast and slow weights, and it has no
power and no final step. `optax.contrib.schedule_free` is not used either: it has a second
step counter for its rate, where ``lr`` is an argument here, and it rounds params that do
not move.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcls.config.calls import check_range

Tree = Any


class LookaheadState(NamedTuple):
    """inner: the optimizer's state; slow: weights like the params; steps: updates done."""

    inner: Tree
    slow: Tree
    steps: jax.Array


def lookahead(
    optimizer: optax.GradientTransformation,
    every: int = 5,
    rate: float = 0.5,
    power: float = 0.0,
    final: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Returns Lookahead (Zhang et al., arXiv:1907.08610): slow weights and fast ones.

    After each `every` updates the slow weights keep (1 - rate) * share ** power of
    themselves and take the rest from the params. Then the params are set to the slow
    weights. ``share``, an argument of `update`, is the share of the run done with this
    update, from 0 to 1.

    power: 0 is the paper's algorithm; airbench94 has rate=0.2262190625 (1 - 0.95 ** 5) and
        power=3.0.
    final: At a share of 1 the params become the slow weights.

    Raises ValueError for an option out of range.
    """
    check_range("[1, inf)", 5, every=every)
    check_range("(0, 1]", 0.5, rate=rate)
    check_range("[0, inf)", 3.0, power=power)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Tree) -> LookaheadState:
        # Copies, since a donated state must not hold one buffer twice.
        slow = jax.tree.map(jnp.copy, params)
        return LookaheadState(inner.init(params), slow, jnp.zeros((), jnp.int32))

    def update(
        grads: Tree, state: LookaheadState, params: Tree, *, share: jax.Array, **extra: Any
    ) -> tuple[Tree, LookaheadState]:
        updates, new = inner.update(grads, state.inner, params, share=share, **extra)
        steps = state.steps + 1
        sync = steps % every == 0
        moved = jnp.where(sync, 1.0 - (1.0 - rate) * share**power, 0.0)
        # This form keeps the bits if slow and fast weights are equal.
        slow = jax.tree.map(
            lambda s, p, u: s + moved * ((p + u) - s), state.slow, params, updates
        )
        back = sync | (share >= 1) if final else sync
        updates = jax.tree.map(
            lambda s, p, u: jnp.where(back, s - p, u), slow, params, updates
        )
        # Equal to the new params bit for bit: p + (s - p) need not be s.
        slow = jax.tree.map(
            lambda s, p, u: jnp.where(back, p + u, s), slow, params, updates
        )
        return updates, LookaheadState(new, slow, steps)

    return optax.GradientTransformationExtraArgs(init, update)


class ScheduleFreeState(NamedTuple):
    """inner: the optimizer's state; z: like the params; the others are float32 scalars."""

    inner: Tree
    z: Tree
    b1: jax.Array
    max_lr: jax.Array
    weight_sum: jax.Array


def schedule_free(
    optimizer: optax.GradientTransformation, b1: float = 0.9, weight_power: float = 2.0
) -> optax.GradientTransformationExtraArgs:
    """Returns schedule-free learning, for a constant rate.

    Defazio et al., arXiv:2405.15682. The params are y, where gradients are taken.
    `optimizer` moves z; it should have no momentum (sgd(momentum=0.0), adamw(b1=0.0)).
    `averaged` gives x, for evaluation. BatchNorm's running statistics belong to y.

    b1: The weight of x in y; z has the rest.
    weight_power: Each z has the weight max_lr ** weight_power in x. max_lr is the highest
        ``lr`` so far, an argument of `update`.

    Raises ValueError for an option out of range.
    """
    check_range("(0, 1)", 0.9, b1=b1)
    check_range("[0, inf)", 2.0, weight_power=weight_power)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Tree) -> ScheduleFreeState:
        z, zero = jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.float32)
        b1_now = jnp.full((), b1, jnp.float32)
        return ScheduleFreeState(inner.init(params), z, b1_now, zero, jnp.copy(zero))

    def update(
        grads: Tree, state: ScheduleFreeState, params: Tree, *, lr: jax.Array, **extra: Any
    ) -> tuple[Tree, ScheduleFreeState]:
        moves, new = inner.update(grads, state.inner, params, lr=lr, **extra)
        max_lr = jnp.maximum(state.max_lr, lr)
        weight = jnp.where(max_lr > 0, max_lr**weight_power, 0.0)
        weight_sum = state.weight_sum + weight
        share = weight / jnp.where(weight_sum > 0, weight_sum, 1.0)
        # The paper's three lines solved for y: z += move; x += share * (z - x); y = x
        # toward z. If z equals y and does not move, y keeps its bits.
        updates = jax.tree.map(
            lambda y, z, move: share * (z - y) + (1.0 - b1 * (1.0 - share)) * move,
            params,
            state.z,
            moves,
        )
        z = jax.tree.map(lambda z, move: z + move, state.z, moves)
        return updates, ScheduleFreeState(new, z, state.b1, max_lr, weight_sum)

    return optax.GradientTransformationExtraArgs(init, update)


def averaged(opt_state: Tree, params: Tree) -> Tree | None:
    """Returns the params to evaluate if `opt_state` holds a `schedule_free`; else None.

    The search is by type at any depth, so the state may be inside a chain or a mask.
    Parameters that the mask leaves out are returned unchanged.
    """

    def is_free(node: Any) -> bool:
        return isinstance(node, ScheduleFreeState)

    def is_masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    def each(z: Any, y: Any) -> Any:
        return y if is_masked(z) else z + (y - z) / state.b1

    for state in filter(is_free, jax.tree.leaves(opt_state, is_leaf=is_free)):
        return jax.tree.map(each, state.z, params, is_leaf=is_masked)
    return None


WRAPPERS: Mapping[str, Callable[..., optax.GradientTransformationExtraArgs]] = (
    MappingProxyType(
        {
            "lookahead": lookahead,
            "schedule_free": schedule_free,
        }
    )
)
