"""Recipe -> Programs: the compiled functions, and the sharding of their arrays."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.data.batch import Batch
from jaxcls.devices import memory, mesh
from jaxcls.experiment import recipe
from jaxcls.experiment.initial import TrainedModel
from jaxcls.experiment.recipe import Recipe
from jaxcls.learning import gradients, multistep, step

ImageStep = Callable[[dict[str, Any], jax.Array], jax.Array]


class Programs:
    """The jitted functions of a recipe, each compiled when first called or asked for.

    No program depends on a seed.

    load_teacher: Returns the teacher, or None. compiler_options: of `devices.compiling`.
    """

    def __init__(
        self,
        recipe: Recipe,
        load_teacher: Callable[[], TrainedModel | None],
        compiler_options: dict[str, str] | None,
    ) -> None:
        self.config, self.data, self.recipe = recipe.config, recipe.data, recipe
        self._load_teacher = load_teacher
        # Only for functions that run: JAX takes options at no inner `jit`.
        self.jit = functools.partial(jax.jit, compiler_options=compiler_options)

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices of the programs."""
        return self.data.mesh

    # The state and its shapes.

    @functools.cached_property
    def state_shapes(self) -> step.State:
        """The state as shapes and dtypes, without any computation."""
        return jax.eval_shape(self.recipe.init, *recipe.keys(self.config), {})

    @functools.cached_property
    def state_like(self) -> step.State:
        """The shapes of the state with the sharding of a restored state."""
        return jax.tree.map(
            lambda x, its: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=its),
            self.state_shapes,
            mesh.of_state(self.mesh, self.state_shapes),
        )

    @functools.cached_property
    def state_of_a_device(self) -> step.State:
        """The shapes of one device's shard of the state."""
        return mesh.on_one_device(self.state_like)

    def _sharding_of(self, like: Any) -> Any:
        """Returns the sharding of each array of a tree, or one for all of them."""
        if mesh.fsdp_of(self.mesh) == 1:
            return mesh.replicated(self.mesh)
        return mesh.of_state(self.mesh, like)

    @functools.cached_property
    def _state_sharding(self) -> Any:
        return self._sharding_of(self.state_shapes)

    @functools.cached_property
    def variables_sharding(self) -> Any:
        """The sharding of each array of a model's variables, or one for all of them."""
        return self._sharding_of(self.recipe.variables_like)

    @functools.cached_property
    def init(self) -> step.Init:
        """The jitted init(key, keys, given) -> the state at step 0, on the mesh."""
        return self.jit(self.recipe.init, out_shardings=self._state_sharding)

    @functools.cached_property
    def teacher_variables(self) -> Any:
        """The teacher's variables on the mesh; {} without one."""
        teacher = self._load_teacher()
        return mesh.put_everywhere(self.mesh, teacher.variables if teacher else {})

    # Training.

    @functools.cached_property
    def _pure_train_step(self) -> Callable[[Any, step.State, Batch], Any]:
        """train_step(teacher_variables, state, batch) -> (state, metrics)."""
        distill, teacher, distillation = self.config.distill, self._load_teacher(), None
        if teacher:
            apply = teacher.recipe.model.apply
            distillation = gradients.Distillation(
                lambda variables, images: apply(variables, images, False, None)[0],
                distill.weight,
                distill.temperature,
            )
        pure = self.recipe.train_step(distillation)

        def train_step(variables: Any, state: step.State, batch: Batch) -> Any:
            state, scores = pure(state, batch, variables)
            has_flags = not isinstance(batch.asked, tuple)
            return state, scores | ({"asked": batch.asked.any()} if has_flags else {})

        return train_step

    @property
    def _of_train_step(self) -> dict[str, Any]:
        """What `jax.jit` is told of the train step's arguments and results."""
        everywhere, rows = mesh.replicated(self.mesh), mesh.by_example(self.mesh)
        return {
            "donate_argnums": 1,
            "in_shardings": (everywhere, self._state_sharding, rows),
            "out_shardings": (self._state_sharding, everywhere),
        }

    @functools.cached_property
    def _train_step(self) -> jax.stages.Wrapped:
        """The jitted `_pure_train_step`."""
        return self.jit(self._pure_train_step, **self._of_train_step)

    @functools.cached_property
    def train_step(self) -> Callable[[step.State, Batch], Any]:
        """train_step(state, batch) -> (state, metrics); it donates the state.

        Each size of images is compiled when its first batch comes. With `asked` in the
        batch, the metric "asked" tells whether a process was asked to stop.
        """
        return functools.partial(self._train_step, self.teacher_variables)

    @functools.cached_property
    def lowered_train_step(self) -> jax.stages.Lowered:
        """The train step for the largest images, traced from shapes alone."""
        everywhere, teacher = mesh.replicated(self.mesh), self._load_teacher()
        variables = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            teacher.variables if teacher else {},
        )
        return self._train_step.lower(variables, self.state_like, self.batch_like)

    @functools.cached_property
    def compiled_train_step(self) -> jax.stages.Compiled:
        """The train step compiled for the largest images; `train_step` then calls it."""
        return self.lowered_train_step.compile()

    def compile_train_step(self) -> None:
        """Compiles the train step; raises `InputError` if it does not fit in memory."""
        self._check_fits(self.compiled_train_step)

    @functools.cached_property
    def train_loop(self) -> Callable[[step.State, Batch, int], Any]:
        """train_loop(state, columns [MOST, B], count) -> (state, metrics {name: [MOST]}).

        It runs the train step on the first `count` batches of resident images. One program
        serves every count; it donates the state. MOST is `multistep.MOST`. Raises
        `InputError` if the loop does not fit in memory.
        """
        rows, data_like = mesh.by_step(self.mesh), self.data.train_resident_like()
        train_step = jax.jit(self._pure_train_step, **self._of_train_step)
        loop = self.jit(
            functools.partial(
                multistep.train_loop,
                train_step=lambda state, batch, teacher: train_step(teacher, state, batch),
                take=self.data.take,
            ),
            donate_argnums=0,
            out_shardings=(self._state_sharding, mesh.replicated(self.mesh)),
        )
        column = jax.ShapeDtypeStruct(
            (multistep.MOST, self.config.batch_size), jnp.int32, sharding=rows
        )
        columns, teacher = Batch(index=column, epoch=column), self.teacher_variables
        program = loop.lower(
            self.state_like, columns, np.int32(0), data_like, teacher
        ).compile()
        self._check_fits(program, data_like)

        def train_loop(state: step.State, columns: Batch, count: int) -> Any:
            given, data = jax.device_put(columns, rows), self.data.train_resident()
            return program(state, given, np.int32(count), data, teacher)

        return train_loop

    @property
    def batch_like(self) -> Batch:
        """The shapes of a training batch with the largest images."""
        size, sharding = self.config.batch_size, mesh.by_example(self.mesh)
        column = jax.ShapeDtypeStruct((size,), jnp.int32, sharding=sharding)
        shape = (size, *self.data.train_shape)
        pixels = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding)
        like = Batch(pixels, column, column, column)
        if jax.process_count() == 1:
            return like
        flags = jax.ShapeDtypeStruct((self.mesh.size,), jnp.bool_, sharding=sharding)
        return like._replace(asked=flags)

    def _check_fits(self, program: jax.stages.Compiled, data: Any = ()) -> None:
        """Raises `InputError` if a step does not fit in memory.

        data: The resident images that the program takes as arguments.
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

    # Evaluation and prediction.

    @functools.cached_property
    def eval_step(self) -> Callable[[dict[str, Any], Batch], dict[str, jax.Array]]:
        """The jitted eval_step(variables, batch) -> {name: [B]}, on every device.

        batch: image and label. The result holds each example's loss, metrics and
            prediction.
        """
        pure = functools.partial(
            step.eval_step,
            model=self.recipe.model,
            loss=self.recipe.loss,
            num_classes=self.data.selection.num_classes,
            normalize=self.recipe.normalize,
            metrics=self.recipe.metrics,
        )
        return self._of_variables(pure)

    @functools.cached_property
    def record_evaluation(self) -> Callable[[step.State, float], step.State]:
        """The jitted record_evaluation(state, value of best.metric) -> state."""
        stop = self.config.early_stop
        pure = functools.partial(
            step.record_evaluation,
            higher=self.recipe.higher_is_better,
            min_delta=stop.min_delta,
            patience=stop.patience,
            plateau_patience=self.config.optim.plateau_patience,
            plateau_factor=self.config.optim.plateau_factor,
        )
        return self.jit(pure, donate_argnums=0, out_shardings=self._state_sharding)

    @functools.cached_property
    def logits_step(self) -> ImageStep:
        """The jitted logits_step(variables, images uint8 [B, H, W, C]) -> [B, K]."""
        return self._of_variables(self.recipe.logits_step())

    @functools.cached_property
    def probabilities_step(self) -> ImageStep:
        """The jitted probabilities_step(variables, images [B, H, W, C]) -> p [B, K]."""
        return self._of_variables(self.recipe.probabilities_step())

    @functools.cached_property
    def embed_step(self) -> ImageStep:
        """The jitted embed_step(variables, images uint8 [B, H, W, C]) -> [B, D] float32.

        The features that the model's head sees.
        """
        return self._of_variables(self.recipe.embed_step())

    def _of_variables(self, pure: Callable[[dict[str, Any], Any], Any]) -> Any:
        """Jits a function of (variables, batch): sharded rows in, whole results out."""
        return self.jit(
            pure,
            in_shardings=(self.variables_sharding, mesh.by_example(self.mesh)),
            out_shardings=mesh.replicated(self.mesh),
        )
