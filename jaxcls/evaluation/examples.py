"""The examples that a run is scored on: a split of its data, or of another dataset.

Classes of another dataset match the model's classes by name. The model chooses among the
classes that the dataset holds, as in the scores of ImageNet-A and -R (Hendrycks et al.,
arXiv:1907.07174 and arXiv:2006.16241).
"""

import pathlib
import re
from typing import Any, NamedTuple

import flax.errors
import jax
import numpy as np

from jaxcls import atomic
from jaxcls.config import loading as configs
from jaxcls.data import sources, splits
from jaxcls.data.pipeline import Data
from jaxcls.errors import InputError, did_you_mean
from jaxcls.experiment import Experiment

# What is said of a model that has no data.
NONE = (
    "published weights have no examples; give data, such as --data=imagenet2012, or"
    " data='imagenet2012' in Python"
)


class Examples(NamedTuple):
    """A split of a dataset, as input of a model.

    key: the name of the split in messages. columns: the model's classes [k] to choose
    among. places: for each class of the data, its index in columns, or -1. is_own: whether
    the data are the run's.
    """

    data: Data
    split: str
    key: str
    columns: np.ndarray
    places: np.ndarray
    is_own: bool

    @property
    def n(self) -> int:
        """Returns the number of examples."""
        return self.data.selection.count(self.split, self.key)


def default_role(exp: Experiment) -> str:
    """Returns "test", "eval" if the run has no data.test, or "" if it has neither."""
    return next((role for role in ("test", "eval") if exp.config.data[role]), "")


def of_run(exp: Experiment, split: str) -> Examples:
    """Returns the examples of "test", "eval", "train" or a TFDS split of the run's data.

    With data.split_seed, the text of data.eval or data.train is that role. Raises
    `InputError` if the run has no such split, or a model has no data, and for another split
    that shares examples with these: nobody could tell which of them the run trained on.
    """
    if not exp.selection.facts.splits:
        raise InputError(NONE)
    drawn = ("eval", "train") if exp.config.data.split_seed >= 0 else ()
    split = next((role for role in drawn if split == exp.config.data[role]), split)
    is_role = split in ("test", "eval", "train")
    name = exp.config.data[split] if is_role else split
    if not name:
        other = "eval" if exp.config.data.eval else "train"
        why = f": the run has no data.{split}" if split else " is empty"
        raise InputError(f"--split={split}{why}; try --split={other}")
    every = np.arange(exp.selection.num_classes)
    key = f"data.{split}" if is_role else "--split"
    if not is_role and exp.selection.shares_pool(split, key):
        raise InputError(
            f"--split={split} shares examples with data.train and data.eval, and"
            f" data.split_seed={exp.config.data.split_seed} draws anew whose they are; give"
            " --split=eval or --split=train"
        )
    return Examples(exp.data, name, key, every, every, True)


def of_dataset(exp: Experiment, name: str, data_dir: str, split: str) -> Examples:
    """Returns the examples of a split of another prepared dataset, through the run's ops.

    Raises `InputError` if the dataset has classes that the model does not know.
    """
    others = {"data.name": name, "data.classes": ""}
    if data_dir:
        others["data.dir"] = data_dir
    data = _data(exp, others, None, f"--dataset={name}")
    names = data.selection.facts.class_names
    if not names or not exp.selection.facts.class_names:
        nameless = name if not names else exp.config.data.name
        raise InputError(
            f"--dataset={name}: classes are matched by name, and {nameless} has numbers"
            " only; prepare it with names"
        )
    # Some datasets name all ImageNet classes but hold images of 200 of them.
    bases = splits.resolve(split, data.selection.facts.splits, "--split")
    labels = [data.selection.dataset.labels(base, "--split") for base, *_ in bases]
    there = np.unique(np.concatenate(labels))
    there = there[there >= 0]
    known = {each: k for k, each in enumerate(exp.selection.class_names)}
    unknown = [names[k] for k in there if names[k] not in known]
    if unknown:
        raise InputError(
            f"--dataset={name}: {len(unknown)} of its classes are not the model's, such as"
            f" {unknown[0]!r}{did_you_mean(unknown[0], known)}; give a dataset whose"
            " classes the run was trained on"
        )
    chosen = [known[names[k]] for k in there]
    columns, places = np.unique(chosen), np.full(len(names), -1)
    places[there] = np.searchsorted(columns, chosen)
    return Examples(data, split, "--split", columns, places, False)


def seen_through(exp: Experiment, given: Examples, eval_ops: str) -> Examples:
    """Returns the same examples through other host ops; raises `InputError` for bad ops."""
    others = {**_same(given), "data.eval_ops": eval_ops}
    return given._replace(data=_data(exp, others, given.data.selection.facts, "--eval_ops"))


def _same(given: Examples) -> dict[str, Any]:
    """Returns the config values of `given` that decide the examples of a split."""
    values = configs.flat(given.data.config)
    chosen = ["name", "dir", "classes", "fraction", "fraction_seed", "split_seed"]
    chosen += ["train", "eval"] if values["data.split_seed"] >= 0 else []
    return {f"data.{key}": values[f"data.{key}"] for key in chosen}


