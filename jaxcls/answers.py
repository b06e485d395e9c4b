"""What models say of every example of a split, in one pass over its images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcls import mesh
from jaxcls.data import DeviceBatch
from jaxcls.experiment import Experiment
from jaxcls.predictions import mean_logits, probabilities
from jaxcls.views import View


class Answer(NamedTuple):
    """What is asked of each batch.

    ask: images uint8 [B, H, W, C] on the mesh -> logits [B, K], one for each view.
    combine: those, as numpy -> logits [B, k] float32.
    """

    ask: Callable[[jax.Array], Sequence[jax.Array]]
    combine: Callable[[Sequence[np.ndarray]], np.ndarray]


def of_model(exp: Experiment, variables: dict[str, Any], columns: np.ndarray) -> Answer:
    """The logits of the classes `columns` [k]."""
    return Answer(
        lambda images: [exp.logits_step(variables, images)],
        lambda parts: parts[0][:, columns],
    )


def through_views(
    exp: Experiment, variables: dict[str, Any], columns: np.ndarray, views: Sequence[View]
) -> Answer:
    """The logits of the mean of probabilities over views, among the classes `columns`."""
    rows = mesh.by_example(exp.mesh)
    jitted = [jax.jit(view, in_shardings=rows, out_shardings=rows) for view in views]

    def combine(parts: Sequence[np.ndarray]) -> np.ndarray:
        return mean_logits(
            [probabilities(part[:, columns], exp.link) for part in parts], exp.link
        )

    def ask(images: jax.Array) -> list[jax.Array]:
        parts: list[jax.Array] = []
        for view in jitted:
            parts.append(exp.logits_step(variables, view(images)))
            # Two under way: with many, XLA's CPU devices wait for one another in vain.
            jax.block_until_ready(parts[-2:-1])
        return parts

    return Answer(ask, combine)


def gathered(
    n: int,
    batches: Iterator[DeviceBatch],
    answers: Mapping[str, Answer],
    on: jax.sharding.Mesh,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """({name: logits [n, k]}, labels int32 [n]) of n examples, in the order of their index.

    batches: image, label, index and mask on the mesh `on`, as `Data.eval_batches` gives
    them. Raises RuntimeError if any example was not seen exactly once.
    """
    everywhere = jax.jit(lambda *columns: columns, out_shardings=mesh.replicated(on))
    labels, seen = np.zeros(n, np.int32), np.zeros(n, np.int64)
    logits: dict[str, np.ndarray] = {}

    def keep(columns: Sequence[jax.Array], asked: dict[str, Sequence[jax.Array]]) -> None:
        index, label, mask = map(np.asarray, columns)
        index = index[mask]
        labels[index] = label[mask]
        seen[index] += 1
        for name, parts in asked.items():
            found = answers[name].combine([np.asarray(part) for part in parts])
            if name not in logits:
                logits[name] = np.full((n, found.shape[1]), np.nan, np.float32)
            logits[name][index] = found[mask]

    pending = None
    for batch in batches:
        columns = everywhere(batch["index"], batch["label"], batch["mask"])
        asked = {name: answer.ask(batch["image"]) for name, answer in answers.items()}
        if pending:  # One batch behind, so that the device never waits for us.
            keep(*pending)
        pending = columns, asked
    if pending:
        keep(*pending)
    if not (seen == 1).all():
        raise RuntimeError(f"{seen.sum()} predictions where there are {n} examples")
    return logits, labels
