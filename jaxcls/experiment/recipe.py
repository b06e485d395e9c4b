"""config -> Recipe: the model and its training, as pure functions.

A recipe gives model, loss, optimizer, schedule, augmentation and mixing to the functions of
step.py. Nothing here is compiled.
"""

import contextlib
import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxcls import augment
from jaxcls.config import calls, durations
from jaxcls.config import loading as configs
from jaxcls.config.plugins import NONE, Plugins
from jaxcls.data.pipeline import Data
from jaxcls.devices import mesh
from jaxcls.errors import InputError
from jaxcls.experiment import plan, tables
from jaxcls.experiment.plan import Plan
from jaxcls.learning import (
    gradients,
    losses,
    metrics,
    of_optax,
    optimizers,
    param_groups,
    schedules,
    step,
)
from jaxcls.learning.param_groups import ParamGroups
from jaxcls.models import Classifier, foreign, lora, naming
from jaxcls.models.foreign import Foreign
from jaxcls.models.layers import (
    batch_norm_groups,
    blocks_of,
    keep_products,
    rematerialised,
)

# Streams of device randomness: each has a key, so that a study can vary one alone.
_STREAMS = {"init": 0, "augment": 1, "dropout": 2}


def keys(config: ConfigDict) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns (key of init, {stream: key} of the state)."""
    made = {}
    for name, i in _STREAMS.items():
        seed = configs.seed_of(config, name)
        made[name] = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), i)
    return made.pop("init"), made


class Recipe:
    """The model of a config and the pure functions that train it, each made on first use.

    checks.py checks the combinations of values. plugins: what is looked up beside our own
    tables.
    """

    def __init__(self, config: ConfigDict, data: Data, plugins: Plugins = NONE) -> None:
        self.config, self.data, self.plugins = config, data, plugins
        self._tables = tables.merged(plugins)

    def _built(self, key: str, table: str, **given: Any) -> Any:
        """Returns the one entry of a table that the text of a config key names."""
        text, entries = operator.attrgetter(key)(self.config), self._tables[table]
        if entry := {"OPTIMIZERS": of_optax.optimizer, "LOSSES": of_optax.loss}.get(table):
            named = [call.name for call in calls.parse(text, key)]
            theirs = [name for name in named if name.startswith(of_optax.PREFIX)]
            entries = {**entries, **{name: entry(name) for name in theirs}}
        return calls.build_one(text, entries, key, **given)

    @functools.cached_property
    def plan(self) -> Plan:
        """The numbers of the run: steps, rate and periods."""
        return plan.make(self.config, self.data.examples("train"))

    # The model.

    @functools.cached_property
    def dtype(self) -> Any:
        """The dtype of the computation; the mesh decides "auto"."""
        name = self.config.model.dtype
        if name == "auto":
            name = "bfloat16" if mesh.is_accelerator(self.data.mesh) else "float32"
        return jnp.dtype(name)

    def module_in(self, dtype: Any) -> Classifier:
        """Returns the model as a Flax module that computes in a dtype."""
        given = {"num_classes": self.data.selection.num_classes, "dtype": dtype}
        text, added = self.config.model.name, self.plugins.tables.get("MODELS", {})
        called = [call.name for call in calls.parse(text, "model.name")]
        theirs = [name for name in called if name in added]
        if theirs:
            taken = inspect.signature(added[theirs[0]]).parameters
            if not any(each.kind == each.VAR_KEYWORD for each in taken.values()):
                given = {name: value for name, value in given.items() if name in taken}
        made = self._built("model.name", "MODELS", **given)
        if theirs:
            classes = self.data.selection.num_classes
            made = Foreign(made, f"model.name={text!r}", classes)
        found: Classifier = made
        return found

    @functools.cached_property
    def module(self) -> Classifier:
        """The model as a Flax module."""
        return self.module_in(self.dtype)

    @functools.cached_property
    def _lora(self) -> tuple[int, float, str]:
        """(rank, scale, on) of optim.lora; the scale is 0 without it."""
        text = self.config.optim.lora
        if not text:
            return 0, 0.0, ""
        table, key = {"lora": lora.options}, "optim.lora"
        found: tuple[int, float, str] = calls.build_one(f"lora({text})", table, key)
        return found

    @functools.cached_property
    def network(self) -> Any:
        """The module, or with optim.lora the module whose dense layers are adapted."""
        rank, scale, on = self._lora
        if not rank:
            return self.module
        image = jax.ShapeDtypeStruct((1, *self.data.train_shape), jnp.float32)
        given = self.module, self.given_like, image, self.namings
        return lora.Lora(self.module, lora.matching(on, *given), rank, scale)

    def merged(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Returns variables of `module`: those of `network` with their products added."""
        if not self.config.optim.lora:
            return variables
        return lora.merged(variables, self._lora[1])

    def numerics(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context that sets the precision of matrix products traced within it."""
        precision = self.config.model.matmul_precision
        if not precision:
            return contextlib.nullcontext()
        return jax.default_matmul_precision(precision)

    def _like(self, network: Any) -> dict[str, Any]:
        image = jax.ShapeDtypeStruct((1, *self.data.train_shape), jnp.float32)
        keys = {"params": jax.random.key(0)}
        made = jax.eval_shape(lambda images: network.init(keys, images, False), image)
        return {"params": made["params"], "batch_stats": made.get("batch_stats", {})}

    @functools.cached_property
    def given_like(self) -> dict[str, Any]:
        """The {"params", "batch_stats"} of `module` as shapes."""
        return self._like(self.module)

    @functools.cached_property
    def variables_like(self) -> dict[str, Any]:
        """The {"params", "batch_stats"} of `network`, which a run trains, as shapes."""
        return self._like(self.network) if self.config.optim.lora else self.given_like

    @functools.cached_property
    def namings(self) -> dict[str, naming.Naming]:
        """The names of the arrays of `module` in other libraries, by library."""
        return foreign.names_of(self.module, self.given_like)

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """The layers by depth; of a model that does not tell, all at one depth."""
        optim, layers = self.config.optim, tuple(self.variables_like["params"])
        is_told = not isinstance(self.module, Foreign) or self.module.has_groups()
        first, _ = durations.parse(optim.head_first, "optim.head_first")
        of_head = optim.head_lr != 1 or first > 0
        if is_told or optim.layer_decay != 1 or (of_head and "head" not in layers):
            return self.module.groups()
        return [layers]

    @property
    def _freeze(self) -> str:
        """The expression of the params that do not train; "" freezes none."""
        return lora.FROZEN if self.config.optim.lora else self.config.optim.freeze

    def _param_groups(self, head_first: int) -> ParamGroups:
        optim, key = self.config.optim, "optim.lr_scales"
        # A model may count coarser for the decay than for its blocks.
        own = getattr(self.module, "decay_groups", None)
        return param_groups.divide(
            self.variables_like["params"],
            own() if own else self.groups,
            freeze=self._freeze,
            layer_decay=optim.layer_decay,
            head_lr=optim.head_lr,
            head_first=head_first,
            lr_scales=calls.table(optim.lr_scales, key, example="{'bias$': 2.0}"),
        )

    @functools.cached_property
    def untimed_param_groups(self) -> ParamGroups:
        """`param_groups` without starts, which need the length of an epoch."""
        return self._param_groups(0)

    @functools.cached_property
    def param_groups(self) -> ParamGroups:
        """The param group of each parameter."""
        return self._param_groups(self.plan.head_first)

    @functools.cached_property
    def frozen_statistics(self) -> dict[str, Any]:
        """The tree of the statistics of frozen BatchNorms, with True for each array."""
        statistics = self.variables_like["batch_stats"]
        return param_groups.frozen_statistics(statistics, self.untimed_param_groups)

    @functools.cached_property
    def model(self) -> step.Model:
        """The model as pure functions."""
        network, statistics = self.network, self.frozen_statistics
        frozen = {"frozen": statistics} if statistics else {}
        groups = self.config.model.batch_norm_groups // self.config.optim.accumulate
        remat = self.config.model.remat
        blocks = blocks_of(self.groups) if remat else set()
        policy = keep_products if remat == "elementwise" else None
        in_parts = mesh.fsdp_of(self.data.mesh) > 1
        whole = functools.partial(mesh.gathered, self.data.mesh) if in_parts else None

        def init(key: jax.Array, images: jax.Array) -> dict[str, Any]:
            return network.init({"params": key}, images, False)

        def given(variables: dict[str, Any], but: set[str]) -> dict[str, Any]:
            """Gathers sharded params, except for the layers in `but`."""
            if not whole:
                return variables
            params = variables["params"]
            sharded = {name: each for name, each in params.items() if name not in but}
            return {**variables, "params": {**params, **whole(sharded)}}

        def apply(
            variables: dict[str, Any], images: jax.Array, train: bool, key: jax.Array | None
        ) -> tuple[jax.Array, Any]:
            with self.numerics():
                if not train:
                    out = network.apply(given(variables, set()), images, False)
                    return out.logits, variables["batch_stats"]
                # Each block gathers its params, and again for its gradient: otherwise all
                # gathered params would stay in memory from the forward to the backward
                # pass.
                remade = rematerialised(blocks, whole, policy)
                with batch_norm_groups(max(1, groups)), remade:
                    out, updated = network.apply(
                        {**given(variables, blocks), **frozen},
                        images,
                        True,
                        mutable=["batch_stats"],
                        rngs={"dropout": key},
                    )
                return out.logits, updated.get("batch_stats", {})

        return step.Model(init, apply)

    # The optimizer and its rate.

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        """(gradients, `lr`, `step`, `share`) -> updates to add: see optimizers.py."""
        optim = self.config.optim
        decay = optimizers.decay_weights(optim.weight_decay, self._decay_scales)
        made = optimizers.clip(
            self._built("optim.name", "OPTIMIZERS", decay=decay),
            norm=optim.clip_norm,
            value=optim.clip_value,
            adaptive=optim.clip_adaptive,
        )
        if self._freeze:  # A mask adds a level to the names of the optimizer's state.
            made = optimizers.train_only(made, self.untimed_param_groups)
        made = optimizers.at_rate(made, lambda: self.param_groups)
        if optim.wrapper:
            made = self._built("optim.wrapper", "WRAPPERS", optimizer=made)
        return made

    @functools.cached_property
    def _decay_scales(self) -> Callable[[Any], Any]:
        """params -> the share of the weight decay of each."""
        optim, key = self.config.optim, "optim.decay_scales"
        factors = calls.table(optim.decay_scales, key, example="{'^stem/': 0.1}")
        paths = list(self.untimed_param_groups)
        # These raise if an expression matches nothing.
        param_groups.matching(factors, paths, key)
        if optim.weight_decay or self.config.loss.l1 or self.config.loss.l2:
            param_groups.matching({optim.decay_on: 1.0}, paths, "optim.decay_on")
        return optimizers.decay_scales(optim.decay_on, factors)

    @functools.cached_property
    def schedule(self) -> schedules.Schedule:
        """The learning rate as a function of the step."""
        known, last = self.plan, self.plan.steps - self.plan.cooldown
        in_steps = functools.partial(
            durations.to_steps,
            key="optim.schedule",
            examples=known.examples,
            batch_size=self.config.batch_size,
            total=known.steps,
        )
        span = schedules.Span(first=known.warmup, last=last, steps=in_steps)
        main = self._built("optim.schedule", "SCHEDULES", peak=known.lr, span=span)
        start = self.config.optim.warmup_from
        main = schedules.warm_up(main, known.lr, known.warmup, start)
        return schedules.cool_down(main, last, known.steps) if known.cooldown else main

    # The loss.

    @functools.cached_property
    def loss(self) -> losses.Loss:
        """The loss of evaluations, one value an example, without class weights."""
        return self._built("loss.name", "LOSSES")

    @property
    def link(self) -> str:
        """The function from logits to probabilities: "softmax" or "sigmoid"."""
        return getattr(self.loss, "link", "softmax")

    @functools.cached_property
    def _train_loss(self) -> losses.Loss:
        """The loss of training, with class weights."""
        text = self.config.loss.class_weights
        if not text:
            return self.loss
        names, counts = self.data.selection.class_names, self.data.selection.class_counts
        weights = losses.parse_weights(text, names, counts)
        return losses.weighted(self.loss, weights, self.config.loss.smoothing)

    @functools.cached_property
    def _penalty(self) -> Callable[[Any], jax.Array] | None:
        loss = self.config.loss

        def penalty(params: Any) -> jax.Array:
            mask = jax.tree.map(bool, self._decay_scales(params))
            return losses.penalty(params, mask, loss.l1, loss.l2)

        return penalty if loss.l1 or loss.l2 else None

    # Inputs and metrics.

    @functools.cached_property
    def normalize(self) -> augment.Normalization:
        """uint8 images -> normalised images for the model."""
        return self._built("normalize", "NORMALIZATIONS")

    @functools.cached_property
    def _metrics(self) -> list[metrics.Metric | metrics.OfSplit]:
        """All metrics of eval.metrics, in their order."""
        text = self.config.eval.metrics
        made = calls.build(text, self._tables["METRICS"], "eval.metrics")
        if len({metric.name for metric in made}) < len(made):
            raise InputError(f"eval.metrics={text!r} names one metric twice; name it once")
        return made

    @functools.cached_property
    def split_metrics(self) -> list[metrics.OfSplit]:
        """The metrics of evaluations alone, which need a whole split."""
        return [each for each in self._metrics if isinstance(each, metrics.OfSplit)]

    @functools.cached_property
    def metrics(self) -> list[metrics.Metric]:
        """The metrics of training records and evaluations, without the loss."""
        return [each for each in self._metrics if not isinstance(each, metrics.OfSplit)]

    @functools.cached_property
    def higher_is_better(self) -> bool:
        """Whether a higher best.metric is better."""
        return self.direction(self.config.best.metric, "best.metric")

    def direction(self, metric: str, key: str) -> bool:
        """Returns whether a higher value of an evaluated metric is better.

        key: The config key that names the metric, for messages.

        Raises `InputError` if the metric is not evaluated.
        """
        directions = {
            name: higher
            for name, higher in metrics.directions(self._metrics).items()
            if self.is_averaged or not name.startswith(metrics.AVERAGED)
        }
        if metric not in directions:
            raise InputError(
                f"{key}={metric!r} is not evaluated; one of {', '.join(directions)}; what"
                " eval.metrics may name is evaluated too:"
                f" {', '.join(sorted(self._tables['METRICS']))}"
            )
        return directions[metric]

    @functools.cached_property
    def init(self) -> step.Init:
        """init(key, keys, given) -> the state at step 0; cached, so jax traces it once."""
        return functools.partial(
            step.init,
            model=self.model,
            optimizer=self.optimizer,
            image_shape=self.data.train_shape,
            ema=self.is_averaged,
            higher=self.higher_is_better,
            rewinds=self.config.nonfinite.rewinds,
            plateau=self.config.optim.plateau_patience > 0,
        )

    @property
    def has_averaging_optimizer(self) -> bool:
        """Whether optim.wrapper keeps an average of the params."""
        return "schedule_free" in self.config.optim.wrapper

    @property
    def is_averaged(self) -> bool:
        """Whether the run averages the params, by ema.decay or by the optimizer."""
        return bool(self.config.ema.decay) or self.has_averaging_optimizer

    @functools.cached_property
    def inputs(self) -> step.Inputs:
        """inputs(key, step, batch) -> (images, targets) for the model."""
        built = calls.build(self.config.augment, self._tables["AUGMENTATIONS"], "augment")
        rows = mesh.by_example(self.data.mesh)
        return functools.partial(
            step.inputs,
            num_classes=self.data.selection.num_classes,
            smoothing=self.config.loss.smoothing,
            augment=augment.on_each_device(augment.chain(built), rows),
            normalize=self.normalize,
            mix=self._built("mix", "MIXES") if self.config.mix.strip() else None,
            steps=self.plan.steps,
        )

    def gradient(
        self, distillation: gradients.Distillation | None = None
    ) -> gradients.Gradient:
        """Returns (params, batch_stats, key, examples) -> (`Forward`, gradient)."""
        objective = functools.partial(
            gradients.objective,
            apply=self.model.apply,
            loss=self._train_loss,
            trains=self.param_groups,
            distillation=distillation,
            penalty=self._penalty,
        )
        whole = gradients.whole(objective)
        return gradients.sharpness_aware(
            gradients.accumulated(whole, self.config.optim.accumulate),
            self.config.optim.sam,
        )

    def train_step(
        self, distillation: gradients.Distillation | None = None
    ) -> step.TrainStep:
        """Returns train_step(state, batch, teacher) -> (state, metrics)."""
        ema, nonfinite = self.config.ema, self.config.nonfinite
        return functools.partial(
            step.train_step,
            optimizer=self.optimizer,
            schedule=self.schedule,
            gradient=self.gradient(distillation),
            inputs=self.inputs,
            metrics=self.metrics,
            steps=self.plan.steps,
            average=step.Average(ema.decay, ema.every, ema.warmup) if ema.decay else None,
            most_skips=nonfinite.skips if nonfinite.policy == "skip" else 0,
            distillation=distillation,
            has_penalty=self._penalty is not None,
        )

    def logits_step(self) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
        """Returns logits_step(variables, images uint8 [B, H, W, C]) -> logits [B, K]."""
        return functools.partial(
            step.logits_step, model=self.model, normalize=self.normalize
        )

    def probabilities_step(self) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
        """Returns probabilities_step(variables, images [B, H, W, C]) -> p [B, K]."""
        pure = self.logits_step()
        link = jax.nn.sigmoid if self.link == "sigmoid" else jax.nn.softmax
        return lambda variables, images: link(pure(variables, images))

    def embed_step(self) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
        """Returns embed_step(variables, images [B, H, W, C]) -> features [B, D] float32."""

        def embed(variables: dict[str, Any], images: jax.Array) -> jax.Array:
            with self.numerics():
                out = self.network.apply(variables, self.normalize(images), False)
            if isinstance(out.embed, tuple):
                raise InputError(
                    f"model.name={self.config.model.name!r} gives no features; return"
                    " jaxcls.models.Output(logits, embed) from its __call__"
                )
            return out.embed

        return embed

    def variables(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Returns the variables for predictions: the average if best.metric scores it."""
        if weights["ema"] and self.config.best.metric.startswith("ema_"):
            return weights["ema"]
        return {name: weights[name] for name in ("params", "batch_stats")}
