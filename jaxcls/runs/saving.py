"""Saves states asynchronously and atomically; a failed save loses no older checkpoint."""

import contextlib
import logging
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxcls.devices import hosts
from jaxcls.errors import first_line
from jaxcls.learning.step import State
from jaxcls.runs import checkpoint
from jaxcls.runs.digests import Digests

# Seconds before each retry of `save_now`.
PAUSES = (1.0, 5.0, 20.0)


class Checkpoints:
    """Saves into a folder asynchronously and atomically; keeps the last few and the best.

    A save that fails loses no older checkpoint: it logs a warning, and the run continues.
    As a context manager, it waits at the exit for the current save, unless another process
    of the save may be gone.

    watched: Makes a block of what may get stuck in a save.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        keep: int,
        watched: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._folder, self._watched = folder, watched
        self._policy = _KeepLastAnd(keep)
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                cleanup_tmp_directories=True,
                create=True,
                # Earlier than the watchdog: if one process fails its save, the other
                # processes wait this long.
                async_options=ocp.options.AsyncOptions(timeout_secs=300),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, *where: object) -> None:
        if hosts.count() > 1 and not hosts.is_agreed(error):
            return
        self.wait()
        try:
            with self._watched():
                self._manager.close()
        except Exception as failed:  # It would hide the error that ends the run.
            self._say_failed(failed)

    def save(
        self,
        state: State,
        digests: Digests,
        *,
        pending: bool = False,
        anchor: bool = False,
        records: Mapping[str, str] = MappingProxyType({}),
        means: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Starts to write `state` at the step of the state.

        digests: the digests of the state. records: the seals of the files of records up to
        now, by name, for `records.check_sealed`. means: of training values since the last
        record, as `training.means` keeps them. pending: work due at this step is not done
        yet; see `checkpoint.take_pending`. anchor: `rewind` may return to this checkpoint,
        so the last anchor is kept. Raises RuntimeError for a non-finite state.
        """
        self.wait()
        step, best = int(state.step), int(state.best.step)
        if not all_finite(state):
            raise RuntimeError(f"state of step {step} is not finite, and is not saved")
        self._policy.also = {best}
        meta = {
            "format": checkpoint.FORMAT,
            "step": step,
            "best_step": best,
            "pending": pending,
            "anchor": anchor,
            "digests": digests,
            "records": dict(records),
            "means": dict(means),
        }
        meta["seal"] = checkpoint.seal_of(meta)
        items = checkpoint.items_of(checkpoint.to_tree(state))
        args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        args["meta"] = ocp.args.JsonSave(meta)
        needed = sum(array.nbytes for array in jax.tree.leaves(items))
        try:
            if not anchor:  # After a rewind, the best at the anchor is the best again.
                self._policy.also.update(*hosts.on_first(self._anchors)[-1:])
            free = hosts.on_first(lambda: shutil.disk_usage(self._folder).free)
            if free < needed:  # Else the records would find no room either.
                raise OSError(f"{needed:,} bytes are needed and {free:,} are free")
            # The training loop decides; without `force` orbax would skip some saves.
            with self._watched():
                self._manager.save(step, args=ocp.args.Composite(**args), force=True)
        except Exception as error:  # Orbax and file systems raise many kinds.
            self._say_failed(error)

    def save_now(self, state: State, digests: Digests, **what: Any) -> None:
        """Saves `state` and waits until it is on disk; retries a failed save after pauses.

        For a state that cannot be computed again. what: the other arguments of `save`.
        Raises `hosts.AgreedError` if the last attempt fails too.
        """
        step = int(state.step)
        for pause in (*PAUSES, None):
            self.save(state, digests, **what)
            self.wait()
            if step in hosts.on_first(self._steps):
                return
            if hosts.on_first(lambda: not self._folder.parent.is_dir()):
                raise hosts.AgreedError(
                    f"{self._folder.parent} is gone, and step {step} cannot be saved there;"
                    " put the folder back where it was, and start again"
                )
            if pause is not None:
                time.sleep(pause)
        last = self._steps()
        raise hosts.AgreedError(
            f"{self._folder}: step {step} cannot be saved (see above); make room, or allow"
            f" it to be written, and start again from {last[-1] if last else 'step 0'}"
        )

    def wait(self) -> None:
        """Waits until the current save is on disk, or has failed with a warning."""
        try:
            with self._watched():
                self._manager.wait_until_finished()
        except Exception as error:  # Orbax and file systems raise many kinds.
            self._say_failed(error)

    def rewind(self, like: State, *, to_start: bool) -> State | None:
        """Returns the state of the last whole anchor and deletes all later checkpoints.

        If no anchor is whole and `to_start` is true, deletes all checkpoints and returns
        None. If no anchor is whole and `to_start` is false, deletes nothing and raises
        `hosts.AgreedError`.
        """
        self.wait()
        anchors = [step for step, _ in hosts.on_first(self._anchors)]
        found, _ = checkpoint.restore_last_of(self._folder, anchors, like)
        if found is None and not to_start:
            raise hosts.AgreedError(
                f"{self._folder}: no checkpoint that a rewind may go back to is whole;"
                " train again in a new --workdir, or put the damaged one right"
            )
        first = -1 if found is None else int(found.step)
        hosts.on_first(lambda: checkpoint.remove_after(self._folder, first))
        self._manager.reload()
        return found

    def take_pending(self, step: int) -> None:
        """Moves a pending checkpoint aside, so that `step` can be saved again."""
        self.wait()
        hosts.on_first(lambda: checkpoint.take_pending(self._folder, step))
        self._manager.reload()

    def means(self, step: int) -> dict[str, Any]:
        """Returns the "means" that a checkpoint was saved with; {} if there are none."""
        with contextlib.suppress(checkpoint.CorruptError):
            return checkpoint.meta_of(self._folder, step).get("means", {})
        return {}

    def _steps(self) -> list[int]:
        """Returns the steps with a checkpoint; none if the folder cannot be listed."""
        with contextlib.suppress(OSError):
            return checkpoint.steps(self._folder)
        return []

    def _anchors(self) -> list[tuple[int, int]]:
        """Returns (step, best step then) of all anchors; their arrays may be damaged."""
        found = []
        for step in checkpoint.steps(self._folder):
            with contextlib.suppress(checkpoint.CorruptError):
                meta = checkpoint.meta_of(self._folder, step)
                if meta.get("anchor"):
                    found.append((step, meta["best_step"]))
        return found

    def _say_failed(self, error: Exception) -> None:
        """Logs the failure and resets orbax, which else loses the next save too."""
        logging.warning(
            "a checkpoint could not be saved (%s); the run goes on", first_line(error)
        )
        try:
            with self._watched():
                self._manager.reload()
            if hosts.is_first():
                for left in self._folder.glob("*.orbax-checkpoint-tmp*"):
                    shutil.rmtree(left, ignore_errors=True)
        except Exception as again:  # Such as no open file left, which failed the save too.
            logging.warning(
                "%s could not be listed (%s); the run goes on",
                self._folder,
                first_line(again),
            )


def all_finite(state: State) -> bool:
    """Returns whether params, batch_stats, optimizer state and average are finite."""
    trees = (state.params, state.batch_stats, state.opt_state, state.ema)
    floats = [x for x in jax.tree.leaves(trees) if jnp.issubdtype(x.dtype, jnp.floating)]
    # One array after the other, for the reason in `digests.of_tree`.
    return all(np.isfinite(jax.device_get(_zero(x))) for x in floats)


@jax.jit
def _zero(x: jax.Array) -> jax.Array:
    """Returns 0, or NaN if an element of x is non-finite: 0 times infinity is NaN."""
    # A sum, with one program for each shape: XLA's `all` takes 4 times as long on a CPU.
    return (x * jnp.zeros((), x.dtype)).sum().astype(jnp.float32)


class _KeepLastAnd:
    """Orbax's preservation policy: keeps the last `keep` checkpoints and `also`."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.also: set[int] = set()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        last = {info.step for info in checkpoints[-self.keep :]}
        return [info.step in last | self.also for info in checkpoints]
