"""config -> Experiment: the only road from a config to objects.

Everything is built on first use, so `predict` works where the dataset is absent and a
dry run starts no device. What a config implies (steps, rate, sizes, classes) is
computed here, once.
"""

import functools
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxcls import (
    augment,
    durations,
    losses,
    memory,
    mesh,
    metrics,
    optimizers,
    pipeline,
    sources,
    step,
)
from jaxcls.config import check
from jaxcls.data import Data, DeviceBatch
from jaxcls.errors import InputError
from jaxcls.models import MODELS, Classifier

# Streams of device randomness, each its own key, so that a study can vary one alone.
_STREAMS = {"init": 0, "augment": 1, "dropout": 2}


def build(config: ConfigDict, facts: sources.Facts | None = None) -> "Experiment":
    """The experiment that a config describes; raises `InputError` for a bad one.

    `facts`: what is known of the dataset, where it need not (or cannot) be opened.
    """
    check(config)
    return Experiment(config, facts)


class Experiment:
    """A config's objects, each made when first asked for."""

    def __init__(self, config: ConfigDict, facts: sources.Facts | None) -> None:
        self.config = config
        self.data = Data(config, facts, lambda: self.mesh)

    # What the config implies.

    @functools.cached_property
    def examples(self) -> int:
        """How many examples one epoch has."""
        return self.count("train")

    def count(self, role: str) -> int:
        """Examples of data.train, data.eval or data.test; 0 where the split is ''."""
        split = self.config.data[role]
        return self.data.count(split, f"data.{role}") if split else 0

    @functools.cached_property
    def steps(self) -> int:
        """Updates of the whole run."""
        steps = durations.step_of(1, self._duration("length"))
        if steps >= 2**31:
            raise InputError(
                f"length={self.config.length!r} is {steps:.1e} steps, over 2**31"
            )
        if steps < 1:
            raise InputError(
                f"length={self.config.length!r} is less than one batch of"
                f" batch_size={self.config.batch_size}; train longer or take less"
            )
        return steps

    @functools.cached_property
    def every(self) -> dict[str, Fraction]:
        """Steps, exactly, between evaluations ("eval"), "checkpoint"s and "log" records."""
        return {
            name: self._duration(f"{name}.every", self.steps)
            for name in ("eval", "checkpoint", "log")
        }

    @functools.cached_property
    def lr(self) -> float:
        """The peak learning rate in effect: optim.lr, scaled where optim.lr_per is set."""
        optim = self.config.optim
        return (
            optim.lr * self.config.batch_size / optim.lr_per if optim.lr_per else optim.lr
        )

    @functools.cached_property
    def warmup(self) -> int:
        """Steps of linear warm-up."""
        warmup = durations.step_of(1, self._duration("optim.warmup", self.steps))
        if warmup >= self.steps:
            raise InputError(
                f"optim.warmup={self.config.optim.warmup!r} is {warmup} steps and the whole"
                f" run has {self.steps}; try '5 percent'"
            )
        return warmup

    def _duration(self, key: str, total: int | None = None) -> Fraction:
        text: Any = self.config
        for part in key.split("."):
            text = text[part]
        return durations.to_steps(
            text,
            key,
            examples=self.examples,
            batch_size=self.config.batch_size,
            total=total,
        )

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
        }

    # The pure half.

    @functools.cached_property
    def dtype(self) -> Any:
        """Of the computation, with "auto" decided by the mesh."""
        name = self.config.model.dtype
        if name == "auto":
            name = "bfloat16" if mesh.is_accelerator(self.mesh) else "float32"
        return jnp.dtype(name)

    @functools.cached_property
    def module(self) -> Classifier:
        """The model as a Flax module."""
        return pipeline.build_one(
            self.config.model.name,
            MODELS,
            "model.name",
            num_classes=self.data.num_classes,
            dtype=self.dtype,
        )

    @functools.cached_property
    def model(self) -> step.Model:
        """The model as pure functions."""
        module = self.module

        def init(key: jax.Array, images: jax.Array) -> dict[str, Any]:
            return module.init({"params": key}, images, False)

        def apply(
            variables: dict[str, Any], images: jax.Array, train: bool, key: jax.Array | None
        ) -> tuple[jax.Array, Any]:
            if not train:
                out = module.apply(variables, images, False)
                return out.logits, variables["batch_stats"]
            out, updated = module.apply(
                variables, images, True, mutable=["batch_stats"], rngs={"dropout": key}
            )
            return out.logits, updated.get("batch_stats", {})

        return step.Model(init, apply)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """optax's, at a learning rate of 1: see optimizers.py."""
        optim = self.config.optim
        made = pipeline.build_one(
            optim.name,
            optimizers.OPTIMIZERS,
            "optim.name",
            weight_decay=optim.weight_decay,
            mask=optimizers.decay_mask(optim.decay_on),
        )
        return optimizers.clip(made, optim.clip_norm)

    @functools.cached_property
    def schedule(self) -> optimizers.Schedule:
        """The learning rate as a function of the step."""
        after = pipeline.build_one(
            self.config.optim.schedule,
            optimizers.SCHEDULES,
            "optim.schedule",
            peak=self.lr,
            steps=self.steps - self.warmup,
        )
        return optimizers.warm_up(after, self.lr, self.warmup)

    @functools.cached_property
    def loss(self) -> losses.Loss:
        """The loss, one value an example."""
        return pipeline.build_one(self.config.loss.name, losses.LOSSES, "loss.name")

    @functools.cached_property
    def normalize(self) -> augment.Normalization:
        """uint8 images -> what the model takes."""
        table = augment.NORMALIZATIONS
        return pipeline.build_one(self.config.normalize, table, "normalize")

    @functools.cached_property
    def metrics(self) -> list[metrics.Metric]:
        """The metrics of training records and evaluations, besides the loss."""
        text = self.config.eval.metrics
        made = pipeline.build(text, metrics.METRICS, "eval.metrics")
        if len({metric.name for metric in made}) < len(made):
            raise InputError(f"eval.metrics={text!r} names one metric twice; name it once")
        return made

    @functools.cached_property
    def higher_is_better(self) -> bool:
        """The direction of best.metric."""
        directions = {"loss": False, **{m.name: m.higher for m in self.metrics}}
        if self.config.ema.decay:
            directions |= {f"ema_{name}": up for name, up in directions.items()}
        name = self.config.best.metric
        if name not in directions:
            raise InputError(
                f"best.metric={name!r} is not evaluated; one of {', '.join(directions)},"
                " or add it to eval.metrics"
            )
        return directions[name]

    def _raw_init(self) -> step.Init:
        return step.make_init(
            self.model,
            self.optimizer,
            image_shape=self.data.train_shape,
            ema=bool(self.config.ema.decay),
            higher=self.higher_is_better,
            rewinds=self.config.nonfinite.rewinds,
        )

    @functools.cached_property
    def _raw_inputs(self) -> step.Inputs:
        mixes = pipeline.build(self.config.mix, augment.MIXES, "mix")
        if len(mixes) > 1:
            raise InputError(f"mix={self.config.mix!r} names {len(mixes)} mixes; give one")
        table = augment.AUGMENTATIONS
        return step.make_inputs(
            num_classes=self.data.num_classes,
            smoothing=self.config.loss.smoothing,
            augment=augment.chain(pipeline.build(self.config.augment, table, "augment")),
            normalize=self.normalize,
            mix=mixes[0] if mixes else None,
        )

    def _raw_train_step(self) -> step.TrainStep:
        nonfinite = self.config.nonfinite
        return step.make_train_step(
            self.model,
            self.optimizer,
            self.schedule,
            self.loss,
            self._raw_inputs,
            metrics=self.metrics,
            ema_decay=self.config.ema.decay,
            most_skips=nonfinite.skips if nonfinite.policy == "skip" else 0,
        )

    # On the mesh.

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices of the run."""
        return mesh.make(self.config.mesh.devices)

    @functools.cached_property
    def state_shapes(self) -> step.State:
        """The state as shapes and dtypes, found without computing anything."""
        return jax.eval_shape(self._raw_init(), *self._keys())

    @functools.cached_property
    def state_like(self) -> step.State:
        """The same with the sharding that a restored state gets."""
        sharding = mesh.replicated(self.mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            self.state_shapes,
        )

    def init(self) -> step.State:
        """The state at step 0, on the mesh."""
        return self._jitted_init(*self._keys())

    @functools.cached_property
    def _jitted_init(self) -> step.Init:
        return jax.jit(self._raw_init(), out_shardings=mesh.replicated(self.mesh))

    def _keys(self) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The key of init, and those that the state carries."""
        root = jax.random.key(self.config.seed, impl="threefry2x32")
        keys = {name: jax.random.fold_in(root, i) for name, i in _STREAMS.items()}
        return keys.pop("init"), keys

    def model_inputs(self, step: int, batch: DeviceBatch) -> tuple[jax.Array, jax.Array]:
        """(images, targets) that the train step at `step` gives the model for a batch."""
        key = self._keys()[1]["augment"]
        return jax.jit(self._raw_inputs)(key, jnp.int32(step), batch)

    @functools.cached_property
    def train_step(self) -> jax.stages.Wrapped:
        """The jitted train_step(state, batch) -> (state, metrics); it donates the state.

        Of a batch with "asked" (see `mesh.with_flag`), metrics tell whether one asked.
        """
        raw = self._raw_train_step()

        def train_step(state: step.State, batch: DeviceBatch) -> Any:
            state, scores = raw(state, batch)
            return state, scores | _asked(batch)

        state, batch = mesh.replicated(self.mesh), mesh.by_example(self.mesh)
        return jax.jit(
            train_step,
            donate_argnums=0,
            in_shardings=(state, batch),
            out_shardings=(state, state),
        )

    @functools.cached_property
    def lowered_train_step(self) -> Any:
        """`train_step`, traced from shapes alone: what is wrong in a config fails here."""
        self.check_batch_size()
        _ = self.every, self.higher_is_better  # What the step itself does not ask for.
        try:
            self._check_shapes()
            return self.train_step.lower(self.state_like, self.batch_like())
        except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
            if "(" not in self.config.model.name:
                raise  # No option of the user's: a bug of ours.
            first = (str(error).strip().splitlines() or [""])[0]
            raise InputError(
                f"model.name={self.config.model.name!r} cannot be built with these options"
                f" ({type(error).__name__}: {first[:150]})"
            ) from None

    @functools.cached_property
    def compiled_train_step(self) -> Callable[[step.State, DeviceBatch], Any]:
        """`train_step`, compiled ahead; raises `InputError` where it cannot fit.

        Ahead for the largest images; where sizes grow, for another when it first comes.
        """
        compiled = self.lowered_train_step.compile()
        limit = mesh.memory_limit(self.mesh)
        memory.check_fits(
            compiled.memory_analysis(),
            limit=limit and max(0, limit - self.data.resident_bytes()),
            fixed=memory.tree_bytes(self.state_shapes),
            batch_size=self.config.batch_size,
            devices=self.mesh.size,
        )
        by_shape: dict[tuple[int, ...], Any] = {self.data.train_shape: compiled}

        def train_step(state: step.State, batch: DeviceBatch) -> Any:
            shape = batch["image"].shape[1:]
            if shape not in by_shape:
                lowered = self.train_step.lower(self.state_like, self.batch_like(shape))
                by_shape[shape] = lowered.compile()
            return by_shape[shape](state, batch)

        return train_step

    def variables(self, weights: dict[str, Any]) -> dict[str, Any]:
        """What predictions are made with: the average where best.metric chose by it."""
        if weights["ema"] and self.config.best.metric.startswith("ema_"):
            return weights["ema"]
        return {name: weights[name] for name in ("params", "batch_stats")}

    def _check_shapes(self) -> None:
        """Raise `InputError` where what is trained cannot take images of another size."""
        shapes = self.state_shapes
        variables = {"params": shapes.params, "batch_stats": shapes.batch_stats}
        train = self.data.train_shape
        for shape in {self.data.eval_shape, *self.data.train_shapes}:
            images = jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
            try:
                jax.eval_shape(self._raw_predict_step(), variables, images)
            except flax.errors.ScopeParamShapeError:
                raise InputError(
                    f"model.name={self.config.model.name} trained on {train[1]}x{train[0]}"
                    f" pixels cannot take {shape[1]}x{shape[0]}; end data.train_ops and"
                    " data.eval_ops in the same size"
                ) from None

    def _raw_predict_step(self) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
        return step.make_predict_step(self.model, self.normalize)

    def check_batch_size(self) -> None:
        """Raise `InputError` unless the batch spreads evenly over devices and hosts."""
        mesh.check_divides(self.mesh, self.config.batch_size, "batch_size")

    def batch_like(
        self, shape: tuple[int, ...] | None = None
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """A training batch as shapes, of images [H, W, C]; of the largest by default."""
        size, sharding = self.config.batch_size, mesh.by_example(self.mesh)
        image = (size, *(shape or self.data.train_shape))
        like = {
            "image": jax.ShapeDtypeStruct(image, jnp.uint8, sharding=sharding),
            "label": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=sharding),
        }
        if jax.process_count() > 1:
            flags = (self.mesh.size,)
            like["asked"] = jax.ShapeDtypeStruct(flags, jnp.bool_, sharding=sharding)
        return like

    @functools.cached_property
    def eval_step(self) -> Callable[[dict[str, Any], DeviceBatch], dict[str, jax.Array]]:
        """The jitted eval_step(variables, batch) -> {name: [B]}, with index and mask."""
        raw = step.make_eval_step(
            self.model,
            self.loss,
            num_classes=self.data.num_classes,
            normalize=self.normalize,
            metrics=self.metrics,
        )

        def with_index(variables: dict[str, Any], batch: DeviceBatch) -> DeviceBatch:
            scores = raw(variables, {k: batch[k] for k in ("image", "label")})
            rest = {"index": batch["index"], "mask": batch["mask"]}
            return {**scores, **rest, **_asked(batch)}

        state, batch = mesh.replicated(self.mesh), mesh.by_example(self.mesh)
        return jax.jit(with_index, in_shardings=(state, batch), out_shardings=state)

    @functools.cached_property
    def record_evaluation(self) -> Callable[[step.State, float], step.State]:
        """The jitted record_evaluation(state, value of best.metric) -> state."""
        stop = self.config.early_stop
        raw = functools.partial(
            step.record_evaluation,
            higher=self.higher_is_better,
            min_delta=stop.min_delta,
            patience=stop.patience,
        )
        return jax.jit(raw, donate_argnums=0, out_shardings=mesh.replicated(self.mesh))

    @functools.cached_property
    def predict_step(self) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
        """The jitted predict_step(variables, images uint8 [B, H, W, C]) -> p [B, K]."""
        raw = self._raw_predict_step()
        state, batch = mesh.replicated(self.mesh), mesh.by_example(self.mesh)
        return jax.jit(
            lambda variables, images: jax.nn.softmax(raw(variables, images)),
            in_shardings=(state, batch),
            out_shardings=state,
        )

    @functools.cached_property
    def embed_step(self) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
        """The jitted embed_step(variables, images uint8 [B, H, W, C]) -> [B, D] float32.

        The features that the model's head sees.
        """

        def embed(variables: dict[str, Any], images: jax.Array) -> jax.Array:
            return self.module.apply(variables, self.normalize(images), False).embed

        state, batch = mesh.replicated(self.mesh), mesh.by_example(self.mesh)
        return jax.jit(embed, in_shardings=(state, batch), out_shardings=state)

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
