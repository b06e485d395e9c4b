"""Read the content of a report from the folder of a run or a study, or published weights.

Without the dataset, the sections that need it are missing, and the report says why.
"""

import contextlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxcls import experiment
from jaxcls.config import loading
from jaxcls.config.plugins import Plugins
from jaxcls.data import batches, files
from jaxcls.data.clean import quiet
from jaxcls.devices import memory
from jaxcls.errors import InputError, shown
from jaxcls.evaluation import assess, calibration, examples, scores, scoring
from jaxcls.evaluation.predictions import Predictions, probabilities
from jaxcls.evaluation.scoring import Loaded
from jaxcls.experiment import published, show
from jaxcls.predict import inference
from jaxcls.report import saliency
from jaxcls.report.contents import Cell, Look, Picture, Run, Scored, Study, epoch_of
from jaxcls.report.images import thumbnail
from jaxcls.runs import checkpoint, cost, records
from jaxcls.runs.workdir import Workdir
from jaxcls.studies import folder as study_folder

# The numbers of mistakes, of training images, and of mistakes and hits with saliency maps.
MISTAKES, TRAINED_ON, LOOKS = 24, 24, 6
# The most cells of the confusion matrix with images, the images of one, and their bytes.
CELLS, IN_A_CELL, CELL_BYTES = 40, 8, 150_000
# Labels of more training examples are counted only if the dataset lists them.
MOST_READ = 100_000
# The batch size of saliency maps: a gradient through a model takes memory for each image.
TOGETHER = 3 * LOOKS


def read_run(
    path: str,
    name: str,
    which: str,
    split: str,
    images: Sequence[str | files.Bad],
    overrides: Mapping[str, str],
    asked: assess.Asked,
    plugins: Plugins,
) -> Run:
    """Returns the content of a run's files, with scores if checkpoint and data exist.

    which: "best", "last" or a step. split: "test", "eval", "train" or a TFDS split; "":
    data.test, or data.eval if data.test is empty. images: files for saliency maps, in
    place of examples of the split. overrides: {config key: text}. asked: additional
    scores. plugins: what the run's model may be of. Raises `InputError` if `path` is no
    run's folder, or an argument is bad.
    """
    folder = Workdir(path)
    saved = folder.read()
    # The batches are the same, but only the images that the report uses are decoded.
    values = {"data.resident": "off", **overrides}
    exp = scoring.from_workdir(folder, values, plugins)
    run = Run(
        name=name,
        saved=saved,
        metrics=_records(folder.metrics, "step", "kind"),
        timing=_records(folder.timing, "step", "images_per_s", "train_s", "data_wait"),
        digests=_records(folder.digests, "step", "digest"),
        starts=folder.starts(),
        class_names=exp.selection.class_names,
    )
    try:
        run.trained_on = _training_images(exp)
    except InputError as error:
        run.missing["training images"] = f"Not shown: {error}."
    try:
        run.class_counts = _class_counts(exp)
    except InputError as error:
        run.missing["training counts"] = f"Training examples are not counted: {error}."
    if not checkpoint.steps(folder.checkpoints):
        run.missing["scores"] = (
            "It has no checkpoint yet, so its model can be neither scored nor looked into."
        )
        return run
    _score(run, scoring.load(path, which, values, plugins), split, images, asked)
    return run


def read_published(
    name: str,
    loaded: Loaded,
    split: str,
    images: Sequence[str | files.Bad],
    asked: assess.Asked,
) -> Run:
    """Returns the content of a report on published weights, which have no run's files.

    The arguments are those of `read_run`; loaded: of `scoring.load`.
    """
    exp = loaded.exp
    saved = {"config": loading.flat(exp.config), "implied": published.implied(exp)}
    names = exp.selection.class_names
    run = Run(name, saved, [], [], [], [], names, is_published=True)
    run.missing["training images"] = "Not shown: the weights were not trained here."
    _score(run, loaded, split, images, asked)
    return run


def _score(
    run: Run,
    loaded: Loaded,
    split: str,
    images: Sequence[str | files.Bad],
    asked: assess.Asked,
) -> None:
    """Adds scores and saliency maps of a model to the content of a report."""
    exp, step, at, weights = loaded
    answered = _answers(exp, weights, images)
    given, why = _given(exp, split)
    found = None
    try:
        if given:
            run.scored, found = _scored(exp, weights, step, at, given, asked)
    except InputError as error:  # A record cannot be read.
        why = str(error)
    if why:
        run.missing["scores"] = f"Not scored here: {why}."
    try:
        if answered:
            run.looked_by, run.looks = _of_files(exp, weights, answered)
        elif given and found:
            run.looked_by, run.looks = _of_examples(exp, weights, given, found)
    except InputError as error:
        run.missing["looks"] = f"Not looked into: {error}."


