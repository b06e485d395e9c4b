"""Which parameters train, and how fast: freezing, decay by layer, the head first.

`Parts` says it for every parameter by its path, such as "head/kernel". Plain functions
over trees; where every part is `WHOLE`, a step without them is the same.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcls.errors import InputError
from jaxcls.optimizers import path_name

Tree = Any


class Part(NamedTuple):
    """How one parameter trains.

    scale: its rate as a multiple of the schedule's; 0: it never changes. start: the step
    from which it changes.
    """

    scale: float
    start: int


WHOLE = Part(scale=1.0, start=0)
Parts = Mapping[str, Part]


def divide(
    params: Tree,
    groups: Sequence[Sequence[str]],
    *,
    freeze: str = "",
    layer_decay: float = 1.0,
    head_lr: float = 1.0,
    head_first: int = 0,
) -> Parts:
    """The part of every parameter of `params`, arrays or shapes.

    groups: the outermost layers by depth, the head in the last. freeze: a regular
    expression on paths; "": none. layer_decay: rate of a group as a multiple of the next
    one's (Clark et al., arXiv:2003.10555). head_lr: rate of the head as a multiple of that
    of its group. head_first: steps in which the head trains alone.
    Raises `InputError` where `freeze` leaves nothing to train or matches nothing.
    """
    depth = {layer: i for i, group in enumerate(groups) for layer in group}
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    is_frozen = re.compile(freeze).search if freeze else (lambda path: None)
    parts = {}
    for path in paths:
        layer = path.partition("/")[0]
        scale = layer_decay ** (len(groups) - 1 - depth[layer])
        if is_frozen(path):
            parts[path] = Part(0.0, 0)
        elif scale < 1e-30:  # Float32 could not tell it from frozen.
            raise InputError(
                f"optim.layer_decay={layer_decay} leaves {path} no rate to speak of, below"
                f" {len(groups)} layers; try 0.75"
            )
        elif layer == "head":
            parts[path] = Part(scale * head_lr, 0)
        else:
            parts[path] = Part(scale, head_first)
    frozen = sum(part.scale == 0 for part in parts.values())
    if freeze and frozen in (0, len(paths)):
        what = "no parameter" if frozen == 0 else "every parameter, and none would train"
        raise InputError(
            f"optim.freeze={freeze!r} matches {what}; there are {paths[0]}, ...,"
            f" {paths[-1]}, and '^(?!head/)' is all but the head"
        )
    if head_first and not any(p.scale for x, p in parts.items() if x.startswith("head/")):
        raise InputError(
            f"optim.head_first trains the head alone, and optim.freeze={freeze!r} freezes"
            " it; leave one of them out"
        )
    return parts


def is_plain(parts: Parts) -> bool:
    """Whether every parameter trains alike from the first step on."""
    return set(parts.values()) <= {WHOLE}


def frozen_statistics(batch_stats: Tree, parts: Parts) -> Tree:
    """The statistics of layers whose scale is frozen, True in place of each array.

    As a collection "frozen" it makes `layers.BatchNorm` keep them and normalise by them.
    """
    found: dict[str, Any] = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(batch_stats):
        *layer, leaf = path_name(path).split("/")
        scale = parts.get("/".join([*layer, "scale"]))
        if scale is not None and scale.scale == 0:
            node = found
            for name in layer:
                node = node.setdefault(name, {})
            node[leaf] = True
    return found


def hold(params: Tree, parts: Parts) -> Tree:
    """`params`, with no gradient into those that never change."""

    def each(path: Any, param: jax.Array) -> jax.Array:
        return param if parts[path_name(path)].scale else jax.lax.stop_gradient(param)

    return jax.tree_util.tree_map_with_path(each, params)


def train_only(
    optimizer: optax.GradientTransformation, parts: Parts
) -> optax.GradientTransformation:
    """`optimizer` for the parameters that change, with no state for the others."""
    if all(part.scale for part in parts.values()):
        return optimizer

    def mask(params: Tree) -> Tree:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: parts[path_name(path)].scale > 0, params
        )

    return optax.masked(optimizer, mask)


def update(
    params: Tree, updates: Tree, lr: jax.Array, step: jax.Array, parts: Parts
) -> Tree:
    """The params after updates at the rate `lr`; bit for bit the same where none is due."""

    def each(path: Any, param: jax.Array, change: jax.Array) -> jax.Array:
        part = parts[path_name(path)]
        if not part.scale:
            return param
        rate = lr if part.scale == 1.0 else lr * part.scale
        new = param + rate * change
        return jnp.where(step >= part.start, new, param) if part.start else new

    return jax.tree_util.tree_map_with_path(each, params, updates)
