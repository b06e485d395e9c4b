"""Names and layouts of a model's parameters in the files of other libraries.

A family gives a `Naming`: for each of our layers (or single parameters), in the order of
the forward pass, its name in the library. This module derives the rest from the kind of
the parameter: the suffix of the name, and the order of the axes. Import and export use
the same table.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

# Names of leaves, from Flax to PyTorch.
_SUFFIXES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Kernels HWIO are OIHW in PyTorch, and IO are OI.
_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}
_INDEX = ".relative_position_index"
# What follows from the shapes, PyTorch's counter of each BatchNorm, and what stands for a
# hidden patch in pretraining.
_IGNORED = (_INDEX, ".attn_mask", ".num_batches_tracked", "mask_token")


class Entry(NamedTuple):
    """A library's name for a layer or parameter whose shape differs from ours.

    view: our shape before the axes are reordered, such as [H, W, C, O] for a dense layer
    after flattening. shape: the library's shape afterwards. (): the shape does not change.
    grid: the number of tokens before a square grid of positions that can be resampled; -1:
    no grid. window: the side of the windows of relative position biases beside which the
    library stores their index; 0: it stores none.
    """

    name: str
    view: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    grid: int = -1
    window: int = 0


# The names of one model's parameters in one library: our layer, "block1/norm1", or single
# parameter, "position" -> the library's name.
Naming = dict[str, str | Entry]


class Fit(NamedTuple):
    """A match of a model's parameters with a library's tensors.

    found: our paths ("params/head/kernel") -> arrays in our layout. missing: our path ->
    the absent name. extra: names that match no parameter. shapes: our path -> (name, shape
    in the file, shape wanted).
    """

    found: dict[str, np.ndarray]
    missing: dict[str, str]
    extra: list[str]
    shapes: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]]


def of_both(
    rows: Sequence[tuple[str, str | Entry, str | Entry]],
) -> dict[str, Naming]:
    """Returns the namings of rows (our name, torchvision's name, timm's name)."""
    return {
        "torchvision": {ours: theirs for ours, theirs, _ in rows},
        "timm": {ours: theirs for ours, _, theirs in rows},
    }


def of_paths(like: Mapping[str, Any]) -> Naming:
    """Returns a naming of every parameter by its own path: "block/conv" is "block.conv".

    like: {"params", "batch_stats"} as arrays or shapes.
    """
    table: Naming = {}
    for path, leaf in flatten(like).items():
        rest = path.partition("/")[2]
        layer, _, name = rest.rpartition("/")
        is_usual = name in _SUFFIXES and (name != "kernel" or len(leaf.shape) in _AXES)
        key = layer if is_usual and layer else rest
        table[key] = key.replace("/", ".")
    return table


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens {"params": tree, "batch_stats": tree} to {"params/head/kernel": leaf}."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(variables))
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def names(variables: Mapping[str, Any], naming: Naming) -> dict[str, str]:
    """Returns our paths -> the library's names."""
    return {path: _entry(path, naming).name for path in flatten(variables)}


def to_theirs(variables: Mapping[str, Any], naming: Naming) -> dict[str, np.ndarray]:
    """Returns a model's variables by the library's names, in its layout.

    `fit` is the inverse, and ignores an index of relative positions.
    """
    tensors = {}
    for path, leaf in flatten(variables).items():
        entry = _entry(path, naming)
        view, axes, shape = _layout(path, leaf.shape, entry)
        array = np.asarray(leaf).reshape(view).transpose(axes).reshape(shape)
        tensors[entry.name] = np.ascontiguousarray(array)
        if entry.window:
            index = entry.name.rpartition(".")[0] + _INDEX
            tensors[index] = relative_index(entry.window)
    return tensors


def relative_index(side: int) -> np.ndarray:
    """Returns the row of a table of relative positions for each pair in a window.

    It is int64 [N * N] for a window of N = side * side positions, query first. The table
    has (2 * side - 1) ** 2 rows: the offsets down, then across, each from 1 - side on.
    """
    y, x = np.mgrid[:side, :side].reshape(2, -1)
    down, across = (each[:, None] - each + side - 1 for each in (y, x))
    return (down * (2 * side - 1) + across).reshape(-1)


def fit(tensors: Mapping[str, np.ndarray], naming: Naming, like: Mapping[str, Any]) -> Fit:
    """Matches a library's tensors, name -> array, with the parameters of a model.

    like: {"params", "batch_stats"} as arrays or shapes, nested or flat. Positions on
    another square grid are in `shapes`; see `grid_of`.
    """
    found, missing, shapes = {}, {}, {}
    left = {name for name in tensors if not name.endswith(_IGNORED)}
    for path, leaf in flatten(like).items():
        entry = _entry(path, naming)
        view, axes, shape = _layout(path, leaf.shape, entry)
        left.discard(entry.name)
        if entry.name not in tensors:
            missing[path] = entry.name
        elif tensors[entry.name].shape != shape:
            shapes[path] = (entry.name, tensors[entry.name].shape, shape)
        else:
            there = tuple(view[axis] for axis in axes)
            array = tensors[entry.name].reshape(there).transpose(np.argsort(axes))
            found[path] = np.ascontiguousarray(array.reshape(leaf.shape))
    return Fit(found, missing, sorted(left), shapes)


def grid_of(path: str, naming: Naming) -> int:
    """Returns the tokens before the square grid of a parameter's positions; -1: no grid."""
    return _entry(path, naming).grid


def _entry(path: str, naming: Naming) -> Entry:
    """Returns the full name and layout of a path such as "params/conv1/kernel"."""
    _, _, rest = path.partition("/")
    layer, _, leaf = rest.rpartition("/")
    named = naming[rest] if rest in naming else naming[layer]
    entry = named if isinstance(named, Entry) else Entry(named)
    if rest in naming:
        return entry
    if leaf != "kernel":
        entry = Entry(entry.name)
    return entry._replace(name=f"{entry.name}.{_SUFFIXES[leaf]}")


def _layout(
    path: str, ours: tuple[int, ...], entry: Entry
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Returns (our shape as a view, order of the library's axes, the library's shape)."""
    view = entry.view or ours
    same = tuple(range(len(view)))
    axes = _AXES.get(len(view), same) if path.endswith("/kernel") else same
    return view, axes, entry.shape or tuple(view[axis] for axis in axes)
