"""One pass over a split: scorers are asked of each batch, every example counts once."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.data.batch import Batch
from jaxcls.devices import hosts, mesh
from jaxcls.evaluation import attacks
from jaxcls.evaluation.attacks import Attack
from jaxcls.evaluation.examples import Examples
from jaxcls.evaluation.predictions import mean_logits, probabilities
from jaxcls.evaluation.views import View
from jaxcls.experiment import Experiment
from jaxcls.learning import losses

Columns = dict[str, np.ndarray]
# logits [B, k] float32, labels [B] among the k -> arrays [B, ...] by their names.
Keep = Callable[[np.ndarray, np.ndarray], Columns]


class Abandoned(Exception):
    """A pass that was not made to its end."""


class Scorer(NamedTuple):
    """A computation on each batch, and the columns that are kept of it.

    ask: image uint8 [B, H, W, C], label and index on the mesh -> a tree of arrays there.
    keep: that tree as numpy, and labels [B] as places among the classes that are asked
    about -> arrays [B, ...] by name.
    """

    ask: Callable[[Batch], Any]
    keep: Callable[[Any, np.ndarray], Columns]


def of_evaluation(exp: Experiment, variables: dict[str, Any]) -> Scorer:
    """The loss, metrics and class predicted that evaluations in training record."""
    return Scorer(
        lambda batch: exp.programs.eval_step(variables, Batch(batch.image, batch.label)),
        lambda columns, _: columns,
    )


def all_logits(logits: np.ndarray, labels: np.ndarray) -> Columns:
    """The logits themselves, as "logits"."""
    return {"logits": logits}


def of_model(
    exp: Experiment,
    variables: dict[str, Any],
    columns: np.ndarray,
    keep: Keep = all_logits,
) -> Scorer:
    """`keep` of a model's logits for the classes `columns` [k]."""
    return Scorer(
        lambda batch: exp.programs.logits_step(variables, batch.image),
        lambda logits, labels: keep(logits[:, columns], labels),
    )


def through_views(
    exp: Experiment,
    variables: dict[str, Any],
    columns: np.ndarray,
    views: Sequence[View],
    keep: Keep = all_logits,
) -> Scorer:
    """The mean of its probabilities over views, among the classes `columns`, as logits."""
    rows = mesh.by_example(exp.mesh)
    jitted = [jax.jit(view, in_shardings=rows, out_shardings=rows) for view in views]

    def keep_mean(parts: Sequence[np.ndarray], labels: np.ndarray) -> Columns:
        likely = [probabilities(part[:, columns], exp.recipe.link) for part in parts]
        return keep(mean_logits(likely, exp.recipe.link), labels)

    def ask(batch: Batch) -> list[jax.Array]:
        images = batch.image
        return _in_turn(
            exp.programs.logits_step(variables, view(images)) for view in jitted
        )

    return Scorer(ask, keep_mean)


