"""Reads and checks checkpoints; `saving` writes them.

Orbax stores the arrays and does not checksum them, so that each array has a digest. The
folder ``checkpoints/N`` holds the state after N updates, in three items:

- "weights": params, batch_stats and ema. They are apart, so they load without an optimizer.
- "rest": the other fields of `State`: step, opt_state, key, best (value and step), mark,
  patience, halted, bad_step, skips, rewound and plateau.
- "meta", as JSON: "format" (the number of this layout); "step" and "best_step"; "pending"
  (whether the duties at the step are still due, see `take_pending`); "anchor" (whether a
  rewind may return to it); "digests" (one for each array of the state); "records"
  (the seals of the files of records, see `records.check_sealed`); "means" (the sums of
  training values since the last record, see `training.means`); and "seal" (a digest of meta
  itself).

Several processes may share a folder. Only the first process lists, moves and removes
checkpoints. A checkpoint is whole if every process can read it.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxcls.devices import hosts
from jaxcls.errors import InputError, first_line
from jaxcls.learning.param_groups import path_name
from jaxcls.learning.step import Best, Plateau, State
from jaxcls.runs import digests as state_digests
from jaxcls.runs import forms
from jaxcls.runs.digests import Digests

T = TypeVar("T")

FORMAT = 1
WEIGHTS = ("params", "batch_stats", "ema")
# The name of a checkpoint's folder, as a step is written; other names are others' files.
_STEP = re.compile("0|[1-9][0-9]{0,17}")
# Older checkpoints lack these fields of State; the values are their defaults.
_ADDED = {"skips": 0, "rewound": -1}


class CorruptError(Exception):
    """The checkpoint does not hold the saved state; the text says why."""


def steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps that have a checkpoint, ascending."""
    if not folder.is_dir():
        return []
    names = (entry.name for entry in folder.iterdir())
    return sorted(int(name) for name in names if _STEP.fullmatch(name))


def reached(folder: pathlib.Path) -> int:
    """Returns the last step that has a checkpoint, also one set aside; 0 without any."""
    aside = (int(path.stem) for path in _asides(folder, ".pending"))
    return max([0, *steps(folder), *aside])


def take_pending(folder: pathlib.Path, step: int) -> bool:
    """Returns whether work is pending at `step`, and if so moves its checkpoint aside.

    A pending checkpoint was saved before the evaluation, or other work due at its step, was
    done. It moves to ``N.pending``, so the state can be saved again after that work.
    `bring_back` undoes the move, also after a crash. For the first process alone.
    """
    is_pending = False
    with contextlib.suppress(CorruptError):
        is_pending = bool(meta_of(folder, step).get("pending"))
    if is_pending:
        (folder / str(step)).rename(folder / f"{step}.pending")
    return is_pending


def bring_back(folder: pathlib.Path) -> None:
    """Undoes `take_pending`, unless the same or a later step is saved.

    Also deletes the remains of an interrupted `remove_after`. For the first process alone.
    """
    for left in _asides(folder, ".removed"):
        shutil.rmtree(left)
    for aside in _asides(folder, ".pending"):
        whole = aside.with_suffix("")
        if any(step >= int(whole.name) for step in steps(folder)):
            shutil.rmtree(aside)
        else:
            aside.rename(whole)


def _asides(folder: pathlib.Path, ending: str) -> list[pathlib.Path]:
    """Returns the checkpoints that have moved to ``N`` with an ending, and nothing else."""
    found = folder.glob(f"[0-9]*{ending}")
    return [path for path in found if _STEP.fullmatch(path.stem) and path.is_dir()]


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
    state, reasons = restore_last_of(folder, found, like)
    if state is not None:
        damaged = found[len(found) - len(reasons) :]
        hosts.on_first(lambda: _move_aside(folder, damaged))
    elif reasons:
        raise InputError(
            f"no checkpoint in {folder} is whole ({'; '.join(reasons)}); move the folder"
            " away to start from step 0"
        )
    return state


def restore_last_of(
    folder: pathlib.Path, steps: list[int], like: State
) -> tuple[State | None, list[str]]:
    """Returns (the last whole checkpoint of `steps` or None, faults of the later ones)."""
    reasons: list[str] = []
    for step in reversed(steps):
        try:
            return restore(folder, step, like), reasons
        except CorruptError as error:
            reasons.append(f"{step}: {error}")
            logging.warning("checkpoint %d is not whole (%s); trying older", step, error)
    return None, reasons


def restore(folder: pathlib.Path, step: int, like: State) -> State:
    """Returns the verified state of a checkpoint, with the shapes and shardings of `like`.

    Raises `CorruptError` if it cannot be read or a digest differs. Raises `InputError` if
    it is whole, but another version wrote it.
    """
    tree = to_tree(like)
    read, saved = _agreed(lambda: _read(folder, step, tree))
    _agreed(lambda: _verify(read, saved))
    for name in (name for name in tree if name not in read):
        default = jnp.full(tree[name].shape, _ADDED[name], tree[name].dtype)
        read[name] = jax.device_put(default, tree[name].sharding)
    state = _from_tree(read)
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
    weights, saved = _read(folder, step, {k: to_tree(like)[k] for k in WEIGHTS})
    _verify(weights, saved)
    return weights