def _records(path: pathlib.Path, *keys: str) -> list[records.Record]:
    """Returns the records of a file; raises `InputError` if a record lacks a key."""
    found = records.read(path)
    for number, record in enumerate(found, 1):
        if not set(keys) <= set(record):
            raise InputError(
                f"{path}:{number} is not a record of a run, with {', '.join(keys)}; put"
                " the line right, or move the file away"
            )
    return found


def _training_images(exp: experiment.Experiment) -> list[Picture]:
    """Returns the first images of the first training batch, as the model sees them."""
    images, targets = (each[:TRAINED_ON] for each in show.pixels(exp))
    names = exp.selection.class_names
    return [
        Picture(np.rint(image * 255).astype(np.uint8), show.caption(target, names))
        for image, target in zip(images, targets, strict=True)
    ]


def _class_counts(exp: experiment.Experiment) -> list[int]:
    """Returns the training examples of each class; [] if that would take a long read."""
    data, split = exp.selection, exp.config.data.train
    is_listed = data.dataset.lists_labels(split, "data.train")
    if not is_listed and sum(data.facts.splits.values()) > MOST_READ:
        return []
    return [int(count) for count in data.class_counts()]


def _answers(
    exp: experiment.Experiment, weights: dict[str, Any], paths: Sequence[str | files.Bad]
) -> list[inference.Prediction]:
    """Returns the predictions of image files; raises `InputError` for a bad file."""
    found = []
    with quiet():
        for each in inference.predict(exp, weights, paths, threads=exp.config.data.threads):
            if isinstance(each, files.Bad):
                path = shown(each.path)
                raise InputError(f"--images={path}: {each.why}; give image files")
            found.append(each)
    return found


def _given(exp: experiment.Experiment, split: str) -> tuple[examples.Examples | None, str]:
    """Returns (the examples to score, ""), or (None, why there are none).

    split: as for `read_run`. Raises `InputError` for a split that the dataset lacks.
    """
    if not exp.selection.facts.splits:
        return None, examples.NONE
    role = split or examples.default_role(exp)
    if not role:
        return None, "the run has neither data.test nor data.eval; give --split=train"
    try:
        _ = exp.selection.dataset
    except InputError as error:
        return None, str(error)
    given = examples.of_run(exp, role)
    given.data.selection.records(given.split, given.key)
    return given, ""


def _scored(
    exp: experiment.Experiment,
    weights: dict[str, Any],
    step: int,
    at: str,
    given: examples.Examples,
    asked: assess.Asked,
) -> tuple[Scored, Predictions]:
    """Scores a checkpoint on examples; raises `InputError` for an unreadable example."""
    size = exp.config.eval.batch_size or exp.config.batch_size
    with memory.explained("eval.batch_size", size):
        done = assess.evaluated(exp, weights, given, asked, size)
    worst = most_confident_mistakes(done.found, MISTAKES, exp.recipe.link)
    scored = Scored(
        step=step,
        at=at,
        split=given.split,
        weights=done.weights,
        assessed=done.assessed,
        mistakes=_pictures(exp, given, done.found, worst),
        cells=_cells(exp, given, done.found, done.assessed.matrix),
        robustness=done.robustness,
    )
    return scored, done.found


def _cells(
    exp: experiment.Experiment,
    given: examples.Examples,
    found: Predictions,
    matrix: np.ndarray,
) -> list[Cell]:
    """Returns the most confused cells, as many as have images of CELL_BYTES together."""
    wrong = most_confident_mistakes(found, len(found.labels), exp.recipe.link)
    taken_for, cells, room = scores.predicted(found.logits)[wrong], [], CELL_BYTES
    for truth, other, count in scores.most_confused(matrix, CELLS):
        chosen = wrong[(found.labels[wrong] == truth) & (taken_for == other)][:IN_A_CELL]
        pictures = _pictures(exp, given, found, chosen, is_named=False)
        room -= sum(len(thumbnail(picture.pixels)) for picture in pictures)
        if room < 0:
            break
        cells.append(Cell(truth, other, count, pictures))
    return cells


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


def _pictures(
    exp: experiment.Experiment,
    given: examples.Examples,
    found: Predictions,
    chosen: np.ndarray,
    is_named: bool = True,
) -> list[Picture]:
    """Returns examples `chosen` [m] after eval_ops.

    A caption has the prediction, if it is wrong the true class, and the file's name or the
    example's number. is_named: it has the names of classes, not only their probabilities.
    """
    rng, names = batches.example_rng(0, 0), exp.selection.class_names
    records = given.data.selection.records(given.split, given.key)
    pictures, files = [], records.names(chosen)
    for k, (data, _), file in zip(
        chosen.tolist(), records.read(chosen), files, strict=True
    ):
        likely = probabilities(found.logits[k], exp.recipe.link)
        best, label = int(found.logits[k].argmax()), int(found.labels[k])
        if is_named:
            caption = f"{names[best]}, {likely[best]:.3f}"
            if best != label:
                caption += f"\nis {names[label]}, {likely[label]:.3f}"
        else:
            caption = f"{likely[best]:.3f}, {likely[label]:.3f}"
        caption += f"\n{shown(file) if file else f'example {k}'}"
        pixels = batches.transform(exp.data.eval_ops, data, rng)
        pictures.append(Picture(pixels, caption))
    return pictures


