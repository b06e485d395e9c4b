"""jaxcls: a pure-function image-classification trainer for JAX.

`train`, `load` and `evaluate` are the verbs of the same names, for Python; `models.create`
and `augment.apply` are parts by themselves. Importing this package starts no device, and
imports neither JAX nor TensorFlow. Each package does one thing, and imports only packages
above it in the table of docs/architecture.md.
"""

import importlib
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxcls.version import __version__

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from jaxcls import augment, models
    from jaxcls.predict.trained import TrainedRun

__all__ = ["__version__", "augment", "evaluate", "load", "models", "train"]


def load(
    folder: str | os.PathLike[str] = "",
    checkpoint: str | int = "best",
    overrides: Mapping[str, Any] | None = None,
    plugins: str = "",
    *,
    model: str = "",
    weights: str | os.PathLike[str] = "",
    data: str = "",
) -> "TrainedRun":
    """Returns the trained run of a folder, which predicts, embeds and evaluates.

    In place of a folder it takes published weights, as they are.

    Args:
        folder: The folder of the run, such as "runs/digits".
        checkpoint: "best", "last", or a step.
        overrides: Values of operational config keys, such as {"data.dir": "DIR"}; with
            `weights` of any, such as {"normalize": "imagenet"}.
        plugins: The plug-ins that the run was trained with, if any: "net.py".
        model: Of `weights`, with options, as model.name: "resnet50".
        weights: A file or a name on the hub, as init.weights.
        data: The dataset whose classes `weights` are to tell; "" is all that they have.

    Raises `InputError` if the folder holds no run, or no such checkpoint, and for weights
    of another model or other classes.

    Examples:
        >>> run = jaxcls.load("runs/digits")
        >>> run.predict(["seven.png", "two.png"]).names
        ('7', '2')
    """
    from jaxcls.config.plugins import load as load_plugins
    from jaxcls.errors import InputError
    from jaxcls.experiment.published import Published
    from jaxcls.predict.trained import TrainedRun

    is_published = bool(model and weights) and checkpoint == "best"
    if bool(folder) == bool(model or weights or data) or not (folder or is_published):
        raise InputError(
            "load takes a run, load('runs/digits'), or published weights,"
            " load(model='resnet50', weights='resnet50.pth'); give one of the two"
        )
    place = os.fspath(folder) or Published(model, os.fspath(weights), data)
    return TrainedRun(place, checkpoint, overrides, load_plugins(plugins, "plugins"))


def train(
    config: "str | ConfigDict",
    workdir: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
) -> "TrainedRun":
    """Trains in a folder to the end of the run, as ``jaxcls train`` does; returns the run.

    The same call on an old folder goes on where it stopped, or returns a run that is done.
    Kernels of a GPU are deterministic if this is called before JAX is imported; later only
    XLA_FLAGS can ask for it, and the run records that they do not.

    Args:
        config: A config's file, such as "configs/digits.py", or its ConfigDict.
        workdir: The folder of the run.
        overrides: Values of config keys, such as {"optim.lr": 0.01, "plugins": "net.py"}.

    Raises `InputError` for a bad value, or a folder of another run; `DivergedError` if a
    loss or gradient was not finite.

    Examples:
        >>> run = jaxcls.train("configs/digits.py", "runs/digits", {"length": "5 epochs"})
        >>> run.class_names
        ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
    """
    has_jax = "jax" in sys.modules
    from jaxcls import experiment
    from jaxcls.config import loading
    from jaxcls.devices import mesh
    from jaxcls.predict.trained import TrainedRun
    from jaxcls.training import train as training

    if not has_jax:
        mesh.prefer_same_bits()
    given = loading.load(config) if isinstance(config, str) else config
    given = loading.from_flat(loading.flat(given))
    for key, value in (overrides or {}).items():
        loading.override(given, key, str(value))
    plugins = loading.plugins_of(config if isinstance(config, str) else "", given)
    training.run(experiment.build(given, plugins=plugins), os.fspath(workdir))
    return TrainedRun(workdir, plugins=plugins)


def evaluate(
    folder: str | os.PathLike[str] = "",
    split: str = "test",
    checkpoint: str | int = "best",
    overrides: Mapping[str, Any] | None = None,
    plugins: str = "",
    **published: str,
) -> dict[str, Any]:
    """Returns the figures of a model on every example of a split: see `load` for more.

    Args:
        split: "test", "eval", "train", or a split as TFDS writes it, "train[:10%]".
        published: model, weights and data, in place of a folder.

    Examples:
        >>> found = jaxcls.evaluate("runs/digits")
        >>> found["n"], found["top1"] > 0.9
        (360, True)
    """
    return load(folder, checkpoint, overrides, plugins, **published).evaluate(split)


def __getattr__(name: str) -> Any:
    """Imports `augment` and `models` at their first use, since they import JAX."""
    if name in ("augment", "models"):
        return importlib.import_module(f"jaxcls.{name}")
    raise AttributeError(f"module 'jaxcls' has no attribute {name!r}")