def find(folder: pathlib.Path, which: str) -> tuple[int, str]:
    """Returns (step, label) for "best", "last" or a step number in text.

    The label is "best", "last" or the number. "best" gives the last checkpoint, labelled
    "last", if the run has no evaluation. Raises `InputError`, which lists the steps, if the
    folder lacks the checkpoint.
    """
    found = steps(folder)
    if not found:
        raise InputError(f"{folder} holds no checkpoint; train first")
    named = {"last": found[-1]} | {str(step): step for step in found}
    wanted = what = which
    if which == "best":
        try:
            best = meta_of(folder, found[-1])["best_step"]
        except CorruptError as error:
            raise InputError(
                f"checkpoint {found[-1]} in {folder}, which names the best, is not whole"
                f" ({error}); give --checkpoint=STEP, one of {', '.join(map(str, found))}"
            ) from None
        wanted = str(best) if best >= 0 else "last"
        what = f"best, step {best},"
    if wanted not in named:
        raise InputError(
            f"--checkpoint={what[:80]} is not in {folder}; there are best,"
            f" {', '.join(named)}"
        )
    return named[wanted], "last" if wanted == "last" else which


def digests(state: State) -> Digests:
    """Returns {path of each array: 16 hex digits of its bits}, for any sharding."""
    return state_digests.of_tree(to_tree(state))


def to_tree(state: State) -> dict[str, Any]:
    """Returns the state as plain dicts, as on disk; keys become raw integers."""
    keys = {name: _raw_key(key) for name, key in state.key.items()}
    tree = {**state._asdict(), "best": state.best._asdict(), "key": keys}
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


def _read(
    folder: pathlib.Path, step: int, tree: dict[str, Any]
) -> tuple[dict[str, Any], Digests]:
    """Returns (the saved values, in the form of `tree`; the digests in "meta").

    The fields of `_ADDED` that the checkpoint lacks are left out.
    """
    meta = meta_of(folder, step)
    digests = meta["digests"]
    tree = {k: v for k, v in tree.items() if k not in _ADDED or k in digests}
    _check_version(folder / str(step), meta, tree)
    wanted = {
        name: ocp.args.StandardRestore(item)
        for name, item in items_of(tree).items()
        if item
    }
    try:
        alone = _alone()
        options = ocp.CompositeOptions(multiprocessing_options=alone)
        handler = ocp.CompositeCheckpointHandler(composite_options=options)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            read = checkpointer.restore(folder / str(step), ocp.args.Composite(**wanted))
    except Exception as error:  # Orbax and tensorstore raise many kinds for bad files.
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise  # The checkpoint is not at fault.
        raise CorruptError(f"{type(error).__name__}: {first_line(error)}") from error
    return {k: v for item in wanted for k, v in read[item].items()}, digests


def items_of(tree: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the items {"weights": ..., "rest": ...} of a tree."""
    weights = {k: tree[k] for k in WEIGHTS}
    return {"weights": weights, "rest": {k: tree[k] for k in tree if k not in weights}}


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
        if seal != seal_of(meta) or not forms.is_meta(meta):
            raise ValueError("seal")
        return meta
    except Exception as error:  # Damaged JSON raises many types.
        raise CorruptError(f"{path.name} of meta: {type(error).__name__}") from None


def seal_of(meta: dict[str, Any]) -> str:
    """Returns 16 hex digits of SHA-256 over `meta`, without a seal."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:16]


def _check_version(path: pathlib.Path, meta: dict[str, Any], tree: dict[str, Any]) -> None:
    """Raises `InputError` for a whole checkpoint of another format or array layout."""
    if meta["format"] != FORMAT:
        raise InputError(
            f"{path} has format {meta['format']}, and this jaxcls reads {FORMAT}; use the"
            " jaxcls that manifest.json names"
        )
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    missing = [name for name in names if name not in meta["digests"]]
    if missing:
        raise InputError(
            f"{path} lacks {missing[0]} (and {len(missing) - 1} more): another jaxcls, flax"
            " or optax wrote it; use the versions that manifest.json names"
        )


def _agreed(f: Callable[[], T]) -> T:
    """Returns ``f()``; raises `CorruptError` on every process if one process raises it."""
    return hosts.together(f, CorruptError, CorruptError)


def _verify(tree: dict[str, Any], saved: Digests) -> None:
    for path, digest in state_digests.of_tree(tree).items():
        if saved.get(path) != digest:
            raise CorruptError(f"the digest of {path} differs")


def _move_aside(folder: pathlib.Path, bad: list[int]) -> None:
    for step in bad:
        target, numbers = folder / f"{step}.corrupt", itertools.count(1)
        while target.exists():
            target = folder / f"{step}.corrupt-{next(numbers)}"
        (folder / str(step)).rename(target)
