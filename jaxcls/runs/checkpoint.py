"""Reads and checks checkpoints: orbax items, and digests, as orbax checksums no array.

The folder ``checkpoints/N`` holds the state after N updates, in three items:

- "weights": params, batch_stats and ema. They are apart, so they load without an optimizer.
- "rest": the other fields of `State`: step, opt_state, key, best (value and step), mark,
  patience, halted, bad_step, skips, rewound and plateau.
- "meta", as JSON: "format" (the number of this layout); "step" and "best_step"; "pending"
  (whether the duties at the step are still due, see `take_pending`); "anchor" (whether a
  rewind may return to it); "digests" (one for each array of the state); and "seal" (a
  digest of meta itself).

Several processes may share a folder. Only the first process lists, moves and removes
checkpoints. A checkpoint is whole if every process can read it.
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
# Older checkpoints lack these fields of State; the values are their defaults.
_ADDED = {"skips": 0, "rewound": -1}


class CorruptError(Exception):
    """The checkpoint does not hold the saved state; the text says why."""


def steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps that have a checkpoint, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def take_pending(folder: pathlib.Path, step: int) -> bool:
    """Returns whether work is pending at `step`, and if so moves its checkpoint aside.

    A pending checkpoint was saved before the evaluation, or other work due at its step, was
    done. It moves to ``N.pending``, so the state can be saved again after that work.
    `bring_back` undoes the move, also after a crash.
    """

    def take() -> bool:
        if not says(folder, step, "pending"):
            return False
        (folder / str(step)).rename(folder / f"{step}.pending")
        return True

    return hosts.on_first(take)


def bring_back(folder: pathlib.Path) -> None:
    """Undoes `take_pending`, unless the same or a later step is saved.

    Also deletes the remains of an interrupted `remove_after`.
    """

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
    """Removes every checkpoint after step `first`; a crash leaves no partial checkpoint."""
    # With the newest first, a crash leaves the checkpoints of a shorter run.
    for step in reversed(steps(folder)):
        if step > first:
            aside = folder / f"{step}.removed"
            (folder / str(step)).rename(aside)
            shutil.rmtree(aside)


def restore_newest(folder: pathlib.Path, like: State) -> State | None:
    """Returns the newest whole checkpoint, or None if there is no checkpoint.

    Logs a warning for each newer checkpoint and moves it to ``N.corrupt``. Raises
    `InputError` if there are checkpoints and none is whole.
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
    """Returns the verified state of a checkpoint, with the shapes and shardings of `like`.

    Raises `CorruptError` if it cannot be read or a digest differs. Raises `InputError` if
    it is whole, but another version wrote it.
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
    """Returns the verified {"params", "batch_stats", "ema"} of a checkpoint.

    Needs no optimizer state. Raises as `restore` does.
    """
    return _agreed(lambda: read_weights(folder, step, like))


def read_weights(folder: pathlib.Path, step: int, like: State) -> dict[str, Any]:
    """Does the work of `restore_weights` on this process alone, without agreement."""
    weights = {k: to_tree(like)[k] for k in WEIGHTS}
    read = _read(folder, step, weights=weights)
    _verify(state_digests.of_tree(read["weights"]), read["meta"]["digests"])
    return read["weights"]


def find(folder: pathlib.Path, which: str) -> tuple[int, str]:
    """Returns (step, label) for "best", "last" or a step number in text.

    The label is "best", "last" or the number. "best" gives the last checkpoint, labelled
    "last", if the run has no evaluation. Raises `InputError`, which lists the steps, if the
    folder lacks the checkpoint.
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
    """Returns {path of each array: 16 hex digits of its bits}, for any sharding."""
    return state_digests.of_tree(to_tree(state))


def to_tree(state: State) -> dict[str, Any]:
    """Returns the state as plain dicts, as on disk; keys become raw integers."""
    tree = state._asdict()
    tree["best"] = state.best._asdict()
    tree["key"] = {name: _raw_key(key) for name, key in state.key.items()}
    plateau = tree.pop("plateau")  # Absent if empty, as in older states.
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
    """Returns the requested items, in the form of the given trees, and "meta"."""
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
            raise  # The checkpoint is not at fault.
        raise CorruptError(f"{type(error).__name__}: {first_line(error)}") from error
    return {**read, "meta": meta}


def _alone() -> ocp.options.MultiprocessingOptions:
    """Returns options for a read without a barrier.

    Another process may find damage and never reach the barrier.
    """
    if hosts.count() == 1:
        return ocp.options.MultiprocessingOptions()
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )


def meta_of(folder: pathlib.Path, step: int) -> dict[str, Any]:
    """Returns the "meta" of a checkpoint; raises `CorruptError` if the seal is wrong."""
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
    """Returns whether a checkpoint has the mark "pending" or "anchor"; damaged: False."""
    try:
        return bool(meta_of(folder, step).get(what, False))
    except CorruptError:
        return False


def seal_of(meta: dict[str, Any]) -> str:
    """Returns 16 hex digits of SHA-256 over `meta`, without a seal."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:16]


def _check_version(path: pathlib.Path, meta: dict[str, Any], items: dict[str, Any]) -> None:
    """Raises `InputError` for a whole checkpoint of another format or array layout."""
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
    """Returns ``f()``; raises `CorruptError` on every process if one process raises it."""
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
