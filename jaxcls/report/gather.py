"""Read the content of a report from the folder of a run or a study.

Without the dataset, the sections that need it are missing, and the report says why.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcls import experiment
from jaxcls.data import batches, files
from jaxcls.data.clean import quiet
from jaxcls.devices import memory
from jaxcls.errors import InputError
from jaxcls.evaluation import assess, calibration, examples, scores, scoring
from jaxcls.evaluation.predictions import Predictions, probabilities
from jaxcls.experiment import show
from jaxcls.predict import inference
from jaxcls.report import saliency
from jaxcls.report.contents import Look, Picture, Run, Scored, Study
from jaxcls.runs import checkpoint
from jaxcls.runs import records as run_records
from jaxcls.runs.workdir import Workdir
from jaxcls.studies import folder as study_folder

# The numbers of mistakes, of training images, and of mistakes and hits with saliency maps.
MISTAKES, TRAINED_ON, LOOKS = 24, 24, 6
# The batch size of saliency maps: a gradient through a model takes memory for each image.
TOGETHER = 3 * LOOKS


class Seen(NamedTuple):
    """A model at a step, with its predictions and scores on a split.

    key: the name of the split in messages.
    """

    exp: experiment.Experiment
    variables: dict[str, Any]
    split: str
    key: str
    predictions: Predictions
    scored: Scored


def gather(
    path: str,
    name: str,
    which: str,
    split: str,
    images: Sequence[str],
    overrides: Mapping[str, str],
    asked: assess.Asked,
) -> Run:
    """Returns the content of a run's files, with scores if checkpoint and data exist.

    which: "best", "last" or a step. split: "test", "eval", "train" or a TFDS split; "":
    data.test, or data.eval if data.test is empty. images: files for saliency maps, in
    place of examples of the split. overrides: {config key: text}. asked: additional
    scores. Raises `InputError` if `path` is no run's folder, or an argument is bad.
    """
    folder = Workdir(path)
    saved = folder.read()
    # The batches are the same, but only the images that the report uses are decoded.
    values = {"data.resident": "off", **overrides}
    exp = scoring.from_workdir(folder, values)
    run = Run(
        name=name,
        saved=saved,
        metrics=_records(folder.metrics, "step", "kind"),
        timing=_records(folder.timing, "step", "images_per_s", "train_s", "data_wait"),
        digests=_records(folder.digests, "step", "digest"),
        starts=folder.starts(),
        class_names=exp.selection.class_names,
        scored=None,
        trained_on=[],
        looks=[],
        looked_by="",
        missing={},
    )
    run = _with_training_images(run, exp)
    if not checkpoint.steps(folder.checkpoints):
        why = (
            "It has no checkpoint yet, so its model can be neither scored nor looked into."
        )
        return _without(run, scores=why)
    exp, step, at, weights = scoring.load(path, which, values)
    answered = _answers(exp, weights, images)
    given, why = _given(exp, split)
    seen = None
    try:
        seen = see(exp, weights, step, at, given, asked) if given else None
    except InputError as error:  # A record cannot be read.
        why = str(error)
    if seen:
        run = run._replace(scored=seen.scored)
    else:
        run = _without(run, scores=f"Not scored here: {why}.")
    return _with_looks(run, exp, weights, answered, seen)


def _with_looks(
    run: Run,
    exp: experiment.Experiment,
    weights: dict[str, Any],
    answered: Sequence[inference.Prediction],
    seen: Seen | None,
) -> Run:
    """Adds the saliency maps of image files, else of examples; or why they are missing."""
    try:
        if answered:
            how, looks = _of_files(exp, exp.recipe.variables(weights), answered)
        else:
            how, looks = _of_examples(seen) if seen else ("", [])
    except InputError as error:
        return _without(run, looks=f"Not looked into: {error}.")
    return run._replace(looked_by=how, looks=looks)


def _given(exp: experiment.Experiment, split: str) -> tuple[examples.Examples | None, str]:
    """Returns (the examples to score, ""), or (None, why there are none).

    split: as for `gather`. Raises `InputError` for a split that the dataset lacks.
    """
    role = split or next((r for r in ("test", "eval") if exp.config.data[r]), "")
    if not role:
        return None, "the run has neither data.test nor data.eval; give --split=train"
    try:
        _ = exp.selection.dataset
    except InputError as error:
        return None, str(error)
    given = examples.of_run(exp, role)
    given.data.selection.records(given.split, given.key)
    return given, ""


def _records(path: pathlib.Path, *keys: str) -> list[run_records.Record]:
    """Returns the records of a file; raises `InputError` if a record lacks a key."""
    records = run_records.read(path)
    for number, record in enumerate(records, 1):
        if not (isinstance(record, dict) and set(keys) <= set(record)):
            raise InputError(
                f"{path}:{number} is not a record of a run, with {', '.join(keys)}; put"
                " the line right, or move the file away"
            )
    return records


def see(
    exp: experiment.Experiment,
    weights: dict[str, Any],
    step: int,
    at: str,
    given: examples.Examples,
    asked: assess.Asked,
) -> Seen:
    """Scores a checkpoint on examples; raises `InputError` for an unreadable example."""
    size = exp.config.eval.batch_size or exp.config.batch_size
    with memory.explained("eval.batch_size", size):
        done = assess.evaluated(exp, weights, given, asked, size)
    found, names = done.found, exp.selection.class_names
    worst = most_confident_mistakes(found, MISTAKES, exp.recipe.link)
    pixels = read(exp, given.split, given.key, worst)
    mistakes = [
        Picture(image, _said(found, k, exp.recipe.link, names))
        for image, k in zip(pixels, worst.tolist(), strict=True)
    ]
    scored = Scored(
        step, at, given.split, done.weights, done.assessed, mistakes, done.robustness
    )
    variables = exp.recipe.variables(weights)
    return Seen(exp, variables, given.split, given.key, found, scored)


def most_confident_mistakes(
    found: Predictions, count: int, link: str = "softmax"
) -> np.ndarray:
    """Returns the indices [m] of misclassified examples by falling confidence.

    Ties keep the order of the examples. An example without a prediction is no mistake.
    """
    predicted = scores.predicted(found.logits)
    wrong = np.flatnonzero((predicted != found.labels) & (predicted >= 0))
    sure = calibration.confidence(found.logits, link)[wrong]
    return wrong[np.argsort(-sure, kind="stable")[:count]]


def read(
    exp: experiment.Experiment, split: str, key: str, chosen: np.ndarray
) -> np.ndarray:
    """Returns the images of examples `chosen` [m] after eval_ops: uint8 [m, H, W, C]."""
    found = np.zeros((len(chosen), *exp.data.eval_shape), np.uint8)
    records, rng = exp.selection.records(split, key), batches.example_rng(0, 0)
    for row, (data, _) in enumerate(records.read(chosen)):
        found[row] = batches.transform(exp.data.eval_ops, data, rng)
    return found


def look(
    exp: experiment.Experiment,
    variables: dict[str, Any],
    images: np.ndarray,
    classes: np.ndarray,
) -> tuple[str, np.ndarray]:
    """Returns (method, heat [B, h, w] float32), the saliency maps for classes [B].

    images: uint8 [B, H, W, C]. A model with attention gets attention rollout, which does
    not depend on the class; other models get Grad-CAM. Raises `InputError` for a model
    with neither attention nor a feature map.
    """

    def apply(normalized: jax.Array) -> jax.Array:
        with exp.recipe.numerics():
            return exp.recipe.module.apply(variables, normalized, False).logits

    how: list[str] = []

    @jax.jit
    def heat(images: jax.Array, classes: jax.Array) -> jax.Array:
        normalized = exp.recipe.normalize(images)
        attention = saliency.attention(apply, normalized)
        how.append("attention rollout" if attention else "Grad-CAM")
        if attention:
            return saliency.rollout(attention)
        return saliency.grad_cam(saliency.last_map(apply, normalized, classes))

    starts = range(0, len(images), TOGETHER)
    pieces = [slice(start, start + TOGETHER) for start in starts]
    found = [heat(images[piece], classes[piece].astype(np.int32)) for piece in pieces]
    return how[0], np.concatenate(found)


def _of_examples(seen: Seen) -> tuple[str, list[Look]]:
    """Returns (method, looks) of the most confident mistakes and the first hits.

    With Grad-CAM, a mistake also has the map of its true class.
    """
    found, names = seen.predictions, seen.exp.selection.class_names
    predicted = scores.predicted(found.logits)
    wrong = most_confident_mistakes(found, LOOKS, seen.exp.recipe.link)
    right = np.flatnonzero(predicted == found.labels)[:LOOKS]
    chosen = np.concatenate([wrong, right])
    if not len(chosen):
        return "", []
    images = read(seen.exp, seen.split, seen.key, chosen)
    # Mistakes come twice: with their predicted class, and with their true class.
    rows = np.concatenate([np.arange(len(chosen)), np.arange(len(wrong))])
    classes = np.concatenate([predicted[chosen], found.labels[wrong]])
    how, heats = look(seen.exp, seen.variables, images[rows], classes)
    looks = []
    for row, k in enumerate(chosen.tolist()):
        picture = Picture(images[row], _said(found, k, seen.exp.recipe.link, names))
        each = [(names[predicted[k]], heats[row])]
        if row < len(wrong) and how == "Grad-CAM":
            each.append((names[found.labels[k]], heats[len(chosen) + row]))
        looks.append(Look(picture, _called(each, how)))
    return how, looks


def _answers(
    exp: experiment.Experiment, weights: dict[str, Any], paths: Sequence[str]
) -> list[inference.Prediction]:
    """Returns the predictions of image files; raises `InputError` for a bad file."""
    found = []
    with quiet():
        for each in inference.predict(exp, weights, paths, threads=exp.config.data.threads):
            if isinstance(each, files.Bad):
                raise InputError(f"--images={each.path}: {each.why}; give image files")
            found.append(each)
    return found


def _of_files(
    exp: experiment.Experiment,
    variables: dict[str, Any],
    answered: Sequence[inference.Prediction],
) -> tuple[str, list[Look]]:
    """Returns (method, looks) of image files, for the predicted class of each."""
    with quiet():
        images = np.stack([inference.read(exp, each.path) for each in answered])
    classes = np.array([each.probabilities.argmax() for each in answered])
    how, heats = look(exp, variables, images, classes)
    looks = []
    for image, k, heat, each in zip(images, classes, heats, answered, strict=True):
        name, likely = exp.selection.class_names[k], each.probabilities[k]
        text = f"{os.path.basename(each.path)}\n{name}, {likely:.3f}"
        looks.append(Look(Picture(image, text), _called([(name, heat)], how)))
    return how, looks


def _called(heats: list[tuple[str, np.ndarray]], how: str) -> list[tuple[str, np.ndarray]]:
    """Returns heats with captions: "for CLASS" for Grad-CAM, else the method."""
    if how != "Grad-CAM":
        return [(how, heat) for _, heat in heats]
    return [(f"for {name}", heat) for name, heat in heats]


def _said(found: Predictions, k: int, link: str, names: Sequence[str]) -> str:
    """Returns the caption of example `k`: its prediction and, if wrong, its true class."""
    likely = probabilities(found.logits[k], link)
    best, own = int(found.logits[k].argmax()), int(found.labels[k])
    said = f"{names[best]}, {likely[best]:.3f}"
    return said if best == own else f"{said}\nis {names[own]}, {likely[own]:.3f}"


def _with_training_images(run: Run, exp: experiment.Experiment) -> Run:
    """Adds the first images of the first training batch, or why they are missing."""
    try:
        images, targets = show.pixels(exp)
    except InputError as error:
        return _without(run, **{"training images": f"Not shown: {error}."})
    pictures = [
        Picture(
            np.rint(image * 255).astype(np.uint8), show.caption(target, run.class_names)
        )
        for image, target in zip(images, targets, strict=True)
    ]
    return run._replace(trained_on=pictures[:TRAINED_ON])


def _without(run: Run, **missing: str) -> Run:
    return run._replace(missing={**run.missing, **missing})


def read_study(path: str, name: str) -> Study:
    """Returns the content of a study's files; raises `InputError` without a study."""
    folder = Workdir(path).path
    result = study_folder.read_result(folder, "--study")
    plan = study_folder.read_plan(folder)
    config = plan["config"] if plan else {}
    runs = [(cell["name"], run["seed"]) for cell in result["cells"] for run in cell["runs"]]
    records = {
        run: run_records.read(study_folder.run_folder(folder, *run).metrics) for run in runs
    }
    evaluations = {
        run: found
        for run, each in records.items()
        if (found := [record for record in each if record["kind"] == "eval"])
    }
    return Study(name, result, config, evaluations)