def at_strengths(
    exp: Experiment,
    variables: dict[str, Any],
    columns: np.ndarray,
    count: int,
    keep: Keep,
) -> Scorer:
    """`keep` of each of the images [B, count, H, W, C] of an example: arrays [n, count].

    columns, keep: as of `of_model`, of one image each.
    """
    rows, everywhere = mesh.by_example(exp.mesh), mesh.replicated(exp.mesh)
    of_one = jax.jit(
        lambda images, k: images[:, k], in_shardings=(rows, everywhere), out_shardings=rows
    )

    def ask(batch: Batch) -> list[jax.Array]:
        images = batch.image
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
) -> Scorer:
    """`keep` of the images that attacks make of each example: arrays [n, attacks].

    An attack raises the loss of an evaluation among the classes `columns`. places: of
    each of the data's classes, its place among them. keep: as of `of_model`.
    """

    def judge(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        asked, own = logits[:, columns], jnp.asarray(places)[labels]
        targets = losses.smooth(own, len(columns), 0.0)
        return exp.recipe.loss(asked, targets), asked.argmax(-1) == own

    rows, everywhere = mesh.by_example(exp.mesh), mesh.replicated(exp.mesh)
    advance = jax.jit(
        attacks.make_advance(exp.recipe.logits_step(), judge),
        in_shardings=(exp.programs.variables_sharding, rows, everywhere, everywhere),
        out_shardings=rows,
    )
    moves = attacks.Moves(
        functools.partial(advance, variables),
        jax.jit(attacks.scatter, in_shardings=(rows, everywhere), out_shardings=rows),
    )
    begin = jax.jit(attacks.begin, in_shardings=rows, out_shardings=rows)

    def ask(batch: Batch) -> list[jax.Array]:
        path = begin(Batch(batch.image, batch.label, batch.index))
        return _in_turn(
            exp.programs.logits_step(variables, each.make(moves, path)) for each in chosen
        )

    return _of_several(ask, columns, keep)


def _of_several(
    ask: Callable[[Batch], Sequence[jax.Array]], columns: np.ndarray, keep: Keep
) -> Scorer:
    """`keep` of each of several logits of an example, as arrays [B, S]."""

    def keep_each(parts: Sequence[np.ndarray], labels: np.ndarray) -> Columns:
        logits = np.stack(parts, axis=1)[..., columns]
        size, count, _ = logits.shape
        kept = keep(logits.reshape(size * count, -1), np.repeat(labels, count))
        return {
            name: values.reshape(size, count, *values.shape[1:])
            for name, values in kept.items()
        }

    return Scorer(ask, keep_each)


def _in_turn(asked: Iterable[jax.Array]) -> list[jax.Array]:
    """The outputs of several programs, at most two of which are under way at once."""
    parts: list[jax.Array] = []
    for part in asked:
        parts.append(part)
        # With many, XLA's CPU devices wait for one another in vain.
        jax.block_until_ready(parts[-2:-1])
    return parts


def over_examples(
    exp: Experiment, given: Examples, scorers: Mapping[str, Scorer], size: int
) -> tuple[dict[str, Columns], np.ndarray]:
    """`over` the examples `given`, at `size` a batch."""
    batches = given.data.eval_batches(given.split, given.key, mesh.round_up(size, exp.mesh))
    return over(given.n, batches, given.places, scorers, exp.mesh)


def over(
    n: int,
    batches: Iterable[Batch],
    places: np.ndarray,
    scorers: Mapping[str, Scorer],
    on: jax.sharding.Mesh,
    abandon: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Columns], np.ndarray]:
    """({scorer: {name: array [n, ...]}}, labels int32 [n]), in the order of their index.

    batches: on the mesh `on`, as `Data.eval_batches` gives them. places: of each of
    their classes, its place among those that are asked about.
    Raises RuntimeError if any example was not seen exactly once, and `Abandoned`, on all
    processes, when `abandon`, asked at each batch, says so on one.
    """
    everywhere = jax.jit(lambda columns: columns, out_shardings=mesh.replicated(on))

    def asked() -> Iterator[tuple[Batch, dict[str, Any]]]:
        for batch in batches:
            is_asked = abandon()
            columns = batch._replace(image=(), asked=mesh.flags(on, is_asked))
            if hosts.count() > 1:
                columns = everywhere(columns)
            elif is_asked:
                raise Abandoned
            yield columns, {name: each.ask(batch) for name, each in scorers.items()}

    labels, seen = np.zeros(n, np.int32), np.zeros(n, np.int64)
    kept: dict[str, Columns] = {name: {} for name in scorers}
    for columns, outs in mesh.one_behind(asked()):
        host = jax.tree.map(np.asarray, columns)
        if np.any(host.asked):
            raise Abandoned
        mask = host.mask
        place, index = places[host.label].astype(np.int32), host.index[mask]
        labels[index] = place[mask]
        seen[index] += 1
        for name, out in outs.items():
            found = scorers[name].keep(jax.tree.map(np.asarray, out), place)
            for what, values in found.items():
                if what not in kept[name]:
                    kept[name][what] = np.zeros((n, *values.shape[1:]), values.dtype)
                kept[name][what][index] = values[mask]
    if not (seen == 1).all():
        raise RuntimeError(f"{seen.sum()} scores for {n} examples, each of which has one")
    return kept, labels
