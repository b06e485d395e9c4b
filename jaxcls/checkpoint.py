"""States on disk: orbax, and digests, since orbax does not checksum arrays.

A checkpoint is a folder ``checkpoints/N``, the state after N updates, in three items:
"weights" (params, batch_stats, ema), "rest" (everything else of the state) and "meta"
(format, digests). Weights stand alone so that they load without an optimizer.
"""

import hashlib
import json
import logging
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxcls import digesting
from jaxcls.errors import InputError
from jaxcls.optimizers import path_name
from jaxcls.step import Best, State, all_finite

FORMAT = 1
_WEIGHTS = ("params", "batch_stats", "ema")
# Fields that State got later, and what they are in a checkpoint without them.
_ADDED = {"skips": 0, "rewound": -1}
# Seconds before a save that must not be lost is tried again.
PAUSES = (1.0, 5.0, 20.0)


class CorruptError(Exception):
    """A checkpoint that does not hold what was saved; its text says why."""


class Checkpoints:
    """Asynchronous, atomic saves into a folder; keeps the last few and the best one.

    A save that fails loses no older checkpoint: it is said loudly and the run goes on.
    A context manager: leaving it waits for the save under way.
    """

    def __init__(self, folder: pathlib.Path, keep: int) -> None:
        self._folder = folder
        self._policy = _KeepLastAnd(keep)
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                cleanup_tmp_directories=True,
                create=True,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.wait()
        self._manager.close()

    def save(
        self,
        state: State,
        digests: dict[str, str],
        *,
        pending: bool = False,
        anchor: bool = False,
    ) -> None:
        """Begin to write `state` at its own step; `digests` are those of the state.

        pending: what is due at this step is not done yet; see `take_pending`.
        anchor: `rewind` may go back to it, so the last such one is kept.
        """
        self.wait()
        if not bool(_finite(state)):
            step = int(state.step)
            raise RuntimeError(f"state of step {step} is not finite, and is not saved")
        try:
            self._begin(state, digests, pending=pending, anchor=anchor)
        except Exception as error:  # Orbax and file systems raise many kinds.
            self._say_failed(error)

    def save_now(self, state: State, digests: dict[str, str], **what: bool) -> None:
        """`save`, and wait until it is on disk; a failure is tried again, with pauses.

        For what cannot be made again. Raises `InputError` when it still fails.
        """
        step = int(state.step)
        for pause in (*PAUSES, None):
            self.save(state, digests, **what)
            self.wait()
            if step in steps(self._folder):
                return
            if pause is not None:
                time.sleep(pause)
        last = steps(self._folder)
        raise InputError(
            f"{self._folder}: step {step} cannot be saved (see above); make room, or allow"
            f" it to be written, and start again from {last[-1] if last else 'step 0'}"
        )

    def wait(self) -> None:
        """Return when the save under way is on disk, or has failed and that is said."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax and file systems raise many kinds.
            self._say_failed(error)

    def rewind(self, like: State) -> State | None:
        """The state of the last anchor that is whole, or None; every later one is gone."""
        self.wait()
        found: State | None = None
        for step in reversed(self._anchors()):
            try:
                found = restore(self._folder, step, like)
                break
            except CorruptError as error:
                logging.warning("checkpoint %d is not whole (%s)", step, error)
        first = -1 if found is None else int(found.step)
        # The newest first: what a death leaves is a run that has not got so far.
        for step in reversed(steps(self._folder)):
            if step > first:
                shutil.rmtree(self._folder / str(step))
        self._manager.reload()
        return found

    def _anchors(self) -> list[int]:
        """The steps of all anchors, ascending."""
        return [s for s in steps(self._folder) if _says(self._folder, s, "anchor")]

    def _begin(
        self, state: State, digests: dict[str, str], *, pending: bool, anchor: bool
    ) -> None:
        step, tree = int(state.step), _to_tree(state)
        needed, free = memory_of(tree), shutil.disk_usage(self._folder).free
        if free < needed:
            raise OSError(f"{needed:,} bytes are needed and {free:,} are free")
        best = int(state.best.step)
        self._policy.also = {best}
        if not anchor and (anchors := self._anchors()):
            # After a rewind it is the best again that was so then.
            best_then = _meta(self._folder, anchors[-1])["best_step"]
            self._policy.also |= {anchors[-1], best_then}
        meta: dict[str, Any] = {"format": FORMAT, "step": step, "best_step": best}
        meta |= {"pending": pending, "anchor": anchor, "digests": digests}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                weights=ocp.args.StandardSave({k: tree[k] for k in _WEIGHTS}),
                rest=ocp.args.StandardSave({k: tree[k] for k in tree if k not in _WEIGHTS}),
                meta=ocp.args.JsonSave({**meta, "seal": _seal(meta)}),
            ),
            force=True,  # Our loop decides when; orbax's own policy would skip some.
        )

    def _say_failed(self, error: Exception) -> None:
        """Say it, and make orbax forget it: else it would lose the next save too."""
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        logging.warning("a checkpoint could not be saved (%s); the run goes on", first)
        self._manager.reload()
        for left in self._folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(left, ignore_errors=True)


def memory_of(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


class _KeepLastAnd:
    """Which checkpoints stay: the last `keep`, and those of `also`."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.also: set[int] = set()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        last = {info.step for info in checkpoints[-self.keep :]}
        return [info.step in last | self.also for info in checkpoints]


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
    if not _says(folder, step, "pending"):
        return False
    (folder / str(step)).rename(folder / f"{step}.pending")
    return True


