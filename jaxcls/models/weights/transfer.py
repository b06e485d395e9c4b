"""Initial weights of a model from another library's tensors; no tensor goes unnoticed."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcls.errors import InputError
from jaxcls.models import naming
from jaxcls.models.naming import Fit, Naming
from jaxcls.models.weights import architectures, dialects

HEAD = "params/head/"
# The most names of each kind in an error.
_LISTED = 4


class Start(NamedTuple):
    """Initial weights in place of random ones.

    arrays: our path, "params/conv1/kernel" -> float32. notes: a log of the steps, as text.
    doubt: that of them which says what other network the tensors fit, or "". resampled:
    whether positions are those of another grid, resampled.
    """

    arrays: dict[str, np.ndarray]
    notes: list[str]
    doubt: str = ""
    resampled: bool = False


def adapt(
    tensors: Mapping[str, np.ndarray],
    namings: Mapping[str, Naming],
    like: Mapping[str, Any],
    *,
    skip: str = "",
    is_head_fresh: bool = False,
    classes: Sequence[int] | None = None,
    model: tuple[str, Any] | None = None,
    architecture: str | None = None,
    image_shape: tuple[int, ...] = (1, 1),
) -> Start:
    """Returns the variables of a model from `tensors`, a library's name -> array.

    - namings: the model's names by library. The library with most names in common is taken.
    - like: the model's {"params", "batch_stats"}, as shapes.
    - skip: a regular expression on our paths and the library's names. It excludes matches
      that fit, are missing, are extra or have another shape.
    - is_head_fresh: whether the head starts at random.
    - classes: those of the head to take, in this order; None takes all.
    - model: its name with options, and its module; None does not compare `architecture`.
    - architecture: what the weights tell, as in `Weights`.
    - image_shape: the height and width of images of the model, or their ratio.

    Names of `dialects` are known. A prefix that all names share is taken off if no name is
    known with it. Positions on another, square, grid are resampled. Raises `InputError`,
    which lists tensors that are missing, extra or of another shape, for tensors that are
    not finite, and for another architecture with the same tensors.
    """
    if not tensors:
        raise InputError("holds no tensors; give the weights of this very model")
    tensors, read_as, told = _understood(tensors, namings)
    if classes is not None:
        of_head = {x: tensors[x][np.array(classes)] for x in _of_head(tensors, namings)}
        tensors = {**tensors, **of_head}
    every = {library: naming.names(like, namings[library]) for library in namings}
    library = max(every, key=lambda each: len(set(every[each].values()) & set(tensors)))
    table, named = namings[library], every[library]
    if tensors.keys().isdisjoint(named.values()):
        known = " or ".join(f"{each}'s" for each in namings)
        raise InputError(
            f"holds no layer of this model by {known} names; it has"
            f" {_some(tensors)}; give the weights of this very model"
        )
    search = re.compile(skip or "(?!)").search  # "(?!)" matches nothing.
    leaves = naming.flatten(like)
    wanted = {
        path: leaf
        for path, leaf in leaves.items()
        if not (is_head_fresh and path.startswith(HEAD))
        and not search(path)
        and not search(named[path])
    }
    left = {named[path] for path in leaves.keys() - wanted.keys()}
    given = {x: array for x, array in tensors.items() if x not in left and not search(x)}
    fit = naming.fit(given, table, wanted)
    notes = _resample(fit, given, table, image_shape)
    resampled = bool(notes)
    if fit.missing or fit.extra or fit.shapes:
        ours = architectures.ours_of(told or architecture)
        raise InputError(_refusal(fit, library, ours))
    if not fit.found:
        raise InputError(f"gives nothing that init.skip={skip!r} leaves; skip less")
    arrays = {path: np.asarray(array, np.float32) for path, array in fit.found.items()}
    for path, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(
                f"has numbers that are not finite, in {named[path]}; get it again"
            )
    of = f"{len(arrays)} of {len(leaves)} arrays, by {library}'s names"
    doubt = ""
    if model is not None:
        if architecture is None and namings.get("timm", table) != table:
            architecture = ""  # One library alone has these names, for one model.
        architecture, as_they_are = told or architecture, not (skip or is_head_fresh)
        doubt = architectures.check(architecture, *model, as_they_are=as_they_are)
        notes += [doubt] if doubt else []
    return Start(arrays, [*read_as, of, *notes], doubt, resampled)


class _Understood(NamedTuple):
    """Tensors by names of a `Naming`; notes: on changes; architecture: "" if unknown."""

    tensors: Mapping[str, np.ndarray]
    notes: list[str]
    architecture: str


def _understood(
    tensors: Mapping[str, np.ndarray], namings: Mapping[str, Naming]
) -> _Understood:
    """Translates names of other libraries, and takes off prefixes that all names share."""
    notes: list[str] = []
    prefix = ""
    known = {
        entry.name if isinstance(entry, naming.Entry) else entry
        for table in namings.values()
        for entry in table.values()
    } - {""}

    def count(names: Iterable[str]) -> int:
        """Returns how many names are of the model."""
        return sum(name in known or name.rpartition(".")[0] in known for name in names)

    bare = tensors
    while True:
        found, n = dialects.translated(bare), count(bare)
        if found and (not n or count(found.tensors) > n):
            of = f"{found.dialect} names, read as timm's"
            return _Understood(found.tensors, [*notes, of], found.architecture)
        if n:
            return _Understood(bare, notes, "")
        names = [name for name in bare if name not in _COUNTERS]
        first = {name.partition(".")[0] for name in names}
        if len(first) != 1 or not all("." in name for name in names):
            return _Understood(tensors, [], "")
        prefix += f"{first.pop()}."
        bare = {name.partition(".")[2]: bare[name] for name in names}
        notes = [f"all names without their prefix {prefix!r}"]


# Beside the tensors of a model; torch's average of models has it.
_COUNTERS = ("n_averaged",)


def classes_of(tensors: Mapping[str, np.ndarray], namings: Mapping[str, Naming]) -> int:
    """Returns the number of classes of the head in `tensors`; 0 if there is no head."""
    tensors = _understood(tensors, namings).tensors
    return next((len(tensors[name]) for name in _of_head(tensors, namings)), 0)


def _of_head(
    tensors: Mapping[str, np.ndarray], namings: Mapping[str, Naming]
) -> Iterator[str]:
    """Yields the names of the head's tensors: classes are their first axis."""
    head = {"params/head/bias": 0, "params/head/kernel": 0}  # A head may have no bias.
    for table in namings.values():
        for ndim, name in enumerate(naming.names(head, table).values(), 1):
            if name in tensors and tensors[name].ndim == ndim:
                yield name


