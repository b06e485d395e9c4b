"""Published weights as they are: the experiment of a model that was not trained here.

Its config is the defaults with the model, the weights, the data and their preprocessing.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import traverse_util
from ml_collections import ConfigDict

from jaxcls.config import loading as configs
from jaxcls.config.plugins import Plugins
from jaxcls.data import sources
from jaxcls.data.published import Facts
from jaxcls.devices import mesh
from jaxcls.errors import InputError
from jaxcls.experiment import building, initial, matching
from jaxcls.experiment.building import Experiment
from jaxcls.models import weights
from jaxcls.models.weights import transfer

# The splits that score a dataset; the first that is there is data.test.
_TESTS = ("test", "validation")
# The keys that are not the user's, and why not.
_FIXED = {
    "model.name": "is what --model says; give --model=resnet50",
    "init.weights": "is what --weights says; give --weights=FILE",
    "init.head": "is of training, and a head of weights is used as it is; leave it out",
    "init.skip": "is of training, and weights are used as they are; leave it out",
    "data.name": "is what --data says; give --data=NAME",
    "data.train_ops": "is of training, and nothing is trained; give data.eval_ops",
}


class Published(NamedTuple):
    """Weights, their model, and the dataset whose classes it tells apart.

    model: as model.name. weights: as init.weights. data: as data.name; "" is none, and then
    the classes are all that the weights have.
    """

    model: str
    weights: str
    data: str = ""


def build(place: Published, overrides: Mapping[str, str], plugins: Plugins) -> Experiment:
    """Returns the experiment of published weights; overrides: of any config key.

    The host ops and the normalisation are those that the weights tell. Raises `InputError`
    for a bad value, a key that the flags have, a run's folder, weights that tell no host
    ops, and a dataset that is absent.
    """
    if initial.is_run(place.weights):
        raise InputError(
            f"--weights={place.weights} is a run's folder, and must be weights alone; give"
            f" --workdir={place.weights} in place of --model and --weights"
        )
    for key in _FIXED.keys() & overrides.keys():
        raise InputError(f"--config.{key}={overrides[key]} {_FIXED[key]}")
    config = configs.from_flat(
        {
            "model.name": place.model,
            "init.weights": place.weights,
            "init.head": "match",
            "data.eval_ops": "weights",
            "normalize": "weights",
            "data.name": place.data,
        }
    )
    for key, text in overrides.items():
        configs.override(config, key, text)
    config = initial.resolved(config)
    config.data.train_ops = config.data.eval_ops
    if not place.data:
        return building.build(config, _of_weights(config, plugins), plugins=plugins)
    facts = sources.Dataset(config.data.name, config.data.dir).facts
    if "data.test" not in overrides:
        config.data.test = scored_split(facts)
    if "data.train" not in overrides:
        config.data.train = "train" if "train" in facts.splits else next(iter(facts.splits))
    return building.build(config, facts, plugins=plugins)


def scored_split(facts: Facts) -> str:
    """Returns the split that scores a dataset: test, else validation, or "".

    Of a well-known dataset it is a published one: TFDS has a test of ImageNet, without
    labels.
    """
    known = sources.published_facts(facts.name) or facts
    there = known.splits.keys() & facts.splits.keys()
    return next((name for name in _TESTS if name in there), "")


def _of_weights(config: ConfigDict, plugins: Plugins) -> Facts:
    """Returns the facts of data of all classes of the weights, and of no example."""
    key = "init.weights"
    given = weights.read(config.init.weights, key)
    two = Facts("", "", (None, None, 3), 2, (), {})
    namings = building.build(config, two, plugins=plugins).recipe.namings
    count = transfer.classes_of(given.tensors, namings)
    names = matching.names_of(given.class_names, count)
    return two._replace(num_classes=count, class_names=names)


def variables(exp: Experiment) -> dict[str, Any]:
    """Returns {"params", "batch_stats", "ema"} of the weights, on the mesh; "ema" is {}.

    Raises `InputError` for weights of another model or other classes.
    """
    assert exp.initial
    found: dict[str, Any] = {"params": {}, "batch_stats": {}, "ema": {}}
    found |= traverse_util.unflatten_dict(exp.initial.arrays, sep="/")
    return mesh.put_everywhere(exp.mesh, found)


def notes(exp: Experiment) -> list[str]:
    """Returns lines about what published weights are taken for: names, classes, images."""
    data = exp.config.data
    lines = exp.initial.notes if exp.initial else []
    return [*lines, f"images: {data.eval_ops}; normalize={exp.config.normalize}"]


def implied(exp: Experiment) -> dict[str, Any]:
    """Returns the facts of published weights in the form of a run's config.json."""
    assert exp.initial
    return {"facts": exp.selection.facts._asdict(), "weights": exp.initial.fingerprint}
