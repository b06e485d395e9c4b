"""config -> Experiment: the only way from a config to objects.

An experiment makes each object on first use. So `predict` works without the dataset.
"""

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxcls.config import loading as configs
from jaxcls.config.loading import check
from jaxcls.config.plugins import NONE, Plugins
from jaxcls.data import sources
from jaxcls.data.batch import Batch
from jaxcls.data.pipeline import ROLES, Data
from jaxcls.data.selection import Selection
from jaxcls.devices import compiling, jax_settings, mesh
from jaxcls.errors import InputError
from jaxcls.experiment import compile_cache, initial, recipe, teacher
from jaxcls.experiment.initial import Initial, TrainedModel
from jaxcls.experiment.plan import Plan
from jaxcls.experiment.programs import Programs
from jaxcls.experiment.recipe import Recipe
from jaxcls.learning.step import State


def build(
    config: ConfigDict,
    facts: sources.Facts | None = None,
    devices: Sequence[Any] | None = None,
    plugins: Plugins = NONE,
) -> "Experiment":
    """Returns the experiment of a config; raises `InputError` for a bad value.

    It opens no dataset and no weights; `checks.check` checks the whole experiment.

    facts: The facts of the dataset, if it need not (or cannot) be opened.
    devices: The devices to choose from, instead of the machine's. Described devices serve
        to compile for them.
    plugins: From `config.plugins.load`; build itself imports none.
    """
    check(config)
    jax_settings.check()
    if config.plugins and not plugins.tables:
        raise InputError(
            f"config.plugins={config.plugins!r} is not loaded; give build(config, plugins="
            "jaxcls.config.plugins.load(...)), or train by jaxcls.train"
        )
    if config.compile.cache:
        compile_cache.use(config.compile.cache)
    return Experiment(config, facts, devices, plugins)


class Experiment:
    """The data, plan, recipe and programs of a config, each made on first use."""

    def __init__(
        self,
        config: ConfigDict,
        facts: sources.Facts | None = None,
        devices: Sequence[Any] | None = None,
        plugins: Plugins = NONE,
    ) -> None:
        self._given, self._facts, self._devices = config, facts, devices
        self.plugins = plugins

    @functools.cached_property
    def config(self) -> ConfigDict:
        """The config, with the texts of init.weights in place of each "weights"."""
        return initial.resolved(self._given)

    @functools.cached_property
    def data(self) -> Data:
        """The batches and their examples."""
        return Data(self.config, self._facts, self._devices, self.plugins)

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The model and its training, as pure functions."""
        return Recipe(self.config, self.data, self.plugins)

    @functools.cached_property
    def programs(self) -> Programs:
        """The compiled functions of the recipe, for the mesh."""
        options = compiling.options(self.convolution)
        return Programs(self.recipe, lambda: self.teacher, options)

    @functools.cached_property
    def convolution(self) -> str:
        """The library of convolutions on a CPU: see `devices.compiling`."""
        return compiling.chosen(self.config.compile.convolution, self.mesh)

    @functools.cached_property
    def initial(self) -> Initial | None:
        """The arrays of init.weights for the state at step 0; None if it is ""."""
        return initial.load(self.recipe) if self.config.init.weights else None

    @functools.cached_property
    def teacher(self) -> TrainedModel | None:
        """The model of distill.run, whose logits the run learns; None if it is ""."""
        return teacher.load(self.recipe) if self.config.distill.run else None

    @property
    def plan(self) -> Plan:
        """The numbers of the run: steps, rate and periods."""
        return self.recipe.plan

    @property
    def selection(self) -> Selection:
        """The dataset, its classes and its selected examples."""
        return self.data.selection

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices of the run."""
        return self.data.mesh

    def resuming(self, convolution: str | None) -> "Experiment":
        """Returns this experiment with the library of convolutions of an earlier start.

        convolution: None if there is none. A library that the config names stays.
        """
        known = convolution if convolution in compiling.CHOICES else None
        is_free = self.config.compile.convolution == "auto" and self.convolution
        if not known or not is_free or self.convolution in (known, compiling.BY_FLAGS):
            return self
        other = copy.copy(self)
        other.__dict__.pop("programs", None)
        other.convolution = compiling.chosen(known, self.mesh)
        return other

    def reseeded(self, seeds: Mapping[str, int]) -> "Experiment":
        """Returns this experiment with other seeds: {"seed": 3} or {"seeds.order": 3}.

        Both experiments share the recipe, programs and decoded images, which do not depend
        on a seed; the recipe and the programs keep the config of the first. Another
        data.fraction_seed or data.split_seed chooses other images, and makes all anew.
        Raises `InputError` for a bad seed.
        """
        config = configs.from_flat({**configs.flat(self.config), **seeds})
        before, now = self.config.data, config.data
        chosen = "fraction_seed", "split_seed"
        if any(now[key] != before[key] for key in chosen):
            return build(config, plugins=self.plugins)
        # Made first, so that both share them.
        _ = self.programs, self.initial, self.teacher
        other = copy.copy(self)
        other.config = config
        check(other.config)
        other.data = self.data.of_config(other.config)
        return other

    def implied(self) -> dict[str, Any]:
        """Returns the facts for config.json that follow from config and data."""
        return {
            "facts": self.selection.facts._asdict(),
            "image_shape": self.data.eval_shape,
            "train_image_shape": self.data.train_shape,
            "steps": self.plan.steps,
            "examples": {role: self.data.examples(role) for role in ROLES},
            "lr": self.plan.lr,
            "order": self.data.order_name,
            "teacher": self.teacher.fingerprint if self.teacher else "",
            **({"plugins": self.plugins.digests} if self.plugins.sources else {}),
        }

    def init(self) -> State:
        """Returns the state at step 0, on the mesh."""
        given = initial.of_images(self.recipe, self.data)
        given |= self.initial.arrays if self.initial else {}
        return self.programs.init(*recipe.keys(self.config), given)

    def train_batches(self, start: int = 0) -> Iterator[Batch]:
        """Returns the batches of steps start..steps-1, on the mesh."""
        return self.data.train_batches(start, self.plan.steps)

    def eval_batches(self, split: str, key: str, batch_size: int = 0) -> Iterator[Batch]:
        """Returns batches with every example of a split once, on the mesh, with mask.

        key: The config key or flag that holds `split`, for messages.
        batch_size: 0 is eval.batch_size, or batch_size if that is 0.
        """
        size = batch_size or self.config.eval.batch_size or self.config.batch_size
        return self.data.eval_batches(split, key, mesh.round_up(size, self.mesh))
