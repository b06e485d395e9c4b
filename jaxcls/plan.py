"""config -> Plan: the numbers that a run comes to, and its pure functions.

What a config implies (steps, rate, sizes, classes) is computed here, once; nothing here
is compiled. `experiment.build` makes one of a config.
"""

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxcls import (
    augment,
    durations,
    losses,
    mesh,
    metrics,
    optimizers,
    parts,
    pipeline,
    sources,
    step,
)
from jaxcls.data import Data
from jaxcls.errors import InputError
from jaxcls.models import MODELS, Classifier
from jaxcls.parts import Parts

# Streams of device randomness, each its own key, so that a study can vary one alone.
_STREAMS = {"init": 0, "augment": 1, "dropout": 2}


class Plan:
    """A config's numbers and pure functions, each made when first asked for."""

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

    @functools.cached_property
    def head_first(self) -> int:
        """Steps in which the head trains alone."""
        first = durations.step_of(1, self._duration("optim.head_first", self.steps))
        if first >= self.steps:
            raise InputError(
                f"optim.head_first={self.config.optim.head_first!r} is {first} steps and"
                f" the whole run has {self.steps}; try '10 percent'"
            )
        return first

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
    def variables_like(self) -> dict[str, Any]:
        """The model's {"params", "batch_stats"} as shapes."""
        image = jax.ShapeDtypeStruct((1, *self.data.train_shape), jnp.float32)
        made = jax.eval_shape(
            lambda images: self.module.init(jax.random.key(0), images, False), image
        )
        return {"params": made["params"], "batch_stats": made.get("batch_stats", {})}

    def _divided(self, head_first: int) -> Parts:
        optim = self.config.optim
        return parts.divide(
            self.variables_like["params"],
            self.module.groups(),
            freeze=optim.freeze,
            layer_decay=optim.layer_decay,
            head_lr=optim.head_lr,
            head_first=head_first,
        )

    @functools.cached_property
    def _frozen(self) -> Parts:
        """`train_parts` but for when each begins, which takes the length of an epoch."""
        return self._divided(0)

    @functools.cached_property
    def train_parts(self) -> Parts:
        """How each parameter trains."""
        return self._divided(self.head_first)

    @functools.cached_property
    def model(self) -> step.Model:
        """The model as pure functions."""
        module, frozen = self.module, {}
        if self.config.optim.freeze:
            statistics = self.variables_like["batch_stats"]
            frozen = {"frozen": parts.frozen_statistics(statistics, self._frozen)}

        def init(key: jax.Array, images: jax.Array) -> dict[str, Any]:
            return module.init({"params": key}, images, False)

        def apply(
            variables: dict[str, Any], images: jax.Array, train: bool, key: jax.Array | None
        ) -> tuple[jax.Array, Any]:
            if not train:
                out = module.apply(variables, images, False)
                return out.logits, variables["batch_stats"]
            given = {**variables, **frozen}
            out, updated = module.apply(
                given, images, True, mutable=["batch_stats"], rngs={"dropout": key}
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
        made = optimizers.clip(made, optim.clip_norm)
        return parts.train_only(made, self._frozen) if optim.freeze else made

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

    def pure_init(self) -> step.Init:
        """init(key, keys, given) -> the state at step 0."""
        return step.make_init(
            self.model,
            self.optimizer,
            image_shape=self.data.train_shape,
            ema=bool(self.config.ema.decay),
            higher=self.higher_is_better,
            rewinds=self.config.nonfinite.rewinds,
        )

    @functools.cached_property
    def pure_inputs(self) -> step.Inputs:
        """inputs(key, step, batch) -> (images, targets) for the model."""
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

    def pure_train_step(self) -> step.TrainStep:
        """train_step(state, batch) -> (state, metrics)."""
        nonfinite = self.config.nonfinite
        return step.make_train_step(
            self.model,
            self.optimizer,
            self.schedule,
            self.loss,
            self.pure_inputs,
            metrics=self.metrics,
            ema_decay=self.config.ema.decay,
            most_skips=nonfinite.skips if nonfinite.policy == "skip" else 0,
            parts=None if parts.is_plain(self.train_parts) else self.train_parts,
        )

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices of the run."""
        return mesh.make(self.config.mesh.devices)

    def keys(self) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The key of init, and those that the state carries."""
        root = jax.random.key(self.config.seed, impl="threefry2x32")
        keys = {name: jax.random.fold_in(root, i) for name, i in _STREAMS.items()}
        return keys.pop("init"), keys

    def pure_predict_step(self) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
        """predict_step(variables, images uint8 [B, H, W, C]) -> logits [B, K]."""
        return step.make_predict_step(self.model, self.normalize)

    def variables(self, weights: dict[str, Any]) -> dict[str, Any]:
        """What predictions are made with: the average where best.metric chose by it."""
        if weights["ema"] and self.config.best.metric.startswith("ema_"):
            return weights["ema"]
        return {name: weights[name] for name in ("params", "batch_stats")}
