"""Checks of a config with its data and devices, before a run writes anything."""

import contextlib
import inspect
import re
from collections.abc import Iterator

import flax.errors
import jax
import jax.numpy as jnp

from jaxcls.config import calls, durations
from jaxcls.config import loading as configs
from jaxcls.config.loading import check_alone
from jaxcls.config.rules import PROBE
from jaxcls.devices import mesh
from jaxcls.errors import InputError, first_line
from jaxcls.experiment import Experiment
from jaxcls.experiment.recipe import Recipe
from jaxcls.learning import metrics, schedules, wrappers
from jaxcls.models import foreign, naming
from jaxcls.models.foreign import Foreign
from jaxcls.models.layers import blocks_of

# The most of the initial params in an average at the end that is not worth a line.
_STILL_START = 0.05


def check(exp: Experiment) -> None:
    """Raises `InputError` if an experiment cannot run as its config asks.

    It traces the whole train step from shapes alone and keeps the trace for the compiler.
    """
    check_alone(exp.config)
    _batch_size(exp)
    with _options_of(exp.config.model.name):
        _model(exp.recipe)
    _optimizer(exp.recipe)
    _probe(exp.recipe)
    _loss(exp.recipe)
    _metrics(exp.recipe)
    with _options_of(exp.config.model.name):
        _ = exp.programs.lowered_train_step


def notes(exp: Experiment) -> list[str]:
    """Returns lines about what runs as its config asks, and may not be what is meant."""
    config, found = exp.config, []
    decay, updates = config.ema.decay, exp.plan.steps // config.ema.every
    if decay and not config.ema.warmup and decay**updates > _STILL_START:
        other = f"ema.decay={_decay_for(updates)}" if updates else "a smaller ema.every"
        found.append(
            f"ema.decay={decay} leaves {decay**updates:.0%} of the initial params in the"
            f" average after all {updates:,} updates; try ema.warmup=true, or {other}"
        )
    if config.optim.lora and not config.init.weights:
        found.append(
            f"optim.lora={config.optim.lora!r} trains its parts and the head alone, and all"
            " else stays as random as it starts; give init.weights"
        )
    statistics = exp.recipe.variables_like["batch_stats"]
    if exp.recipe.has_averaging_optimizer and statistics:
        found.append(
            f"optim.wrapper={config.optim.wrapper!r} scores averaged params with"
            " BatchNorm's statistics of other params, so scores may be lower than those of"
            " a model without BatchNorm"
        )
    if fast := _fast_weights(exp):
        found.append(fast)
    return found


def _fast_weights(exp: Experiment) -> str:
    """Returns a line on the first step that is scored with lookahead's fast weights, or "".

    The model of Zhang et al. (arXiv:1907.08610) is the slow weights. The params are these
    after each `every` updates, and after the last one by `final`.
    """
    plan, text, period = exp.plan, exp.config.optim.wrapper, exp.plan.every["eval"]
    (call, *_) = calls.parse(text or "none", "optim.wrapper")
    if call.name != "lookahead":
        return ""
    options = inspect.signature(wrappers.lookahead).bind(None, *call.args, **call.kwargs)
    options.apply_defaults()
    every = options.arguments["every"]
    said = f"optim.wrapper={text!r}: the model is the slow weights, and the fast ones are"
    # After so many periods the remainders repeat.
    for count in range(1, every * period.denominator + 1):
        step = durations.step_of(count, period)
        if step >= plan.steps or not plan.evaluates:
            break
        if step % every:
            near = max(1, round(period / every)) * every
            return f"{said} scored after step {step}; try eval.every='{near} steps'"
    if plan.steps % every and not options.arguments["final"]:
        return f"{said} the last, after step {plan.steps}; leave out final=False"
    return ""


def _decay_for(updates: int) -> float:
    """Returns a decay below 1 that leaves about 1 % of the start after so many updates."""
    return round(1 - float(f"{1 - 0.01 ** (1 / updates):.2g}"), 12)


@contextlib.contextmanager
def _options_of(model: str) -> Iterator[None]:
    """Turn an error in building a model with options into an `InputError`."""
    try:
        yield
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        if "(" not in model:
            raise  # No option of the user's: a bug of ours.
        raise InputError(
            f"model.name={model!r} cannot be built with these options"
            f" ({type(error).__name__}: {first_line(error)})"
        ) from None


def _batch_size(exp: Experiment) -> None:
    """Checks that the batch divides over devices, hosts and microbatches."""
    size, count = exp.config.batch_size, exp.config.optim.accumulate
    mesh.check_divides(exp.mesh, size, "batch_size")
    if size // count % exp.mesh.size:
        raise InputError(
            f"optim.accumulate={count} makes microbatches of {size // count} examples,"
            f" which do not spread over {exp.mesh.size} devices; take fewer microbatches or"
            " a larger batch_size"
        )


def _model(recipe: Recipe) -> None:
    """Checks the model's image sizes, recompute, and BatchNorm in microbatches."""
    model, train = recipe.config.model, recipe.data.train_shape
    for shape in {recipe.data.eval_shape, *recipe.data.train_shapes}:
        images = jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
        try:
            jax.eval_shape(recipe.logits_step(), recipe.variables_like, images)
        except flax.errors.ScopeParamShapeError:
            raise InputError(
                f"model.name={model.name} trained on {train[1]}x{train[0]}"
                f" pixels cannot take {shape[1]}x{shape[0]}; end data.train_ops and"
                " data.eval_ops in the same size"
            ) from None
    if model.remat and not blocks_of(recipe.groups):
        raise InputError(
            f"model.remat={model.remat!r}: model.name={model.name!r} is not made of blocks,"
            " as 'vit_s_16' and 'resnet50' are; leave model.remat at ''"
        )
    count = recipe.config.optim.accumulate
    if isinstance(recipe.module, Foreign):
        _foreign_statistics(recipe)
    statistics = naming.flatten(recipe.variables_like["batch_stats"])
    moving = statistics.keys() - naming.flatten(recipe.frozen_statistics).keys()
    has_norm = any(path.endswith("var") for path in moving)
    if has_norm and model.batch_norm_groups % count:
        raise InputError(
            f"optim.accumulate={count} would give BatchNorm other statistics than the"
            " whole batch; say that they are the microbatches': model.batch_norm_groups="
            f"{count}"
        )


