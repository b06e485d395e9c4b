"""init.weights -> initial arrays: from a file, a hub's weights or another run.

The weights of a run are treated as a file, with the foreign names of its model. In a config
the text "weights" stands for the preprocessing of the weights.
"""

import hashlib
import itertools
import json
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxcls.config import loading as configs
from jaxcls.config.plugins import Plugins
from jaxcls.data import sources
from jaxcls.data.pipeline import Data
from jaxcls.devices import hosts
from jaxcls.errors import InputError, first_line
from jaxcls.experiment import matching
from jaxcls.experiment.recipe import Recipe, keys
from jaxcls.models import naming, weights
from jaxcls.models.weights import architectures, transfer
from jaxcls.runs import checkpoint
from jaxcls.runs.workdir import Workdir

_KEY = "init.weights"
# The most images that a model makes arrays of.
_IMAGES = 5000
# Keys whose value "weights" is replaced by the weights' text, each with an example.
TOLD = {
    "normalize": "imagenet",
    "data.train_ops": "decode | random_resized_crop(224)",
    "data.eval_ops": "decode | resize_short(256) | center_crop(224)",
}


class Initial(NamedTuple):
    """The initial arrays of a run.

    arrays: By path, "params/conv1/kernel".
    notes: Lines about the conversion, for the log.
    fingerprint: The fingerprint of the weights as read.
    """

    arrays: dict[str, np.ndarray]
    notes: list[str]
    fingerprint: str


class TrainedModel(NamedTuple):
    """A run read from its folder; the variables are for predictions."""

    recipe: Recipe
    variables: dict[str, Any]
    fingerprint: str


def resolved(config: ConfigDict) -> ConfigDict:
    """Returns `config` with the text of init.weights for every "weights" among `TOLD`.

    Raises `InputError` if init.weights is "" or does not tell the text.
    """
    values = configs.flat(config)
    asked = [key for key in TOLD if values[key] == "weights"]
    if not asked:
        return config
    place = values[_KEY]
    if not place:
        raise InputError(
            f"{asked[0]}='weights' takes what init.weights tells, and there are none; try"
            f" {asked[0]}={TOLD[asked[0]]!r}"
        )
    if is_run(place):
        told = configs.flat(Workdir(place).config())
    else:
        told = _texts(place, weights.preprocessing(place, _KEY), asked)
    found = {**values, **{key: told[key] for key in asked}}
    if "data.train_ops" in asked and values["probe.penalties"]:
        found["data.train_ops"] = found["data.eval_ops"]  # It trains on images as scored.
    return configs.from_flat(found)


def load(recipe: Recipe) -> Initial:
    """Returns the initial arrays of a recipe; its init.weights must not be "".

    Raises `InputError` if the weights are missing, damaged or of another model.
    """
    init, place = recipe.config.init, recipe.config.init.weights
    namings, names = recipe.namings, recipe.data.selection.class_names
    run = read_run(place, _KEY, recipe.plugins) if is_run(place) else None
    given = _as_file(run) if run else weights.read(place, _KEY)
    there = transfer.classes_of(given.tensors, namings)
    rows, matched = None, ""
    if init.head == "match":
        rows, matched = matching.rows(given.class_names, there, names, place)
    differ = bool(given.class_names) and given.class_names != names
    fresh = init.head == "fresh" or (
        init.head == "auto" and (there != len(names) or differ)
    )
    try:
        start = transfer.adapt(
            given.tensors,
            namings,
            recipe.given_like,
            skip=init.skip,
            is_head_fresh=fresh,
            classes=rows,
            model=(recipe.config.model.name, recipe.module),
            architecture=given.architecture,
            image_shape=recipe.data.train_shape,
        )
    except InputError as error:
        model = recipe.config.model.name
        raise InputError(f"{_KEY}={place} for model.name={model}: it {error}") from None
    grid = _check_grid(recipe, start, run.recipe.data.train_shape if run else ())
    told = [*given.notes, *start.notes, *grid]
    if run:
        names_of_models = run.recipe.config.model.name, recipe.config.model.name
        note = architectures.of_ours(*names_of_models, recipe.module)
        told += [note] if note else []
    notes = [f"starting from {place}: {'; '.join(told)}"]
    if matched:
        notes.append(matched)
    elif fresh:
        notes.append(f"a fresh head for {len(names)} classes; there it has {there}")
    elif not any(path.startswith(transfer.HEAD) for path in start.arrays):
        pass  # init.skip has it.
    elif differ and (run or set(given.class_names) & set(names)):
        pairs = itertools.zip_longest(given.class_names, names)
        other, ours = next((a, b) for a, b in pairs if a != b)
        raise InputError(
            f"init.head=keep would keep the head of {_KEY}={place} for other classes: what"
            f" is {other!r} there is {ours!r} here; give init.head=fresh, or"
            f" {_KEY} of a run on these classes"
        )
    elif differ:
        notes.append("the head is kept, though its classes have other names there")
    return Initial(start.arrays, notes, given.fingerprint)


