"""Passes over a split: scorers score each batch, and every example counts once."""

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
# (logits [B, k] float32, labels [B] among the k) -> arrays [B, ...] by name.
Keep = Callable[[np.ndarray, np.ndarray], Columns]


class Abandoned(Exception):
    """A pass was stopped before its end."""


class Scorer(NamedTuple):
    """A computation on each batch, and the columns kept of its output.

    ask: image uint8 [B, H, W, C], label and index on the mesh -> a tree of device arrays.
    keep: (that tree as numpy, labels [B] as places among the columns) -> arrays [B, ...] by
    name.
    """

    ask: Callable[[Batch], Any]
    keep: Callable[[Any, np.ndarray], Columns]


def of_evaluation(exp: Experiment, variables: dict[str, Any]) -> Scorer:
    """Returns a scorer for loss, metrics and predicted class, as training records them."""
    return Scorer(
        lambda batch: exp.programs.eval_step(variables, Batch(batch.image, batch.label)),
        lambda columns, _: columns,
    )


def all_logits(logits: np.ndarray, labels: np.ndarray) -> Columns:
    """Keeps the logits as "logits"."""
    return {"logits": logits}


def of_model(
    exp: Experiment,
    variables: dict[str, Any],
    columns: np.ndarray,
    keep: Keep = all_logits,
) -> Scorer:
    """Returns a scorer that applies `keep` to the logits of the classes `columns` [k]."""
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
    """Returns a scorer that applies `keep` to the logits of the mean over views.

    The mean is of the probabilities among the classes `columns` [k].
    """
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
    """Returns a scorer that applies `keep` to each image of an example: arrays [n, count].

    A batch has images [B, count, H, W, C]. columns, keep: as in `of_model`, for one image.
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
    """Returns a scorer that applies `keep` to each attacked image: arrays [n, attacks].

    An attack raises the evaluation's loss among the classes `columns`. places: for each
    class of the data, its place among them. keep: as in `of_model`.
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
    """Returns a scorer that applies `keep` to several logits of an example: [B, S]."""

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
    """Returns the outputs of several programs, at most two of which run at once."""
    parts: list[jax.Array] = []
    for part in asked:
        parts.append(part)
        # With more, XLA's CPU devices deadlock.
        jax.block_until_ready(parts[-2:-1])
    return parts


def over_examples(
    exp: Experiment, given: Examples, scorers: Mapping[str, Scorer], size: int
) -> tuple[dict[str, Columns], np.ndarray]:
    """Calls `over` on the examples `given`, with `size` examples a batch."""
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
    """Returns ({scorer: {name: array [n, ...]}}, labels int32 [n]), ordered by index.

    batches: on the mesh `on`, as `Data.eval_batches` yields them. places: for each class of
    the data, its place among the scored classes. Raises RuntimeError unless every example
    is seen exactly once. Raises `Abandoned` on all processes if `abandon`, called at each
    batch, returns True on one.
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