def _of_examples(
    exp: experiment.Experiment,
    weights: dict[str, Any],
    given: examples.Examples,
    found: Predictions,
) -> tuple[str, list[Look]]:
    """Returns (method, looks) of the most confident mistakes and the first hits.

    With Grad-CAM, a mistake also has the map of its true class.
    """
    predicted = scores.predicted(found.logits)
    wrong = most_confident_mistakes(found, LOOKS, exp.recipe.link)
    right = np.flatnonzero(predicted == found.labels)[:LOOKS]
    chosen = np.concatenate([wrong, right])
    pictures = _pictures(exp, given, found, chosen)
    # Mistakes come twice: with their predicted class, and with their true class.
    classes = np.concatenate([predicted[chosen], found.labels[wrong]])
    how, heats = _heats(exp, weights, [*pictures, *pictures[: len(wrong)]], classes)
    looks = [Look(*each) for each in zip(pictures, heats, strict=False)]
    if how == "Grad-CAM":
        for look, heat in zip(looks, heats[len(looks) :], strict=False):
            look.heats.extend(heat)
    return how, looks


def _of_files(
    exp: experiment.Experiment,
    weights: dict[str, Any],
    answered: Sequence[inference.Prediction],
) -> tuple[str, list[Look]]:
    """Returns (method, looks) of image files, for the predicted class of each."""
    names, pictures, classes = exp.selection.class_names, [], []
    for each in answered:
        k = int(each.probabilities.argmax())
        caption = f"{os.path.basename(each.path)}\n{names[k]}, {each.probabilities[k]:.3f}"
        with quiet():
            pictures.append(Picture(inference.read(exp, each.path), caption))
        classes.append(k)
    how, heats = _heats(exp, weights, pictures, np.array(classes))
    return how, [Look(*each) for each in zip(pictures, heats, strict=True)]


def _heats(
    exp: experiment.Experiment,
    weights: dict[str, Any],
    pictures: Sequence[Picture],
    classes: np.ndarray,
) -> tuple[str, list[list[tuple[str, np.ndarray]]]]:
    """Returns (method, heats of each picture): [(caption, heat [h, w])] for its class.

    A model with attention gets attention rollout, which does not depend on the class;
    other models get Grad-CAM. Raises `InputError` for a model with neither attention nor a
    feature map.
    """
    # Merged, as layers are looked into whose low-rank parts are added outside.
    variables, how = exp.recipe.merged(exp.recipe.variables(weights)), ""

    def apply(normalized: jax.Array) -> jax.Array:
        with exp.recipe.numerics():
            return exp.recipe.module.apply(variables, normalized, False).logits

    @exp.programs.jit
    def heat(images: jax.Array, classes: jax.Array) -> jax.Array:
        nonlocal how
        normalized = exp.recipe.normalize(images)
        attention = saliency.attention(apply, normalized)
        how = "attention rollout" if attention else "Grad-CAM"
        if attention:
            return saliency.rollout(attention)
        return saliency.grad_cam(saliency.last_map(apply, normalized, classes))

    heats: list[np.ndarray] = []
    for start in range(0, len(pictures), TOGETHER):
        piece = slice(start, start + TOGETHER)
        images = np.stack([picture.pixels for picture in pictures[piece]])
        heats.extend(np.asarray(heat(images, classes[piece].astype(np.int32))))
    names = exp.selection.class_names
    return how, [
        [(f"for {names[k]}" if how == "Grad-CAM" else how, heat)]
        for k, heat in zip(classes, heats, strict=True)
    ]


def read_study(path: str, name: str) -> Study:
    """Returns the content of a study's files; raises `InputError` without a study."""
    folder = Workdir(path).path
    result = study_folder.read_result(folder, "--study")
    plan = study_folder.read_plan(folder)
    found, epochs, costs = {}, {}, []
    for cell in result["cells"]:
        for run in cell["runs"]:
            key = cell["name"], run["seed"]
            of_run = study_folder.run_folder(folder, *key)
            found[key] = records.read(of_run.metrics)
            costs.append(cost.of_run(of_run.starts(), records.read(of_run.timing)))
            with contextlib.suppress(InputError):  # It has not begun.
                epochs[cell["name"]] = epoch_of(of_run.read())
    config = plan.config if plan else {}
    return Study(name, result, config, found, epochs, cost.total(costs))
