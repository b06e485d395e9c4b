"""States on disk: orbax, and digests, since orbax does not checksum arrays.

A checkpoint is a folder ``checkpoints/N``, the state after N updates, in three items:
"weights" (params, batch_stats, ema), "rest" (everything else of the state) and "meta"
(format, digests). Weights stand alone so that they load without an optimizer.
"""

import functools
import hashlib
import json
import logging
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxcls.devices import hosts
from jaxcls.errors import InputError, first_line
from jaxcls.learning.optimizers import path_name
from jaxcls.learning.step import Best, Plateau, State
from jaxcls.runs import digests as state_digests

T = TypeVar("T")

FORMAT = 1
WEIGHTS = ("params", "batch_stats", "ema")
# Fields that State got later, and what they are in a checkpoint without them.
_ADDED = {"skips": 0, "rewound": -1}
# Processes that share a folder: what is moved or removed is so by the first alone, what
# is in the folder is as the first sees it, and a checkpoint is whole if all can read it.


class CorruptError(Exception):
    """A checkpoint that does not hold what was saved; its text says why."""


def steps(folder: pathlib.Path) -> list[int]:
    """The steps that have a checkpoint, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def take_pending(folder: pathlib.Path, step: int) -> bool:
    """Whether what is due at a checkpoint's step was not done when it was saved.

    Then it is moved aside, to ``N.pending``, so that the state can be saved again when it
    is done; until then `bring_back` undoes this, after any death.
    """

    def take() -> bool:
        if not says(folder, step, "pending"):
            return False
        (folder / str(step)).rename(folder / f"{step}.pending")
        return True

    return hosts.on_first(take)


def bring_back(folder: pathlib.Path) -> None:
    """Undo a `take_pending` unless its step or a later one was saved since."""

    def bring() -> None:
        for left in folder.glob("*.removed"):
            shutil.rmtree(left)
        for aside in folder.glob("*.pending"):
            whole = aside.with_suffix("")
            if any(step >= int(whole.name) for step in steps(folder)):
                shutil.rmtree(aside)
            else:
                aside.rename(whole)

    hosts.on_first(bring)


def remove_after(folder: pathlib.Path, first: int) -> None:
    """Remove every checkpoint after step `first`, so that a death leaves none in part."""
    # The newest first: what is left is then a run that has not got so far.
    for step in reversed(steps(folder)):
        if step > first:
            aside = folder / f"{step}.removed"
            (folder / str(step)).rename(aside)
            shutil.rmtree(aside)


def restore_newest(folder: pathlib.Path, like: State) -> State | None:
    """The newest checkpoint that is whole, or None where there is none at all.

    One that is not whole is said loudly and moved aside to ``N.corrupt``.
    Raises `InputError` where there are checkpoints and none is whole.
    """
    found = hosts.on_first(lambda: steps(folder))
    reasons = []
    for step in reversed(found):
        try:
            state = restore(folder, step, like)
        except CorruptError as error:
            reasons.append(f"{step}: {error}")
            logging.warning("checkpoint %d is not whole (%s); trying older", step, error)
            continue
        later = found[found.index(step) + 1 :]
        hosts.on_first(functools.partial(_move_aside, folder, later))
        return state
    if reasons:
        raise InputError(
            f"no checkpoint in {folder} is whole ({'; '.join(reasons)}); move the folder"
            " away to start from step 0"
        )
    return None


def restore(folder: pathlib.Path, step: int, like: State) -> State:
    """The state of a checkpoint, with the shapes and shardings of `like`, verified.

    Raises `CorruptError` where it cannot be read or a digest differs, `InputError` where
    it is whole and another version's.
    """
    tree = to_tree(like)
    saved = _agreed(lambda: meta_of(folder, step))["digests"]
    added = {k: v for k, v in _ADDED.items() if k not in saved}
    rest = [k for k in tree if k not in WEIGHTS and k not in added]
    items = {"weights": {k: tree[k] for k in WEIGHTS}, "rest": {k: tree[k] for k in rest}}
    read = _agreed(lambda: _read(folder, step, **items))
    whole = {**read["weights"], **read["rest"]}
    _agreed(lambda: _verify(state_digests.of_tree(whole), saved))
    defaults = {
        k: jax.device_put(jnp.full(tree[k].shape, value, tree[k].dtype), tree[k].sharding)
        for k, value in added.items()
    }
    state = _from_tree(whole | defaults)
    if int(state.step) != step:
        raise CorruptError(f"it holds step {int(state.step)}")
    return state


def restore_weights(folder: pathlib.Path, step: int, like: State) -> dict[str, Any]:
    """{"params", "batch_stats", "ema"} of a checkpoint, verified; needs no optimizer.

    Raises `CorruptError` like `restore`.
    """
    return _agreed(lambda: read_weights(folder, step, like))


def read_weights(folder: pathlib.Path, step: int, like: State) -> dict[str, Any]:
    """`restore_weights` for this process alone, whatever the others find."""
    weights = {k: to_tree(like)[k] for k in WEIGHTS}
    read = _read(folder, step, weights=weights)
    _verify(state_digests.of_tree(read["weights"]), read["meta"]["digests"])
    return read["weights"]


def find(folder: pathlib.Path, which: str) -> tuple[int, str]:
    """(step, what it is) of "best", "last" or "N" in a folder of checkpoints.

    A run without evaluations has no best: then "best" is (step, "last").
    Raises `InputError` naming the steps that there are.
    """
    found = steps(folder)
    if not found:
        raise InputError(f"{folder} holds no checkpoint; train first")
    listed = ", ".join(map(str, found))
    if which == "best":
        try:
            best = meta_of(folder, found[-1])["best_step"]
        except CorruptError as error:
            raise InputError(
                f"checkpoint {found[-1]} in {folder}, which names the best, is not whole"
                f" ({error}); give --checkpoint=STEP, one of {listed}"
            ) from None
        if best not in (-1, *found):
            raise InputError(
                f"{folder} lacks checkpoint {best}, the best; give --checkpoint=last, or"
                f" one of {listed}"
            )
        return (best, "best") if best >= 0 else (found[-1], "last")
    if which == "last":
        return found[-1], "last"
    if which.isdigit() and int(which) in found:
        return int(which), which
    raise InputError(
        f"--checkpoint={which} is not in {folder}; there are best, last, {listed}"
    )


def digests(state: State) -> dict[str, str]:
    """Path of each array -> 16 hex digits of its bits, the same on any sharding."""
    return state_digests.of_tree(to_tree(state))


def to_tree(state: State) -> dict[str, Any]:
    """The state as plain dicts, keys as their raw integers: what is on disk."""
    tree = state._asdict()
    tree["best"] = state.best._asdict()
    tree["key"] = {name: _raw_key(key) for name, key in state.key.items()}
    plateau = tree.pop("plateau")  # As if there were none: older states lack it.
    return tree | ({"plateau": plateau._asdict()} if plateau else {})


def _raw_key(key: Any) -> Any:
    if isinstance(key, jax.ShapeDtypeStruct):
        raw = jax.eval_shape(jax.random.key_data, key)
        return jax.ShapeDtypeStruct(raw.shape, raw.dtype, sharding=key.sharding)
    return jax.random.key_data(key)


def _from_tree(tree: dict[str, Any]) -> State:
    keys = {
        name: jax.random.wrap_key_data(raw, impl="threefry2x32")
        for name, raw in tree["key"].items()
    }
    plateau = Plateau(**tree["plateau"]) if "plateau" in tree else {}
    best = Best(**tree["best"])
    return State(**{**tree, "key": keys, "best": best, "plateau": plateau})


def _read(folder: pathlib.Path, step: int, **items: dict[str, Any]) -> dict[str, Any]:
    """The items asked for, in the form of the trees given, and "meta"."""
    meta = meta_of(folder, step)
    _check_version(folder / str(step), meta, items)
    wanted = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
    try:
        alone = _alone()
        options = ocp.CompositeOptions(multiprocessing_options=alone)
        handler = ocp.CompositeCheckpointHandler(composite_options=options)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            read = checkpointer.restore(folder / str(step), ocp.args.Composite(**wanted))
    except MemoryError:
        raise
    except Exception as error:  # Orbax and tensorstore raise many kinds for bad files.
        if "RESOURCE_EXHAUSTED" in str(error):
            raise  # Nothing is wrong with the checkpoint.
        raise CorruptError(f"{type(error).__name__}: {first_line(error)}") from error
    return {**read, "meta": meta}


def _alone() -> ocp.options.MultiprocessingOptions:
    """Reading without waiting for other processes, which may find it not whole."""
    if hosts.count() == 1:
        return ocp.options.MultiprocessingOptions()
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )


def meta_of(folder: pathlib.Path, step: int) -> dict[str, Any]:
    """What a checkpoint says of itself, checked by its seal."""
    path = folder / str(step) / "meta" / "metadata"
    try:
        meta = json.loads(path.read_text())
        seal = meta.pop("seal")
        if seal != seal_of(meta):
            raise ValueError("seal")
        return meta
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"{path.name} of meta: {type(error).__name__}") from None


def says(folder: pathlib.Path, step: int, what: str) -> bool:
    """Whether a checkpoint is marked as "pending" or "anchor"; not, where it is damaged."""
    try:
        return bool(meta_of(folder, step).get(what, False))
    except CorruptError:
        return False


def seal_of(meta: dict[str, Any]) -> str:
    """16 hex digits over everything else that meta says."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:16]


