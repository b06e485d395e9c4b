"""Runs, and studies, -> one HTML file. ``python -m jaxcls.report --workdir=RUN ...``.

It needs their folders only; what takes the dataset is left out where that is absent,
and the report says so.
"""

import argparse
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls import (
    batches,
    checkpoint,
    cli,
    decode,
    evaluate,
    evaluation,
    examples,
    experiment,
    files,
    logs,
    memory,
    outcomes,
    predict,
    saliency,
    scores,
    show,
    summary,
)
from jaxcls.clean import quiet
from jaxcls.errors import InputError
from jaxcls.knobs import KNOBS
from jaxcls.predictions import Predictions, probabilities
from jaxcls.reporting import page
from jaxcls.reporting.contents import Look, Picture, Run, Scored, Study
from jaxcls.workdir import Workdir, write_atomically

# Pictures of a run in its grids, and how many mistakes and hits are looked into.
MISTAKES, TRAINED_ON, LOOKS = 24, 24, 6
# What a report should not outgrow.
MOST_BYTES = 5_000_000


class Seen(NamedTuple):
    """A model with the weights of a step, and what it says of a split.

    split, key: the split, and what it is called in messages.
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
) -> Run:
    """What the files of a run say and, where checkpoint and data are there, its model.

    which: "best", "last" or a step. split: "test", "eval", "train" or a TFDS split; "":
    data.test, or data.eval where there is none. images: what to look into, in place of
    examples of the split. Raises `InputError` where `path` is not a run's folder.
    """
    folder = Workdir(path)
    saved = folder.read()
    manifest = folder.path / "manifest.json"
    # The same batches, but nothing is decoded that is not looked at.
    asked = {"data.resident": "off", **overrides}
    exp = evaluate.from_workdir(folder, asked)
    run = Run(
        name=name,
        saved=saved,
        metrics=logs.read(folder.metrics),
        timing=logs.read(folder.timing),
        digests=logs.read(folder.digests),
        starts=json.loads(manifest.read_text())["starts"] if manifest.exists() else [],
        class_names=exp.data.class_names,
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
    exp, step, at, weights = evaluate.load(path, which, asked)
    variables = exp.variables(weights)
    why = _why_not_scored(exp, split)
    if why:
        run = _without(run, scores=f"Not scored here: {why}.")
        return _with_looks(run, _of_files(exp, variables, images)) if images else run
    seen = see(exp, weights, step, at, split)
    run = run._replace(scored=seen.scored)
    found = _of_files(exp, variables, images) if images else _of_examples(seen)
    return _with_looks(run, found)


def see(
    exp: experiment.Experiment, weights: dict[str, Any], step: int, at: str, split: str
) -> Seen:
    """What a model says of a split; "": data.test, or data.eval where there is none."""
    role = split or ("test" if exp.config.data.test else "eval")
    given = examples.of_run(exp, role)
    size = exp.config.eval.batch_size or exp.config.batch_size
    with memory.explained("eval.batch_size", size):
        done = evaluation.evaluated(exp, weights, given, evaluation.Asked(), size)
    found, names = done.found, exp.data.class_names
    worst = most_confident_mistakes(found, MISTAKES, exp.link)
    pixels = read(exp, given.split, given.key, worst)
    mistakes = [
        Picture(image, _said(found, k, exp.link, names))
        for image, k in zip(pixels, worst.tolist(), strict=True)
    ]
    scored = Scored(
        step, at, given.split, done.weights, done.fitted_on, done.assessed, mistakes
    )
    variables = exp.variables(weights)
    return Seen(exp, variables, given.split, given.key, found, scored)


def _why_not_scored(exp: experiment.Experiment, split: str) -> str:
    """What is missing for scores; "" where nothing is."""
    if not (split or exp.config.data.test or exp.config.data.eval):
        return "the run has neither data.test nor data.eval; give --split=train"
    try:
        _ = exp.data.dataset
    except InputError as error:
        return str(error)
    return ""


def most_confident_mistakes(
    found: Predictions, count: int, link: str = "softmax"
) -> np.ndarray:
    """The examples [m] taken for another class than their own, the surest first.

    Of equal ones the first comes first. What nothing is predicted of is no mistake.
    """
    predicted = scores.predicted(found.logits)
    wrong = np.flatnonzero((predicted != found.labels) & (predicted >= 0))
    sure = probabilities(found.logits[wrong], link).max(-1, initial=0)
    return wrong[np.argsort(-sure, kind="stable")[:count]]


def read(
    exp: experiment.Experiment, split: str, key: str, chosen: np.ndarray
) -> np.ndarray:
    """The examples [m] of a split as the model gets them: uint8 [m, H, W, C]."""
    found = np.zeros((len(chosen), *exp.data.eval_shape), np.uint8)
    records, rng = exp.data.records(split, key), batches.example_rng(0, 0)
    for row, (data, _) in enumerate(records.read(chosen)):
        found[row] = batches.transform(exp.data.eval_ops, data, rng)
    return found


def look(
    exp: experiment.Experiment,
    variables: dict[str, Any],
    images: np.ndarray,
    classes: np.ndarray,
) -> tuple[str, np.ndarray]:
    """(how, heat [B, h, w] float32): where in images uint8 a model sees classes [B].

    Of a model with attention it is rollout, which is of no class; of others Grad-CAM.
    Raises ValueError for a model with neither attention nor a map.
    """

    def apply(normalized: jax.Array) -> jax.Array:
        with exp.numerics():
            return exp.module.apply(variables, normalized, False).logits

    how: list[str] = []

    @jax.jit
    def heat(images: jax.Array, classes: jax.Array) -> jax.Array:
        normalized = exp.normalize(images)
        attention = saliency.attention(apply, normalized)
        how.append("attention rollout" if attention else "Grad-CAM")
        if attention:
            return saliency.rollout(attention)
        return saliency.grad_cam(saliency.last_map(apply, normalized, classes))

    found = heat(jnp.asarray(images), jnp.asarray(classes, jnp.int32))
    return how[0], np.asarray(found)


def _of_examples(seen: Seen) -> tuple[str, list[Look]]:
    """The surest mistakes, with their own class too, and the first hits."""
    found, names = seen.predictions, seen.exp.data.class_names
    predicted = scores.predicted(found.logits)
    wrong = most_confident_mistakes(found, LOOKS, seen.exp.link)
    right = np.flatnonzero(predicted == found.labels)[:LOOKS]
    chosen = np.concatenate([wrong, right])
    if not len(chosen):
        return "", []
    images = read(seen.exp, seen.split, seen.key, chosen)
    # Mistakes twice: for what they are taken for, and for what they are.
    rows = np.concatenate([np.arange(len(chosen)), np.arange(len(wrong))])
    classes = np.concatenate([predicted[chosen], found.labels[wrong]])
    how, heats = look(seen.exp, seen.variables, images[rows], classes)
    looks = []
    for row, k in enumerate(chosen.tolist()):
        picture = Picture(images[row], _said(found, k, seen.exp.link, names))
        each = [(names[predicted[k]], heats[row])]
        if row < len(wrong) and how == "Grad-CAM":
            each.append((names[found.labels[k]], heats[len(chosen) + row]))
        looks.append(Look(picture, _called(each, how)))
    return how, looks


def _of_files(
    exp: experiment.Experiment, variables: dict[str, Any], paths: Sequence[str]
) -> tuple[str, list[Look]]:
    """Image files; raises `InputError` for one that is none."""
    images = np.zeros((len(paths), *exp.data.eval_shape), np.uint8)
    for row, path in enumerate(paths):
        try:
            with quiet():
                images[row] = predict.read(exp, path)
        except decode.DecodeError as error:
            raise InputError(f"--images={path}: {error}; give image files") from None
    variables = jax.device_get(variables)
    with exp.numerics():
        normalized = exp.normalize(jnp.asarray(images))
        logits = np.asarray(exp.module.apply(variables, normalized, False).logits)
    likely, classes = probabilities(logits, exp.link), logits.argmax(-1)
    how, heats = look(exp, variables, images, classes)
    names = exp.data.class_names
    looks = []
    for row, (path, k) in enumerate(zip(paths, classes.tolist(), strict=True)):
        picture = Picture(
            images[row], f"{os.path.basename(path)}\n{names[k]}, {likely[row, k]:.3f}"
        )
        looks.append(Look(picture, _called([(names[k], heats[row])], how)))
    return how, looks


def _called(heats: list[tuple[str, np.ndarray]], how: str) -> list[tuple[str, np.ndarray]]:
    """What each heat is said to be: of a class, where it is of one."""
    if how != "Grad-CAM":
        return [(how, heat) for _, heat in heats]
    return [(f"for {name}", heat) for name, heat in heats]


def _said(found: Predictions, k: int, link: str, names: Sequence[str]) -> str:
    """What a model says of example `k`, and what is true."""
    likely = probabilities(found.logits[k], link)
    best, own = int(found.logits[k].argmax()), int(found.labels[k])
    said = f"{names[best]}, {likely[best]:.3f}"
    return said if best == own else f"{said}\nis {names[own]}, {likely[own]:.3f}"


def _with_training_images(run: Run, exp: experiment.Experiment) -> Run:
    """The first of the first batch; where that cannot be read, why."""
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


def _with_looks(run: Run, found: tuple[str, list[Look]]) -> Run:
    how, looks = found
    return run._replace(looked_by=how, looks=looks)


def _without(run: Run, **missing: str) -> Run:
    return run._replace(missing={**run.missing, **missing})


def names_of(paths: Sequence[str]) -> list[str]:
    """What runs are called: the names of their folders, or their paths where these tie."""
    short = [pathlib.Path(path).expanduser().resolve().name or path for path in paths]
    return short if len(set(short)) == len(short) else list(paths)


def read_study(path: str, name: str) -> Study:
    """What the files of a study say; raises `InputError` where `path` holds none."""
    folder = Workdir(path).path
    result = summary.read(folder, "--study")
    plan = folder / "plan.json"
    config = json.loads(plan.read_text())["config"] if plan.exists() else {}
    runs = [(cell["name"], run["seed"]) for cell in result["cells"] for run in cell["runs"]]
    records = {run: logs.read(outcomes.run_folder(folder, *run).metrics) for run in runs}
    evaluations = {
        run: found
        for run, each in records.items()
        if (found := [record for record in each if record["kind"] == "eval"])
    }
    return Study(name, result, config, evaluations)


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    parser = cli.Parser(
        "report", "One HTML file of how runs and studies went and how good they are."
    )
    add = parser.add_argument
    add("--workdir", default=[], action="append", help="folder of a run; once for each")
    add("--study", default=[], action="append", help="folder of a study; once for each")
    add("--output", default="", metavar="FILE.html", help="report.html of the first folder")
    add("--checkpoint", default="best", help="best (default), last or a step")
    add("--split", default="", help="test (default; eval where there is none), eval, ...")
    add(
        "--images",
        nargs="+",
        action="extend",
        default=[],
        metavar="IMAGE_OR_FOLDER",
        help="look into these, in place of mistakes and hits",
    )
    rest, overrides = cli.split_overrides(argv)
    args = parser.parse_args(rest)
    paths, folders = list(dict.fromkeys(args.workdir)), list(dict.fromkeys(args.study))
    if not paths:
        _check_studies_alone(args, folders, overrides)
    output = _output(args.output, (paths or folders)[0])
    files.check(args.images)
    images = [_image(each) for each in files.images(args.images)]
    names = dict(zip([*paths, *folders], names_of([*paths, *folders]), strict=True))
    studies = [read_study(folder, names[folder]) for folder in folders]
    runs = [
        gather(path, names[path], args.checkpoint, args.split, images, overrides)
        for path in paths
    ]
    text = page.page(runs, {key: knob.default for key, knob in KNOBS.items()}, studies)
    write_atomically(output, text)
    for run in runs:
        for why in run.missing.values():
            print(f"{run.name}: {why}")
    size = len(text.encode())
    counts = f"runs: {len(runs)}" + (f", studies: {len(studies)}" if studies else "")
    print(f"report: {output} ({size / 1e6:.2f} MB, {counts})")
    if size > MOST_BYTES:
        print("it is large for a page; give fewer of --workdir and --study at a time")
    return cli.DONE


def _check_studies_alone(
    args: argparse.Namespace, folders: Sequence[str], overrides: Mapping[str, str]
) -> None:
    """Raise `InputError` where there is no study either, or what runs have is asked."""
    if not folders:
        raise InputError("there is nothing to report on; give --workdir=RUN or --study=DIR")
    asked = {
        "--checkpoint": args.checkpoint != "best",
        "--split": args.split,
        "--images": args.images,
        "--config": overrides,
    }
    for flag, is_asked in asked.items():
        if is_asked:
            raise InputError(
                f"{flag} is of runs, and there is none; give --workdir=RUN, such as one"
                f" below {folders[0]}"
            )


def _image(found: str | files.Bad) -> str:
    """The path of an image; raises `InputError` where one cannot be read."""
    if isinstance(found, files.Bad):
        raise InputError(f"--images={found.path}: {found.why}; give image files")
    return found


def _output(given: str, workdir: str) -> pathlib.Path:
    """The file to write; raises `InputError` where it cannot be one."""
    if not given:
        return Workdir(workdir).path / "report.html"
    return cli.new_file(given, "--output", "report.html")


if __name__ == "__main__":
    cli.run(main)
