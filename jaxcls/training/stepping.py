"""The two ways to advance the state of a run: one step a dispatch, or a block of steps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxcls.data.batch import Batch
from jaxcls.devices import hosts, mesh
from jaxcls.errors import InputError
from jaxcls.experiment import Experiment
from jaxcls.learning.multistep import MOST
from jaxcls.learning.step import State

# Metrics on the device: of one step [], or of the steps of a block [MOST].
Scores = Mapping[str, jax.Array]
# A block takes about so many seconds. Two are under way when a run is asked to stop: it
# answers within a second where a step is as short.
_SECONDS = 0.25


class Stepper(NamedTuple):
    """How a run advances its state by blocks, which are consecutive batches.

    most: batches of a block, at most.
    topology: what manifest.json says of it besides the devices.
    compile: makes the program, unless it is there; raises `InputError` if it cannot fit.
    batches: (first step) -> the batches from that step to the last.
    advance: (state, block) -> (state after it, metrics of its steps). It begins the steps
        and does not wait for them; it donates the state.
    """

    most: int
    topology: dict[str, int]
    compile: Callable[[], object]
    batches: Callable[[int], Iterator[Batch]]
    advance: Callable[[State, Sequence[Batch]], tuple[State, Scores]]


def choose(exp: Experiment) -> Stepper:
    """The `Stepper` of an experiment; it follows from config, data and devices alone.

    Raises `InputError` where the config asks for blocks that cannot be.
    """
    asked = exp.config.compile.loop
    if asked == "off" or (asked == "auto" and not mesh.is_accelerator(exp.mesh)):
        return one_by_one(exp)
    reason = _obstacle(exp)
    if reason and asked == "on":
        raise InputError(f"compile.loop=on: {reason}, or leave compile.loop at 'auto'")
    return one_by_one(exp) if reason else in_blocks(exp)


def one_by_one(exp: Experiment) -> Stepper:
    """A `Stepper` whose blocks are single batches with their images, on any devices."""

    def advance(state: State, block: Sequence[Batch]) -> tuple[State, Scores]:
        (batch,) = block
        return exp.programs.train_step(state, batch)

    return Stepper(
        most=1,
        topology=_topology(exp),
        compile=lambda: exp.programs.train_step,
        batches=exp.train_batches,
        advance=advance,
    )


def in_blocks(exp: Experiment) -> Stepper:
    """A `Stepper` of blocks of up to MOST batches, whose images are on the device.

    Its batches say which examples they are of. How many make a block changes no bits.
    """

    def batches(start: int) -> Iterator[Batch]:
        return exp.data.train_columns(start, exp.plan.steps)

    def advance(state: State, block: Sequence[Batch]) -> tuple[State, Scores]:
        def stacked(*each: np.ndarray) -> np.ndarray:
            column = np.zeros((MOST, *each[0].shape), each[0].dtype)
            column[: len(block)] = each
            return column

        columns = jax.tree.map(stacked, *block)
        return exp.programs.train_loop(state, columns, len(block))

    return Stepper(
        most=MOST,
        topology=_topology(exp) | {"loop": 1},
        compile=lambda: exp.programs.train_loop,
        batches=batches,
        advance=advance,
    )


def next_size(size: int, count: int, seconds: float) -> int:
    """The most batches of the next block, after a block of `count` that took `seconds`.

    size: the most that this block could have had. A record or a duty may have cut it short.
    """
    return max(1, min(2 * size, MOST, int(_SECONDS * count / seconds)))


def _obstacle(exp: Experiment) -> str:
    """Why steps cannot be in blocks, and what helps; "" where they can."""
    if hosts.count() > 1:
        return "the steps of several processes begin one by one; start one process"
    if exp.data.is_train_resident:
        return ""
    return (
        "the images of data.train are not kept on the device (data.resident); take"
        " fewer or smaller ones without random host ops"
    )


def _topology(exp: Experiment) -> dict[str, int]:
    fsdp = exp.config.mesh.fsdp
    return {"fsdp": fsdp} if fsdp > 1 else {}