def _check_version(path: pathlib.Path, meta: dict[str, Any], items: dict[str, Any]) -> None:
    """Raise `InputError` for a whole checkpoint that this code does not understand."""
    if meta["format"] != FORMAT:
        raise InputError(
            f"{path} has format {meta['format']}, and this jaxcls reads {FORMAT}; use the"
            " jaxcls that manifest.json names"
        )
    paths = [
        p for tree in items.values() for p, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    missing = [name for name in map(path_name, paths) if name not in meta["digests"]]
    if missing:
        raise InputError(
            f"{path} lacks {missing[0]} (and {len(missing) - 1} more): another jaxcls, flax"
            " or optax wrote it; use the versions that manifest.json names"
        )


def _agreed(f: Callable[[], T]) -> T:
    """``f()``; raises `CorruptError` on every process where it does on one."""
    return hosts.together(f, CorruptError, CorruptError)


def _verify(now: dict[str, str], saved: dict[str, str]) -> None:
    for path, digest in now.items():
        if saved.get(path) != digest:
            raise CorruptError(f"the digest of {path} differs")


def _move_aside(folder: pathlib.Path, bad: list[int]) -> None:
    for path in (folder / str(step) for step in bad):
        target, i = path.with_name(f"{path.name}.corrupt"), 1
        while target.exists():
            target, i = path.with_name(f"{path.name}.corrupt-{i}"), i + 1
        path.rename(target)
