"""Plan -> Recipe: what a config's model is trained by, as pure functions.

Loss, optimizer, schedule, augmentation and mixing become the functions of step.py; nothing
here is compiled.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import optax

from jaxcls import (
    augment,
    clipping,
    gradients,
    losses,
    metrics,
    optimizers,
    parts,
    pipeline,
    schedules,
    step,
    wrappers,
)
from jaxcls.errors import InputError
from jaxcls.plan import Plan


class Recipe(Plan):
    """A plan and the pure functions that train it, each made when first asked for."""

    # The optimizer and its rate.

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        """Gradients, and `lr`, `step` and `share`, -> updates to add: see optimizers.py."""
        optim = self.config.optim
        decay = optimizers.decay_weights(optim.weight_decay, self._decay_scales)
        table = optimizers.OPTIMIZERS
        made = pipeline.build_one(optim.name, table, "optim.name", decay=decay)
        made = clipping.clip(
            made,
            norm=optim.clip_norm,
            value=optim.clip_value,
            adaptive=optim.clip_adaptive,
        )
        if optim.freeze:
            made = parts.train_only(made, self.frozen_parts)
        made = parts.at_rate(made, lambda: self.train_parts)
        if optim.wrapper:
            table = wrappers.WRAPPERS
            made = pipeline.build_one(optim.wrapper, table, "optim.wrapper", optimizer=made)
        # Around the wrapper: what is frozen must not follow slow weights either.
        has_stops = bool(optim.freeze_after)
        return parts.until_stop(made, lambda: self.train_parts) if has_stops else made

    @functools.cached_property
    def _decay_scales(self) -> Callable[[Any], Any]:
        """params -> the share of the weight decay that each has."""
        optim, key = self.config.optim, "optim.decay_scales"
        factors = pipeline.table(optim.decay_scales, key, example="{'^stem/': 0.1}")
        paths = list(self.frozen_parts)
        # These raise where one matches nothing.
        parts.matching(factors, paths, key)
        if optim.weight_decay or self.config.loss.l1 or self.config.loss.l2:
            parts.matching({optim.decay_on: 1.0}, paths, "optim.decay_on")
        return optimizers.decay_scales(optim.decay_on, factors)

    @functools.cached_property
    def schedule(self) -> schedules.Schedule:
        """The learning rate as a function of the step."""
        optim, key = self.config.optim, "optim.schedule"
        last = self.steps - self.cooldown
        span = schedules.Span(
            first=self.warmup,
            last=last,
            steps=lambda text: self.in_steps(text, key, self.steps),
        )
        table = schedules.SCHEDULES
        main = pipeline.build_one(optim.schedule, table, key, peak=self.lr, span=span)
        name = pipeline.parse(optim.schedule, key)[0].name
        if self.warmup and name in schedules.RISING:
            raise InputError(
                f"{key}={optim.schedule!r} rises by itself, and optim.warmup="
                f"{optim.warmup!r} would come before it; give optim.warmup='0 steps'"
            )
        if self.cooldown and float(main(jnp.int32(last))) < 1e-4 * self.lr:
            raise InputError(
                f"{key}={optim.schedule!r} is at its end where optim.cooldown="
                f"{optim.cooldown!r} begins; give 'constant' or 'rsqrt', or no cool-down"
            )
        main = schedules.warm_up(main, self.lr, self.warmup, optim.warmup_from)
        return schedules.cool_down(main, last, self.steps) if self.cooldown else main

    # The loss.

    @functools.cached_property
    def loss(self) -> losses.Loss:
        """The loss, one value an example, as evaluations have it: all classes alike."""
        return pipeline.build_one(self.config.loss.name, losses.LOSSES, "loss.name")

    @property
    def link(self) -> str:
        """What makes probabilities of logits: "softmax", or "sigmoid" of each class."""
        _ = self.loss  # Raises where it is not one.
        (call,) = pipeline.parse(self.config.loss.name, "loss.name")
        return "sigmoid" if call.name == "sigmoid" else "softmax"

    @functools.cached_property
    def _train_loss(self) -> losses.Loss:
        """The same with the weights of classes."""
        self._check_threshold()
        text, key = self.config.loss.class_weights, "loss.class_weights"
        if not text:
            return self.loss
        if text.strip() == "balanced" and self.config.data.balance:
            raise InputError(
                f"{key}='balanced' and data.balance=True would both correct for the"
                " classes' counts; use one of them"
            )
        names, counts = self.data.class_names, self.data.class_counts
        return losses.weighted(self.loss, losses.parse_weights(text, names, counts))

    def _check_threshold(self) -> None:
        """Raise `InputError` where smoothing moves targets over a threshold."""
        loss, classes = self.config.loss, self.data.num_classes
        _ = self.loss  # Raises where it is not one.
        (call,) = pipeline.parse(loss.name, "loss.name")
        threshold = call.kwargs.get("threshold", call.args[0] if call.args else 0.0)
        off = loss.smoothing / classes
        if call.name != "sigmoid" or not threshold:
            return
        if not off < threshold < 1 - loss.smoothing + off:
            raise InputError(
                f"loss.smoothing={loss.smoothing} makes targets of {off:g} and"
                f" {1 - loss.smoothing + off:g}, and loss.name={loss.name!r} tells them"
                f" apart at {threshold}; try loss.smoothing=0.0"
            )

    @functools.cached_property
    def _penalty(self) -> gradients.Penalty | None:
        loss = self.config.loss

        def mask(params: Any) -> Any:
            return jax.tree.map(bool, self._decay_scales(params))

        is_on = loss.l1 or loss.l2
        return gradients.Penalty(loss.l1, loss.l2, mask) if is_on else None

    # What the model sees, and how well it does.

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
        return self.direction(self.config.best.metric, "best.metric")

    def direction(self, metric: str, key: str) -> bool:
        """Whether a metric that is evaluated is better high; `key`: what asks for it.

        Raises `InputError` for one that is not evaluated.
        """
        directions = {
            name: higher
            for name, higher in metrics.directions(self.metrics).items()
            if self.is_averaged or not name.startswith(metrics.AVERAGED)
        }
        if metric not in directions:
            raise InputError(
                f"{key}={metric!r} is not evaluated; one of {', '.join(directions)},"
                " or add it to eval.metrics"
            )
        return directions[metric]

    @functools.cached_property
    def pure_init(self) -> step.Init:
        """init(key, keys, given) -> the state at step 0; one function, so traced once."""
        return step.make_init(
            self.model,
            self.optimizer,
            image_shape=self.data.train_shape,
            ema=self.is_averaged,
            higher=self.higher_is_better,
            rewinds=self.config.nonfinite.rewinds,
            plateau=self.config.optim.plateau_patience > 0,
        )

    @functools.cached_property
    def is_averaged(self) -> bool:
        """Whether an average of the params is kept, by ema.decay or by the optimizer."""
        decay, optimizer = self.config.ema.decay, self.optimizer
        inner = jax.eval_shape(
            lambda params: wrappers.averaged(optimizer.init(params), params),
            self.variables_like["params"],
        )
        if decay and inner is not None:
            raise InputError(
                f"ema.decay={decay} and optim.wrapper={self.config.optim.wrapper!r} would"
                " both average the params; leave one of them out"
            )
        if inner is not None:
            self._check_averaging()
        return bool(decay) or inner is not None

    def _check_averaging(self) -> None:
        """Raise `InputError` where an optimizer that averages is not used as one."""
        config = self.config
        wrapper = f"optim.wrapper={config.optim.wrapper!r}"
        metric, schedule = config.best.metric, config.optim.schedule
        if not (metric.startswith("ema_") and schedule.startswith("constant")):
            right = metric if metric.startswith("ema_") else f"ema_{metric}"
            raise InputError(
                f"{wrapper} is for a constant rate, and what it averages is scored as"
                f" ema_...: with optim.schedule={schedule!r} and best.metric={metric!r} it"
                f" is neither; give optim.schedule='constant' and best.metric={right!r}"
            )
        if config.optim.freeze_after:
            raise InputError(
                f"{wrapper} goes on averaging what optim.freeze_after freezes; leave one of"
                " them out"
            )

    @functools.cached_property
    def pure_inputs(self) -> step.Inputs:
        """inputs(key, step, batch) -> (images, targets) for the model."""
        mixes = pipeline.build(self.config.mix, augment.MIXES, "mix")
        if len(mixes) > 1:
            raise InputError(
                f"mix={self.config.mix!r} names {len(mixes)} mixes; give one, such as"
                " 'mixup_or_cutmix(0.8, 1.0)'"
            )
        table = augment.AUGMENTATIONS
        return step.make_inputs(
            num_classes=self.data.num_classes,
            smoothing=self.config.loss.smoothing,
            augment=augment.chain(pipeline.build(self.config.augment, table, "augment")),
            normalize=self.normalize,
            mix=mixes[0] if mixes else None,
            steps=self.steps,
        )

    def pure_gradient(
        self, distillation: gradients.Distillation | None = None
    ) -> gradients.Gradient:
        """(params, batch_stats, key, examples) -> what was found, and the gradient."""
        objective = gradients.make_objective(
            self.model.apply,
            self._train_loss,
            trains=self.train_parts,
            distillation=distillation,
            penalty=self._penalty,
        )
        whole = gradients.whole(objective)
        return gradients.sharpness_aware(
            gradients.accumulated(whole, self.pieces), self.config.optim.sam
        )

    def pure_train_step(
        self, distillation: gradients.Distillation | None = None
    ) -> step.TrainStep:
        """train_step(state, batch, teacher) -> (state, metrics)."""
        ema, nonfinite = self.config.ema, self.config.nonfinite
        return step.make_train_step(
            self.optimizer,
            self.schedule,
            self.pure_gradient(distillation),
            self.pure_inputs,
            metrics=self.metrics,
            steps=self.steps,
            average=step.Average(ema.decay, ema.every, ema.warmup) if ema.decay else None,
            most_skips=nonfinite.skips if nonfinite.policy == "skip" else 0,
            distillation=distillation,
            has_penalty=self._penalty is not None,
        )

    def pure_predict_step(self) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
        """predict_step(variables, images uint8 [B, H, W, C]) -> logits [B, K]."""
        return step.make_predict_step(self.model, self.normalize)

    def check_shapes(self) -> None:
        """Raise `InputError` where what is trained cannot take images of another size."""
        train = self.data.train_shape
        for shape in {self.data.eval_shape, *self.data.train_shapes}:
            images = jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
            try:
                jax.eval_shape(self.pure_predict_step(), self.variables_like, images)
            except flax.errors.ScopeParamShapeError:
                raise InputError(
                    f"model.name={self.config.model.name} trained on {train[1]}x{train[0]}"
                    f" pixels cannot take {shape[1]}x{shape[0]}; end data.train_ops and"
                    " data.eval_ops in the same size"
                ) from None

    def variables(self, weights: dict[str, Any]) -> dict[str, Any]:
        """What predictions are made with: the average where best.metric chose by it."""
        if weights["ema"] and self.config.best.metric.startswith("ema_"):
            return weights["ema"]
        return {name: weights[name] for name in ("params", "batch_stats")}