def resample(positions: np.ndarray, grid: tuple[int, int], prefix: int) -> np.ndarray:
    """Resamples positions [1, prefix + n * n, D] to those of a grid, (rows, columns).

    The first `prefix` positions stay. The others are resized as an image, bicubic with
    antialiasing.
    """
    kept, rest = positions[:, :prefix], positions[0, prefix:]
    old = math.isqrt(len(rest))
    image = np.asarray(rest, np.float32).reshape(old, old, -1)
    resized = jax.image.resize(image, (*grid, image.shape[-1]), "cubic", antialias=True)
    flat = np.asarray(resized).reshape(1, math.prod(grid), -1)
    return np.concatenate([kept, flat], axis=1)


def _grid_of(count: int, image_shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns (rows, columns) of the square patches of an image; (0, 0) if none fit."""
    height, width = image_shape[:2]
    rows = round(math.sqrt(max(count, 0) * height / width))
    columns = count // rows if rows else 0
    is_whole = rows * columns == count and rows * width == columns * height
    return (rows, columns) if is_whole else (0, 0)


def _resample(
    fit: Fit,
    tensors: Mapping[str, np.ndarray],
    table: Naming,
    image_shape: tuple[int, ...],
) -> list[str]:
    """Moves positions of another grid to fit.found, resampled; returns notes."""
    notes = []
    for path, (name, there, here) in list(fit.shapes.items()):
        prefix = naming.grid_of(path, table)
        if prefix < 0 or len(there) != 3 or there[0] != 1 or there[2] != here[2]:
            continue
        old, _ = _grid_of(there[1] - prefix, (1, 1))
        rows, columns = _grid_of(here[1] - prefix, image_shape)
        if not old or not rows:
            continue
        fit.found[path] = resample(tensors[name], (rows, columns), prefix)
        del fit.shapes[path]
        notes.append(f"positions resampled from {old}x{old} to {columns}x{rows}")
    return notes


def _refusal(fit: Fit, library: str, ours: str) -> str:
    """Returns one line on missing, extra and misshapen tensors, with a remedy.

    ours: What the weights say that they are of, "model.name=..."; "" if they do not.
    """
    parts = []
    if fit.missing:
        parts.append(f"lacks {len(fit.missing)} ({_some(fit.missing.values())})")
    if fit.extra:
        parts.append(f"has {len(fit.extra)} more ({_some(fit.extra)})")
    if fit.shapes:
        shown = [f"{name} {_by(a)}, not {_by(b)}" for name, a, b in fit.shapes.values()]
        parts.append(f"has {len(fit.shapes)} of another shape ({_some(shown)})")
    heads = [path for path in (*fit.shapes, *fit.missing) if path.startswith(HEAD)]
    only_head = len(heads) == len(fit.shapes) + len(fit.missing) and not fit.extra
    remedy = (
        "init.head='fresh' replaces the head"
        if only_head
        else "give the weights of this very model, or name in init.skip what may differ"
    )
    if ours and not only_head:
        remedy = f"they are of {ours}"
    return f"does not fit by {library}'s names: it {', and '.join(parts)}; {remedy}"


def _some(names: Iterable[str]) -> str:
    """Returns the first few names as text."""
    listed = list(names)
    more = f", ... ({len(listed)})" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"
