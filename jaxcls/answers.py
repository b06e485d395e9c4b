"""What models say of every example of a split, in one pass over its images."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcls import mesh
from jaxcls.data import DeviceBatch
from jaxcls.experiment import Experiment
from jaxcls.predictions import mean_logits, probabilities
from jaxcls.views import View

Columns = dict[str, np.ndarray]
# logits [B, k] float32, labels [B] among the k -> arrays [B, ...] by their names.
Keep = Callable[[np.ndarray, np.ndarray], Columns]


class Answer(NamedTuple):
    """What is asked of each batch, and what is kept of each example.

    ask: images uint8 [B, H, W, C] on the mesh -> logits [B, K], one for each view.
    combine: those, as numpy -> logits [B, k] float32.
    """

    ask: Callable[[jax.Array], Sequence[jax.Array]]
    combine: Callable[[Sequence[np.ndarray]], np.ndarray]
    keep: Keep


def all_logits(logits: np.ndarray, labels: np.ndarray) -> Columns:
    """The logits themselves, as "logits"."""
    return {"logits": logits}


def of_model(
    exp: Experiment,
    variables: dict[str, Any],
    columns: np.ndarray,
    keep: Keep = all_logits,
) -> Answer:
    """What a model says of the classes `columns` [k]."""
    return Answer(
        lambda images: [exp.logits_step(variables, images)],
        lambda parts: parts[0][:, columns],
        keep,
    )


def through_views(
    exp: Experiment,
    variables: dict[str, Any],
    columns: np.ndarray,
    views: Sequence[View],
    keep: Keep = all_logits,
) -> Answer:
    """The mean of its probabilities over views, among the classes `columns`, as logits."""
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

    return Answer(ask, combine, keep)


def gathered(
    n: int,
    batches: Iterable[DeviceBatch],
    places: np.ndarray,
    answers: Mapping[str, Answer],
    on: jax.sharding.Mesh,
) -> tuple[dict[str, Columns], np.ndarray]:
    """({name: what was kept [n, ...]}, labels int32 [n]), in the order of their index.

    batches: image, label, index and mask on the mesh `on`, as `Data.eval_batches` gives
    them. places: of each of their classes, its place among those that are asked about.
    Raises RuntimeError if any example was not seen exactly once.
    """
    everywhere = jax.jit(lambda *columns: columns, out_shardings=mesh.replicated(on))

    def asked() -> Iterator[tuple[Sequence[jax.Array], dict[str, Sequence[jax.Array]]]]:
        for batch in batches:
            columns = everywhere(batch["index"], batch["label"], batch["mask"])
            yield (
                columns,
                {name: each.ask(batch["image"]) for name, each in answers.items()},
            )

    labels, seen = np.zeros(n, np.int32), np.zeros(n, np.int64)
    kept: dict[str, Columns] = {name: {} for name in answers}
    for columns, found in mesh.one_behind(asked()):
        index, label, mask = map(np.asarray, columns)
        place, index = places[label].astype(np.int32), index[mask]
        labels[index] = place[mask]
        seen[index] += 1
        for name, parts in found.items():
            logits = answers[name].combine([np.asarray(part) for part in parts])
            for what, values in answers[name].keep(logits, place).items():
                if what not in kept[name]:
                    kept[name][what] = np.zeros((n, *values.shape[1:]), values.dtype)
                kept[name][what][index] = values[mask]
    if not (seen == 1).all():
        raise RuntimeError(f"{seen.sum()} predictions where there are {n} examples")
    return kept, labels
