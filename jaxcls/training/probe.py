"""A probe: the features of every image once, and the head that is best for them.

The body of the model stays as init.weights has it. The head is a logistic regression for
each of probe.penalties, on data.train; data.eval chooses one. Its state is that of a run
after one step, so all else that takes a run takes it.
"""

import hashlib
import json
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcls import atomic
from jaxcls.config import loading
from jaxcls.config.rules import penalties
from jaxcls.devices import hosts
from jaxcls.errors import InputError
from jaxcls.evaluation import passes
from jaxcls.experiment import Experiment
from jaxcls.learning import logistic
from jaxcls.learning.logistic import Head
from jaxcls.learning.step import State
from jaxcls.runs import digests, provenance

# What else of a start decides the bits of the features.
_OF_BITS = "numerics", "code", "versions", "cpu", "xla_flags", "jax_settings"
# The difference between the network's logits and the head's, as a share of the largest.
_APART = 0.02


class Features(NamedTuple):
    """The features float32 [n, D] and labels int32 [n] of a split, in its order."""

    features: np.ndarray
    labels: np.ndarray


class Chosen(NamedTuple):
    """A head, and its penalty and figures on data.eval."""

    head: Head
    penalty: float
    top1: float
    loss: float


def fit(exp: Experiment, state: State, say: Callable[[str], None]) -> tuple[State, Chosen]:
    """Returns (the state after the only step of a probe, the head that it has).

    say: Gets a line for each split and each penalty.

    Raises `InputError` if the model's head is no dense layer on its features, or features
    are not finite.
    """
    train, held_out = (_of_split(exp, state, role, say) for role in ("train", "eval"))
    asked, classes = penalties(exp.config.probe.penalties), exp.selection.num_classes

    def found() -> Any:
        head, *rest = best(train, held_out, classes, asked, say)
        return [head.kernel.tolist(), head.bias.tolist(), *rest]

    # On one process: the linear algebra of another could differ in the last bits.
    kernel, bias, *rest = hosts.on_first(found)
    head = Head(np.array(kernel, np.float32), np.array(bias, np.float32))
    chosen = Chosen(head, *rest)
    params = dict(state.params)
    like = params["head"]
    arrays = {"kernel": chosen.head.kernel, "bias": chosen.head.bias}
    params["head"] = {
        name: jax.device_put(array, like[name].sharding) for name, array in arrays.items()
    }
    step = jax.device_put(np.int32(exp.plan.steps), state.step.sharding)
    state = state._replace(params=params, step=step)
    _check_head(exp, state, chosen.head, held_out)
    return state, chosen


def best(
    train: Features,
    held_out: Features,
    num_classes: int,
    asked: tuple[float, ...],
    say: Callable[[str], None],
) -> Chosen:
    """Returns the head of the penalty with the most right on `held_out`.

    Of equals the one of the least loss. Each search begins at the head of the next larger
    penalty.
    """
    import scipy.special  # A twentieth of all imports; training needs none of it.

    head, found = logistic.zeros(train.features.shape[1], num_classes), []
    for penalty in sorted(asked, reverse=True):
        head = logistic.fit(*train, penalty, head)
        logits = logistic.logits(head, held_out.features).astype(np.float64)
        likely = scipy.special.log_softmax(logits, axis=1)
        top1 = float((logits.argmax(1) == held_out.labels).mean())
        loss = float(-likely[np.arange(len(likely)), held_out.labels].mean())
        found.append(Chosen(head, penalty, top1, loss))
        say(
            f"penalty {penalty:g}: data.eval top1={top1:.4g} loss={loss:.4g},"
            f" {head.iterations} iterations"
        )
    return max(found, key=lambda each: (each.top1, -each.loss))


def _of_split(
    exp: Experiment, state: State, role: str, say: Callable[[str], None]
) -> Features:
    """Returns the features of the split of a role, from the cache if it has them."""
    split, key = exp.config.data[role], f"data.{role}"
    path = _cached(exp, state, role)
    if found := _read(path):
        say(f"features of {key}={split}: {len(found.labels):,} of {path}")
        return found
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    scorer = passes.Scorer(
        lambda batch: exp.programs.embed_step(variables, batch.image),
        lambda embed, _: {"features": embed},
    )
    n = exp.selection.count(split, key)
    places = np.arange(exp.selection.num_classes)
    batches = exp.eval_batches(split, key)
    kept, labels = passes.over(n, batches, places, {"": scorer}, exp.mesh)
    features = kept[""]["features"]
    if not np.isfinite(features).all():
        raise InputError(
            f"the features of {key}={split!r} are not finite; give other init.weights, or"
            " model.dtype=float32"
        )
    made = Features(features, labels)
    say(f"features of {key}={split}: {n:,} of {features.shape[1]:,} numbers")
    if path:
        with atomic.explained(path.parent, "give --config.probe.cache=FOLDER"):
            path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.writing(path, "wb") as file:
            np.savez(file, features=features, labels=labels)
    return made


def _cached(exp: Experiment, state: State, role: str) -> pathlib.Path | None:
    """Returns the file of a split's features in probe.cache, if there is to be one.

    Its name is a digest of all that the features depend on.
    """
    if not exp.config.probe.cache or hosts.count() > 1:
        return None  # Several processes would have to agree whether there is one.
    values, here = loading.flat(exp.config), provenance.of_this_start()
    also = "data.classes", "data.eval_ops", "data.split_seed", "normalize", "batch_size"
    ours = "model.", "data.fraction", "eval.batch_size"
    names = [name for name in values if name.startswith(ours) or name in also]
    body = {name: each for name, each in state.params.items() if name != "head"}
    about = {
        "weights": digests.of_tree({"params": body, "batch_stats": state.batch_stats}),
        "data": exp.selection.facts.fingerprint,
        "split": exp.selection.pooled(exp.config.data[role], f"data.{role}"),
        "role": role,
        "config": {name: values[name] for name in names},
        "plugins": exp.plugins.digests,
        "devices": [device.device_kind for device in exp.mesh.devices.flat],
        "convolution": exp.convolution,
        **{name: here[name] for name in _OF_BITS},
    }
    text = json.dumps(about, sort_keys=True).encode()
    folder = pathlib.Path(exp.config.probe.cache).expanduser()
    return folder / f"{hashlib.sha256(text).hexdigest()[:32]}.npz"


def _read(path: pathlib.Path | None) -> Features | None:
    """Returns what a file of the cache holds; None if it is not whole."""
    try:
        if path is None:
            return None
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = Features(arrays["features"], arrays["labels"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # It is made anew.
        return None
    return found if found.features.shape[:1] == found.labels.shape else None


def _check_head(exp: Experiment, state: State, head: Head, given: Features) -> None:
    """Raises `InputError` unless the network's logits are those of its head."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    batch = next(exp.eval_batches(exp.config.data.eval, "data.eval"))
    mask = np.asarray(batch.mask)
    there = np.asarray(exp.programs.logits_step(variables, batch.image))[mask]
    here = logistic.logits(head, given.features[np.asarray(batch.index)[mask]])
    apart, largest = np.abs(here - there).max(), np.abs(here).max()
    if not apart <= _APART * max(1.0, largest):
        raise InputError(
            f"model.name={exp.config.model.name!r}: its head is not one dense layer on its"
            f" features, so a probe cannot fit it (logits differ by {apart:.3g}); train it:"
            " jaxcls train --config.optim.freeze='^(?!head/)'"
        )
