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

# Metrics on the device: [] for one step, [MOST] for a block.
Scores = Mapping[str, jax.Array]
# The target seconds of a block. Two blocks are under way at a request to stop: the run
# stops within a second if its steps are short.
_SECONDS = 0.25


class Stepper(NamedTuple):
    """The way a run advances its state: by blocks of consecutive batches.

    most: The most batches of a block.
    compile: Compiles the program once; raises `InputError` if it does not fit in memory.
    batches: (first step) -> the batches from that step to the last.
    advance: (state, block) -> (state after it, metrics of its steps). It begins the steps
        and does not wait for them; it donates the state.
    """

    most: int
    compile: Callable[[], object]
    batches: Callable[[int], Iterator[Batch]]
    advance: Callable[[State, Sequence[Batch]], tuple[State, Scores]]


def choose(exp: Experiment) -> Stepper:
    """Returns the `Stepper` of an experiment, from config, data and devices alone.

    Raises `InputError` if compile.loop is "on" and blocks are not possible.
    """
    asked = exp.config.compile.loop
    if asked == "off" or (asked == "auto" and not mesh.is_accelerator(exp.mesh)):
        return one_by_one(exp)
    reason = ""
    if hosts.count() > 1:
        reason = "the steps of several processes begin one by one; start one process"
    elif not exp.data.is_train_resident:
        reason = (
            "the images of data.train are not kept on the device (data.resident); take"
            " fewer or smaller ones without random host ops"
        )
    if reason and asked == "on":
        raise InputError(f"compile.loop=on: {reason}, or leave compile.loop at 'auto'")
    return one_by_one(exp) if reason else in_blocks(exp)


def one_by_one(exp: Experiment) -> Stepper:
    """Returns a `Stepper` with one batch a block, with images, on any devices."""

    return Stepper(
        most=1,
        compile=exp.programs.compile_train_step,
        batches=exp.train_batches,
        advance=lambda state, block: exp.programs.train_step(state, *block),
    )


def in_blocks(exp: Experiment) -> Stepper:
    """Returns a `Stepper` with blocks of up to MOST batches, for images on the device.

    Its batches hold the indices of their examples. The size of a block changes no bits.
    """

    def stacked(*each: np.ndarray) -> np.ndarray:
        column = np.zeros((MOST, *each[0].shape), each[0].dtype)
        column[: len(each)] = each
        return column

    def advance(state: State, block: Sequence[Batch]) -> tuple[State, Scores]:
        columns = jax.tree.map(stacked, *block)
        return exp.programs.train_loop(state, columns, len(block))

    return Stepper(
        most=MOST,
        compile=lambda: exp.programs.train_loop,
        batches=lambda start: exp.data.train_columns(start, exp.plan.steps),
        advance=advance,
    )


def next_size(size: int, count: int, seconds: float) -> int:
    """Returns the most batches of the next block, after `count` took `seconds`.

    size: the most that this block could have had. A record or a duty may have cut it short.
    """
    return max(1, min(2 * size, MOST, int(_SECONDS * count / seconds)))
