"""config -> Experiment: the only road from a config to objects.

Everything is built on first use, so `predict` works where the dataset is absent and a
dry run starts no device.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxcls import compile_cache, gradients, looping, memory, mesh, sources, step, teacher
from jaxcls import config as configs
from jaxcls.config import check, check_alone
from jaxcls.data import Columns, DeviceBatch
from jaxcls.errors import InputError, first_line
from jaxcls.initial import Initial, load, resolved, to_whiten, whitened
from jaxcls.recipe import Recipe

ImageStep = Callable[[dict[str, Any], jax.Array], jax.Array]


def build(
    config: ConfigDict,
    facts: sources.Facts | None = None,
    devices: Sequence[Any] | None = None,
) -> "Experiment":
    """The experiment that a config describes; raises `InputError` for a bad one.

    `facts`: what is known of the dataset, where it need not (or cannot) be opened.
    `devices`: to choose from instead of those that there are; they may be described only,
    to compile for.
    """
    check(config)
    if config.compile.cache:
        compile_cache.use(config.compile.cache)
    return Experiment(resolved(config), facts, devices)


class Experiment(Recipe):
    """A recipe on its mesh: state, batches and compiled steps, each made when asked for."""

    def reseeded(self, seeds: Mapping[str, int]) -> "Experiment":
        """This experiment under other seeds: {"seed": 3} or {"seeds.order": 3}.

        No compiled step knows a seed and no decoded image, so both experiments have them.
        """
        # Made before they are shared, so that what compiles them compiles them for all.
        _ = self._jitted_init, self.eval_step, self.record_evaluation
        other = copy.copy(self)
        other.config = config = configs.from_flat({**configs.flat(self.config), **seeds})
        check(config)
        other.data = self.data.reseeded(config)
        return other

    def implied(self) -> dict[str, Any]:
        """What config.json keeps of what follows from config and data."""
        return {
            "facts": self.data.facts._asdict(),
            "image_shape": self.data.eval_shape,
            "train_image_shape": self.data.train_shape,
            "steps": self.steps,
            "examples": {role: self.count(role) for role in ("train", "eval", "test")},
            "lr": self.lr,
            "order": self.data.order_name,
            "teacher": self.teacher.fingerprint if self.teacher else "",
        }

    @functools.cached_property
    def initial(self) -> Initial | None:
        """What init.weights has for the state at step 0; None where it is ""."""
        return load(self) if self.config.init.weights else None

    @functools.cached_property
    def teacher(self) -> teacher.Teacher | None:
        """The model whose logits are learned; None where distill.run is ""."""
        return teacher.load(self) if self.config.distill.run else None

    @functools.cached_property
    def teacher_variables(self) -> Any:
        """The teacher's variables on the mesh; {} without one."""
        found = self.teacher.variables if self.teacher else {}
        sharding = mesh.replicated(self.mesh)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, x, x.shape), found
        )

    @functools.cached_property
    def state_shapes(self) -> step.State:
        """The state as shapes and dtypes, found without computing anything."""
        return jax.eval_shape(self.pure_init, *self.keys(), {})

    @functools.cached_property
    def state_like(self) -> step.State:
        """The same with the sharding that a restored state gets."""
        return jax.tree.map(
            lambda x, its: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=its),
            self.state_shapes,
            mesh.of_state(self.mesh, self.state_shapes),
        )

    @functools.cached_property
    def state_of_a_device(self) -> step.State:
        """The shapes of what one device holds of the state."""
        return mesh.on_one_device(self.state_like)

    @functools.cached_property
    def _state_sharding(self) -> Any:
        """Of each array of the state, or one for all of them."""
        if mesh.fsdp_of(self.mesh) == 1:
            return mesh.replicated(self.mesh)
        return mesh.of_state(self.mesh, self.state_shapes)

    @functools.cached_property
    def variables_sharding(self) -> Any:
        """Of each array of a model's {"params", "batch_stats"}, or one for all of them."""
        if mesh.fsdp_of(self.mesh) == 1:
            return mesh.replicated(self.mesh)
        return mesh.of_state(self.mesh, self.variables_like)

    def init(self) -> step.State:
        """The state at step 0, on the mesh."""
        given = dict(self.initial.arrays) if self.initial else {}
        if self.config.init.whiten and to_whiten(self)[0] not in given:
            given |= whitened(self)
        return self._jitted_init(*self.keys(), given)

    @functools.cached_property
    def _jitted_init(self) -> step.Init:
        return jax.jit(self.pure_init, out_shardings=self._state_sharding)

    def model_inputs(self, step: int, batch: DeviceBatch) -> tuple[jax.Array, jax.Array]:
        """(images, targets) that the train step at `step` gives the model for a batch."""
        key = self.keys()[1]["augment"]
        return jax.jit(self.pure_inputs)(key, jnp.int32(step), batch)

    def train_step(self, state: step.State, batch: DeviceBatch) -> Any:
        """The jitted train_step(state, batch) -> (state, metrics); it donates the state.

        Of a batch with "asked" (see `mesh.with_flag`), metrics tell whether one asked.
        """
        return self._jitted_train_step(state, batch, self.teacher_variables)

    @functools.cached_property
    def raw_train_step(self) -> step.TrainStep:
        """train_step(state, batch, teacher_variables) -> (state, metrics), not jitted."""
        distillation = None
        if self.teacher:
            distill = self.config.distill
            distillation = gradients.Distillation(
                self.teacher.logits, distill.weight, distill.temperature
            )
        return self.pure_train_step(distillation)

    @functools.cached_property
    def _jitted_train_step(self) -> jax.stages.Wrapped:
        raw = self.raw_train_step

        def train_step(state: step.State, batch: DeviceBatch, variables: Any) -> Any:
            state, scores = raw(state, batch, variables)
            return state, scores | _asked(batch)

        everywhere, rows = mesh.replicated(self.mesh), mesh.by_example(self.mesh)
        return jax.jit(
            train_step,
            donate_argnums=0,
            in_shardings=(self._state_sharding, rows, everywhere),
            out_shardings=(self._state_sharding, everywhere),
        )

    @functools.cached_property
    def lowered_train_step(self) -> Any:
        """`train_step`, traced from shapes alone: what is wrong in a config fails here."""
        check_alone(self.config)
        self.check_batch_size()
        try:
            self.check_shapes()
            _ = self.every, self.higher_is_better  # What the step does not ask for.
            if self.config.init.whiten:
                to_whiten(self)
            return self._lowered()
        except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
            if "(" not in self.config.model.name:
                raise  # No option of the user's: a bug of ours.
            raise InputError(
                f"model.name={self.config.model.name!r} cannot be built with these options"
                f" ({type(error).__name__}: {first_line(error)})"
            ) from None

    def _lowered(self, shape: tuple[int, ...] | None = None) -> Any:
        everywhere = mesh.replicated(self.mesh)
        teacher = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            self.teacher.variables if self.teacher else {},
        )
        like = self.batch_like(shape)
        return self._jitted_train_step.lower(self.state_like, like, teacher)

    @functools.cached_property
    def compiled_train_step(self) -> Callable[[step.State, DeviceBatch], Any]:
        """`train_step`, compiled ahead; raises `InputError` where it cannot fit.

        Ahead for the largest images; where sizes grow, for another when it first comes.
        """
        self._check_fits(self.train_program(self.data.train_shape))

        def train_step(state: step.State, batch: DeviceBatch) -> Any:
            program = self.train_program(batch["image"].shape[1:])
            return program(state, batch, self.teacher_variables)

        return train_step

    def _check_fits(self, program: jax.stages.Compiled, data: Any = ()) -> None:
        """Raise `InputError` where a step cannot fit.

        data: of the images that are kept on the device, those that the program is given.
        """
        limit, given = mesh.memory_limit(self.mesh), memory.tree_bytes(data)
        state = memory.tree_bytes((self.state_of_a_device, self.teacher_variables))
        memory.check_fits(
            program.memory_analysis(),
            limit=limit and max(0, limit - self.data.resident_bytes() + given),
            fixed=state + given,
            batch_size=self.config.batch_size,
            devices=self.mesh.size,
        )

    def train_program(self, shape: tuple[int, ...]) -> jax.stages.Compiled:
        """The compiled `train_step` for images [H, W, C]."""
        if shape not in self._train_programs:
            is_largest = shape == self.data.train_shape
            lowered = self.lowered_train_step if is_largest else self._lowered(shape)
            self._train_programs[shape] = lowered.compile()
        return self._train_programs[shape]

    @functools.cached_property
    def _train_programs(self) -> dict[tuple[int, ...], jax.stages.Compiled]:
        return {}

    @functools.cached_property
    def compiled_train_loop(self) -> Callable[[step.State, Columns, int], Any]:
        """(state, columns {name: [MOST, B]}, count) -> (state, metrics {name: [MOST]}).

        `train_step` of the first `count` of these batches of resident images, by one
        program for every count; it donates the state. MOST is `looping`'s. Raises
        `InputError` where it cannot fit.
        """
        self._check_fits(self.train_loop_program, self.data.train_resident_like())

        def train_loop(state: step.State, columns: Columns, count: int) -> Any:
            given = jax.device_put(columns, mesh.by_step(self.mesh))
            data, teacher = self.data.train_resident(), self.teacher_variables
            return self.train_loop_program(state, given, np.int32(count), data, teacher)

        return train_loop

    @functools.cached_property
    def train_loop_program(self) -> jax.stages.Compiled:
        """The compiled program of `compiled_train_loop`."""
        _ = self.lowered_train_step  # What is wrong in a config is said there.
        loop = jax.jit(
            looping.make_train_loop(self._jitted_train_step, self.data.take),
            donate_argnums=0,
            out_shardings=(self._state_sharding, mesh.replicated(self.mesh)),
        )
        shape, rows = (looping.MOST, self.config.batch_size), mesh.by_step(self.mesh)
        column = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
        columns = {name: column for name in ("index", "epoch")}
        data = self.data.train_resident_like()
        return loop.lower(
            self.state_like, columns, np.int32(0), data, self.teacher_variables
        ).compile()

    def check_batch_size(self) -> None:
        """Raise `InputError` unless the batch spreads evenly over devices and hosts."""
        mesh.check_divides(self.mesh, self.config.batch_size, "batch_size")
        pieces = self.config.optim.accumulate
        if self.config.batch_size // pieces % self.mesh.size:
            raise InputError(
                f"optim.accumulate={pieces} makes pieces of"
                f" {self.config.batch_size // pieces} examples, which do not spread over"
                f" {self.mesh.size} devices; take fewer pieces or a larger batch_size"
            )

    def batch_like(
        self, shape: tuple[int, ...] | None = None
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """A training batch as shapes, of images [H, W, C]; of the largest by default."""
        size, sharding = self.config.batch_size, mesh.by_example(self.mesh)
        image = (size, *(shape or self.data.train_shape))
        column = jax.ShapeDtypeStruct((size,), jnp.int32, sharding=sharding)
        pixels = jax.ShapeDtypeStruct(image, jnp.uint8, sharding=sharding)
        like = {"image": pixels, "label": column, "index": column, "epoch": column}
        if jax.process_count() > 1:
            flags = (self.mesh.size,)
            like["asked"] = jax.ShapeDtypeStruct(flags, jnp.bool_, sharding=sharding)
        return like

    @functools.cached_property
    def eval_step(self) -> Callable[[dict[str, Any], DeviceBatch], dict[str, jax.Array]]:
        """The jitted eval_step(variables, batch) -> {name: [B]}, on every device.

        batch: image and label. Each example's loss and metrics, and its predicted class.
        """
        raw = step.make_eval_step(
            self.model,
            self.loss,
            num_classes=self.data.num_classes,
            normalize=self.normalize,
            metrics=self.metrics,
        )
        return self._of_variables(raw)

    @functools.cached_property
    def record_evaluation(self) -> Callable[[step.State, float], step.State]:
        """The jitted record_evaluation(state, value of best.metric) -> state."""
        stop = self.config.early_stop
        raw = functools.partial(
            step.record_evaluation,
            higher=self.higher_is_better,
            min_delta=stop.min_delta,
            patience=stop.patience,
            plateau_patience=self.config.optim.plateau_patience,
            plateau_factor=self.config.optim.plateau_factor,
        )
        return jax.jit(raw, donate_argnums=0, out_shardings=self._state_sharding)

    @functools.cached_property
    def logits_step(self) -> ImageStep:
        """The jitted logits_step(variables, images uint8 [B, H, W, C]) -> [B, K]."""
        return self._of_variables(self.pure_predict_step())

    @functools.cached_property
    def predict_step(self) -> ImageStep:
        """The jitted predict_step(variables, images uint8 [B, H, W, C]) -> p [B, K]."""
        raw = self.pure_predict_step()
        link = jax.nn.sigmoid if self.link == "sigmoid" else jax.nn.softmax
        return self._of_variables(lambda variables, images: link(raw(variables, images)))

    @functools.cached_property
    def embed_step(self) -> ImageStep:
        """The jitted embed_step(variables, images uint8 [B, H, W, C]) -> [B, D] float32.

        The features that the model's head sees.
        """

        def embed(variables: dict[str, Any], images: jax.Array) -> jax.Array:
            with self.numerics():
                return self.module.apply(variables, self.normalize(images), False).embed

        return self._of_variables(embed)

    def _of_variables(self, raw: Callable[[dict[str, Any], Any], Any]) -> Any:
        """A function of (variables, a batch), jitted: rows in, all of it out."""
        return jax.jit(
            raw,
            in_shardings=(self.variables_sharding, mesh.by_example(self.mesh)),
            out_shardings=mesh.replicated(self.mesh),
        )

    # The batches.

    def train_batches(self, start: int = 0) -> Iterator[DeviceBatch]:
        """The batches of steps start..steps-1, on the mesh: image, label."""
        self.check_batch_size()
        yield from self.data.train_batches(start, self.steps)

    def eval_batches(
        self, split: str, key: str, batch_size: int = 0
    ) -> Iterator[DeviceBatch]:
        """Every example of a TFDS split once, on the mesh: image, label, index, mask.

        `key`: the config key or flag that `split` came from. `batch_size` 0: eval's.
        """
        size = batch_size or self.config.eval.batch_size or self.config.batch_size
        return self.data.eval_batches(split, key, mesh.round_up(size, self.mesh))


def _asked(batch: DeviceBatch) -> dict[str, jax.Array]:
    """Whether any process asked to stop, where the batch says who did."""
    return {"asked": batch["asked"].any()} if "asked" in batch else {}
