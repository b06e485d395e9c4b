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
from jaxcls.evaluation.predictions import Predictions, mean_logits, probabilities
from jaxcls.evaluation.views import View
from jaxcls.experiment import Experiment
from jaxcls.learning import losses

Columns = dict[str, np.ndarray]
# (logits [B, k] float32, labels [B] among the k) -> arrays [B, ...] by name.
Keep = Callable[[np.ndarray, np.ndarray], Columns]


class Abandoned(Exception):
    """A pass was stopped before its end."""


class Subject(NamedTuple):
    """A model and the examples that it is scored on; size: the examples of a batch."""

    exp: Experiment
    variables: dict[str, Any]
    given: Examples
    size: int


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


def of_model(subject: Subject, keep: Keep = all_logits) -> Scorer:
    """Returns a scorer that applies `keep` to the logits of the examples."""
    return _of_images(
        subject, lambda batch: [batch.image], lambda parts, labels: keep(parts[0], labels)
    )


def through_views(subject: Subject, views: Sequence[View], keep: Keep) -> Scorer:
    """Returns a scorer that applies `keep` to the logits of the mean over views.

    The mean is of the probabilities among the classes of the examples.
    """
    rows, link = mesh.by_example(subject.exp.mesh), subject.exp.recipe.link
    jitted = [jax.jit(view, in_shardings=rows, out_shardings=rows) for view in views]

    def keep_mean(parts: Sequence[np.ndarray], labels: np.ndarray) -> Columns:
        likely = [probabilities(part, link) for part in parts]
        return keep(mean_logits(likely, link), labels)

    return _of_images(
        subject, lambda batch: (view(batch.image) for view in jitted), keep_mean
    )


def at_strengths(subject: Subject, count: int, keep: Keep) -> Scorer:
    """Returns a scorer that applies `keep` to each image of an example: arrays [n, count].

    A batch has images [B, count, H, W, C].
    """
    rows, everywhere = mesh.by_example(subject.exp.mesh), mesh.replicated(subject.exp.mesh)
    of_one = jax.jit(
        lambda images, k: images[:, k], in_shardings=(rows, everywhere), out_shardings=rows
    )

    def images_of(batch: Batch) -> Iterator[jax.Array]:
        return (of_one(batch.image, np.int32(k)) for k in range(count))

    return _of_images(subject, images_of, _each(keep))


def under_attacks(subject: Subject, chosen: Sequence[Attack], keep: Keep) -> Scorer:
    """Returns a scorer that applies `keep` to each attacked image: arrays [n, attacks].

    An attack raises the evaluation's loss among the classes of the examples.
    """
    exp, (columns, places) = subject.exp, (subject.given.columns, subject.given.places)

    def judge(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        asked, targets_at = logits[:, columns], jnp.asarray(places)[labels]
        targets = losses.smooth(targets_at, len(columns), 0.0)
        return exp.recipe.loss(asked, targets), asked.argmax(-1) == targets_at

    rows, everywhere = mesh.by_example(exp.mesh), mesh.replicated(exp.mesh)
    advance = exp.programs.jit(
        attacks.make_advance(exp.recipe.logits_step(), judge),
        in_shardings=(exp.programs.variables_sharding, rows, everywhere, everywhere),
        out_shardings=rows,
    )
    moves = attacks.Moves(
        functools.partial(advance, subject.variables),
        jax.jit(attacks.scatter, in_shardings=(rows, everywhere), out_shardings=rows),
    )
    begin = jax.jit(attacks.begin, in_shardings=rows, out_shardings=rows)

    def images_of(batch: Batch) -> Iterator[jax.Array]:
        path = begin(Batch(batch.image, batch.label, batch.index))
        return (each.make(moves, path) for each in chosen)

    return _of_images(subject, images_of, _each(keep))


def _of_images(
    subject: Subject,
    images_of: Callable[[Batch], Iterable[jax.Array]],
    keep: Callable[[Sequence[np.ndarray], np.ndarray], Columns],
) -> Scorer:
    """Returns a scorer of several images an example.

    images_of: a batch -> images [B, H, W, C], one after the other. keep: their logits among
    the classes of the examples, and labels -> columns.
    """

    def ask(batch: Batch) -> list[jax.Array]:
        parts: list[jax.Array] = []
        for images in images_of(batch):
            parts.append(subject.exp.programs.logits_step(subject.variables, images))
            # With more than two programs at once, XLA's CPU devices deadlock.
            jax.block_until_ready(parts[-2:-1])
        return parts

    columns = subject.given.columns
    return Scorer(ask, lambda parts, labels: keep([x[:, columns] for x in parts], labels))


def _each(keep: Keep) -> Callable[[Sequence[np.ndarray], np.ndarray], Columns]:
    """Returns a function: logits of S images an example, labels -> arrays [B, S, ...]."""

    def keep_each(parts: Sequence[np.ndarray], labels: np.ndarray) -> Columns:
        kept = [keep(part, labels) for part in parts]
        return {name: np.stack([each[name] for each in kept], 1) for name in kept[0]}

    return keep_each


def predictions(subject: Subject) -> Predictions:
    """Returns the logits and labels of all examples."""
    kept, labels = over_examples(subject, {"": of_model(subject)})
    return Predictions(kept[""]["logits"], labels)


def scored(subject: Subject, scorer: Scorer) -> Columns:
    """Returns the columns of a scorer for all examples."""
    return over_examples(subject, {"": scorer})[0][""]


def over_examples(
    subject: Subject, scorers: Mapping[str, Scorer]
) -> tuple[dict[str, Columns], np.ndarray]:
    """Calls `over` on the examples of `subject`."""
    exp, given = subject.exp, subject.given
    size = mesh.round_up(subject.size, exp.mesh)
    batches = given.data.eval_batches(given.split, given.key, size)
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
