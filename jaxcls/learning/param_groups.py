"""Param groups: which parameters train, when and at which rate.

They cover freezing, rates by layer, and training the head first. A `ParamGroups` gives the
`ParamGroup` of every parameter by its path, such as "head/kernel".
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from jaxcls.errors import InputError
from jaxcls.learning.optimizers import map_named, path_name

Tree = Any


class ParamGroup(NamedTuple):
    """The rate and the steps of one parameter's training.

    scale: The parameter's rate as a multiple of the schedule's; 0 freezes it for the whole
        run.
    start: The first step that changes it.
    stop: The step from which it is frozen; None is never.
    """

    scale: float = 1.0
    start: int = 0
    stop: int | None = None


WHOLE = ParamGroup()
ParamGroups = Mapping[str, ParamGroup]


def divide(
    params: Tree,
    groups: Sequence[Sequence[str]],
    *,
    freeze: str = "",
    layer_decay: float = 1.0,
    head_lr: float = 1.0,
    head_first: int = 0,
    lr_scales: Mapping[str, float] | None = None,
    stops: Mapping[str, int] | None = None,
) -> ParamGroups:
    """Returns the param group of every parameter of `params`, arrays or shapes.

    groups: The outermost layers by depth; the last group is the head.
    freeze: A regular expression on paths that freezes parameters; "" freezes none.
    layer_decay: The rate of a layer group as a multiple of the next one's (Clark et al.,
        arXiv:2003.10555).
    head_lr: The rate of the head as a multiple of its layer group's.
    head_first: The number of steps in which the head trains alone.
    lr_scales: Factors of the rate by regular expression on paths; several matches multiply.
    stops: The step from which matching parameters are frozen, by regular expression; the
        earliest match counts.

    Raises `InputError` if an expression matches no parameter, `freeze` matches all of them,
    or `head_first` meets a frozen head.
    """
    depth = {layer: i for i, group in enumerate(groups) for layer in group}
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    is_frozen = matching({freeze: True} if freeze else {}, paths, "optim.freeze")
    factors = matching(lr_scales or {}, paths, "optim.lr_scales")
    ends = matching(stops or {}, paths, "optim.freeze_after")
    parts = {}
    for path in paths:
        layer = path.partition("/")[0]
        scale = layer_decay ** (len(groups) - 1 - depth[layer])
        is_head = layer == "head"
        scale *= math.prod(factors[path]) * (head_lr if is_head else 1.0)
        start = 0 if is_head else head_first
        stop = min(ends[path], default=None)
        parts[path] = ParamGroup(0.0) if is_frozen[path] else ParamGroup(scale, start, stop)
    if all(is_frozen.values()):
        raise InputError(
            f"optim.freeze={freeze!r} matches every parameter, and none would train;"
            " '^(?!head/)' is all but the head"
        )
    if head_first and not any(p.scale for x, p in parts.items() if x.startswith("head/")):
        raise InputError(
            f"optim.head_first trains the head alone, and optim.freeze={freeze!r} freezes"
            " it; leave one of them out"
        )
    return parts


def matching(
    table: Mapping[str, Any], paths: Sequence[str], key: str
) -> dict[str, list[Any]]:
    """Returns for each path the values of all matching expressions, in the table's order.

    Raises `InputError`, naming the config's `key`, if an expression matches no path.
    """
    found: dict[str, list[Any]] = {path: [] for path in paths}
    for pattern, value in table.items():
        hits = [path for path in paths if re.search(pattern, path)]
        if not hits:
            raise InputError(
                f"{key}: {pattern!r} matches no parameter; there are {paths[0]}, ...,"
                f" {paths[-1]}; '^(?!head/)' is all but the head"
            )
        for path in hits:
            found[path].append(value)
    return found


def frozen_statistics(batch_stats: Tree, parts: ParamGroups) -> Tree:
    """Returns the tree of frozen layers' statistics, with True in place of each array.

    As a collection "frozen" it makes `layers.BatchNorm` keep these statistics and normalise
    by them.
    """
    kept = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(batch_stats):
        layer = path_name(path).rpartition("/")[0]
        # A layer without a scale follows its bias.
        part = parts.get(f"{layer}/scale") or parts.get(f"{layer}/bias")
        if part and part.scale == 0:
            kept[path_name(path)] = True
    return traverse_util.unflatten_dict(kept, sep="/")


def hold(params: Tree, parts: ParamGroups) -> Tree:
    """Returns `params` with no gradient into the frozen ones."""

    def each(path: str, param: jax.Array) -> jax.Array:
        return param if parts[path].scale else jax.lax.stop_gradient(param)

    return map_named(each, params)


def train_only(
    optimizer: optax.GradientTransformation, parts: ParamGroups
) -> optax.GradientTransformation:
    """Returns `optimizer` for the trained parameters only; frozen ones have no state."""

    def mask(params: Tree) -> Tree:
        return map_named(lambda path, _: parts[path].scale > 0, params)

    return optax.masked(optimizer, mask)


def at_rate(
    optimizer: optax.GradientTransformation, parts: Callable[[], ParamGroups]
) -> optax.GradientTransformationExtraArgs:
    """Returns `optimizer` with its updates times the rate; `update` takes `lr` and `step`.

    An update is 0 if its parameter is frozen or `step` is before its start.

    parts: Called at an update only, since the start of a group needs the length of an
        epoch.
    """

    def rated(
        part: ParamGroup, change: jax.Array, lr: jax.Array, step: jax.Array
    ) -> jax.Array:
        if not part.scale:
            return jnp.zeros_like(change)
        new = (lr if part.scale == 1.0 else lr * part.scale) * change
        return jnp.where(step >= part.start, new, 0.0) if part.start else new

    return _each_update(optimizer, parts, rated)


def until_stop(
    optimizer: optax.GradientTransformation, parts: Callable[[], ParamGroups]
) -> optax.GradientTransformationExtraArgs:
    """Returns `optimizer` with updates of 0 from the stop of each parameter on."""

    def stopped(
        part: ParamGroup, change: jax.Array, lr: jax.Array, step: jax.Array
    ) -> jax.Array:
        return change if part.stop is None else jnp.where(step < part.stop, change, 0.0)

    return _each_update(optimizer, parts, stopped)


def _each_update(
    optimizer: optax.GradientTransformation,
    parts: Callable[[], ParamGroups],
    function: Callable[[ParamGroup, jax.Array, jax.Array, jax.Array], jax.Array],
) -> optax.GradientTransformationExtraArgs:
    """Returns `optimizer` with `function` (group, update, lr, step) of each update."""
    inner = optax.with_extra_args_support(optimizer)

    def update(
        grads: Tree, state: Tree, params: Tree, lr: jax.Array, step: jax.Array, **more: Any
    ) -> tuple[Tree, Tree]:
        known = parts()
        updates, state = inner.update(grads, state, params, lr=lr, step=step, **more)
        return map_named(lambda path, u: function(known[path], u, lr, step), updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def apply(params: Tree, updates: Tree) -> Tree:
    """Returns params + updates; an update of 0 keeps the bits of a param, even -0.0."""
    return jax.tree.map(lambda p, u: jnp.where(u == 0, p, p + u), params, updates)