def bring_back(folder: pathlib.Path) -> None:
    """Undo a `take_pending` unless its step or a later one was saved since."""
    for aside in folder.glob("*.pending"):
        whole = aside.with_suffix("")
        if any(step >= int(whole.name) for step in steps(folder)):
            shutil.rmtree(aside)
        else:
            aside.rename(whole)


def restore_newest(folder: pathlib.Path, like: State) -> State | None:
    """The newest checkpoint that is whole, or None where there is none at all.

    One that is not whole is said loudly and moved aside to ``N.corrupt``.
    Raises `InputError` where there are checkpoints and none is whole.
    """
    found = steps(folder)
    reasons = []
    for step in reversed(found):
        try:
            state = restore(folder, step, like)
        except CorruptError as error:
            reasons.append(f"{step}: {error}")
            logging.warning("checkpoint %d is not whole (%s); trying older", step, error)
            continue
        for bad in found[found.index(step) + 1 :]:
            _move_aside(folder / str(bad))
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
    tree = _to_tree(like)
    saved = _meta(folder, step)["digests"]
    added = {k: v for k, v in _ADDED.items() if k not in saved}
    rest = [k for k in tree if k not in _WEIGHTS and k not in added]
    read = _read(
        folder,
        step,
        weights={k: tree[k] for k in _WEIGHTS},
        rest={k: tree[k] for k in rest},
    )
    whole = {**read["weights"], **read["rest"]}
    _verify(digesting.of_tree(whole), saved)
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
    read = _read(folder, step, weights={k: _to_tree(like)[k] for k in _WEIGHTS})
    _verify(digesting.of_tree(read["weights"]), read["meta"]["digests"])
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
            best = _meta(folder, found[-1])["best_step"]
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
    return digesting.of_tree(_to_tree(state))


_finite = jax.jit(all_finite)


def _to_tree(state: State) -> dict[str, Any]:
    """The state as plain dicts, keys as their raw integers: what is on disk."""
    tree = state._asdict()
    tree["best"] = state.best._asdict()
    tree["key"] = {name: _raw_key(key) for name, key in state.key.items()}
    return tree


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
    return State(**{**tree, "key": keys, "best": Best(**tree["best"])})


def _read(folder: pathlib.Path, step: int, **items: dict[str, Any]) -> dict[str, Any]:
    """The items asked for, in the form of the trees given, and "meta"."""
    meta = _meta(folder, step)
    _check_version(folder / str(step), meta, items)
    wanted = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            read = checkpointer.restore(folder / str(step), ocp.args.Composite(**wanted))
    except MemoryError:
        raise
    except Exception as error:  # Orbax and tensorstore raise many kinds for bad files.
        if "RESOURCE_EXHAUSTED" in str(error):
            raise  # Nothing is wrong with the checkpoint.
        first = str(error).strip().splitlines() or [""]
        raise CorruptError(f"{type(error).__name__}: {first[0][:200]}") from error
    return {**read, "meta": meta}


def _meta(folder: pathlib.Path, step: int) -> dict[str, Any]:
    """What a checkpoint says of itself, checked by its seal."""
    path = folder / str(step) / "meta" / "metadata"
    try:
        meta = json.loads(path.read_text())
        seal = meta.pop("seal")
        if seal != _seal(meta):
            raise ValueError("seal")
        return meta
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"{path.name} of meta: {type(error).__name__}") from None


def _says(folder: pathlib.Path, step: int, what: str) -> bool:
    """Whether a checkpoint is marked as "pending" or "anchor"."""
    try:
        return bool(_meta(folder, step).get(what, False))
    except CorruptError:
        return False


def _seal(meta: dict[str, Any]) -> str:
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


def _verify(now: dict[str, str], saved: dict[str, str]) -> None:
    for path, digest in now.items():
        if saved.get(path) != digest:
            raise CorruptError(f"the digest of {path} differs")


def _move_aside(path: pathlib.Path) -> None:
    target, i = path.with_name(f"{path.name}.corrupt"), 1
    while target.exists():
        target, i = path.with_name(f"{path.name}.corrupt-{i}"), i + 1
    path.rename(target)