def _check_grid(recipe: Recipe, start: transfer.Start, there: tuple[int, ...]) -> list[str]:
    """Returns a note on a grid of positions that is no square, if there is one.

    Raises `InputError` if such a grid may be of another form: a strip can have as many
    patches as a square. there: the shape of the images that the positions are of; () if
    only their count is known.
    """
    here, tables = recipe.data.train_shape, recipe.namings.values()
    grids = {
        array.shape[1] - naming.grid_of(path, each)
        for each in tables
        for path, array in start.arrays.items()
        if naming.grid_of(path, each) >= 0
    }
    form = f"{here[1]}x{here[0]}"
    if not grids or (here[0] == here[1] and (not there or there[0] == there[1])):
        return []
    if there[:2] == here[:2]:
        return []
    if start.resampled and (not there or there[0] == there[1]):
        return []  # From a square.
    if there or any(math.isqrt(count) ** 2 == count for count in grids):
        raise InputError(
            f"{_KEY}={recipe.config.init.weights} has positions for images of another form"
            f" than {form}; end data.train_ops and data.eval_ops in a square,"
            " or give init.skip='position'"
        )
    return [f"positions of as many patches, taken for those of {form}"]


def is_run(place: str) -> bool:
    """Returns whether a place is a run's folder."""
    if weights.is_hub(place):
        return False
    try:
        saved = json.loads((pathlib.Path(place).expanduser() / "config.json").read_bytes())
    except (OSError, RuntimeError, ValueError):  # It is a file or missing.
        return False
    return isinstance(saved, dict) and {"config", "implied"} <= saved.keys()


def read_run(place: str, key: str, plugins: Plugins) -> TrainedModel:
    """Returns the run of a folder at its best checkpoint.

    key: The config key that names the folder, for messages. plugins: What the run's model
    may be of.

    Raises `InputError` if there is no best checkpoint, or it is damaged.
    """
    folder = Workdir(place)
    config = folder.config()
    config.mesh.devices, config.mesh.fsdp = 0, 1  # The run's mesh may not exist here.
    implied = folder.implied()
    folder.check_plugins(plugins.digests)
    data = Data(config, sources.facts_of(implied), plugins=plugins)
    recipe = Recipe(config, data, plugins)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        jax.eval_shape(recipe.init, *keys(config), {}),
    )
    try:
        step, _ = checkpoint.find(folder.checkpoints, "best")
        saved = checkpoint.read_weights(folder.checkpoints, step, like)
    except (InputError, checkpoint.CorruptError) as error:
        raise InputError(
            f"{key}={place}: its best checkpoint cannot be read ({error}); give another run"
        ) from None
    variables = jax.tree.map(np.asarray, recipe.variables(saved))
    digest = hashlib.sha256()
    for path, array in naming.flatten(variables).items():
        digest.update(f"{path} {array.shape}\n".encode() + np.asarray(array).tobytes())
    return TrainedModel(recipe, variables, f"sha256:{digest.hexdigest()}")


def _as_file(run: TrainedModel) -> weights.Weights:
    """Returns the weights of a run in the form of a file."""
    table = next(iter(run.recipe.namings.values()))
    tensors = naming.to_theirs(run.recipe.merged(run.variables), table)
    names = run.recipe.data.selection.class_names
    return weights.Weights(tensors, None, names, run.fingerprint, architecture="")


def of_images(recipe: Recipe, data: Data) -> dict[str, np.ndarray]:
    """Returns the arrays that a model makes of training images, by path; often none.

    A model may have ``from_images(images) -> {"layer/param": array}``. It gets up to 5,000
    training images, normalised and without augmentation, float32 [n, H, W, C].
    Raises `InputError` if it fails, and for an array that the model does not have.
    """
    make = getattr(recipe.module, "from_images", None)
    if not make:
        return {}

    def made() -> Any:
        images = np.asarray(recipe.normalize(jnp.asarray(data.sample(_IMAGES))))
        try:
            made = make(images)
            return {path: np.asarray(array).tolist() for path, array in made.items()}
        except Exception as error:  # It is the user's code.
            raise InputError(
                f"model.name={recipe.config.model.name!r}: its from_images fails"
                f" ({type(error).__name__}: {first_line(error)})"
            ) from None

    # On one process: the linear algebra of another could differ in the last bits.
    found = {f"params/{path}": each for path, each in hosts.on_first(made).items()}
    arrays = {path: np.array(each, np.float32) for path, each in found.items()}
    like = naming.flatten(recipe.given_like)
    for path, array in arrays.items():
        there = like[path].shape if path in like else None
        if array.shape != there:
            raise InputError(
                f"model.name={recipe.config.model.name!r}: its from_images gives {path!r}"
                f" of shape {array.shape}, and the model has"
                f" {f'shape {there}' if there is not None else 'no such array'}"
            )
    return arrays


def _texts(
    place: str, told: weights.Preprocessing | None, asked: list[str]
) -> dict[str, str]:
    """Returns the texts of `TOLD` for the preprocessing of weights; raises `InputError`."""
    if told is None:
        raise InputError(
            f"{_KEY}={place} does not tell what images it was made for; give"
            f" {', '.join(f'{key}={TOLD[key]!r}' for key in asked)}, or as its authors say"
        )
    if told.crop_mode not in ("center", "squash") and "data.eval_ops" in asked:
        raise InputError(
            f"{_KEY}={place} was made for images with a {told.crop_mode}, which is not done"
            f" here; give data.eval_ops yourself, such as {TOLD['data.eval_ops']!r}"
        )
    size, side = told.size, math.floor(told.size / told.crop)
    filter, decode = told.interpolation, "decode(1)" if len(told.mean) == 1 else "decode"
    resize = f"resize({side}, {filter!r})"
    if told.crop_mode == "center":  # timm and torchvision truncate the longer side.
        resize = f"resize_short({side}, {filter!r}, 'truncate')"
    return {
        "normalize": f"mean_std({told.mean}, {told.std})",
        "data.train_ops": f"{decode} | random_resized_crop({size}, filter={filter!r})",
        "data.eval_ops": f"{decode} | {resize} | center_crop({size})",
    }