def _foreign_statistics(recipe: Recipe) -> None:
    """Checks that a plug-in's model can freeze or group its BatchNorm, if it is asked."""
    config = recipe.config
    key = f"model.batch_norm_groups={config.model.batch_norm_groups}"
    if recipe.frozen_statistics:
        key = f"optim.freeze={config.optim.freeze!r}"
    elif config.model.batch_norm_groups <= config.optim.accumulate:
        return
    images = jax.ShapeDtypeStruct((1, *recipe.data.train_shape), jnp.float32)
    others = foreign.other_statistics(recipe.network, recipe.variables_like, images)
    if others:
        raise InputError(
            f"{key} does not reach {others[0]} of model.name={config.model.name!r}, which"
            " Flax's or another BatchNorm keeps; use jaxcls.models.layers.BatchNorm there"
        )


def _optimizer(recipe: Recipe) -> None:
    """Checks the combination of rate, average and freezing."""
    config, optim, plan = recipe.config, recipe.config.optim, recipe.plan
    key = f"optim.schedule={optim.schedule!r}"
    if optim.lora and optim.freeze:
        raise InputError(
            f"optim.freeze={optim.freeze!r} and optim.lora={optim.lora!r} would both say"
            " what trains, and optim.lora trains its parts and the head; leave one of them"
            " out"
        )
    _ = recipe.schedule  # It raises unless the text is one schedule.
    name = calls.parse(optim.schedule, "optim.schedule")[0].name
    if plan.warmup and name in schedules.RISING:
        raise InputError(
            f"{key} rises by itself, and optim.warmup={optim.warmup!r} would come before"
            " it; give optim.warmup='0 steps'"
        )
    if optim.warmup_from and not plan.warmup:
        raise InputError(
            f"optim.warmup_from={optim.warmup_from} does nothing where"
            f" optim.warmup={optim.warmup!r} is 0 steps; set a longer warm-up, or leave"
            " optim.warmup_from at 0.0"
        )
    last = plan.steps - plan.cooldown
    if plan.cooldown and float(recipe.schedule(jnp.int32(last))) < 1e-4 * plan.lr:
        raise InputError(
            f"{key} is at its end where optim.cooldown={optim.cooldown!r} begins; give"
            " 'constant' or 'rsqrt', or no cool-down"
        )
    if not recipe.has_averaging_optimizer:
        return
    wrapper, metric = f"optim.wrapper={optim.wrapper!r}", config.best.metric
    if config.ema.decay:
        raise InputError(
            f"ema.decay={config.ema.decay} and {wrapper} would both average the params;"
            " leave one of them out"
        )
    if name != "constant" or not metric.startswith("ema_"):
        raise InputError(
            f"{wrapper} is for a constant rate, and its average is scored as ema_...: give"
            " optim.schedule='constant' and"
            f" best.metric={'ema_' + metric.removeprefix('ema_')!r}"
        )


def _probe(recipe: Recipe) -> None:
    """Checks that a probe has no setting that it would not use."""
    config = recipe.config
    if not config.probe.penalties:
        return
    values = configs.flat(config)
    for key, value in {**PROBE, "data.train_ops": values["data.eval_ops"]}.items():
        if values[key] != value:
            raise InputError(
                f"{key}={values[key]!r} has no part in a probe (probe.penalties="
                f"{config.probe.penalties!r}); give --config.{key}={value!r}, or call"
                " jaxcls probe, which does"
            )
    if not config.data.eval:
        raise InputError("a probe chooses its penalty on data.eval; give a split of it")


def _metrics(recipe: Recipe) -> None:
    """Checks that there are classes to tell apart, and that best.metric can move."""
    classes, config = recipe.data.selection.num_classes, recipe.config
    if classes < 2:
        raise InputError(
            f"data.name={config.data.name!r} has {classes} class in use, and there is"
            " nothing to tell apart; give a dataset, or data.classes, of two or more"
        )
    name = config.best.metric.removeprefix(metrics.AVERAGED)
    if re.fullmatch(r"top\d+", name) and int(name[3:]) >= classes:
        raise InputError(
            f"best.metric={config.best.metric!r} is always 1 with {classes} classes, so it"
            " chooses nothing; give best.metric='top1'"
        )


def _loss(recipe: Recipe) -> None:
    """Checks the combination of loss, smoothing and class weights."""
    config, loss = recipe.config, recipe.config.loss
    if loss.class_weights.strip() == "balanced" and config.data.balance:
        raise InputError(
            "loss.class_weights='balanced' and data.balance=True would both correct for the"
            " classes' counts; use one of them"
        )
    _ = recipe.loss  # Raises for a bad name.
    (call,) = calls.parse(loss.name, "loss.name")
    threshold = call.kwargs.get("threshold", (*call.args, 0.0)[0])
    off = loss.smoothing / recipe.data.selection.num_classes
    on = 1 - loss.smoothing + off
    if call.name == "sigmoid" and threshold and not off < threshold < on:
        raise InputError(
            f"loss.smoothing={loss.smoothing} makes targets of {off:g} and {on:g}, and"
            f" loss.name={loss.name!r} tells them apart at {threshold}; try"
            " loss.smoothing=0.0"
        )
