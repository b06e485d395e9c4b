"""What models say of every example of a split, in one pass over its images."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls import attacks, losses, mesh
from jaxcls.attacks import Attack
from jaxcls.data import DeviceBatch
from jaxcls.examples import Examples
from jaxcls.experiment import Experiment
from jaxcls.predictions import mean_logits, probabilities
from jaxcls.views import View

Columns = dict[str, np.ndarray]
# logits [B, k] float32, labels [B] among the k -> arrays [B, ...] by their names.
Keep = Callable[[np.ndarray, np.ndarray], Columns]


class Answer(NamedTuple):
    """What is asked of each batch, and what is kept of each example.

    ask: image uint8 [B, H, W, C], label and index on the mesh -> logits [B, K], one for
    each view. combine: those, as numpy -> logits [B, k] float32, or [B, S, k] of several.
    """

    ask: Callable[[DeviceBatch], Sequence[jax.Array]]
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
        lambda batch: [exp.programs.logits_step(variables, batch["image"])],
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
            [probabilities(part[:, columns], exp.recipe.link) for part in parts],
            exp.recipe.link,
        )

    def ask(batch: DeviceBatch) -> list[jax.Array]:
        images = batch["image"]
        return _in_turn(
            exp.programs.logits_step(variables, view(images)) for view in jitted
        )

    return Answer(ask, combine, keep)


def at_strengths(
    exp: Experiment,
    variables: dict[str, Any],
    columns: np.ndarray,
    count: int,
    keep: Keep,
) -> Answer:
    """What it says of images [B, count, H, W, C], each example's: arrays [n, count].

    columns, keep: as of `of_model`, of one image each.
    """
    rows, everywhere = mesh.by_example(exp.mesh), mesh.replicated(exp.mesh)
    of_one = jax.jit(
        lambda images, k: images[:, k], in_shardings=(rows, everywhere), out_shardings=rows
    )

    def ask(batch: DeviceBatch) -> list[jax.Array]:
        images = batch["image"]
        return _in_turn(
            exp.programs.logits_step(variables, of_one(images, np.int32(k)))
            for k in range(count)
        )

    return _of_several(ask, columns, keep)


def under_attacks(
    exp: Experiment,
    variables: dict[str, Any],
    columns: np.ndarray,
    places: np.ndarray,
    chosen: Sequence[Attack],
    keep: Keep,
) -> Answer:
    """What it says of the images that attacks make of each example: arrays [n, attacks].

    An attack raises the loss of an evaluation among the classes `columns`. places: of
    each of the data's classes, its place among them. keep: as of `of_model`.
    """

    def judge(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        asked, own = logits[:, columns], jnp.asarray(places)[labels]
        targets = losses.smooth(own, len(columns), 0.0)
        return exp.recipe.loss(asked, targets), asked.argmax(-1) == own

    rows, everywhere = mesh.by_example(exp.mesh), mesh.replicated(exp.mesh)
    advance = jax.jit(
        attacks.make_advance(exp.recipe.predict_step(), judge),
        in_shardings=(exp.programs.variables_sharding, rows, everywhere, everywhere),
        out_shardings=rows,
    )
    moves = attacks.Moves(
        functools.partial(advance, variables),
        jax.jit(attacks.scatter, in_shardings=(rows, everywhere), out_shardings=rows),
    )
    begin = jax.jit(attacks.begin, in_shardings=rows, out_shardings=rows)

    def ask(batch: DeviceBatch) -> list[jax.Array]:
        path = begin({name: batch[name] for name in ("image", "label", "index")})
        return _in_turn(
            exp.programs.logits_step(variables, each.make(moves, path)) for each in chosen
        )

    return _of_several(ask, columns, keep)


def _of_several(
    ask: Callable[[DeviceBatch], Sequence[jax.Array]], columns: np.ndarray, keep: Keep
) -> Answer:
    """`keep` of each of several logits of an example, as arrays [B, S]."""

    def each(logits: np.ndarray, labels: np.ndarray) -> Columns:
        size, count, _ = logits.shape
        kept = keep(logits.reshape(size * count, -1), np.repeat(labels, count))
        return {
            name: values.reshape(size, count, *values.shape[1:])
            for name, values in kept.items()
        }

    return Answer(ask, lambda parts: np.stack(parts, axis=1)[..., columns], each)


def _in_turn(asked: Iterable[jax.Array]) -> list[jax.Array]:
    """The answers of a device that is asked of several things."""
    parts: list[jax.Array] = []
    for part in asked:
        parts.append(part)
        # Two under way: with many, XLA's CPU devices wait for one another in vain.
        jax.block_until_ready(parts[-2:-1])
    return parts


def of_examples(
    exp: Experiment, given: Examples, wanted: Mapping[str, Answer], size: int
) -> tuple[dict[str, Columns], np.ndarray]:
    """What was kept by name, and the labels as places among the classes asked about."""
    batches = given.data.eval_batches(given.split, given.key, mesh.round_up(size, exp.mesh))
    return gathered(given.n, batches, given.places, wanted, exp.mesh)


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
                {name: each.ask(batch) for name, each in answers.items()},
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
