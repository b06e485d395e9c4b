"""Param groups: which parameters train, when and at which rate.

They cover freezing, rates by layer, and training the head first. A `ParamGroups` gives the
`ParamGroup` of every parameter by its path, such as "head/kernel".
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import traverse_util

from jaxcls.errors import InputError

Tree = Any


def path_name(path: Any) -> str:
    """Returns a jax key path as text, such as ``stage1/block2/conv1/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def map_named(function: Callable[[str, Any], Any], tree: Tree) -> Tree:
    """Maps (path as text, leaf) to a leaf, over a tree."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(path_name(path), leaf), tree
    )


def searcher(option: str, pattern: str, example: str) -> Callable[[str], Any]:
    """Returns the search method of a regular expression on paths.

    Raises ValueError, naming the option and an example, if `pattern` is not one.
    """
    try:
        return re.compile(pattern).search
    except re.error as error:
        raise ValueError(
            f"{option}={pattern!r} is not a regular expression ({error}), such as"
            f" {example!r}"
        ) from None


class ParamGroup(NamedTuple):
    """The rate and the steps of one parameter's training.

    scale: The parameter's rate as a multiple of the schedule's; 0 freezes it for the whole
        run.
    start: The first step that changes it.
    """

    scale: float = 1.0
    start: int = 0


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
) -> ParamGroups:
    """Returns the param group of every parameter of `params`, arrays or shapes.

    groups: The outermost layers by depth; the last group is the head.
    freeze: A regular expression on paths that freezes parameters; "" freezes none.
    layer_decay: The rate of a layer group as a multiple of the next one's (Clark et al.,
        arXiv:2003.10555).
    head_lr: The rate of the head as a multiple of its layer group's.
    head_first: The number of steps in which the head trains alone.
    lr_scales: Factors of the rate by regular expression on paths; several matches multiply.

    Raises `InputError` if an expression matches no parameter, `freeze` matches all of them,
    or `head_first` meets a frozen head.
    """
    depth = {layer: i for i, group in enumerate(groups) for layer in group}
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    is_frozen = matching({freeze: True} if freeze else {}, paths, "optim.freeze")
    factors = matching(lr_scales or {}, paths, "optim.lr_scales")
    parts = {}
    for path in paths:
        layer = path.partition("/")[0]
        scale = layer_decay ** (len(groups) - 1 - depth[layer])
        if scale < 1e-30:  # Float32 could not tell it from frozen.
            raise InputError(
                f"optim.layer_decay={layer_decay} leaves {path} no rate to speak of, below"
                f" {len(groups)} layers; try 0.75"
            )
        is_head = layer == "head"
        scale *= math.prod(factors[path]) * (head_lr if is_head else 1.0)
        start = 0 if is_head else head_first
        parts[path] = ParamGroup(0.0) if is_frozen[path] else ParamGroup(scale, start)
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
