"""config -> Experiment: the only road from a config to objects.

Everything is made on first use, so `predict` works where the dataset is absent.
"""

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxcls.config import loading as configs
from jaxcls.config.loading import check
from jaxcls.data import sources
from jaxcls.data.batch import Batch
from jaxcls.data.pipeline import ROLES, Data
from jaxcls.data.selection import Selection
from jaxcls.devices import mesh
from jaxcls.experiment import compile_cache, initial, recipe, teacher
from jaxcls.experiment.initial import Initial
from jaxcls.experiment.plan import Plan
from jaxcls.experiment.programs import Programs
from jaxcls.experiment.recipe import Recipe
from jaxcls.experiment.teacher import Teacher
from jaxcls.learning.step import State


def build(
    config: ConfigDict,
    facts: sources.Facts | None = None,
    devices: Sequence[Any] | None = None,
) -> "Experiment":
    """The experiment that a config describes; raises `InputError` for a bad value.

    It reads no file and no network; `checks.check` says what is wrong in the whole.
    `facts`: what is known of the dataset, where it need not (or cannot) be opened.
    `devices`: to choose from instead of those that there are; they may be described only,
    to compile for.
    """
    check(config)
    if config.compile.cache:
        compile_cache.use(config.compile.cache)
    return Experiment(config, facts, devices)


class Experiment:
    """What a config describes: its data, plan, recipe and programs."""

    def __init__(
        self,
        config: ConfigDict,
        facts: sources.Facts | None = None,
        devices: Sequence[Any] | None = None,
    ) -> None:
        self._given, self._facts, self._devices = config, facts, devices

    @functools.cached_property
    def config(self) -> ConfigDict:
        """The config, with what init.weights tells in place of each "weights"."""
        return initial.resolved(self._given)

    @functools.cached_property
    def data(self) -> Data:
        """The batches, and which examples they are of."""
        return Data(self.config, self._facts, self._devices)

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The model and what trains it, as pure functions."""
        return Recipe(self.config, self.data)

    @functools.cached_property
    def programs(self) -> Programs:
        """The same, compiled for the mesh."""
        return Programs(self.recipe, lambda: self.teacher)

    @functools.cached_property
    def initial(self) -> Initial | None:
        """What init.weights has for the state at step 0; None where it is ""."""
        return initial.load(self.recipe) if self.config.init.weights else None

    @functools.cached_property
    def teacher(self) -> Teacher | None:
        """The model whose logits are learned; None where distill.run is ""."""
        return teacher.load(self.recipe) if self.config.distill.run else None

    @property
    def plan(self) -> Plan:
        """The numbers that the run comes to."""
        return self.recipe.plan

    @property
    def selection(self) -> Selection:
        """The dataset, its classes, and which examples are used."""
        return self.data.selection

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices of the run."""
        return self.data.mesh

    def reseeded(self, seeds: Mapping[str, int]) -> "Experiment":
        """This experiment under other seeds: {"seed": 3} or {"seeds.order": 3}.

        No program knows a seed and no decoded image, so both experiments share the recipe
        and the programs, which keep the config of the first.
        """
        _ = self.programs, self.initial, self.teacher  # Made before they are shared.
        other = copy.copy(self)
        other.config = configs.from_flat({**configs.flat(self.config), **seeds})
        check(other.config)
        other.data = self.data.reseeded(other.config)
        return other

    def implied(self) -> dict[str, Any]:
        """What config.json keeps of what follows from config and data."""
        return {
            "facts": self.selection.facts._asdict(),
            "image_shape": self.data.eval_shape,
            "train_image_shape": self.data.train_shape,
            "steps": self.plan.steps,
            "examples": {role: self.data.examples(role) for role in ROLES},
            "lr": self.plan.lr,
            "order": self.data.order_name,
            "teacher": self.teacher.fingerprint if self.teacher else "",
        }

    def init(self) -> State:
        """The state at step 0, on the mesh."""
        given = dict(self.initial.arrays) if self.initial else {}
        if self.config.init.whiten and initial.to_whiten(self.recipe)[0] not in given:
            given |= initial.whitened(self.recipe, self.data)
        return self.programs.init(*recipe.keys(self.config), given)

    def model_inputs(self, step: int, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """(images, targets) that the train step at `step` gives the model for a batch."""
        key = recipe.keys(self.config)[1]["augment"]
        return self.programs.inputs(key, step, batch)

    def train_batches(self, start: int = 0) -> Iterator[Batch]:
        """The batches of steps start..steps-1, on the mesh."""
        return self.data.train_batches(start, self.plan.steps)

    def eval_batches(self, split: str, key: str, batch_size: int = 0) -> Iterator[Batch]:
        """Every example of a split once, on the mesh, with mask.

        `key`: the config key or flag that `split` came from. `batch_size` 0: eval's.
        """
        size = batch_size or self.config.eval.batch_size or self.config.batch_size
        return self.data.eval_batches(split, key, mesh.round_up(size, self.mesh))
