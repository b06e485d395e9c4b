"""Where a model's parameters are in the files of other libraries.

A family states it as `Naming`: for each of our layers (or single parameters), in the
order of the forward pass, its name there. What follows from the kind of a parameter,
its suffix and the order of its axes, is here; both directions use the one table.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

# The names of leaves in Flax and in PyTorch.
_SUFFIXES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Kernels HWIO are there OIHW, and IO are OI.
_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}
# Counters that PyTorch keeps of each BatchNorm and nothing reads.
_IGNORED = ".num_batches_tracked"


class Entry(NamedTuple):
    """A name there, of a kernel or single parameter that lies there in another shape.

    view: our shape before the axes are reordered, such as [H, W, C, O] for a dense layer
    after flattening. shape: theirs afterwards. One size of each may be -1; (): as it is.
    grid: tokens before those that form a square, where positions can be resampled; -1.
    """

    name: str
    view: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    grid: int = -1


class Naming(NamedTuple):
    """How one library calls the parameters of one model.

    layers: "block1/norm1" or, of a single parameter, "position" -> its name there.
    """

    layers: Mapping[str, str | Entry]


class Fit(NamedTuple):
    """What of a model was found among foreign tensors.

    found: our paths ("params/head/kernel") -> arrays in our layout. missing: our path ->
    the name that is not there. extra: names there that are nobody's. shapes: our path ->
    (name, shape there, shape wanted).
    """

    found: dict[str, np.ndarray]
    missing: dict[str, str]
    extra: list[str]
    shapes: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]]


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    """{"params": tree, "batch_stats": tree} -> {"params/head/kernel": leaf, ...}."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(variables))
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def names(variables: Mapping[str, Any], naming: Naming) -> dict[str, str]:
    """Our paths -> the names there."""
    return {path: _entry(path, naming).name for path in flatten(variables)}


def to_theirs(variables: Mapping[str, Any], naming: Naming) -> dict[str, np.ndarray]:
    """A model's variables as {name there: array in the layout there}; undone by `fit`."""
    tensors = {}
    for path, leaf in flatten(variables).items():
        entry = _entry(path, naming)
        view, axes, shape = _layout(path, leaf.shape, entry)
        array = np.asarray(leaf).reshape(view).transpose(axes).reshape(shape)
        tensors[entry.name] = np.ascontiguousarray(array)
    return tensors


def fit(tensors: Mapping[str, np.ndarray], naming: Naming, like: Mapping[str, Any]) -> Fit:
    """What of a model is among `tensors` {name there: array}.

    like: {"params", "batch_stats"}, arrays or shapes. Positions on another square grid
    count as of another shape; see `grid_of`.
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
    """Tokens before the square of positions that a parameter holds; -1: it holds none."""
    return _entry(path, naming).grid


def _entry(path: str, naming: Naming) -> Entry:
    """Where the parameter of a path such as "params/conv1/kernel" is."""
    _, _, rest = path.partition("/")
    layer, _, leaf = rest.rpartition("/")
    if rest in naming.layers:
        named = naming.layers[rest]
        return named if isinstance(named, Entry) else Entry(named)
    named = naming.layers[layer]
    entry = named if isinstance(named, Entry) else Entry(named)
    if leaf != "kernel":
        entry = Entry(entry.name)
    return entry._replace(name=f"{entry.name}.{_SUFFIXES[leaf]}")


def _layout(
    path: str, ours: tuple[int, ...], entry: Entry
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(our shape viewed, the axes' order there, the shape there)."""
    size = int(np.prod(ours))
    view = _resolved(entry.view or ours, size)
    is_kernel = path.endswith("/kernel")
    axes = _AXES[len(view)] if is_kernel else tuple(range(len(view)))
    there = tuple(view[axis] for axis in axes)
    return view, axes, _resolved(entry.shape or there, size)


def _resolved(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """`shape` with its -1 replaced by what `size` elements leave for it."""
    known = int(np.prod([n for n in shape if n != -1]))
    return tuple(size // known if n == -1 else n for n in shape)