# The keys of data that decide together who is in data.train and who in data.eval, if
# split_seed is at least 0.
_DRAWN = ("split_seed", "train", "eval")


def _drawn_by(exp: Experiment) -> dict[str, Any]:
    """Returns what draws data.train and data.eval of a run; {} if they are not drawn."""
    data = exp.config.data
    return {key: data[key] for key in _DRAWN} if data.split_seed >= 0 else {}


def _data(
    exp: Experiment, others: dict[str, Any], facts: sources.Facts | None, flag: str
) -> Data:
    """Returns data of other facts or ops, for the model of an experiment.

    flag: the flag that requests them, for messages. Raises `InputError` if the model cannot
    take the images.
    """
    config = configs.from_flat({**configs.flat(exp.config), **others})
    data = Data(config, facts, plugins=exp.plugins)
    try:
        height, width, channels = data.eval_shape
    except InputError as error:
        raise InputError(f"{flag}: {error}") from None
    image = jax.ShapeDtypeStruct((1, height, width, channels), np.uint8)
    try:
        jax.eval_shape(exp.recipe.logits_step(), exp.recipe.variables_like, image)
    except (flax.errors.ScopeParamShapeError, InputError, TypeError, ValueError):
        high, wide, deep = exp.data.eval_shape
        raise InputError(
            f"{flag}: model.name={exp.config.model.name} trained on"
            f" {wide}x{high}x{deep} cannot take the {width}x{height}x{channels}"
            f" of {config.data.eval_ops!r}; give ops that end in {wide}x{high} pixels"
        ) from None
    return data


def same_for(first: Experiment, given: Examples, other: Experiment, flag: str) -> Examples:
    """Returns the same examples through the host ops of another run.

    flag: the flag that names that run, for messages. Raises `InputError` unless it has the
    same classes and split.
    """
    if other.selection.class_names != first.selection.class_names:
        raise InputError(
            f"{flag} tells other classes apart ({other.selection.num_classes} of"
            f" {other.config.data.name}, not {first.selection.num_classes} of"
            f" {first.config.data.name or 'the weights'}); give runs of the same classes"
        )
    if given.is_own:
        role = given.key.removeprefix("data.")
        theirs = other.config.data.get(role, given.split)
        before, now = first.selection.facts, other.selection.facts
        drawn = _drawn_by(first), _drawn_by(other)
        if role in ("train", "eval") and drawn[0] != drawn[1]:
            key = next(key for key in _DRAWN if drawn[0].get(key) != drawn[1].get(key))
            ours, others = (exp.config.data[key] for exp in (first, other))
            raise InputError(
                f"{flag} has other examples in data.{role}: data.{key}={others} where"
                f" the first model has {ours}; score data.test, with --split="
                f"{first.config.data.test or 'test'}"
            )
        if (theirs, before.name, before.splits) != (given.split, now.name, now.splits):
            raise InputError(
                f"{flag} has {now.name} {theirs!r} where the first model has"
                f" {before.name} {given.split!r}; name a split of both, such as"
                f" --split={next(iter(before.splits))}"
            )
        if before.fingerprint and now.fingerprint and before.fingerprint != now.fingerprint:
            raise InputError(
                f"{flag} was trained on another {now.name} (its fingerprint"
                " differs); give runs of the same data"
            )
    return given._replace(data=_data(other, _same(given), given.data.selection.facts, flag))


# Labels of ImageNet ReaL are in the order of these file names.
_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def real_labels(path: str, given: Examples) -> list[list[int]]:
    """Returns the correct classes of each example: ImageNet ReaL.

    Beyer et al., arXiv:2006.07159. The file is a list of lists of class numbers, in the
    order of the ILSVRC validation files. Raises `InputError` if it has another form, or the
    examples have other file names.
    """
    classes = given.data.selection.facts.num_classes
    if len(given.columns) < classes:
        raise InputError(
            f"--real={path} is for a model of all {classes} classes of"
            f" {given.data.config.data.name}, and here are {len(given.columns)}; leave out"
            " --real"
        )
    listed = atomic.read_json(pathlib.Path(path))
    if not isinstance(listed, list) or not all(
        isinstance(each, list) and all(type(k) is int and 0 <= k < classes for k in each)
        for each in listed
    ):
        raise InputError(
            f"--real={path} must be a JSON file, a list of lists of class numbers, 0 to"
            f" {classes - 1}, one for each ILSVRC validation file; give the real.json of"
            " github.com/google-research/reassessed-imagenet"
        )
    records = given.data.selection.records(given.split, given.key)
    found = []
    for index, raw in enumerate(records.names(np.arange(len(records)))):
        name = raw.decode("utf-8", "replace")
        match = _FILE.search(name)
        if not match or not 1 <= int(match[1]) <= len(listed):
            raise InputError(
                f"--real={path}: {records.where(index)} has the file name {name!r}, and"
                f" must have that of one of {len(listed)} files such as"
                " ILSVRC2012_val_00000001.JPEG; score imagenet2012's split validation, or"
                " leave out --real"
            )
        found.append(given.places[listed[int(match[1]) - 1]].tolist())
    return found
